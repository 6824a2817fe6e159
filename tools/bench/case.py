"""`Case` says what a benchmark measures; the workloads below make the model, the images and the regions for it.

Legend: B images, n regions of an image, S side of the image, S0 side of a crop.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.flops import TowerFlops, pooling_flops, tower_flops
from bench.measure import Run
from clipself_seg.clip import CLIP, load_clip
from clipself_seg.clip.levers import stock_products
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.runtime import without_values
from clipself_seg.clip.tower import TowerOptions
from clipself_seg.data.images import letterbox_crops, letterbox_image
from clipself_seg.data.regions import grid_boxes, relative_boxes
from clipself_seg.errors import InputError
from clipself_seg.models.model_base import ModelBase

Task = Literal["dense", "distill", "regions", "semseg", "panoptic", "detection"]
COMPILED = ("dense", "distill", "regions", "semseg")
REGIONS = 13  # n
IMAGE_SIZE = (480, 640)  # rows and columns of the made-up image, COCO's most common size


@dataclasses.dataclass(frozen=True)
class Case:
    """One case to measure: task, model and sizes.

    Attributes:
        task: "dense", "distill", "regions", "semseg", "panoptic" or "detection".
        model: open_clip's name; its weights are random.
        size: S, in pixels; "semseg" and "panoptic" do not read it.
        batch: B.
        precision: "float32", or the lower precision of autocast.
        compile: whether the tower's blocks are compiled; those of plain formulations never are.
        repeats: number of timed calls of each part.
        threads: number of torch's threads on the CPU.
        device: "cpu" or "cuda".
        classes: number of classes: the first of ADE20K's 847; "panoptic" and "detection" take random vectors.
        training: a training step of "semseg" instead of inference.
        pieces: elements that a piece of work makes at once on a GPU; None for `clip.runtime.CHUNK_ELEMENTS`.
        only: names of the parts that are measured, each with its plain formulation; () for all.
    """

    task: Task
    model: str
    size: int = 1024
    batch: int = 1
    precision: str = "float32"
    compile: bool = False
    repeats: int = 5
    threads: int = 2
    device: str = "cpu"
    classes: int = 150
    training: bool = False
    pieces: int | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in "size batch repeats threads classes pieces".split():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} {value} measures nothing; at least 1")
        if self.compile and self.task not in COMPILED:
            raise InputError(f"--compile is for {', '.join(COMPILED)}, not for {self.task}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("torch sees no GPU here; leave --device out to measure the CPU")


M = TypeVar("M")


def seeded(build: Callable[[], M]) -> M:
    """Calls `build` with the same random numbers every time; returns what it returns."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Recomputed(Protocol):
    """A module that can recompute activations in the backward pass in place of keeping them."""

    checkpointing: bool


class Workload:
    """The CLIP and the image of a case, both made at their first use."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.device = torch.device(case.device)

    @functools.cached_property
    def clip(self) -> CLIP:
        """The CLIP, with the same random weights in every call."""
        clip = seeded(lambda: load_clip(self.case.model, None)).to(self.device)
        if self.case.compile:
            clip.visual.configure(TowerOptions(compiled=True))
        return clip

    @property
    def precision(self) -> torch.dtype | None:
        """Dtype of autocast, None for float32."""
        name = self.case.precision
        return None if name == "float32" else getattr(torch, name)

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """An image of noise, (H, W, 3) uint8."""
        return np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)

    def without_gradients(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A function that calls another one without gradients, in the case's precision."""

        def run(prepared: Any) -> Any:
            with torch.no_grad(), autocast(self.device, self.precision):
                return function(prepared)

        return run

    def with_stock_products(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A function that does the same as that of `without_gradients`, with torch's stock linear layers."""

        def run(prepared: Any) -> Any:
            with stock_products():
                return self.without_gradients(function)(prepared)

        return run

    def pair(
        self,
        name: str,
        ours: Callable[[Any], object],
        plain: Callable[[Any], object],
        flops: int = 0,
        **how: Any,
    ) -> dict[str, Run]:
        """Runs of a part in both formulations, without gradients."""
        return {
            name: Run(self.without_gradients(ours), flops, **how),
            f"plain {name}": Run(self.with_stock_products(plain), flops, **how),
        }

    def training_runs(
        self,
        model: ModelBase,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], Tensor],
        plain_loss: Callable[[], Tensor],
        checkpointed: Sequence[Recomputed],
        flops: int,
    ) -> dict[str, Run]:
        """Runs of a training step, of a plain one, and of one with parts of the model checkpointed."""

        def step(formulation: Callable[[], Tensor]) -> float:
            """A training step as `Trainer` makes it; returns the loss."""
            optimizer.zero_grad()
            computed = formulation()
            computed.backward()
            torch.nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if p.grad is not None]
            )
            optimizer.step()
            model.after_optimizer_step()
            return computed.item()

        def plain() -> Tensor:
            with stock_products(), autocast(self.device, self.precision):
                return plain_loss()

        def with_less_memory(_: None) -> float:
            for part in checkpointed:
                part.checkpointing = True
            try:
                return step(loss)
            finally:
                for part in checkpointed:
                    part.checkpointing = False

        return {
            "step": Run(lambda _: step(loss), flops, calls=2),
            "plain step": Run(lambda _: step(plain), flops, calls=2),
            "checkpointed step": Run(with_less_memory, flops, calls=2),
        }


