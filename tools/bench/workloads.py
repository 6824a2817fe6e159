"""Benchmark workloads of dense features, distillation and regions, in the project's formulation and in the plain one.

Legend: B images, n regions of an image, H, W pixels of the image, S0 side of a crop, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bench import plain
from bench.case import IMAGE_SIZE, REGIONS, Case, RegionWorkload, SampledWorkload
from bench.cat_seg_workload import SemSegWorkload
from bench.detection_workload import DetectionWorkload
from bench.measure import Run
from bench.panoptic_workload import PanopticWorkload
from clipself_seg.clip import runtime
from clipself_seg.data.regions import enlarge_boxes, token_masks
from clipself_seg.models.clipself import CLIPSelf, DistillationTraining
from clipself_seg.models.optimizer_groups import matrices_and_vectors
from clipself_seg.models.region_reader import RegionReader
from clipself_seg.training.optimizer import build_adamw

WORDS = ("cat", "dog", "grass")


class DenseWorkload(RegionWorkload):
    """Dense features of a batch."""

    def runs(self) -> dict[str, Run]:
        """Timed runs of this task by name."""
        return self.pair(
            "dense",
            lambda _: self.clip.encode_dense(self.images),
            lambda _: plain.dense_features(self.clip.visual, self.images),
            self.case.batch * self.flops.dense,
        )


class DistillWorkload(SampledWorkload):
    """One training step of CLIPSelf."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.model = CLIPSelf(
            clip=self.clip, training=DistillationTraining(precision=self.precision)
        )
        self.model.to(self.device).train()
        self.optimizer = build_adamw(
            matrices_and_vectors(self.model.parameters(), 0.1), betas=(0.9, 0.98), eps=1e-6
        )

    def runs(self) -> dict[str, Run]:
        """Timed runs by name."""
        batch, flops = self.case.batch, self.flops
        teacher = batch * REGIONS * flops.image
        step = batch * (flops.dense + flops.dense_backward + 2 * self.pooling) + teacher
        return self.training_runs(
            self.model,
            self.optimizer,
            lambda: self.model(self.samples)["loss_clipself"],
            self._plain_loss,
            [self.model.student],
            step,
        )

    def _sample(self) -> dict[str, Any]:
        return {"image": self.square(), "boxes": self.boxes, "crops": self.crops(self.cells)}

    def _plain_sample(self) -> dict[str, Tensor]:
        crops = plain.prepare_crops(self.clip, self.pixels, self.cells)
        boxes = torch.zeros(len(crops), 5)
        boxes[: len(self.boxes), :4], boxes[: len(self.boxes), 4] = self.boxes, 1
        image = plain.prepare_image(self.clip, self.pixels, self.case.size)
        return {"image": image, "boxes": boxes, "crops": crops}

    def _plain_loss(self) -> Tensor:
        return plain.distillation_loss(self.clip.visual, self.model.student, self.plain_samples)


class RegionsWorkload(SampledWorkload):
    """Scores of boxes, masks and crops of a batch."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.reader = RegionReader(clip=self.clip, templates="single", precision=self.precision)
        self.reader.set_vocabulary(WORDS)

    def runs(self) -> dict[str, Run]:
        """Timed runs of this task by name."""
        crops = REGIONS * self.flops.image
        flops = self.case.batch * (self.flops.dense + crops + 2 * self.pooling)
        return {
            "scores": Run(self._scores, flops),
            "plain scores": Run(self.with_stock_products(self._plain_scores), flops),
        }

    @functools.cached_property
    def enlarged(self) -> np.ndarray:
        """(n, 4) XYXY pixels, what the crops show."""
        return enlarge_boxes(self.cells, 1.5, IMAGE_SIZE[1], IMAGE_SIZE[0])

    @functools.cached_property
    def masks(self) -> np.ndarray:
        """(n, H, W) bool, an ellipse in each box."""
        y, x = np.mgrid[: IMAGE_SIZE[0], : IMAGE_SIZE[1]] + 0.5
        x0, y0, x1, y1 = self.cells.T[:, :, None, None]
        return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1

    def _sample(self) -> dict[str, Any]:
        return {
            "image": self.square(),
            "boxes": self.boxes,
            "masks": token_masks(self.masks, self.tokens),
            "crops": self.crops(self.enlarged),
        }

    def _plain_sample(self) -> dict[str, Tensor]:
        return {
            "image": plain.prepare_image(self.clip, self.pixels, self.case.size),
            "boxes": self.boxes,
            "masks": plain.prepare_masks(self.masks, self.tokens),
            "crops": plain.prepare_crops(self.clip, self.pixels, self.enlarged),
        }

    def _scores(self, _: None) -> list[dict[str, Tensor]]:
        return [result["scores"] for result in self.reader(self.samples)]

    def _plain_scores(self, _: None) -> list[dict[str, Tensor]]:
        text_KE = self.reader.bank.embed(self.reader.names)
        return [plain.region_scores(self.clip, s, text_KE) for s in self.plain_samples]


class Timed(Protocol):
    """A workload."""

    def runs(self) -> dict[str, Run]:
        """Timed runs by name."""


TASKS: dict[str, Callable[[Case], Timed]] = {
    "dense": DenseWorkload,
    "distill": DistillWorkload,
    "regions": RegionsWorkload,
    "semseg": SemSegWorkload,
    "panoptic": PanopticWorkload,
    "detection": DetectionWorkload,
}


def build_runs(case: Case) -> Mapping[str, Run]:
    """The runs to time for a task, by name; the same weights and images at every call.

    A pair of formulations is called "X" and "plain X" (see `TASKS`).

    Raises:
        InputError: unknown model, or a size that its patch does not divide.
    """
    torch.manual_seed(0)
    runtime.CHUNK_ELEMENTS = case.pieces or runtime.CHUNK_ELEMENTS
    return TASKS[case.task](case).runs()
