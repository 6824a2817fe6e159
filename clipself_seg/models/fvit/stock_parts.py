"""F-ViT in three parts for Detectron2's own `GeneralizedRCNN`, by the names in its registries.

``MODEL.BACKBONE.NAME: FViTBackbone``, ``MODEL.PROPOSAL_GENERATOR.NAME: FViTRPN`` and ``MODEL.ROI_HEADS.NAME:
FViTROIHeads``, each built from the keys of `FViT`. The RoI heads are given their classes with `set_vocabulary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    Backbone,
)
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from clipself_seg.clip import DenseCLIP, TextBank
from clipself_seg.clip.tower import DENSE, ImageTower
from clipself_seg.errors import InputError
from clipself_seg.heads.fvit.boxes import Objects
from clipself_seg.heads.fvit.pyramid import (
    RELATIVE_STRIDES,
    FeaturePyramid,
    TapResizers,
    pyramid_and_dense,
)
from clipself_seg.heads.fvit.roi_heads import RoIHeads
from clipself_seg.heads.fvit.rpn import RPN
from clipself_seg.models.fvit.model import (
    OpenVocabulary,
    as_instances,
    check_fits,
    pyramid_parts,
    roi_heads,
    rpn,
    vit_from_config,
)

LEVELS = ("p2", "p3", "p4", "p5", "p6")
# Beginnings of the names of an FViT's tensors -> those of a GeneralizedRCNN of the parts here.
STOCK_NAMES = {
    "clip.visual.": "backbone.tower.",
    "clip.": "roi_heads.clip.",
    "backbone.": "backbone.resizers.",
    "neck.": "backbone.neck.",
    "rpn_head.": "proposal_generator.rpn_head.",
    "roi_head.": "roi_heads.roi_head.",
}


def stock_state(fvit: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an `FViT` under the names of a `GeneralizedRCNN` of the parts here."""
    return {_stock_name(name): tensor for name, tensor in fvit.items()}


def _stock_name(name: str) -> str:
    begin = next(begin for begin in STOCK_NAMES if name.startswith(begin))
    return STOCK_NAMES[begin] + name.removeprefix(begin)


@BACKBONE_REGISTRY.register()
class FViTBackbone(Backbone):
    """The frozen tower with resizers and pyramid: "p2" to "p6" and, in evaluation, unit "dense" features."""

    @configurable
    def __init__(
        self,
        *,
        tower: ImageTower,
        blocks: Sequence[int],
        resizers: TapResizers,
        neck: FeaturePyramid,
        side: int,
    ) -> None:
        """
        Args:
            tower: CLIP's image tower.
            blocks: the four blocks, from 0, whose outputs are the taps.
            resizers: resizers of the taps.
            neck: feature pyramid.
            side: side in pixels of the square that images are padded to.
        """
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.taps = tower.check_names(f"block{index}" for index in blocks)
        self.resizers = resizers
        self.neck = neck
        self.side = side

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, object]:
        """Reads ``MODEL.{CLIP, FVIT}`` and ``INPUT.DETECTION.SIDE``.

        Raises:
            InputError: as `vit_from_config`; the tower is to be trained.
        """
        if cfg.MODEL.FVIT.TRAIN_CLIP:
            raise InputError("MODEL.FVIT.TRAIN_CLIP is True: FViTBackbone is frozen, FViT is not")
        clip = vit_from_config(cfg)
        resizers, neck = pyramid_parts(cfg, clip)
        return {
            "tower": clip.visual,
            "blocks": cfg.MODEL.FVIT.BLOCKS,
            "resizers": resizers,
            "neck": neck,
            "side": cfg.INPUT.DETECTION.SIDE,
        }

    def train(self, mode: bool = True) -> FViTBackbone:
        """Switches the training mode as in every module; the tower stays in evaluation mode."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features by name of normalised images (B, 3, side, side)."""
        parts = self.tower, self.taps, self.resizers, self.neck
        levels, dense = pyramid_and_dense(
            images, *parts, dense=not self.training, tower_learns=False
        )
        features = dict(zip(LEVELS, levels))
        return features if dense is None else features | {DENSE: dense}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature; strides of a patch of 14 are no whole numbers."""
        patch = self.tower.patch_size
        shapes = {
            name: ShapeSpec(channels=self.neck.channels, stride=patch * factor)
            for name, factor in zip(LEVELS, RELATIVE_STRIDES)
        }
        return shapes | {DENSE: ShapeSpec(**self.tower.feature_shapes()[DENSE]._asdict())}

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Images are padded to the square."""
        return {"square_size": self.side}


