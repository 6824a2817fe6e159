"""Builds the parts of panoptic segmentation from configuration keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from detectron2.config import CfgNode
from torch import nn

from clipself_seg.checkpoints.mask_models import has_mask_model
from clipself_seg.clip import DenseCLIP, TextBank
from clipself_seg.clip.backbone import build_clip, find_entry
from clipself_seg.clip.text import require_text_tower
from clipself_seg.config.load import evaluation_precision, precision_from_config
from clipself_seg.config.panoptic_keys import OF_WEIGHTS
from clipself_seg.config.schema import CLIP_BACKBONE, backbone_reads
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.clip_branches import CLIP_BRANCHES, ClipBranch
from clipself_seg.heads.panoptic.feature_sources import (
    Canvas,
    CLIPPyramid,
    CLIPStages,
    CLIPTaps,
    FeatureSource,
)
from clipself_seg.heads.panoptic.generator import GENERATORS, Generator, GeneratorSizes
from clipself_seg.heads.panoptic.mask_losses import LossSettings, MaskCriterion, TermWeights
from clipself_seg.heads.panoptic.plain_decoder import PlainDecoder, PlainDecoderSizes
from clipself_seg.models.optimizer_groups import by_rate_and_kind, norms_and_biases_apart
from clipself_seg.models.panoptic.mask_models import load_mask_model
from clipself_seg.models.panoptic.mask_sources import (
    Generated,
    Given,
    Groups,
    MaskSource,
    Predicted,
)
from clipself_seg.models.panoptic.panoptic_outputs import FusionSettings, MergeSettings
from clipself_seg.models.protocol import Group


def odises_groups(model: nn.Module, solver: CfgNode) -> list[Group]:
    """Norms and biases without weight decay, all others with it."""
    return norms_and_biases_apart(model, solver.WEIGHT_DECAY)


def fcclips_groups(model: nn.Module, solver: CfgNode) -> list[Group]:
    """Detectron2's partition, which decays biases, and norms and embeddings by keys of their own."""
    return by_rate_and_kind(
        model,
        multipliers=(),
        weight_decay=solver.WEIGHT_DECAY,
        norm_decay=solver.WEIGHT_DECAY_NORM,
        embedding_decay=0.0,
    )


def pmts_groups(model: nn.Module, solver: CfgNode) -> list[Group]:
    """One group: everything decays."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [{"params": trained, "weight_decay": solver.WEIGHT_DECAY}]


# Value of MODEL.MASK_GENERATOR.VARIANT -> the optimiser's groups of the kind mask2former.
GROUPS: dict[str, Groups] = {
    "caption": odises_groups,
    "label": odises_groups,
    "fcclip": fcclips_groups,
}


def mask_source(cfg: CfgNode) -> type[MaskSource]:
    """The class of the source of masks, as far as the keys say it."""
    return Given if cfg.MODEL.MASK_GENERATOR.SOURCE == "masks" else Generated


def panoptic_parts(cfg: CfgNode) -> dict[str, object]:
    """Builds the arguments of `OpenPanoptic`.

    Reads ``MODEL.{CLIP, MASK_GENERATOR, MASK_FORMER, PLAIN_DECODER, PYRAMID, DIFFUSION, CLIP_BRANCH, FUSION}``,
    ``TEST.{DETECTIONS_PER_IMAGE, PRECISION, AUG}`` and ``SOLVER.AMP``.

    Raises:
        InputError: values that do not fit each other.
    """
    clip = build_clip(cfg)
    branch = build_branch(cfg, clip)
    bank = TextBank(branch.clip, cfg.MODEL.CLIP_BRANCH.TEMPLATES)
    former, fusion = cfg.MODEL.MASK_FORMER, cfg.MODEL.FUSION
    return {
        "clip": clip,
        "masks": build_masks(cfg, clip, branch, bank),
        "branch": branch,
        "branch_bank": bank,
        "fusion": FusionSettings(
            fusion.ALPHA,
            fusion.BETA,
            OF_WEIGHTS[fusion.SOURCE],
            fusion.MODE,
            fusion.VALID_MASK,
            fusion.VOID_DISCOUNT,
        ),
        "settings": MergeSettings(
            object_threshold=former.TEST.OBJECT_MASK_THRESHOLD,
            overlap_threshold=former.TEST.OVERLAP_THRESHOLD,
            top_k=cfg.TEST.DETECTIONS_PER_IMAGE,
            masks_first=former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        ),
        "test_precision": evaluation_precision(cfg),
        "flip": cfg.TEST.AUG.ENABLED,
    }


def build_masks(
    cfg: CfgNode, clip: DenseCLIP, branch: ClipBranch, branch_bank: TextBank
) -> MaskSource:
    """Builds the source of masks.

    Args:
        cfg: configuration.
        clip: CLIP that embeds the texts, and gives the features of a pyramid.
        branch: CLIP branch, which may read a map of the generator's backbone.
        branch_bank: its texts, which the generator reads too where it has no templates of its own.
    """
    chosen, former = cfg.MODEL.MASK_GENERATOR, cfg.MODEL.MASK_FORMER
    if chosen.SOURCE == "masks":
        _require_clip_alone(cfg)
        if has_mask_model(chosen.OUTPUTS):
            return Predicted(load_mask_model(chosen.OUTPUTS))
        return Given(chosen.OUTPUTS)
    if former.SIZE_DIVISIBILITY < 1 or former.SIZE_DIVISIBILITY % 32:
        raise InputError(
            f"MODEL.MASK_FORMER.SIZE_DIVISIBILITY is {former.SIZE_DIVISIBILITY}, a mask generator needs a "
            "multiple of 32"
        )
    backbone = build_source(cfg, clip)
    plain = chosen.KIND == "plain"
    generator = (build_plain_decoder if plain else build_generator)(cfg, clip, backbone)
    bank = branch_bank
    if generator.templates or branch.clip is not clip:
        bank = TextBank(clip, generator.templates or cfg.MODEL.CLIP_BRANCH.TEMPLATES)
    losses = LossSettings(
        weights=TermWeights(former.CLASS_WEIGHT, former.MASK_WEIGHT, former.DICE_WEIGHT),
        void_weight=former.NO_OBJECT_WEIGHT,
        points=former.TRAIN_NUM_POINTS,
    )
    return Generated(
        backbone=backbone,
        generator=generator,
        bank=bank,
        canvas=Canvas(former.SIZE_DIVISIBILITY, chosen.PADDING),
        criterion=MaskCriterion(class_agnostic=generator.class_agnostic, settings=losses),
        groups=pmts_groups if plain else GROUPS[chosen.VARIANT],
        keeps_map=branch.reads_backbone,
        precision=precision_from_config(cfg),
        test_precision=evaluation_precision(cfg),
    )


def _require_clip_alone(cfg: CfgNode) -> None:
    """Refuse settings of a generator's scores where masks come without."""
    for key, value, wanted in (
        ("MODEL.FUSION.MODE", cfg.MODEL.FUSION.MODE, "clip"),
        ("MODEL.FUSION.VOID_DISCOUNT", cfg.MODEL.FUSION.VOID_DISCOUNT, 0),
    ):
        if value != wanted:
            raise InputError(
                f"{key} is {value}: masks of MODEL.MASK_GENERATOR.SOURCE masks have no class scores and no void but "
                f"CLIP's, so set it to {wanted}"
            )


