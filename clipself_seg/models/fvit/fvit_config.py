"""Settings of F-ViT, and how it is built from configuration keys."""

from __future__ import annotations

import dataclasses

import torch
from detectron2.config import CfgNode

from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.backbone import build_clip
from clipself_seg.clip.tower_kind import CLIP_MEAN, CLIP_STD
from clipself_seg.config.declare import KEYS
from clipself_seg.config.load import evaluation_precision, precision_from_config
from clipself_seg.config.relations import require_valid
from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import fusion_of
from clipself_seg.heads.fvit.boxes import ROI_RULES, DetectionRule
from clipself_seg.heads.fvit.pyramid import RELATIVE_STRIDES, FeaturePyramid, TapResizers
from clipself_seg.heads.fvit.roi_heads import TEMPERATURE, DetectionSettings, LossSettings, RoIHeads
from clipself_seg.heads.fvit.rpn import RPN, ProposalRule

Pixel = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class InputSettings:
    """Size and normalisation of images, and the features that F-ViT reads of the image tower.

    Attributes:
        blocks: the four blocks, from 0, whose outputs are the taps; one may come several times.
        side: side in pixels of the padded square.
        mean: mean of RGB values in 0..255.
        std: their standard deviation.
    """

    blocks: tuple[int, ...]
    side: int
    mean: Pixel
    std: Pixel


@dataclasses.dataclass(frozen=True)
class FViTTraining:
    """Settings of F-ViT's training.

    Attributes:
        clip_multiplier: multiple of the base learning rate at which CLIP's image tower learns; 0 keeps it frozen.
        trainable_blocks: number of its last blocks that learn then; -1 for all, with stem and positions.
        precision: dtype of autocast, or None.
        preservation: weight of the objects that the start proposes, see `FViT._divergence`.
    """

    clip_multiplier: float = 0.0
    trainable_blocks: int = -1
    precision: torch.dtype | None = None
    preservation: float = 0.0


def parts_from_config(cfg: CfgNode) -> dict[str, object]:
    """Builds the arguments of `FViT`.

    Reads ``MODEL.{CLIP, FVIT, FUSION, PRESERVATION}``, ``INPUT.DETECTION.SIDE``, ``TEST.{DETECTIONS_PER_IMAGE,
    PRECISION}``, ``SOLVER.{AMP, CLIP_MULTIPLIER}`` and ``SEED``.

    Raises:
        InputError: the tower is no ViT, or values do not fit each other.
    """
    require_valid(cfg, "FViT")
    clip, keys, side = build_clip(cfg), cfg.MODEL.FVIT, cfg.INPUT.DETECTION.SIDE
    if not clip.visual.plain:
        raise InputError(f"F-ViT needs a ViT, whose blocks have one grid, and {clip.name} is none")
    clip.check_side(side, "INPUT.DETECTION.SIDE")
    taps = clip.visual.check_names(f"block{index}" for index in keys.BLOCKS)
    widths = {clip.visual.feature_shapes()[tap].channels for tap in taps}
    if len(widths) > 1:
        raise InputError(f"F-ViT reads blocks of one width, those of {clip.name} have several")
    width = widths.pop()
    clip_multiplier = cfg.SOLVER.CLIP_MULTIPLIER if keys.TRAIN_CLIP else 0.0
    strides = [clip.patch_size * factor for factor in RELATIVE_STRIDES]
    rule = ProposalRule(keys.PROPOSALS_BEFORE, keys.PROPOSALS_AFTER)
    return {
        "clip": clip,
        "backbone": TapResizers(width),
        "neck": FeaturePyramid(width, keys.CHANNELS, top_down=keys.PYRAMID == "fpn"),
        "rpn_head": RPN(strides, rule, channels=keys.CHANNELS, norm=keys.RPN_NORM, seed=cfg.SEED),
        "roi_head": _roi_heads(cfg, strides, clip.embed_dim),
        "inputs": InputSettings(tuple(keys.BLOCKS), side, *_pixels(cfg, clip)),
        "training": FViTTraining(
            clip_multiplier=clip_multiplier,
            trainable_blocks=cfg.MODEL.CLIP.TRAINABLE_BLOCKS,
            precision=precision_from_config(cfg),
            preservation=cfg.MODEL.PRESERVATION.WEIGHT,
        ),
        "test_precision": evaluation_precision(cfg),
    }


def _pixels(cfg: CfgNode, clip: VisionLanguageBackbone) -> tuple[Pixel, Pixel]:
    """Mean and standard deviation of RGB values in 0..255: ``MODEL.FVIT``'s for a CLIP of CLIP's pixels, else its own.

    The recipes' are for the former: ImageNet's, as official F-ViT has them, or CLIP's. Beside another tower these give
    way to its own.

    Raises:
        InputError: beside another tower a key has values that are neither those of recipes nor the tower's.
    """
    own = _in_bytes(clip.mean), _in_bytes(clip.std)
    names, of_clip = ("PIXEL_MEAN", "PIXEL_STD"), (_in_bytes(CLIP_MEAN), _in_bytes(CLIP_STD))
    values = tuple(cfg.MODEL.FVIT.PIXEL_MEAN), tuple(cfg.MODEL.FVIT.PIXEL_STD)
    if clip.mean == CLIP_MEAN:
        return values
    for name, value, clips, towers in zip(names, values, of_clip, own):
        key = KEYS[f"MODEL.FVIT.{name}"]
        if not any(_nearly(value, usual) for usual in (key.default, clips, towers)):
            raise InputError(
                f"{key.name} is {value}, and {clip.name} was trained with {towers}: leave it out"
            )
    return own


def _in_bytes(values: Pixel) -> Pixel:
    return tuple(255 * value for value in values)


def _nearly(value: Pixel, other: Pixel) -> bool:
    """True if the values are equal but for rounding, as recipes have them."""
    return len(value) == len(other) and all(abs(a - b) <= 0.5 for a, b in zip(value, other))


def _roi_heads(cfg: CfgNode, strides: list[float], embed_dim: int) -> RoIHeads:
    """Builds box head and mask head for levels of these strides and CLIP's embeddings of a width."""
    keys, fusion = cfg.MODEL.FVIT, cfg.MODEL.FUSION
    exponents = fusion_of(fusion.MODE, fusion.ALPHA, fusion.BETA)
    return RoIHeads(
        embed_dim,
        strides,
        LossSettings(
            keys.BACKGROUND_WEIGHT, ROI_RULES[keys.LOW_QUALITY], cfg.SEED, keys.ROIS_PER_IMAGE
        ),
        DetectionSettings(
            alpha=exponents.alpha,
            beta=exponents.beta,
            temperature=TEMPERATURE if keys.FIXED_TEMPERATURE else None,
            clip_temperature=keys.CLIP_TEMPERATURE,
            rule=DetectionRule(keys.SCORE_THRESHOLD, keys.NMS_IOU, cfg.TEST.DETECTIONS_PER_IMAGE),
        ),
        channels=keys.CHANNELS,
        masks=keys.MASKS,
    )
