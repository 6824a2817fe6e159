"""Builds the parts of panoptic segmentation from configuration keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import nn

from clipself_seg.checkpoints.mask_models import has_mask_model
from clipself_seg.clip import TextBank, VisionLanguageBackbone
from clipself_seg.clip.backbone import CLIPBackbone, build_clip, find_entry
from clipself_seg.clip.text import require_text_tower
from clipself_seg.config.declare import backbone_reads
from clipself_seg.config.load import evaluation_precision, precision_from_config
from clipself_seg.config.panoptic_keys import OF_WEIGHTS
from clipself_seg.config.relations import require_valid
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic import feature_sources
from clipself_seg.heads.panoptic.clip_branches import CLIP_BRANCHES, ClipBranch
from clipself_seg.heads.panoptic.generator import GENERATORS, Generator, GeneratorSizes
from clipself_seg.heads.panoptic.mask_losses import MaskCriterion
from clipself_seg.heads.panoptic.plain_decoder import PlainDecoder, PlainDecoderSizes
from clipself_seg.models.model_protocols import Group
from clipself_seg.models.optimizer_groups import by_rate_and_kind, norms_and_biases_apart
from clipself_seg.models.panoptic import mask_sources
from clipself_seg.models.panoptic.mask_models import load_mask_model
from clipself_seg.models.panoptic.panoptic_outputs import FusionSettings, MergeSettings


def fcclips_groups(model: nn.Module, solver: CfgNode) -> list[Group]:
    """Detectron2's partition, which decays biases, and norms and embeddings by keys of their own."""
    return by_rate_and_kind(model, solver)