def build_branch(cfg: CfgNode, clip: DenseCLIP) -> ClipBranch:
    """Builds the CLIP branch; values that the keys leave open are the defaults of the branch's kind.

    Raises:
        InputError: ``MODEL.CLIP_BRANCH.WEIGHTS`` has another text tower than ``MODEL.CLIP.WEIGHTS``, or is missing
            where ``MODEL.CLIP_BRANCH.NAME`` is another architecture; or as `build_clip`.
    """
    keys = cfg.MODEL.CLIP_BRANCH
    chosen: dict[str, int | bool] = {}
    if keys.INPUT_SIZE:
        chosen["input_size"] = keys.INPUT_SIZE
    if keys.ALIGN_MASKS >= 0:
        chosen["align_masks"] = bool(keys.ALIGN_MASKS)
    if keys.KIND == "backbone":
        _require_backbone_alone(cfg, chosen)
        chosen["padding"] = cfg.MODEL.MASK_GENERATOR.PADDING
    named_by = _branch_clip(cfg, clip)
    if keys.KIND == "masked_attention" and not named_by.visual.readouts.masked_attention:
        raise InputError(
            f"MODEL.CLIP_BRANCH.KIND masked_attention needs a ViT with a class token, {named_by.name} has no masked "
            "attention: take KIND dense"
        )
    kind: Callable[..., ClipBranch] = CLIP_BRANCHES[keys.KIND]
    return kind(named_by, **chosen)


def _branch_clip(cfg: CfgNode, clip: DenseCLIP) -> DenseCLIP:
    """The CLIP that names masks: `clip` itself, one of its architecture with its text tower, or another one."""
    keys, own = cfg.MODEL.CLIP_BRANCH, cfg.MODEL.CLIP
    backbone = keys.BACKBONE or own.BACKBONE
    values = {"NAME": keys.NAME or own.NAME, "WEIGHTS": keys.WEIGHTS or own.WEIGHTS}
    if (backbone, values) == (own.BACKBONE, {key: own[key] for key in values}):
        return clip
    find_entry(backbone, "MODEL.CLIP_BRANCH.BACKBONE")
    if values["NAME"] != own.NAME and not keys.WEIGHTS:
        raise InputError(
            f"MODEL.CLIP_BRANCH.NAME is {keys.NAME}, and MODEL.CLIP_BRANCH.WEIGHTS is empty: give its weights, such as "
            "those of a distilled CLIP, or leave NAME empty"
        )
    for key, value in values.items():
        if not backbone_reads(backbone, f"MODEL.CLIP.{key}"):
            values[key] = ""
        elif not value:
            raise InputError(
                f"MODEL.CLIP_BRANCH.{key} is empty, as is MODEL.CLIP.{key}, and the backbone {backbone} of the CLIP "
                "branch reads it: give that of the CLIP that names masks"
            )
    branch_clip = build_clip(cfg, BACKBONE=backbone, **values)
    if backbone == own.BACKBONE == CLIP_BACKBONE and values["NAME"] == own.NAME:
        # Distillation leaves the text tower alone: one serves both.
        require_text_tower(
            clip.text, branch_clip.text, f"MODEL.CLIP_BRANCH.WEIGHTS {values['WEIGHTS']}"
        )
        branch_clip.text = clip.text
    return branch_clip


