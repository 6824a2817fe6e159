"""Builds the parts of F-ViT from configuration keys."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.backbone import clip_from_config
from clipself_seg.clip.model import CLIP_MEAN
from clipself_seg.clip.tower import TransformerTower
from clipself_seg.config.load import precision_from_config
from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import fusion_exponents
from clipself_seg.heads.fvit.detections import DetectionRule
from clipself_seg.heads.fvit.resizers import TapResizers
from clipself_seg.heads.fvit.rpn import ProposalRule, RPNHead
from clipself_seg.models.fvit.parts import (
    PYRAMIDS,
    ROI_RULES,
    DetectionSettings,
    RoIHeads,
    TrainingSettings,
)


def fvit_parts(cfg: CfgNode) -> dict[str, Any]:
    """Builds the arguments of `FViT`.

    Reads ``MODEL.{CLIP, FVIT, FUSION}``, ``INPUT.DETECTION.SIDE``, ``TEST.DETECTIONS_PER_IMAGE``,
    ``TEST.DETECTION.AMP``, ``SOLVER.{AMP, CLIP_MULTIPLIER}`` and ``SEED``.

    Raises:
        InputError: the tower is no ViT, or values do not fit each other.
    """
    clip = vit_from_config(cfg)
    keys = cfg.MODEL.FVIT
    _check_pixels(cfg, clip)
    precision = precision_from_config(cfg)
    return {
        "clip": clip,
        **pyramid_parts(cfg, clip),
        "rpn_head": rpn_head(cfg),
        "roi_head": roi_heads(cfg, clip.embed_dim),
        "blocks": keys.BLOCKS,
        "side": cfg.INPUT.DETECTION.SIDE,
        "pixels": (keys.PIXEL_MEAN, keys.PIXEL_STD),
        "training": training_settings(cfg),
        "settings": detection_settings(cfg),
        "all_synonyms": keys.SYNONYMS == "mean",
        "clip_multiplier": cfg.SOLVER.CLIP_MULTIPLIER if keys.TRAIN_CLIP else 0.0,
        "precisions": (precision, precision if cfg.TEST.DETECTION.AMP else None),
    }


def vit_from_config(cfg: CfgNode) -> DenseCLIP:
    """The CLIP of ``MODEL.CLIP``, whose image tower has to be a ViT.

    Raises:
        InputError: it is none.
    """
    clip = clip_from_config(cfg)
    if not isinstance(clip.visual, TransformerTower):
        raise InputError(f"F-ViT needs a ViT, MODEL.CLIP.NAME is {clip.name}")
    return clip


def _check_pixels(cfg: CfgNode, clip: DenseCLIP) -> None:
    """Refuses other pixels than a tower wants that was not trained with CLIP's, for which ImageNet's are official.

    Raises:
        InputError: names the key and the values that go with the tower.
    """
    if clip.architecture.kind.mean == CLIP_MEAN:
        return
    for key, values in (("PIXEL_MEAN", clip.mean), ("PIXEL_STD", clip.std)):
        wanted = tuple(round(255 * value, 3) for value in values)
        given = tuple(cfg.MODEL.FVIT[key])
        if any(abs(a - b) > 0.5 for a, b in zip(given, wanted, strict=True)):
            raise InputError(
                f"MODEL.FVIT.{key} is {given}, and {clip.name} was trained with {wanted}: give that"
            )


def pyramid_parts(cfg: CfgNode, clip: DenseCLIP) -> dict[str, Any]:
    """Resizers of the taps of a CLIP's ViT, "backbone", and the feature pyramid, "neck"."""
    keys = cfg.MODEL.FVIT
    assert isinstance(clip.visual, TransformerTower)
    width = clip.visual.width
    return {
        "backbone": TapResizers(width),
        "neck": PYRAMIDS[keys.PYRAMID](width, keys.CHANNELS),
    }


def rpn_head(cfg: CfgNode) -> RPNHead:
    """Builds the head of the region proposal network."""
    return RPNHead(cfg.MODEL.FVIT.CHANNELS, cfg.MODEL.FVIT.RPN_NORM)


def roi_heads(cfg: CfgNode, embed_dim: int) -> RoIHeads:
    """Builds box head and mask head for CLIP's embeddings of a width."""
    keys = cfg.MODEL.FVIT
    return RoIHeads(embed_dim, keys.TEMPERATURE, keys.CHANNELS, keys.MASKS)


def training_settings(cfg: CfgNode) -> TrainingSettings:
    """Reads the settings of the losses."""
    keys = cfg.MODEL.FVIT
    return TrainingSettings(
        keys.BACKGROUND_WEIGHT, ROI_RULES[keys.LOW_QUALITY], cfg.SEED, keys.ROIS_PER_IMAGE
    )


def detection_settings(cfg: CfgNode) -> DetectionSettings:
    """Reads the settings of detection."""
    keys, fusion = cfg.MODEL.FVIT, cfg.MODEL.FUSION
    alpha, beta = fusion_exponents(fusion.MODE, fusion.ALPHA, fusion.BETA)
    return DetectionSettings(
        alpha=alpha,
        beta=beta,
        temperature=keys.TEMPERATURE if keys.FIXED_TEMPERATURE else None,
        clip_temperature=keys.CLIP_TEMPERATURE,
        rule=DetectionRule(keys.SCORE_THRESHOLD, keys.NMS_IOU, cfg.TEST.DETECTIONS_PER_IMAGE),
        proposals=ProposalRule(keys.PROPOSALS_BEFORE, keys.PROPOSALS_AFTER, keys.PROPOSALS_IOU),
    )
