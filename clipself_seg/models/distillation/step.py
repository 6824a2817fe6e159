"""Features of student and teacher in one training step, for the objectives; each is computed once.

Shapes: B images, R regions of all images, n regions of one image, E embedding, h x w cells of the
    dense features, N = h w of them, D width of the tower, S0 side of the CLIP's own images.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.region_pooling import box_weights, pool
from clipself_seg.clip.runtime import autocast
from clipself_seg.clip.tower import DENSE, KEYS, QUERIES, ImageTower
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.heads.distillation import Average, loss_count, region_mean
from clipself_seg.models.inputs import on_device, send

IMAGE = "image"
# What an objective may read of the student: features of one pass over the step's images, and image embeddings, with
# attention in all blocks.
READS = (DENSE, QUERIES, KEYS, IMAGE)


class Step:
    """Computes features of one step's samples, each when it is first asked for, and once.

    Towers run in the run's precision; what an objective computes itself is outside of autocast.

    Attributes:
        samples: the samples of this process; which keys they have is for their mapper and the objective.
        images: (B, 3, S', S') the student's input, normalised.
        student: image tower that learns.
        teacher: the original CLIP, frozen.
        synchronised: whether the loss is that of the samples of all processes.
    """

    def __init__(
        self,
        *,
        samples: Sequence[Sample],
        images: Tensor,
        student: ImageTower,
        teacher: DenseCLIP,
        precision: torch.dtype | None,
        average: Average,
        synchronised: bool,
        reads: Sequence[str] = (DENSE,),
    ) -> None:
        """
        Args:
            samples: see the attributes; one at least.
            images: see the attributes.
            student: see the attributes.
            teacher: see the attributes.
            precision: dtype of autocast, or None.
            average: what losses of regions are averaged over, see `region_mean`.
            synchronised: see the attributes; else every process trains by itself.
            reads: what the objective reads of the student, out of `READS`.
        """
        self.samples = samples
        self.images = images
        self.student = student
        self.teacher = teacher
        self._precision = precision
        self._average = average
        self.synchronised = synchronised
        self._features = [name for name in reads if name != IMAGE]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.images.device

    def in_precision(self) -> contextlib.AbstractContextManager:
        """Context in which frozen and learning networks compute: autocast, if the run has it."""
        return autocast(self.device, self._precision)

    @functools.cached_property
    def regions_per_image(self) -> list[int]:
        """Number of regions of each image."""
        return [len(sample["boxes"]) for sample in self.samples]

    @functools.cached_property
    def maps(self) -> dict[str, Tensor]:
        """The student's features (B, E or D, h, w) by name, those of them that the objective reads; of one pass."""
        with self.in_precision():
            return self.student.features(self.images, self._features)

    @functools.cached_property
    def dense_BEhw(self) -> Tensor:
        """The student's dense features, unit length per location, float32."""
        with self.in_precision():
            return F.normalize(self.maps[DENSE].float(), dim=1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the student's features."""
        height, width = next(iter(self.maps.values())).shape[2:]
        return height, width

    @functools.cached_property
    def valid_BN(self) -> Tensor | None:
        """Cells into which the image reaches, which are no padding alone, by "whole" (1, 4), the box of the image.

        None if the samples have no "whole".
        """
        if "whole" not in self.samples[0]:
            return None
        cells = [_reached(sample["whole"], self.grid) for sample in self.samples]
        return send(torch.stack(cells), self.device)

    @functools.cached_property
    def original_BEhw(self) -> Tensor:
        """The original's dense features of the same images, without gradient and of any length, float32."""
        with torch.no_grad(), self.in_precision():
            return self.teacher.visual.dense(self.images).float()

    @functools.cached_property
    def student_RE(self) -> Tensor:
        """Means (R, E) of the student's dense features over "boxes", see `pooled`."""
        return self.pooled([sample["boxes"] for sample in self.samples])

    def pooled(self, boxes: Sequence[Tensor]) -> Tensor:
        """Means (R, E) of the dense features over boxes, by RoIAlign; float32, not of unit length.

        Args:
            boxes: for each image (n, 4) XYXY in [0, 1] of the padded square.
        """
        with self.in_precision():
            # The weights are made where the boxes are: on the CPU, without waiting for the GPU.
            weights = [box_weights(boxes_n4, self.grid) for boxes_n4 in boxes]
        rows = [
            pool(features_Ehw, send(weights_nhw, self.device))
            for features_Ehw, weights_nhw in zip(self.dense_BEhw, weights, strict=True)
        ]
        return torch.cat(rows)

    @functools.cached_property
    def crops(self) -> Tensor:
        """All "crops" (R, 3, S0, S0), normalised."""
        return self.teacher.preprocess(torch.cat(on_device(self.samples, "crops", self.device)))

    @functools.cached_property
    def teacher_RE(self) -> Tensor:
        """The teacher's embeddings of all "crops" in one call, without gradient and not normalised."""
        with torch.no_grad(), self.in_precision():
            return self.teacher.visual(self.crops)

    @functools.cached_property
    def own_crops_RE(self) -> Tensor:
        """The student's image embeddings of all "crops" in one call; not normalised."""
        with self.in_precision():
            return self.student(self.crops)

    @functools.cached_property
    def pixels(self) -> Tensor:
        """RGB pixels (B, 3, S, S) of "image" in [0, 1]."""
        return torch.stack(on_device(self.samples, "image", self.device)).float() / 255

    @functools.cached_property
    def small_images(self) -> Tensor:
        """The padded images at the CLIP's own size (B, 3, S0, S0), normalised."""
        side = self.teacher.image_size
        sized = F.interpolate(self.pixels, (side, side), mode="bilinear", antialias=True)
        return self.teacher.normalise(sized)

    @functools.cached_property
    def own_small_BE(self) -> Tensor:
        """The student's image embeddings of `small_images`; not normalised."""
        with self.in_precision():
            return self.student(self.small_images)

    @functools.cached_property
    def teacher_small_BE(self) -> Tensor:
        """The teacher's image embeddings of `small_images`, without gradient and not normalised."""
        with torch.no_grad(), self.in_precision():
            return self.teacher.visual(self.small_images)

    @functools.cached_property
    def image_BE(self) -> Tensor:
        """The student's image embeddings, with attention in all blocks; not normalised."""
        with self.in_precision():
            return self.student(self.images)

    @functools.cached_property
    def caption_tokens_BL(self) -> Tensor:
        """Tokens of "caption" of each sample, int64, on the CPU."""
        return self.teacher.tokenize([sample["caption"] for sample in self.samples])

    @functools.cached_property
    def caption_BE(self) -> Tensor:
        """Text embeddings of the captions, without gradient and of unit length."""
        with torch.no_grad(), self.in_precision():
            return self.teacher.encode_text(self.caption_tokens_BL)

    @functools.cached_property
    def region_count(self) -> Tensor | None:
        """Mean over the processes of `loss_count`, so that the mean of their losses is the whole batch's.

        None for one process, and for processes that train by themselves. Every process has to ask.
        """
        if comm.get_world_size() == 1 or not self.synchronised:
            return None
        count = loss_count(self.regions_per_image, self._average)
        total = torch.full((), float(count), device=self.device)
        dist.all_reduce(total)
        return total.clamp(min=1) / comm.get_world_size()  # 0 regions have a loss of 0

    def region_mean(self, values_R: Tensor) -> Tensor:
        """Mean of a value of each region as ``MODEL.CLIPSELF.LOSS_AVERAGE`` says, over all processes."""
        return region_mean(values_R, self.regions_per_image, self._average, self.region_count)


def _reached(box_14: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cells (N,) that a box from the top left corner reaches into, by more than rounding; the first one always."""
    _, _, right, bottom = box_14[0]
    rows = torch.arange(grid[0]) < (bottom * grid[0] - 1e-4).clamp(min=0.5)
    columns = torch.arange(grid[1]) < (right * grid[1] - 1e-4).clamp(min=0.5)
    return (rows[:, None] & columns).flatten()
