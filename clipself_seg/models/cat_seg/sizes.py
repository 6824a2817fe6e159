"""The sizes of `MODEL.SEM_SEG_HEAD`: those of CAT-Seg's aggregator, and whether they go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.prompts import TEMPLATES as PROMPTS
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg.cost_aggregator import AggregatorSizes

# Prompt sets by the names of CAT-Seg's MODEL.PROMPT_ENSEMBLE_TYPE.
TEMPLATES = {"single": "cat_seg", "imagenet": "openai80", "plain": "single"}
SINGLE: tuple[str, ...] = ("HIDDEN_DIMS", "NUM_HEADS", "WINDOW_SIZES", "APPEARANCE_GUIDANCE_DIM")
SINGLE += ("APPEARANCE_GUIDANCE_PROJ_DIM", "TEXT_GUIDANCE_PROJ_DIM")
PAIRS: tuple[str, ...] = ("FEATURE_RESOLUTION", "DECODER_DIMS")
PAIRS += ("DECODER_GUIDANCE_DIMS", "DECODER_GUIDANCE_PROJ_DIMS")


class Size(NamedTuple):
    """A key below `MODEL.SEM_SEG_HEAD`, what it has to be in words, and whether it is."""

    key: str
    wanted: str
    holds: bool


def aggregator_sizes(cfg: CfgNode, clip: DenseCLIP, guidance: Sequence[int]) -> AggregatorSizes:
    """``MODEL.SEM_SEG_HEAD`` as the aggregator's sizes.

    Args:
        cfg: read for ``MODEL``.
        clip: whose dense features the cost volume compares with the texts.
        guidance: channels of the appearance guidance, or of all three of a guidance backbone.

    Raises:
        InputError: numbers that do not fit the CLIP, the guidance or one another.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    for tests in (_lengths(head), _values(head, clip), _guidance(head, guidance)):
        for size in tests:
            if not size.holds:
                key, value = f"MODEL.SEM_SEG_HEAD.{size.key}", head[size.key]
                raise InputError(f"{key} must be {size.wanted}, it is {value}")
    return AggregatorSizes(
        prompts=len(PROMPTS[TEMPLATES[cfg.MODEL.PROMPT_ENSEMBLE_TYPE]]),
        text=head.TEXT_GUIDANCE_DIM,
        appearance=head.APPEARANCE_GUIDANCE_DIM,
        decoder_guidance=tuple(head.DECODER_GUIDANCE_DIMS),
        hidden=head.HIDDEN_DIMS,
        layers=head.NUM_LAYERS,
        heads=head.NUM_HEADS,
        grid=tuple(head.FEATURE_RESOLUTION),
        window=head.WINDOW_SIZES,
        pooling=tuple(head.POOLING_SIZES),
        attention=head.ATTENTION_TYPE,
        text_projected=head.TEXT_GUIDANCE_PROJ_DIM,
        appearance_projected=head.APPEARANCE_GUIDANCE_PROJ_DIM,
        decoder_dims=tuple(head.DECODER_DIMS),
        decoder_guidance_projected=tuple(head.DECODER_GUIDANCE_PROJ_DIMS),
        pad_len=cfg.MODEL.CAT_SEG.PAD_LEN,
    )


def _positive(sizes: Sequence[int]) -> bool:
    return all(isinstance(size, int) and size >= 1 for size in sizes)


def _lengths(head: CfgNode) -> Iterator[Size]:
    """How many numbers, and that each is one; the other tests count on it."""
    for key in SINGLE:
        yield Size(key, "at least 1", _positive([head[key]]))
    yield Size("NUM_LAYERS", "0 or more", head.NUM_LAYERS >= 0)
    for key in PAIRS:
        pair = len(head[key]) == 2 and _positive(head[key])
        yield Size(key, "two whole numbers, each at least 1", pair)
    layers, pooling = head.NUM_LAYERS, head.POOLING_SIZES
    one_each = len(pooling) == layers and _positive(pooling)
    yield Size("POOLING_SIZES", f"one number for each of NUM_LAYERS {layers}", one_each)
    for key in ("PROMPT_DEPTH", "PROMPT_LENGTH"):
        yield Size(key, "0, prompt tuning is not there", head[key] == 0)


def _values(head: CfgNode, clip: DenseCLIP) -> Iterator[Size]:
    """What divides what."""
    (rows, columns), window = head.FEATURE_RESOLUTION, head.WINDOW_SIZES
    embedding = f"{clip.embed_dim}, the embedding of {clip.name}"
    yield Size("TEXT_GUIDANCE_DIM", embedding, head.TEXT_GUIDANCE_DIM == clip.embed_dim)
    yield Size("FEATURE_RESOLUTION", "square, as the pictures that CLIP sees", rows == columns)
    divides = f"a divisor of FEATURE_RESOLUTION {head.FEATURE_RESOLUTION}"
    tiles = f"{divides}, or at least as large"
    yield Size("WINDOW_SIZES", tiles, window >= rows or rows % window == 0)
    pooled = all(rows % pooling == 0 for pooling in head.POOLING_SIZES)
    yield Size("POOLING_SIZES", f"each {divides}", pooled)
    yield Size(
        "NUM_HEADS",
        f"a divisor of HIDDEN_DIMS {head.HIDDEN_DIMS}",
        head.HIDDEN_DIMS % head.NUM_HEADS == 0,
    )
    grouped = all(dim % max(1, dim // 16) == 0 for dim in head.DECODER_DIMS)
    yield Size("DECODER_DIMS", "each of groups of 16 channels, or less than 32", grouped)
    inputs = (head.HIDDEN_DIMS, head.DECODER_DIMS[0])
    smaller = all(g < d for g, d in zip(head.DECODER_GUIDANCE_PROJ_DIMS, inputs))
    yield Size(
        "DECODER_GUIDANCE_PROJ_DIMS",
        f"each less than what its step gets, HIDDEN_DIMS and the first of DECODER_DIMS, {inputs}",
        smaller,
    )


def _guidance(head: CfgNode, channels: Sequence[int]) -> Iterator[Size]:
    """What guides has to have the channels that are read; CLIP's blocks are projected to any."""
    appearance, *decoder = channels
    yield Size(
        "APPEARANCE_GUIDANCE_DIM",
        f"{appearance}, the channels of the guidance",
        head.APPEARANCE_GUIDANCE_DIM == appearance,
    )
    if decoder:
        yield Size(
            "DECODER_GUIDANCE_DIMS",
            f"{decoder}, the channels of the backbone",
            head.DECODER_GUIDANCE_DIMS == decoder,
        )
