"""The second stage of F-ViT: pools RoIs, scores them against texts by detector and CLIP, refines boxes, finds masks.

The mask head (OV-LVIS) and its loss come last.

Shapes: B images, g x g cells of CLIP's grid, n RoIs, K classes, E width of CLIP's embeddings, S = 28 cells of a side
of a mask, H W rows and columns of the image. The background is the last row of the text. Boxes are XYXY in pixels of
the padded square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from clipself_seg.clip.precision import autocast, in_own_precision
from clipself_seg.clip.region_pooling import pool, strided_box_weights
from clipself_seg.clip.runtime import QUEUES, chunk_size
from clipself_seg.heads.fusion import fuse_detections
from clipself_seg.heads.fvit import boxes as box_ops
from clipself_seg.heads.fvit.pyramid import CHANNELS, ConvNorm, kaiming_normal, xavier_uniform
from clipself_seg.heads.maps import several_processes

SIDE = 7
MASK_SIDE = 14
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of deltas: 1 / (0.1, 0.1, 0.2, 0.2)."""
EPS = 1e-12
LEVELS = 4
FINEST = 56.0
"""Side in pixels of a box from which on the second level is read, whatever the strides are."""
ROIS = 64
"""RoIs whose maps are in memory at once on a CPU, but in training."""
COPIES = 8
"""Numbers in memory for one of an RoI's: maps of two layers, and the four times as many cells of the mask."""
TEMPERATURE = 50.0
"""Factor of the detector's cosines that training begins with."""


class LossSettings(NamedTuple):
    """Settings of the losses.

    Attributes:
        background_weight: weight of a RoI without an object in the classification loss.
        roi_rule: rule by which proposals belong to objects.
        seed: seed of the random choices of anchors and RoIs.
        rois: number of RoIs of an image that the losses see.
    """

    background_weight: float = 0.6
    roi_rule: box_ops.MatchRule = box_ops.ROI_RULES[False]
    seed: int = 0
    rois: int = 512


class DetectionSettings(NamedTuple):
    """Settings of detection.

    Attributes:
        alpha: exponent of CLIP's scores of seen classes and the background, in [0, 1].
        beta: exponent of CLIP's scores of unseen classes, in [0, 1].
        temperature: factor of the detector's cosines; None for the learned one.
        clip_temperature: factor of CLIP's cosines.
        rule: threshold, overlap and number of detections.
    """

    alpha: float = 0.1
    beta: float = 0.8
    temperature: float | None = None
    clip_temperature: float = 75.0
    rule: box_ops.DetectionRule = box_ops.DetectionRule()


