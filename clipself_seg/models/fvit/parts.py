"""The parts of F-ViT that learn, and the settings of training and detection."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from clipself_seg.heads.fvit.box_head import BoxHead
from clipself_seg.heads.fvit.detections import DetectionRule
from clipself_seg.heads.fvit.feature_pyramid import FeaturePyramid, SimpleFeaturePyramid
from clipself_seg.heads.fvit.mask_head import MaskHead
from clipself_seg.heads.fvit.matching import MatchRule
from clipself_seg.heads.fvit.rpn import ProposalRule

PYRAMIDS = {"fpn": FeaturePyramid, "simple": SimpleFeaturePyramid}
# MODEL.FVIT.LOW_QUALITY -> the rule by which proposals belong to objects.
ROI_RULES = {False: MatchRule(0.5, 0.5), True: MatchRule(0.5, 0.5, 0.5)}


class RoIHeads(nn.Module):
    """Box head, and mask head where the model has masks, under the names of the official checkpoints."""

    def __init__(self, embed_dim: int, temperature: float, channels: int, masks: bool) -> None:
        """
        Args:
            embed_dim: width of CLIP's embeddings.
            temperature: factor of the cosines that training begins with.
            channels: channels of the pyramid.
            masks: whether there is a mask head.
        """
        super().__init__()
        self.bbox_head = BoxHead(embed_dim, channels, temperature)
        self.mask_head = MaskHead(channels) if masks else None


class TrainingSettings(NamedTuple):
    """Settings of the losses.

    Attributes:
        background_weight: weight of a RoI without an object in the classification loss.
        roi_rule: rule by which proposals belong to objects.
        seed: seed of the random choices of anchors and RoIs.
        rois: number of RoIs of an image that the losses see.
    """

    background_weight: float = 0.6
    roi_rule: MatchRule = ROI_RULES[False]
    seed: int = 0
    rois: int = 512


class DetectionSettings(NamedTuple):
    """Settings of detection, which may be changed at any time.

    Attributes:
        alpha: exponent of CLIP's scores of seen classes and the background, in [0, 1].
        beta: exponent of CLIP's scores of unseen classes, in [0, 1].
        temperature: factor of the detector's cosines; None for the learned one.
        clip_temperature: factor of CLIP's cosines.
        rule: threshold, overlap and number of detections.
        proposals: numbers and overlap of proposals, in training too.
    """

    alpha: float = 0.1
    beta: float = 0.8
    temperature: float | None = None
    clip_temperature: float = 75.0
    rule: DetectionRule = DetectionRule()
    proposals: ProposalRule = ProposalRule()