class PartWorkload(Workload):
    """A `Workload` whose modules are made at their first use, with the same random numbers in every call."""

    def __init__(self, case: Case) -> None:
        """
        Raises:
            InputError: unknown model.
        """
        super().__init__(case)
        with without_values():  # of the operations only shapes are needed
            self.outline = load_clip(case.model, None).requires_grad_(False)


class RegionWorkload(Workload):
    """A `Workload` that also has square inputs, boxes and crops, each made at its first use."""

    def __init__(self, case: Case) -> None:
        """
        Raises:
            InputError: unknown model, or a size that its patch does not divide.
        """
        super().__init__(case)
        self.clip.check_side(case.size)
        self.tokens = case.size // self.clip.patch_size

    @property
    def flops(self) -> TowerFlops:
        """Operations for one image."""
        return tower_flops(self.clip.visual, self.case.size, self.clip.image_size)

    @property
    def pooling(self) -> int:
        """Operations to pool one image's boxes, or masks."""
        return pooling_flops(self.tokens**2, self.clip.embed_dim, REGIONS)

    @functools.cached_property
    def cells(self) -> np.ndarray:
        """Cells of a grid over the image, (n, 4) XYXY in pixels."""
        split = math.ceil(math.sqrt(REGIONS))
        return grid_boxes(split, split, IMAGE_SIZE[1], IMAGE_SIZE[0])[:REGIONS]

    @functools.cached_property
    def boxes(self) -> Tensor:
        """The cells in the padded square, (n, 4) XYXY in [0, 1]."""
        return torch.from_numpy(relative_boxes(self.cells, IMAGE_SIZE[1], IMAGE_SIZE[0])).float()

    def crops(self, boxes: np.ndarray) -> Tensor:
        """Crops of boxes (n, 4) in pixels, cut out in each call, (n, 3, S0, S0) uint8."""
        crops = letterbox_crops(self.pixels, boxes, self.clip.image_size)
        return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()

    def square(self) -> Tensor:
        """The letterboxed image, made in each call, (3, S, S) uint8."""
        square = torch.from_numpy(letterbox_image(self.pixels, self.case.size))
        return square.permute(2, 0, 1).contiguous()

    @functools.cached_property
    def images(self) -> Tensor:
        """A batch of the letterboxed image, normalised, (B, 3, S, S)."""
        squares = self.square().expand(self.case.batch, -1, -1, -1)
        return self.clip.preprocess(squares.to(self.device))


class SampledWorkload(RegionWorkload, abc.ABC):
    """A `RegionWorkload` whose batch of samples is made in both formulations."""

    @abc.abstractmethod
    def _sample(self) -> dict[str, Any]:
        """One sample."""

    @abc.abstractmethod
    def _plain_sample(self) -> dict[str, Tensor]:
        """The same in the plain formulation."""

    @functools.cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Samples of one batch."""
        return [self._sample() for _ in range(self.case.batch)]

    @functools.cached_property
    def plain_samples(self) -> list[dict[str, Tensor]]:
        """The same samples, made by the plain formulation."""
        return [self._plain_sample() for _ in range(self.case.batch)]
