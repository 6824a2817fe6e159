"""What an objective may ask of a training step: the student's and the teacher's view of its samples.

Shapes: B images, R regions of all images, n regions of one image, E embedding, h x w cells of the
    dense features.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.region_pooling import box_weights, pool
from clipself_seg.clip.tower import ImageTower
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.heads.distillation.losses import Average, loss_count, region_mean
from clipself_seg.models.inputs import on_device, send


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
        """
        self.samples = samples
        self.images = images
        self.student = student
        self.teacher = teacher
        self._precision = precision
        self._average = average
        self.synchronised = synchronised

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.images.device

    @functools.cached_property
    def regions_per_image(self) -> list[int]:
        """Number of regions of each image."""
        return [len(sample["boxes"]) for sample in self.samples]

    @functools.cached_property
    def dense_BEhw(self) -> Tensor:
        """The student's dense features, unit length per location, float32."""
        with autocast(self.device, self._precision):
            return F.normalize(self.student.dense(self.images).float(), dim=1)

    @functools.cached_property
    def student_RE(self) -> Tensor:
        """What `pooled` reads of "boxes"."""
        return self.pooled([sample["boxes"] for sample in self.samples])

    def pooled(self, boxes: Sequence[Tensor]) -> Tensor:
        """Means (R, E) of the dense features over boxes, by RoIAlign; float32, not of unit length.

        Args:
            boxes: for each image (n, 4) XYXY in [0, 1] of the padded square.
        """
        grid = (self.dense_BEhw.shape[2], self.dense_BEhw.shape[3])
        with autocast(self.device, self._precision):
            # The weights are made where the boxes are: on the CPU, without waiting for the GPU.
            weights = [box_weights(boxes_n4, grid) for boxes_n4 in boxes]
        rows = [
            pool(features_Ehw, send(weights_nhw, self.device))
            for features_Ehw, weights_nhw in zip(self.dense_BEhw, weights, strict=True)
        ]
        return torch.cat(rows)

    @functools.cached_property
    def teacher_RE(self) -> Tensor:
        """The teacher's embeddings of all "crops" in one call, without gradient and not normalised."""
        crops = torch.cat(on_device(self.samples, "crops", self.device))
        with torch.no_grad(), autocast(self.device, self._precision):
            images = self.teacher.preprocess(crops)
            return self.teacher.visual(images)

    @functools.cached_property
    def image_BE(self) -> Tensor:
        """The student's image embeddings, with attention in all blocks; not normalised."""
        with autocast(self.device, self._precision):
            return self.student(self.images)

    @functools.cached_property
    def caption_tokens_BL(self) -> Tensor:
        """Tokens of "caption" of each sample, int64, on the CPU."""
        return self.teacher.tokenize([sample["caption"] for sample in self.samples])

    @functools.cached_property
    def caption_BE(self) -> Tensor:
        """Text embeddings of the captions, without gradient and of unit length."""
        with torch.no_grad(), autocast(self.device, self._precision):
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