class RoIHeads(nn.Module):
    """Box head, and mask head where the model has masks, under the names of the official checkpoints."""

    def __init__(
        self,
        embed_dim: int,
        strides: Sequence[float],
        training: LossSettings,
        settings: DetectionSettings,
        *,
        channels: int = CHANNELS,
        masks: bool = False,
    ) -> None:
        """
        Args:
            embed_dim: E.
            strides: pixels between the cells of P2 to P6.
            training: settings of the losses.
            settings: settings of detection.
            channels: channels of the pyramid.
            masks: True if there is a mask head.
        """
        super().__init__()
        self.strides = list(strides)
        self.loss_settings = training
        self.settings = settings
        self.bbox_head = BoxHead(embed_dim, channels)
        self.mask_head = MaskHead(channels) if masks else None

    def embed(self, levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class embeddings (sum n, E), unit length, and deltas (sum n, 4) of the boxes (n, 4) of each image."""
        return self.bbox_head(pool_boxes(levels, self.strides, boxes, SIDE))

    def losses(
        self,
        levels: Sequence[Tensor],
        proposals: Sequence[Tensor],
        objects: Sequence[box_ops.Objects],
        text: Tensor,
        seen: Tensor,
        precision: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Losses of box head and mask head by name, scalars.

        Args:
            levels: P2 to P6, (B, C, s, s) each.
            proposals: (m, 4) of each image.
            objects: those of each image.
            text: (K + 1, E), background last.
            seen: (K,) bool, classes that training shows.
            precision: dtype of autocast, or None.
        """
        chosen = self.sample_rois(proposals, objects, len(seen))
        device = levels[0].device
        with autocast(device, precision):
            embeddings, deltas = self.embed(levels, [rois.boxes for rois in chosen])
        logits = self.bbox_head.logits(embeddings, text)
        classification, regression = box_losses(
            logits, deltas, chosen, seen, self.loss_settings.background_weight
        )
        losses = {"loss_cls": classification, "loss_bbox": regression}
        if self.mask_head is None:
            return losses
        positive = [rois.boxes[: rois.positives] for rois in chosen]
        masks = []
        for of_image, rois in zip(objects, chosen):
            assert of_image.masks is not None
            masks.append(of_image.masks[rois.numbers[: rois.positives] - 1])
        with autocast(device, precision):
            predicted = self.mask_head(pool_boxes(levels, self.strides, positive, MASK_SIDE))
        square = (levels[0].shape[2] * self.strides[0], levels[0].shape[3] * self.strides[0])
        return losses | {"loss_mask": mask_loss(predicted, mask_targets(positive, masks, square))}

    def sample_rois(
        self, proposals: Sequence[Tensor], objects: Sequence[box_ops.Objects], background: int
    ) -> list[SampledRoIs]:
        """RoIs of each image that the losses see; the objects stand before the proposals (m, 4), each its own.

        Args:
            proposals: of each image.
            objects: those of each image.
            background: label of RoIs without an object.
        """
        device, settings = proposals[0].device, self.loss_settings
        assigned = [
            torch.cat(
                [
                    torch.arange(1, len(of_image.boxes) + 1, device=device),
                    box_ops.match_boxes(of_image.boxes, proposed, settings.roi_rule),
                ]
            )
            for of_image, proposed in zip(objects, proposals, strict=True)
        ]
        generators = [
            box_ops.generator_of(settings.seed, of_image.draw, "rois") for of_image in objects
        ]
        sampled = box_ops.sample_boxes(
            assigned, box_ops.ROI_SAMPLING._replace(number=settings.rois), generators
        )
        chosen = []
        for of_image, proposed, assigned_n, (positive, negative) in zip(
            objects, proposals, assigned, sampled
        ):
            both = torch.cat([positive, negative])
            numbers = assigned_n[both]
            # Row 0 stands for no object.
            padded = torch.cat([of_image.boxes.new_zeros(1, 4), of_image.boxes])
            labels = of_image.labels
            classes = torch.cat([labels.new_full((1,), background), labels])
            boxes = torch.cat([of_image.boxes, proposed])[both]
            chosen.append(
                SampledRoIs(boxes, classes[numbers], numbers, padded[numbers], len(positive))
            )
        return chosen

    def detect(
        self,
        levels: Sequence[Tensor],
        dense: Tensor,
        proposals: Tensor,
        image_size: tuple[int, int],
        scale: Tensor,
        text: Tensor,
        seen: Tensor,
        precision: torch.dtype | None = None,
    ) -> tuple[box_ops.Detected, Tensor | None]:
        """Best detections of one image among its proposals, with boxes divided by `scale`; and, of a model with
        masks, scores (m, 28, 28) in [0, 1] of the mask in each box.

        Both scores are of the proposal, before it is refined.

        Args:
            levels: P2 to P6, (1, C, s, s) each.
            dense: unit dense features (E, g, g).
            proposals: (n, 4).
            image_size: rows and columns of the image in the square.
            scale: pixels of the square for each pixel of the result, (4,).
            text: (K + 1, E), background last.
            seen: (K,) bool, classes of the training vocabulary.
            precision: dtype of autocast, or None.
        """
        settings, device = self.settings, proposals.device
        with autocast(device, precision):
            embeddings, deltas = self.embed(levels, [proposals])
        detector = self.bbox_head.logits(embeddings, text, settings.temperature)
        clip_logits = self.clip_logits(dense, proposals, text)
        scores = fuse_detections(detector, clip_logits, seen, settings.alpha, settings.beta)
        boxes = box_ops.decode_boxes(proposals, deltas, image_size, DELTA_WEIGHTS)
        detected = box_ops.select_detections(boxes / scale, scores[:, :-1], settings.rule)
        if self.mask_head is None:
            return detected, None
        boxes = detected.boxes * scale
        with autocast(device, precision):
            logits = self.mask_head(pool_boxes(levels, self.strides, [boxes], MASK_SIDE))
        return detected, logits.float().sigmoid()

    def clip_logits(self, dense: Tensor, proposals: Tensor, text: Tensor) -> Tensor:
        """CLIP's logits (n, K + 1) of proposals, read from the dense features; the arguments are those of `detect`."""
        grid = (dense.shape[1], dense.shape[2])
        weights = strided_box_weights(proposals, self.strides[2], grid)
        regions = F.normalize(pool(dense, weights), dim=1)
        return self.settings.clip_temperature * (regions @ text.T)


class SampledRoIs(NamedTuple):
    """RoIs of an image that the losses see, positives first.

    Attributes:
        boxes: (n, 4).
        labels: (n,) class of each, K for background.
        numbers: (n,) number of the object of each from 1, or 0.
        objects: (n, 4) boxes of the objects; rows of negatives do not matter.
        positives: number of RoIs that have an object.
    """

    boxes: Tensor
    labels: Tensor
    numbers: Tensor
    objects: Tensor
    positives: int


def _positives(chosen: Sequence[SampledRoIs]) -> Tensor:
    """Indices (p,) of the RoIs of a batch that have an object, on the CPU."""
    rows, start = [], 0
    for rois in chosen:
        rows.append(torch.arange(start, start + rois.positives))
        start += len(rois.boxes)
    return torch.cat(rows)


class BoxHead(nn.Module):
    """Four convolutions, two shared layers, and a layer for each of class embedding and deltas.

    The names are those of the official checkpoints.
    """

    def __init__(self, embed_dim: int, channels: int) -> None:
        """
        Args:
            embed_dim: E.
            channels: channels of the pyramid.
        """
        super().__init__()
        self.shared_convs = nn.Sequential(*(ConvNorm(channels, channels, 3) for _ in range(4)))
        sizes = (channels * SIDE**2, embed_dim)
        self.shared_fcs = nn.ModuleList(nn.Linear(size, embed_dim) for size in sizes)
        self.cls_fcs = nn.ModuleList([nn.Linear(embed_dim, embed_dim)])
        self.reg_fcs = nn.ModuleList([nn.Linear(embed_dim, embed_dim)])
        self.fc_reg = nn.Linear(embed_dim, 4)
        self.detect_temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        kaiming_normal(self.shared_convs)
        for layers in (self.shared_fcs, self.cls_fcs, self.reg_fcs):
            xavier_uniform(layers)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        nn.init.zeros_(self.fc_reg.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class embeddings (n, E), unit length, and deltas (n, 4), of features (n, channels, 7, 7).

        A class embedding is what a ReLU leaves; where it leaves nothing it is 0 (the official code divides
        by 0 there).
        """
        hidden = self.shared_convs(features) if len(features) else features
        hidden = hidden.flatten(1)
        for layer in self.shared_fcs:
            hidden = F.relu(layer(hidden))
        classes = F.relu(in_own_precision(self.cls_fcs[0], hidden)).float()
        deltas = in_own_precision(self.fc_reg, F.relu(self.reg_fcs[0](hidden)))
        return F.normalize(classes, dim=1, eps=EPS), deltas.float()

    def logits(self, embeddings: Tensor, text: Tensor, temperature: float | None = None) -> Tensor:
        """Logits (n, K + 1) of class embeddings (n, E) against the text (K + 1, E).

        Args:
            embeddings: (n, E), unit length.
            text: (K + 1, E), unit length.
            temperature: factor of the cosines; None for the learned one.
        """
        scale = self.detect_temperature.float() if temperature is None else temperature
        return scale * (embeddings @ text.T)


def box_losses(
    logits: Tensor,
    deltas: Tensor,
    chosen: Sequence[SampledRoIs],
    trained: Tensor,
    background_weight: float,
) -> tuple[Tensor, Tensor]:
    """Classification and box loss, both divided by the number of RoIs, scalars.

    Args:
        logits: (n, K + 1).
        deltas: (n, 4).
        chosen: the n RoIs, of each image.
        trained: (K,) bool, classes that training shows; the others leave the softmax.
        background_weight: weight of RoIs without an object.
    """
    columns = torch.cat([trained, trained.new_ones(1)])
    masked = logits.float().masked_fill(~columns, -torch.inf)
    labels = torch.cat([rois.labels for rois in chosen])
    negative_log = F.cross_entropy(masked, labels, reduction="none")
    positive = _positives(chosen).to(deltas.device, non_blocking=QUEUES)
    weights = torch.full_like(negative_log, background_weight).index_fill(0, positive, 1.0)
    boxes = torch.cat([rois.boxes[: rois.positives] for rois in chosen])
    objects = torch.cat([rois.objects[: rois.positives] for rois in chosen])
    wanted = box_ops.encode_boxes(boxes, objects, DELTA_WEIGHTS)
    distance = (deltas[positive] - wanted).abs().sum()
    count = max(len(logits), 1)
    return (weights * negative_log).sum() / count, distance / count


def pyramid_levels(boxes_n4: Tensor) -> Tensor:
    """Level 0 to 3, for P2 to P5, that each box is read from, (n,) int64."""
    sides = ((boxes_n4[:, 2] - boxes_n4[:, 0]) * (boxes_n4[:, 3] - boxes_n4[:, 1])).sqrt()
    return (sides / FINEST + 1e-6).log2().floor().clamp(0, LEVELS - 1).long()


def pool_boxes(
    levels: Sequence[Tensor], strides: Sequence[float], boxes: Sequence[Tensor], side: int
) -> Tensor:
    """Features (sum n, C, side, side) of the boxes of each image, in order, in float32.

    Args:
        levels: P2 to P5, (B, C, h, w) each.
        strides: pixels between the cells of each.
        boxes: boxes (n, 4) of each image, in pixels.
        side: bins along a side of the result; each is the mean of as many samples as it has cells.
    """
    together = torch.cat([*boxes])
    image = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
    numbered = torch.cat([image, together], dim=1).float()
    of_levels = _by_level(pyramid_levels(together))
    pooled = levels[0].new_zeros(len(together), levels[0].shape[1], side, side, dtype=torch.float32)
    for of_level, level, stride in zip(of_levels, levels[:LEVELS], strides):
        read = roi_align(
            level.float(), numbered[of_level], side, 1 / stride, sampling_ratio=0, aligned=True
        )
        pooled.index_copy_(0, of_level, read)
    return pooled


def _by_level(level_n: Tensor) -> Sequence[Tensor]:
    """Indices of the boxes of each level, ascending; a GPU is waited for once."""
    counts = (level_n[:, None] == torch.arange(LEVELS, device=level_n.device)).sum(dim=0)
    sizes = counts.tolist()
    # A box that is none (its sides are not numbers) has a level below all others, and is not read.
    return level_n.argsort(stable=True).split([len(level_n) - sum(sizes), *sizes])[1:]


class MaskHead(nn.Module):
    """Four convolutions, one transposed, and a mask of 28 x 28 cells whatever the class."""

    def __init__(self, channels: int = CHANNELS) -> None:
        """
        Args:
            channels: channels of the pyramid.
        """
        super().__init__()
        self.convs = nn.Sequential(*(ConvNorm(channels, channels, 3) for _ in range(4)))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, 1, 1)
        kaiming_normal(self)

    def forward(self, features: Tensor) -> Tensor:
        """Mask logits (n, 28, 28) of features (n, channels, 14, 14)."""
        if not len(features):
            # Zero with a gradient of every parameter. In several processes the batch norms of the others wait for ours,
            # and not before the gradients of the last layers, which are sent first: autograd goes back from the end.
            waits = 0 * self.convs(features).sum() if self.training and several_processes() else 0
            nothing = waits + 0 * torch.stack([p.sum() for p in self.parameters()]).sum()
            return nothing.expand(0, 2 * MASK_SIDE, 2 * MASK_SIDE)
        if torch.is_grad_enabled():
            return self._logits(self.convs(features))
        count = chunk_size(features.device, ROIS, COPIES * features[0].numel())
        return torch.cat([self._logits(self.convs(part)) for part in features.split(count)])

    def _logits(self, hidden: Tensor) -> Tensor:
        """``conv_logits(relu(upsample(hidden)))``, without maps of 256 channels and 28 x 28 cells.

        The four cells that come of one are groups of channels, and only their logits are put in place.
        """
        weight = self.upsample.weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None]
        assert self.upsample.bias is not None and self.conv_logits.bias is not None
        cells = F.relu_(F.conv2d(hidden, weight, self.upsample.bias.repeat(4)))
        own, bias = self.conv_logits.weight.repeat(4, 1, 1, 1), self.conv_logits.bias.repeat(4)
        return F.pixel_shuffle(F.conv2d(cells, own, bias, groups=4), 2)[:, 0]


def mask_targets(
    boxes: Sequence[Tensor], masks: Sequence[Tensor], square: tuple[float, float]
) -> Tensor:
    """Masks of RoIs, (n, 28, 28) in {0, 1}: the object's mask read in the RoI by RoIAlign, at least 1/2.

    Args:
        boxes: positive RoIs (m, 4) of each image.
        masks: for each image the mask (m, h, w) of the object of each RoI, without padding.
        square: rows and columns in pixels of the padded image.
    """
    read = [
        roi_align(
            _padded(own.float(), square)[:, None],
            torch.cat([torch.arange(len(b), device=b.device)[:, None].to(b), b], dim=1),
            2 * MASK_SIDE,
            1.0,
            sampling_ratio=0,
            aligned=True,
        )[:, 0]
        for b, own in zip(boxes, masks, strict=True)
    ]
    return (torch.cat(read) >= 0.5).float()


def _padded(masks: Tensor, square: tuple[float, float]) -> Tensor:
    """Masks (m, h, w) with zeros below and at the right where the image is padded.

    A sample lies at most half a pixel outside of the last one, so that one row and one column are as good as all.
    """
    below, right = (int(side > own) for side, own in zip(square, masks.shape[1:]))
    return F.pad(masks, (0, right, 0, below)) if below or right else masks


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels of all positive RoIs; 0 without any."""
    if not len(logits):
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits.float(), targets)