@PROPOSAL_GENERATOR_REGISTRY.register()
class FViTRPN(nn.Module):
    """F-ViT's region proposal network, on "p2" to "p6"."""

    @configurable
    def __init__(self, *, rpn_head: RPN) -> None:
        """
        Args:
            rpn_head: the network.
        """
        super().__init__()
        self.rpn_head = rpn_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, object]:
        """Reads ``MODEL.FVIT`` and ``SEED``."""
        return {"rpn_head": rpn(cfg, _strides(input_shape))}

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        gt_instances: Sequence[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals of each image, the best first, and in training losses by name.

        Raises:
            InputError: an image is larger than the square.
        """
        levels, sizes = [features[name] for name in LEVELS], images.image_sizes
        for size in sizes:
            check_fits(size, images.tensor.shape[-1])
        logits, deltas = self.rpn_head(levels)
        proposals = []
        for index, size in enumerate(sizes):
            boxes, scores = self.rpn_head.propose(logits, deltas, index, size)
            instances = Instances(size, proposal_boxes=Boxes(boxes))
            if not self.training:
                instances.objectness_logits = scores.logit(eps=1e-6)
            proposals.append(instances)
        if not self.training:
            return proposals, {}
        assert gt_instances is not None, "training needs gt_instances"
        return proposals, self.rpn_head.losses(logits, deltas, _objects(gt_instances))


@ROI_HEADS_REGISTRY.register()
class FViTROIHeads(OpenVocabulary):
    """F-ViT's box head, and mask head where it has one, whose classes are texts of CLIP."""

    @configurable
    def __init__(self, *, clip: DenseCLIP, roi_head: RoIHeads) -> None:
        """
        Args:
            clip: CLIP, of which only the text tower is asked: the backbone has the other one.
            roi_head: box head, and mask head or None.
        """
        super().__init__()
        self.roi_head = roi_head
        self.clip = clip.eval().requires_grad_(False)
        self.bank = TextBank(self.clip, "vild63")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, object]:
        """Reads ``MODEL.{CLIP, FVIT, FUSION}``, ``TEST.DETECTIONS_PER_IMAGE`` and ``SEED``."""
        clip = vit_from_config(cfg)
        del clip.visual
        return {
            "clip": clip,
            "roi_head": roi_heads(cfg, _strides(input_shape), clip.embed_dim),
        }

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        proposals: Sequence[Instances],
        targets: Sequence[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detections of each image in evaluation, proposals and losses by name in training.

        Detections have "pred_boxes" in pixels of the image as it was given, "scores", "pred_classes" and, with a
        mask head, "pred_masks" (m, 1, 28, 28), scores inside of the box, as Detectron2's postprocessing reads them.
        Targets have "gt_boxes", "gt_classes" and, with a mask head, "gt_masks", Detectron2's `BitMasks`.
        """
        self.require_vocabulary()
        levels = [features[name] for name in LEVELS]
        boxes = [p.proposal_boxes.tensor for p in proposals]
        classes = self.text(), self.seen()
        if self.training:
            assert targets is not None, "training needs targets"
            losses = self.roi_head.losses(levels, boxes, _objects(targets), *classes)
            return list(proposals), losses
        detections = []
        for index, size in enumerate(images.image_sizes):
            maps = [level[index : index + 1] for level in levels], features[DENSE][index]
            same = boxes[index].new_ones(4)
            detected, masks = self.roi_head.detect(*maps, boxes[index], size, same, *classes)
            instances = as_instances(detected, size)
            if masks is not None:
                instances.pred_masks = masks[:, None]
            detections.append(instances)
        return detections, {}


def _strides(input_shape: Mapping[str, ShapeSpec]) -> list[float]:
    """Pixels between the cells of P2 to P6.

    Raises:
        InputError: the backbone does not give all that both stages read.
    """
    if missing := [name for name in (*LEVELS, DENSE) if name not in input_shape]:
        raise InputError(
            f"the backbone gives no {', '.join(missing)}: set MODEL.BACKBONE.NAME to FViTBackbone"
        )
    return [input_shape[name].stride for name in LEVELS]


def _objects(targets: Sequence[Instances]) -> list[Objects]:
    """Objects of each image; random choices follow from torch's seed."""
    objects = []
    for of_image in targets:
        masks = of_image.gt_masks.tensor if of_image.has("gt_masks") else None
        draw = int(torch.randint(1 << 31, ()))
        objects.append(Objects(of_image.gt_boxes.tensor, of_image.gt_classes, masks, draw))
    return objects