def _require_backbone_alone(cfg: CfgNode, chosen: Iterable[str]) -> None:
    """Refuse settings of a second pass, and of a CLIP of the branch's own beside the backbone's."""
    for name in chosen:
        raise InputError(
            f"MODEL.CLIP_BRANCH.{name.upper()} is set, and KIND backbone reads the generator's canvas as it is: "
            "leave it at its default"
        )
    for key in ("BACKBONE", "NAME", "WEIGHTS"):
        value = cfg.MODEL.CLIP_BRANCH[key]
        if value and value != cfg.MODEL.CLIP[key]:
            raise InputError(
                f"MODEL.CLIP_BRANCH.{key} is {value}, and KIND backbone reads the features of MODEL.CLIP.{key}: leave "
                "it empty, or take another KIND"
            )


def build_source(cfg: CfgNode, clip: DenseCLIP) -> FeatureSource:
    """Builds the source of the mask generator's features."""
    if cfg.MODEL.MASK_GENERATOR.SOURCE == "clip":
        return CLIPStages(clip)
    if cfg.MODEL.MASK_GENERATOR.SOURCE == "blocks":
        named = cfg.MODEL.CLIP_BRANCH.KIND == "backbone"
        return CLIPTaps(clip, taps=cfg.MODEL.PLAIN_DECODER.TAPS, named=named)
    if cfg.MODEL.MASK_GENERATOR.SOURCE == "pyramid":
        pyramid = cfg.MODEL.PYRAMID
        return CLIPPyramid(clip, blocks=pyramid.BLOCKS, channels=pyramid.CHANNELS)
    from clipself_seg.heads.diffusion.source import DiffusionFeatures
    from clipself_seg.heads.diffusion.weights import load_stable_diffusion

    diffusion = cfg.MODEL.DIFFUSION
    return DiffusionFeatures(
        clip=clip,
        stable_diffusion=load_stable_diffusion(diffusion.WEIGHTS),
        crop=diffusion.CROP,
        crops_at_once=diffusion.CROPS_AT_ONCE,
    )


def build_generator(cfg: CfgNode, clip: DenseCLIP, backbone: FeatureSource) -> Generator:
    """Builds the mask generator that works on the maps of a backbone.

    Args:
        cfg: configuration; ``MODEL.MASK_GENERATOR`` and ``MODEL.MASK_FORMER`` are read.
        clip: CLIP whose text tower gives the null text and the width of texts.
        backbone: source of the maps, with their numbers of channels as `channels`.
    """
    chosen = cfg.MODEL.MASK_GENERATOR
    former = cfg.MODEL.MASK_FORMER
    sizes = GeneratorSizes(
        width=former.HIDDEN_DIM,
        heads=former.NHEADS,
        queries=former.NUM_OBJECT_QUERIES,
        encoder_layers=chosen.ENCODER_LAYERS,
        encoder_hidden=chosen.ENCODER_HIDDEN,
        points=chosen.POINTS,
        decoder_layers=former.DEC_LAYERS,
        decoder_hidden=former.DIM_FEEDFORWARD,
    )
    generator = GENERATORS[chosen.VARIANT](
        channels=backbone.channels, text_width=clip.embed_dim, sizes=sizes
    )
    if chosen.VARIANT == "label":
        with torch.no_grad():
            generator.category_head.null_embed.copy_(clip.text(clip.tokenize([""])))
    return generator


def build_plain_decoder(cfg: CfgNode, clip: DenseCLIP, taps: FeatureSource) -> PlainDecoder:
    """Builds the plain mask decoder on taps of a ViT, as wide as its blocks and with as many heads.

    Args:
        cfg: configuration; ``MODEL.PLAIN_DECODER``, and numbers of ``MODEL.MASK_FORMER`` are read.
        clip: CLIP whose ViT it is, and with whose texts masks are compared.
        taps: source of the features, a `CLIPTaps`.

    Raises:
        InputError: the width does not fit the heads.
    """
    former = cfg.MODEL.MASK_FORMER
    assert isinstance(taps, CLIPTaps), "the configuration is checked"
    sizes = PlainDecoderSizes(
        width=taps.width,
        heads=clip.visual.heads,
        queries=former.NUM_OBJECT_QUERIES,
        layers=former.DEC_LAYERS,
        hidden=former.DIM_FEEDFORWARD or taps.width,
        patch=taps.stride,
    )
    return PlainDecoder(
        channels=taps.channels,
        text_width=clip.embed_dim,
        sizes=sizes,
        masked_attention=cfg.MODEL.PLAIN_DECODER.MASKED_ATTENTION,
    )
