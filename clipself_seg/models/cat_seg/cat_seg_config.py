"""Builds CAT-Seg from configuration keys: CLIP, guidance, the sizes of the aggregator, and what trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import detectron2.projects.deeplab  # noqa: F401  (registers build_resnet_deeplab_backbone)
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from clipself_seg.checkpoints.dense_feature import TOKEN
from clipself_seg.checkpoints.read import nearly_equal
from clipself_seg.checkpoints.zoo import official
from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.backbone import CLIPBackbone, build_clip
from clipself_seg.clip.templates import TEMPLATES
from clipself_seg.clip.text import require_text_tower
from clipself_seg.clip.tower import GATE, TransformerTower
from clipself_seg.config.declare import backbone_reads
from clipself_seg.config.load import evaluation_precision, precision_from_config
from clipself_seg.config.relations import require_valid
from clipself_seg.config.semantic_keys import OPENAI_NAMES
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg.cost_aggregator import AggregatorSizes, CostAggregator
from clipself_seg.models.model_base import load_backbone

# Default of MODEL.CLIP.WEIGHTS, which goes with the default of NAME and not with CAT-Seg's own key of the name.
DEFAULT_WEIGHTS = "mini"
# Prompt sets by the names of CAT-Seg's MODEL.PROMPT_ENSEMBLE_TYPE.
PROMPT_SETS = {"single": "cat_seg", "imagenet": "openai80", "plain": "single"}


@dataclasses.dataclass(frozen=True)
class CATSegTraining:
    """Settings of CAT-Seg's training.

    Attributes:
        finetune: which parameters of CLIP train, see `clip_parameters`.
        trainable_blocks: number of last blocks of its image tower that they are of; -1 for both towers.
        ignore_label: label of pixels without a class.
        mask_ignored: True if these pixels are left out of the loss, see `sigmoid_loss`.
        precision: dtype of autocast, or None.
        preservation: weight of the scores of further words, which stay those of the start.
        preserved_words: these words, as `Vocabulary.of` takes them, and how many of them a step takes.
    """

    finetune: str = "attention"
    trainable_blocks: int = -1
    ignore_label: int = 255
    mask_ignored: bool = False
    precision: torch.dtype | None = None
    preservation: float = 0.0
    preserved_words: tuple[str, int] = ("", 0)


@dataclasses.dataclass(frozen=True)
class CATSegEvaluation:
    """Settings of CAT-Seg's evaluation.

    Attributes:
        sliding: whether windows slide and a whole view is added, or the whole image is taken at once.
        size_divisibility: pixels to multiples of which the whole image is padded.
        flip: True if the probabilities of an image and of its mirrored version are averaged.
        precision: dtype of autocast, or None.
    """

    sliding: bool = False
    size_divisibility: int = 32
    flip: bool = False
    precision: torch.dtype | None = None


def aggregator_sizes(
    cfg: CfgNode, clip: VisionLanguageBackbone, guidance: Sequence[int]
) -> AggregatorSizes:
    """``MODEL.SEM_SEG_HEAD`` as the aggregator's sizes.

    Args:
        cfg: configuration; ``MODEL`` is read.
        clip: CLIP whose dense features the cost volume compares with the texts.
        guidance: channels of the appearance guidance, or of all three maps of a guidance backbone.

    Raises:
        InputError: numbers that do not fit the CLIP, the guidance or one another.
    """
    head, (appearance, *decoder) = cfg.MODEL.SEM_SEG_HEAD, guidance
    for key, wanted, whose in (
        ("TEXT_GUIDANCE_DIM", clip.embed_dim, f"embedding of {clip.name}"),
        ("APPEARANCE_GUIDANCE_DIM", appearance, "channels of the guidance"),
        # CLIP's blocks are projected to any.
        (
            "DECODER_GUIDANCE_DIMS",
            decoder or head.DECODER_GUIDANCE_DIMS,
            "channels of the backbone",
        ),
    ):
        if head[key] != wanted:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.{key} must be {wanted}, the {whose}, it is {head[key]}"
            )
    return AggregatorSizes(
        prompts=len(TEMPLATES[PROMPT_SETS[cfg.MODEL.PROMPT_ENSEMBLE_TYPE]]),
        text=head.TEXT_GUIDANCE_DIM,
        appearance=head.APPEARANCE_GUIDANCE_DIM,
        decoder_guidance=tuple(head.DECODER_GUIDANCE_DIMS),
        hidden=head.HIDDEN_DIMS,
        heads=head.NUM_HEADS,
        grid=tuple(head.FEATURE_RESOLUTION),
        window=head.WINDOW_SIZES,
        pooling=tuple(head.POOLING_SIZES),
        text_projected=head.TEXT_GUIDANCE_PROJ_DIM,
        appearance_projected=head.APPEARANCE_GUIDANCE_PROJ_DIM,
        decoder_dims=tuple(head.DECODER_DIMS),
        decoder_guidance_projected=tuple(head.DECODER_GUIDANCE_PROJ_DIMS),
        pad_len=cfg.MODEL.CAT_SEG.PAD_LEN,
    )


# A backbone's maps for the appearance and for the decoder's two steps.
GUIDES = ("res4", "res3", "res2")
NO_RESIDUAL = "none"  # value of MODEL.CAT_SEG.RESIDUAL
RANDOM = "random"  # value of a key that asks for random weights of the backbone or of CLIP


def clip_name(cfg: CfgNode) -> str:
    """open_clip's name of the CLIP, by CAT-Seg's key if it is given, else by ``MODEL.CLIP.NAME``."""
    return OPENAI_NAMES.get(cfg.MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED, cfg.MODEL.CLIP.NAME)


def tuned_clip(cfg: CfgNode) -> VisionLanguageBackbone:
    """Builds the CLIP with its initial weights, its image tower with those of ``MODEL.CLIP.VISUAL_INIT``.

    With CAT-Seg's key the weights are random: its checkpoints hold their CLIP, and training gives
    ``MODEL.CLIP.WEIGHTS``.

    Raises:
        InputError: the tower is no ViT, the distilled one differs in what distillation freezes, or `_check_residual`.
    """
    name, residual = clip_name(cfg), cfg.MODEL.CAT_SEG.RESIDUAL == "cls"
    weights = cfg.MODEL.CLIP.WEIGHTS
    if cfg.MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED and weights == DEFAULT_WEIGHTS:
        weights = ""
    clip = build_clip(cfg, NAME=name, WEIGHTS=weights, class_residual=residual)
    if not isinstance(clip, CLIPBackbone) or not isinstance(clip.visual, TransformerTower):
        _check_groups(cfg, clip)
        return clip
    _check_residual(cfg, clip.visual.pooled)
    if cfg.MODEL.CLIP.VISUAL_INIT:
        path = cfg.MODEL.CLIP.VISUAL_INIT
        tuned = build_clip(cfg, NAME=name, WEIGHTS=path, class_residual=residual)
        assert isinstance(tuned, CLIPBackbone)
        if weights:
            _check_frozen_parts(clip, tuned, path)
        clip.visual = tuned.visual
        clip.distilled = tuned.distilled
    return clip


def _check_groups(cfg: CfgNode, clip: VisionLanguageBackbone) -> None:
    """Checks that a backbone that is no ViT of this project guides, and that what of it trains is one of its groups.

    Raises:
        InputError: it is to guide, and has no blocks on one grid; or another ``CLIP_FINETUNE``.
    """
    if not clip.visual.plain:
        raise InputError(
            f"CAT-Seg needs a ViT: it is guided by blocks on the grid of the dense features, and {clip.name} has "
            "others; a backbone of your own leaves them out of its output_shape for MODEL.CAT_SEG.GUIDANCE backbone"
        )
    finetune = cfg.MODEL.SEM_SEG_HEAD.CLIP_FINETUNE
    if finetune not in ("none", "full"):
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.CLIP_FINETUNE is {finetune}, and {clip.name} names no attention: set it to none, or "
            "to full, which trains its groups block0, block1, ..."
        )
    if finetune == "full":
        clip.visual.layer_groups()


def _check_residual(cfg: CfgNode, pooled: bool) -> None:
    """Refuses a ``RESIDUAL`` of an attention pool, which adds none, and none where ``MODEL.CLIP.DENSE`` adds one.

    Args:
        cfg: configuration.
        pooled: True if the tower's dense features are those of an attention pool.
    """
    residual, dense = cfg.MODEL.CAT_SEG.RESIDUAL, cfg.MODEL.CLIP.DENSE
    if dense == TOKEN and pooled != (residual == NO_RESIDUAL):
        whose, wanted = f"MODEL.CLIP.DENSE {dense}", "adds one: give cls or token, or another DENSE"
        if pooled:
            whose = f"the attention pool of {clip_name(cfg)}"
            wanted = f"adds none: set it to {NO_RESIDUAL}"
        raise InputError(f"MODEL.CAT_SEG.RESIDUAL is {residual}, and {whose} {wanted}")


def _check_frozen_parts(clip: CLIPBackbone, tuned: CLIPBackbone, path: str) -> None:
    """Refuses an image tower that was distilled from another CLIP: distillation changes blocks alone."""
    groups = clip.visual.layer_groups()
    others = tuned.visual.layer_groups()
    for group, parameters in groups.items():
        if group.startswith("block") or group == GATE:
            continue
        for own, other in zip(parameters, others[group]):
            if not nearly_equal(own, other):
                raise InputError(
                    f"MODEL.CLIP.VISUAL_INIT {path}: its {group} is not that of MODEL.CLIP.WEIGHTS; "
                    "take the image tower that was distilled from these weights"
                )
    require_text_tower(clip.text, tuned.text, f"MODEL.CLIP.VISUAL_INIT {path}")


def clip_parameters(
    clip: VisionLanguageBackbone, finetune: str, count: int = -1
) -> list[nn.Parameter]:
    """Parameters of CLIP that train, by its structure.

    Args:
        clip: CLIP with both towers.
        finetune: "attention" is query and value matrices of all blocks of both towers,
            "visual_attention" everything of the image tower's attention and its positions, "full"
            all blocks of both towers, "none" nothing.
        count: number of the image tower's last blocks that this is limited to, without positions and text tower; -1
            for no limit.

    Raises:
        InputError: the tower has fewer blocks.
    """
    if finetune == "none":
        return []
    depth, everything = clip.visual.depth, count == -1
    if not -1 <= count <= depth:
        raise InputError(
            f"MODEL.CLIP.TRAINABLE_BLOCKS is {count}, the tower has {depth}: -1 is all"
        )
    groups = clip.visual.layer_groups()
    first = 0 if everything else depth - count
    texts = clip.text_blocks if everything else []
    if finetune == "full":
        parameters = [p for i in range(first, depth) for p in groups[f"block{i}"]]
        parameters += [p for block in texts for p in block.parameters()]
    elif finetune == "visual_attention":
        attentions = _attentions([*clip.visual.blocks][first:])
        parameters = [p for attention in attentions for p in attention.parameters()]
        parameters += groups["positions"] if everything else []
    else:
        attentions = _attentions([*[*clip.visual.blocks][first:], *texts])
        names = ("q_proj_weight", "v_proj_weight", "q_proj.weight", "v_proj.weight")
        parameters = [p for a in attentions for name, p in a.named_parameters() if name in names]
    if clip.visual.dense_feature.kind == TOKEN:
        return parameters
    # The gate stands in attention's place; of the last block the values alone are read.
    unused = {id(parameter) for parameter in clip.visual.unused_by()}
    gate = groups.get(GATE, [])
    return [parameter for parameter in (*parameters, *gate) if id(parameter) not in unused]


def _attentions(blocks: Iterable[nn.Module]) -> list[nn.Module]:
    return [block.get_submodule("attn") for block in blocks]


def parts_from_config(cfg: CfgNode) -> dict[str, object]:
    """Builds the arguments of `CATSeg`; reads ``MODEL``, ``SOLVER.{AMP, BACKBONE_MULTIPLIER}`` and ``TEST``."""
    require_valid(cfg, "CATSeg")
    clip = tuned_clip(cfg)
    switches = cfg.MODEL.CAT_SEG
    guided = switches.GUIDANCE == "clip"
    backbone = None if guided else build_backbone(cfg)
    sizes = aggregator_sizes(cfg, clip, _guidance_channels(clip, backbone))
    aggregator = CostAggregator(sizes, sizes.classes_in_cache)
    aggregator.checkpointing = switches.CHECKPOINTING
    if cfg.MODEL.CLIP.COMPILE:
        aggregator.compile_blocks()
    depth = clip.visual.depth
    return {
        "clip": clip,
        "aggregator": aggregator,
        "guidance_blocks": _guidance_blocks(cfg, depth) if guided else (),
        "backbone": backbone,
        "all_synonyms": switches.SYNONYMS == "mean",
        "templates": PROMPT_SETS[cfg.MODEL.PROMPT_ENSEMBLE_TYPE],
        "training": CATSegTraining(
            finetune=cfg.MODEL.SEM_SEG_HEAD.CLIP_FINETUNE,
            trainable_blocks=cfg.MODEL.CLIP.TRAINABLE_BLOCKS,
            ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            mask_ignored=switches.IGNORE_IN_LOSS,
            precision=precision_from_config(cfg),
            preservation=cfg.MODEL.PRESERVATION.WEIGHT,
            preserved_words=(cfg.MODEL.PRESERVATION.WORDS, cfg.MODEL.PRESERVATION.SAMPLE),
        ),
        "evaluation": CATSegEvaluation(
            sliding=cfg.TEST.SLIDING_WINDOW,
            size_divisibility=cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            flip=cfg.TEST.AUG.ENABLED,
            precision=evaluation_precision(cfg),
        ),
    }


def _guidance_channels(clip: VisionLanguageBackbone, backbone: Backbone | None) -> list[int]:
    if backbone is None:
        return [clip.embed_dim]
    shapes = backbone.output_shape()
    missing = [name for name in GUIDES if name not in shapes]
    if missing:
        raise InputError(
            f"MODEL.BACKBONE.NAME {type(backbone).__name__} gives {', '.join(shapes)} and not "
            f"{', '.join(missing)}, which guide; name them in its OUT_FEATURES"
        )
    return [shapes[name].channels or 0 for name in GUIDES]


def _guidance_blocks(cfg: CfgNode, depth: int) -> tuple[int, int]:
    blocks = tuple(cfg.MODEL.CAT_SEG.GUIDANCE_BLOCKS) or (depth // 3 - 1, 2 * depth // 3 - 1)
    if len(blocks) != 2 or not all(0 <= block < depth for block in blocks):
        raise InputError(
            f"MODEL.CAT_SEG.GUIDANCE_BLOCKS must be two of the {depth} blocks, got {blocks}"
        )
    return blocks[0], blocks[1]


def build_backbone(cfg: CfgNode) -> Backbone:
    """Builds the guidance backbone of version 1 with ``MODEL.CAT_SEG.BACKBONE_WEIGHTS``; "" is random.

    Raises:
        InputError: weights that do not fit.
    """
    cfg = cfg.clone()
    cfg.defrost()
    # DeepLab's builder reads these two.
    cfg.MODEL.RESNETS.setdefault("RES4_DILATION", 1)
    cfg.MODEL.RESNETS.setdefault("RES5_MULTI_GRID", [1, 2, 4])
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3))
    path = cfg.MODEL.CAT_SEG.BACKBONE_WEIGHTS
    if path and path != RANDOM:
        load_backbone(backbone, path, "MODEL.CAT_SEG.BACKBONE_WEIGHTS")
    if not cfg.SOLVER.BACKBONE_MULTIPLIER:
        backbone.requires_grad_(False)
    return backbone


def training_config(cfg: CfgNode) -> CfgNode:
    """The configuration with OpenAI's weights, where training names none.

    ("" is enough to evaluate: a checkpoint of CAT-Seg holds its CLIP. "random" is taken literally.)

    Raises:
        InputError: the guidance backbone of version 1 would be random.
    """
    if cfg.MODEL.WEIGHTS:
        return cfg
    if cfg.MODEL.CAT_SEG.GUIDANCE == "backbone" and not cfg.MODEL.CAT_SEG.BACKBONE_WEIGHTS:
        raise InputError(
            f"the guidance backbone {cfg.MODEL.BACKBONE.NAME} would be random: give MODEL.CAT_SEG.BACKBONE_WEIGHTS, an "
            f"official one of {official('MODEL.CAT_SEG.BACKBONE_WEIGHTS', 'semseg/')}, or a CAT-Seg checkpoint as "
            'MODEL.WEIGHTS ("random" is taken literally)'
        )
    given = cfg.MODEL.CLIP.WEIGHTS
    theirs = bool(cfg.MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED) and given == DEFAULT_WEIGHTS
    reads = backbone_reads(cfg.MODEL.CLIP.BACKBONE, "MODEL.CLIP.WEIGHTS")
    if not reads or given and given != RANDOM and not theirs:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.CLIP.WEIGHTS = "" if given == RANDOM else "openai"
    cfg.freeze()
    return cfg
