"""Masks of an image with what is known of their classes, and the outputs of a panoptic model that they become.

Shapes: Q queries, K classes, H x W pixels of the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from clipself_seg.clip.runtime import on_device
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import TASKS, Fusion, fuse_scores, fusion_of, name_masks
from clipself_seg.heads.panoptic import panoptic_merge
from clipself_seg.heads.panoptic.generator import GeneratorScores
from clipself_seg.heads.text_scores import only_classes
from clipself_seg.models.model_base import sizes_of
from clipself_seg.models.model_protocols import Outputs


@dataclasses.dataclass(frozen=True)
class FusionSettings:
    """Settings that fuse the scores of generator and CLIP to those that a model returns.

    Attributes:
        alpha: CLIP's exponent of seen classes where both are fused, in [0, 1].
        beta: the same of all other classes.
        of_weights: those of "alpha" and "beta" that a checkpoint which carries them replaces.
        mode: whose scores are returned, see `fusion_of`.
        valid_mask: masks of which CLIP has no embedding keep the generator's scores alone.
        void_discount: weight by which CLIP's best class lowers void where both are fused, in [0, 1].
    """

    alpha: float = 0.35
    beta: float = 0.65
    of_weights: tuple[str, ...] = ("alpha", "beta")
    mode: str = "fused"
    valid_mask: bool = True
    void_discount: float = 0.0

    def returned(self, tasks: tuple[str, ...] = TASKS) -> Fusion:
        """The fusion that a model returns by its mode, for some tasks."""
        return fusion_of(self.mode, self.alpha, self.beta, tasks, self.void_discount)


@dataclasses.dataclass(frozen=True)
class MergeSettings:
    """Settings by which probabilities and masks become outputs.

    Attributes:
        object_threshold: probability that the best class of a query has to exceed in `merge_panoptic`, in [0, 1].
        overlap_threshold: smallest fraction of its mask that a query has to win in `merge_panoptic`, in [0, 1].
        top_k: number of instances that `merge_instances` keeps.
        masks_first: masks are resized to the original image, not class scores, also where only "semantic" is asked for.
    """

    object_threshold: float = 0.0
    overlap_threshold: float = 0.8
    top_k: int = 100
    masks_first: bool = True


# Logit of pixels inside of a mask that somebody gave, its negative outside: their probabilities are 1 and nearly 0. Not
# 0, so that a pixel of no mask counts for the surest one, which loses none of its own to others.
INSIDE = 20
# Rows and columns together up to which torch's resizing has other bits for a few masks than for all at once.
SMALL_SIDES = 128
# Numbers of resized masks from which on they are never in memory together, whatever is asked for.
MOST_NUMBERS = 2**29


@dataclasses.dataclass(frozen=True)
class GeneratorOutput:
    """Masks of an image with the generator's class logits and void probabilities.

    Attributes:
        mask_logits: (Q, m, n) over the canvas, positive inside a mask.
        class_logits: (Q, K), without void.
        void_prob: probability of void, (Q,) in [0, 1].
        canvas: rows and columns in pixels that the masks cover, padding included.
        image_size: rows and columns in pixels of the resized image at the top left of the canvas.
        backbone_map: last map (1, D, h, w) of the frozen CLIP over the canvas that was the generator's backbone, for a
            CLIP branch that reads it.
        void_logit: (Q,) logit of void beside those of the classes; None if void does not depend on the classes.
    """

    mask_logits: Tensor
    class_logits: Tensor
    void_prob: Tensor
    canvas: tuple[int, int]
    image_size: tuple[int, int]
    backbone_map: Tensor | None = None
    void_logit: Tensor | None = None

    def only(self, classes: Sequence[int]) -> GeneratorOutput:
        """The output as if those classes alone were asked for; the others have no score."""
        logits, void = only_classes(self.class_logits, classes), self.void_prob
        if self.void_logit is not None:
            beside = torch.cat([logits, self.void_logit[:, None]], dim=1)
            void = GeneratorScores(logits, beside).void_prob
        return dataclasses.replace(self, class_logits=logits, void_prob=void)

    def probabilities(
        self, clip_logits: Tensor, valid: Tensor | None, seen: Tensor, fusion: Fusion
    ) -> Tensor:
        """Class probabilities (Q, K + 1) of the masks, void last.

        Args:
            clip_logits: CLIP's class logits (Q, K).
            valid: (Q,) bool, masks that CLIP can see; None: all.
            seen: (K,) bool, classes of the training vocabulary.
            fusion: settings that fuse the generator's scores and CLIP's.
        """
        generated = (self.class_logits, clip_logits, self.void_prob)
        return fuse_scores(*generated, seen, fusion.alpha, fusion.beta, valid, fusion.void_discount)


@dataclasses.dataclass(frozen=True)
class UnnamedMasks:
    """Masks of an image that came without class scores, see `data.given_masks`.

    Attributes:
        mask_logits: (Q, H, W) int8 at the size of the image, `INSIDE` or its negative.
        scores: quality of each mask, (Q,) in [0, 1].
    """

    mask_logits: Tensor
    scores: Tensor
    backbone_map: ClassVar[None] = None  # there was no generator

    @classmethod
    def of_sample(cls, sample: Sample, device: torch.device) -> UnnamedMasks:
        """Reads "given_masks" and "given_scores" of a sample, see `OpenPanoptic.forward`, onto a device.

        Raises:
            InputError: the sample has none.
        """
        if "given_masks" not in sample:
            raise InputError(
                "MODEL.MASK_GENERATOR.SOURCE is masks, so that the model makes none: pass masks=... with the image, or "
                "name a folder or a model such as sam2 (predict --masks, MODEL.MASK_GENERATOR.OUTPUTS)"
            )
        (masks,) = on_device([sample], "given_masks", device)
        (scores,) = on_device([sample], "given_scores", device)
        _, size = sizes_of(sample)
        assert tuple(masks.shape[1:]) == size, f"masks of {masks.shape}, the image has {size}"
        return cls(masks.to(torch.int8).mul_(2 * INSIDE).sub_(INSIDE), scores)

    @property
    def canvas(self) -> tuple[int, int]:
        """Rows and columns in pixels that the masks cover: the image, without padding."""
        return self.mask_logits.shape[1], self.mask_logits.shape[2]

    image_size = canvas

    def only(self, classes: Sequence[int]) -> UnnamedMasks:
        """The masks as they are: nothing is known of their classes."""
        return self

    def probabilities(
        self, clip_logits: Tensor, valid: Tensor | None, seen: Tensor, fusion: Fusion
    ) -> Tensor:
        """Class probabilities (Q, K + 1) of the masks by CLIP alone, void last, see `GeneratorOutput.probabilities`."""
        assert (fusion.alpha, fusion.beta, fusion.void_discount) == (1, 1, 0), fusion
        return name_masks(clip_logits, self.scores, valid)


Masks = GeneratorOutput | UnnamedMasks


def make_outputs(
    source: Masks,
    probs: Mapping[str, tuple[Fusion, Tensor]],
    size: tuple[int, int],
    things: Sequence[int],
    settings: MergeSettings,
    labels: bool = True,
) -> dict[str, Outputs]:
    """Makes the outputs of several fusions of an image, under Detectron2's names.

    Args:
        source: the masks.
        probs: name of a fusion -> itself, and class probabilities (Q, K + 1) of the masks, void last.
        size: rows and columns (H, W) of the original image.
        things: indices of the thing classes.
        settings: thresholds, numbers and order of the merges.
        labels: whether "semantic" is the best class of each pixel, "sem_seg_labels" (H, W), in place of all scores,
            "sem_seg" (K, H, W).

    Returns:
        Name of a fusion -> its outputs; of masks that came without scores also the best score and class of each,
        "mask_scores" and "mask_classes" (Q,).
    """
    outputs: dict[str, Outputs] = {name: {} for name in probs}
    masks_given = isinstance(source, UnnamedMasks)
    sizes = (source.canvas, source.image_size, size)
    thresholds = (settings.object_threshold, settings.overlap_threshold)
    alone = all(fusion.tasks == ("panoptic",) for fusion, _ in probs.values())
    large = min(sum(source.canvas), sum(size)) > SMALL_SIDES
    many = len(source.mask_logits) * size[0] * size[1] > MOST_NUMBERS
    # Segments need the masks of a few queries alone. Masks that somebody gave have the size of the image.
    separate = sizes if (alone and large or many) and not masks_given else None
    masks = None
    for name, (fusion, own) in probs.items():
        made = outputs[name]
        if masks_given:
            made["mask_scores"], made["mask_classes"] = own[:, :-1].max(dim=1)
        if labels and set(fusion.tasks) == {"semantic"} and not settings.masks_first:
            made["sem_seg_labels"] = panoptic_merge.canvas_labels(own, source.mask_logits, *sizes)
            continue
        if masks is None:
            masks = source.mask_logits
            masks = masks if separate else panoptic_merge.resize_masks(masks, *sizes)
        if "panoptic" in fusion.tasks:
            made["panoptic_seg"] = panoptic_merge.merge_panoptic(
                own, masks, things, *thresholds, separate
            )
        if "instances" in fusion.tasks:
            made["instances"] = panoptic_merge.merge_instances(
                own, masks, things, settings.top_k, separate
            )
        if "semantic" in fusion.tasks and labels:
            made["sem_seg_labels"] = panoptic_merge.semantic_labels(own, masks, separate)
        elif "semantic" in fusion.tasks:
            made["sem_seg"] = panoptic_merge.merge_semantic(own, masks, separate)
    return outputs