def pmts_groups(model: nn.Module, solver: CfgNode) -> list[Group]:
    """One group: everything decays."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [{"params": trained, "weight_decay": solver.WEIGHT_DECAY}]


# Value of MODEL.MASK_GENERATOR.VARIANT -> the optimiser's groups of the kind mask2former.
GROUPS: dict[str, mask_sources.Groups] = {
    "caption": norms_and_biases_apart,
    "label": norms_and_biases_apart,
    "fcclip": fcclips_groups,
}


def panoptic_parts(cfg: CfgNode) -> dict[str, object]:
    """Builds the arguments of `OpenPanoptic`.

    Reads ``MODEL.{CLIP, MASK_GENERATOR, MASK_FORMER, PLAIN_DECODER, PYRAMID, DIFFUSION, CLIP_BRANCH, FUSION}``,
    ``TEST.{DETECTIONS_PER_IMAGE, PRECISION}`` and ``SOLVER.AMP``.

    Raises:
        InputError: values that do not fit each other.
    """
    require_valid(cfg, "OpenPanoptic")
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
    }


def build_masks(
    cfg: CfgNode, clip: VisionLanguageBackbone, branch: ClipBranch, branch_bank: TextBank
) -> mask_sources.MaskSource:
    """Builds the source of masks.

    Args:
        cfg: configuration.
        clip: CLIP that embeds the texts, and gives the features of a pyramid.
        branch: CLIP branch, which may read a map of the generator's backbone.
        branch_bank: its texts, which the generator reads too where it has no templates of its own.
    """
    chosen, former = cfg.MODEL.MASK_GENERATOR, cfg.MODEL.MASK_FORMER
    if chosen.SOURCE == "masks":
        if has_mask_model(chosen.OUTPUTS):
            return mask_sources.Predicted(load_mask_model(chosen.OUTPUTS))
        return mask_sources.Given(chosen.OUTPUTS)
    backbone = build_source(cfg, clip)
    plain = chosen.KIND == "plain"
    generator = (build_plain_decoder if plain else build_generator)(cfg, clip, backbone)
    bank = branch_bank
    if generator.templates or branch.clip is not clip:
        bank = TextBank(clip, generator.templates or cfg.MODEL.CLIP_BRANCH.TEMPLATES)
    return mask_sources.Generated(
        backbone=backbone,
        generator=generator,
        bank=bank,
        canvas=feature_sources.Canvas(former.SIZE_DIVISIBILITY, chosen.PADDING),
        criterion=MaskCriterion(
            class_agnostic=generator.class_agnostic, points=former.TRAIN_NUM_POINTS
        ),
        groups=pmts_groups if plain else GROUPS[chosen.VARIANT],
        branch_map=backbone.branch_map if branch.reads_backbone else "",
        precision=precision_from_config(cfg),
        test_precision=evaluation_precision(cfg),
    )


def build_branch(cfg: CfgNode, clip: VisionLanguageBackbone) -> ClipBranch:
    """Builds the CLIP branch; values that the keys leave open are the defaults of the branch's kind.

    Raises:
        InputError: ``MODEL.CLIP_BRANCH.WEIGHTS`` has another text tower than ``MODEL.CLIP.WEIGHTS``; or as
            `build_clip`.
    """
    keys = cfg.MODEL.CLIP_BRANCH
    chosen: dict[str, int] = {"input_size": keys.INPUT_SIZE} if keys.INPUT_SIZE else {}
    if keys.KIND == "backbone":
        chosen["padding"] = cfg.MODEL.MASK_GENERATOR.PADDING
    named_by = _branch_clip(cfg, clip)
    if keys.KIND == "masked_attention" and not named_by.visual.readouts.masked_attention:
        raise InputError(
            f"MODEL.CLIP_BRANCH.KIND masked_attention needs a ViT with a class token, {named_by.name} has no masked "
            "attention: take KIND dense"
        )
    kind: Callable[..., ClipBranch] = CLIP_BRANCHES[keys.KIND]
    return kind(named_by, **chosen)


def _branch_clip(cfg: CfgNode, clip: VisionLanguageBackbone) -> VisionLanguageBackbone:
    """The CLIP that names masks: `clip` itself, one of its architecture with its text tower, or another one."""
    keys, own = cfg.MODEL.CLIP_BRANCH, cfg.MODEL.CLIP
    backbone = keys.BACKBONE or own.BACKBONE
    values = {"NAME": keys.NAME or own.NAME, "WEIGHTS": keys.WEIGHTS or own.WEIGHTS}
    if (backbone, values) == (own.BACKBONE, {key: own[key] for key in values}):
        return clip
    find_entry(backbone, "MODEL.CLIP_BRANCH.BACKBONE")
    for key, value in values.items():
        if not backbone_reads(backbone, f"MODEL.CLIP.{key}"):
            # A file that was distilled from the entry.
            values[key] = keys.WEIGHTS if key == "WEIGHTS" else ""
        elif not value:
            raise InputError(
                f"MODEL.CLIP_BRANCH.{key} is empty, as is MODEL.CLIP.{key}, and the backbone {backbone} of the CLIP "
                "branch reads it: give that of the CLIP that names masks"
            )
    branch_clip = build_clip(cfg, BACKBONE=backbone, **values)
    if backbone == own.BACKBONE and values["NAME"] == own.NAME and isinstance(clip, CLIPBackbone):
        # Distillation leaves the text tower alone: one serves both.
        assert isinstance(branch_clip, CLIPBackbone)
        require_text_tower(
            clip.text, branch_clip.text, f"MODEL.CLIP_BRANCH.WEIGHTS {values['WEIGHTS']}"
        )
        branch_clip.text = clip.text
    return branch_clip


def build_source(cfg: CfgNode, clip: VisionLanguageBackbone) -> feature_sources.FeatureSource:
    """Builds the source of the mask generator's features."""
    if cfg.MODEL.MASK_GENERATOR.SOURCE == "clip":
        return feature_sources.CLIPStages(clip)
    if cfg.MODEL.MASK_GENERATOR.SOURCE == "blocks":
        named = cfg.MODEL.CLIP_BRANCH.KIND == "backbone"
        return feature_sources.CLIPTaps(clip, taps=cfg.MODEL.PLAIN_DECODER.TAPS, named=named)
    if cfg.MODEL.MASK_GENERATOR.SOURCE == "pyramid":
        pyramid = cfg.MODEL.PYRAMID
        return feature_sources.CLIPPyramid(clip, blocks=pyramid.BLOCKS, channels=pyramid.CHANNELS)
    from clipself_seg.heads.diffusion.source import DiffusionFeatures
    from clipself_seg.heads.diffusion.weights import load_stable_diffusion

    diffusion = cfg.MODEL.DIFFUSION
    return DiffusionFeatures(
        clip=clip, stable_diffusion=load_stable_diffusion(diffusion.WEIGHTS), crop=diffusion.CROP
    )


def build_generator(
    cfg: CfgNode, clip: VisionLanguageBackbone, backbone: feature_sources.FeatureSource
) -> Generator:
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
            generator.get_parameter("category_head.null_embed").copy_(clip.embed_texts([""]))
    return generator


def build_plain_decoder(
    cfg: CfgNode, clip: VisionLanguageBackbone, taps: feature_sources.FeatureSource
) -> PlainDecoder:
    """Builds the plain mask decoder on taps of a ViT, as wide as its blocks and with as many heads.

    Args:
        cfg: configuration; ``MODEL.PLAIN_DECODER``, and numbers of ``MODEL.MASK_FORMER`` are read.
        clip: CLIP whose ViT it is, and with whose texts masks are compared.
        taps: source of the features, a `CLIPTaps`.

    Raises:
        InputError: the width does not fit the heads.
    """
    former = cfg.MODEL.MASK_FORMER
    assert isinstance(taps, feature_sources.CLIPTaps), "the configuration is checked"
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
