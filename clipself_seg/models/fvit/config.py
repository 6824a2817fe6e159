"""Builds the parts of F-ViT from configuration keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from detectron2.config import CfgNode

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.backbone import build_clip
from clipself_seg.clip.model import CLIP_MEAN
from clipself_seg.config.keys import CLIP_BACKBONE
from clipself_seg.config.load import precision_from_config
from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import fusion_exponents
from clipself_seg.heads.fvit.boxes import ROI_RULES, DetectionRule
from clipself_seg.heads.fvit.pyramid import (
    PYRAMIDS,
    RELATIVE_STRIDES,
    FeaturePyramid,
    TapResizers,
)
from clipself_seg.heads.fvit.roi_heads import DetectionSettings, RoIHeads, TrainingSettings
from clipself_seg.heads.fvit.rpn import RPN, ProposalRule


class FViTParts(TypedDict):
    """Arguments of `FViT`, which explains them."""

    clip: DenseCLIP
    backbone: TapResizers
    neck: FeaturePyramid
    rpn_head: RPN
    roi_head: RoIHeads
    blocks: Sequence[int]
    side: int
    pixels: tuple[Sequence[float], Sequence[float]]
    all_synonyms: bool
    clip_multiplier: float
    precisions: tuple[torch.dtype | None, torch.dtype | None]


def fvit_parts(cfg: CfgNode) -> FViTParts:
    """Builds the arguments of `FViT`.

    Reads ``MODEL.{CLIP, FVIT, FUSION}``, ``INPUT.DETECTION.SIDE``, ``TEST.DETECTIONS_PER_IMAGE``,
    ``TEST.DETECTION.AMP``, ``SOLVER.{AMP, CLIP_MULTIPLIER}`` and ``SEED``.

    Raises:
        InputError: the tower is no ViT, or values do not fit each other.
    """
    clip = vit_from_config(cfg)
    keys = cfg.MODEL.FVIT
    backbone, neck = pyramid_parts(cfg, clip)
    strides = [clip.patch_size * factor for factor in RELATIVE_STRIDES]
    precision = precision_from_config(cfg)
    return {
        "clip": clip,
        "backbone": backbone,
        "neck": neck,
        "rpn_head": rpn(cfg, strides),
        "roi_head": roi_heads(cfg, strides, clip.embed_dim),
        "blocks": keys.BLOCKS,
        "side": cfg.INPUT.DETECTION.SIDE,
        "pixels": _pixels(cfg, clip),
        "all_synonyms": keys.SYNONYMS == "mean",
        "clip_multiplier": cfg.SOLVER.CLIP_MULTIPLIER if keys.TRAIN_CLIP else 0.0,
        "precisions": (precision, precision if cfg.TEST.DETECTION.AMP else None),
    }


def vit_from_config(cfg: CfgNode) -> DenseCLIP:
    """The CLIP of ``MODEL.CLIP``, whose image tower has to be a ViT that fits ``INPUT.DETECTION.SIDE``.

    Raises:
        InputError: it is none, its patch does not divide the side, or ``MODEL.FVIT.BLOCKS`` are not four.
    """
    clip, side, blocks = build_clip(cfg), cfg.INPUT.DETECTION.SIDE, cfg.MODEL.FVIT.BLOCKS
    if not clip.visual.plain:
        raise InputError(f"F-ViT needs a ViT, whose blocks have one grid, and {clip.name} is none")
    if len(blocks) != 4:
        raise InputError(f"MODEL.FVIT.BLOCKS is {tuple(blocks)}: give four blocks")
    if side < 1 or side % clip.patch_size:
        raise InputError(
            f"INPUT.DETECTION.SIDE is {side}, which the patch of {clip.name}, {clip.patch_size}, "
            "does not divide"
        )
    return clip


def _pixels(cfg: CfgNode, clip: DenseCLIP) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB values in 0..255.

    Raises:
        InputError: other ones than a tower wants that was not trained with CLIP's, for which ImageNet's are official;
            names the key and the values that go with the tower.
    """
    if cfg.MODEL.CLIP.BACKBONE != CLIP_BACKBONE:
        mean, std = (tuple(255 * value for value in values) for values in (clip.mean, clip.std))
        return mean, std
    pixels = tuple(cfg.MODEL.FVIT.PIXEL_MEAN), tuple(cfg.MODEL.FVIT.PIXEL_STD)
    if clip.architecture.kind.mean == CLIP_MEAN:
        return pixels
    for key, values in (("PIXEL_MEAN", clip.mean), ("PIXEL_STD", clip.std)):
        wanted = tuple(round(255 * value, 3) for value in values)
        given = tuple(cfg.MODEL.FVIT[key])
        if any(abs(a - b) > 0.5 for a, b in zip(given, wanted, strict=True)):
            raise InputError(
                f"MODEL.FVIT.{key} is {given}, and {clip.name} was trained with {wanted}: give that"
            )
    return pixels


def pyramid_parts(cfg: CfgNode, clip: DenseCLIP) -> tuple[TapResizers, FeaturePyramid]:
    """Builds the resizers of the taps, and the feature pyramid.

    Raises:
        InputError: the CLIP lacks a block, or they have several widths.
    """
    keys, shapes = cfg.MODEL.FVIT, clip.visual.feature_shapes()
    taps = clip.visual.check_names(f"block{index}" for index in keys.BLOCKS)
    width = shapes[taps[0]][0]
    if any(shapes[tap][0] != width for tap in taps):
        raise InputError(f"F-ViT reads blocks of one width, those of {clip.name} have several")
    return TapResizers(width), PYRAMIDS[keys.PYRAMID](width, keys.CHANNELS)


def rpn(cfg: CfgNode, strides: Sequence[float]) -> RPN:
    """Builds the region proposal network for levels of these strides."""
    keys = cfg.MODEL.FVIT
    rule = ProposalRule(keys.PROPOSALS_BEFORE, keys.PROPOSALS_AFTER)
    return RPN(strides, rule, channels=keys.CHANNELS, norm=keys.RPN_NORM, seed=cfg.SEED)


def roi_heads(cfg: CfgNode, strides: Sequence[float], embed_dim: int) -> RoIHeads:
    """Builds box head and mask head for levels of these strides and CLIP's embeddings of a width."""
    keys, fusion = cfg.MODEL.FVIT, cfg.MODEL.FUSION
    alpha, beta = fusion_exponents(fusion.MODE, fusion.ALPHA, fusion.BETA)
    return RoIHeads(
        embed_dim,
        strides,
        TrainingSettings(
            keys.BACKGROUND_WEIGHT, ROI_RULES[keys.LOW_QUALITY], cfg.SEED, keys.ROIS_PER_IMAGE
        ),
        DetectionSettings(
            alpha=alpha,
            beta=beta,
            temperature=keys.TEMPERATURE if keys.FIXED_TEMPERATURE else None,
            clip_temperature=keys.CLIP_TEMPERATURE,
            rule=DetectionRule(keys.SCORE_THRESHOLD, keys.NMS_IOU, cfg.TEST.DETECTIONS_PER_IMAGE),
        ),
        channels=keys.CHANNELS,
        temperature=keys.TEMPERATURE,
        masks=keys.MASKS,
    )
