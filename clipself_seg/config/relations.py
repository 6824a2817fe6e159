"""Refuses values that a key may not have, and values of several keys that do not go together: one table."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from clipself_seg.config.declare import KEYS
from clipself_seg.config.keys import objectives
from clipself_seg.errors import InputError, shown
from clipself_seg.yaml_files import leaves

MODEL = "MODEL.META_ARCHITECTURE"
HEAD = "MODEL.SEM_SEG_HEAD"
FORMER = "MODEL.MASK_FORMER"
KIND, SOURCE = "MODEL.MASK_GENERATOR.KIND", "MODEL.MASK_GENERATOR.SOURCE"
BRANCH_KIND = "MODEL.CLIP_BRANCH.KIND"
SIZES = "INPUT.DETECTION"
TARGET = "MODEL.CLIPSELF.TARGET"
WEIGHTS = objectives.name
TEACHER = "MODEL.CLIPSELF.CORRELATION.TEACHER"
# Readers beside the models: mappers, which read images, and evaluations, of which a prediction needs nothing.
IMAGES, EVALUATION = "images", "evaluation"
# Objectives that compare with a teacher of correlations.
CORRELATED = (f"{WEIGHTS}.CONTEXT", f"{WEIGHTS}.COHERENCE", f"{WEIGHTS}.SPATIAL")


class Relation(NamedTuple):
    """A check of values that have to go together.

    Attributes:
        keys: full names of keys, or of sections, whose values come as a dictionary by the rest of their names. A
            message asks to change the first, and says what the others are.
        wanted: values that the first key may have, in words.
        holds: function of the values of the keys that returns whether they go together.
        of: the only model that it is a check of, where others read the keys too; or `IMAGES` or `EVALUATION`.
    """

    keys: tuple[str, ...]
    wanted: str
    holds: Callable[..., Any]
    of: str = ""


def of_crops(key: str) -> Relation:
    """The relation that the weight of an objective differs from its default only where TARGET is crops."""
    default = KEYS[key].default
    return Relation(
        (key, TARGET),
        f"{default} unless TARGET is crops",
        lambda weight, target: weight == default or target == "crops",
    )


def of_teacher(key: str) -> Relation:
    """The relation that the weight of an objective is 0, or there is a teacher of correlations."""
    return Relation(
        (key, TEACHER),
        "0 without a teacher of correlations, such as original",
        lambda weight, teacher: not weight or teacher != "none",
    )


def of_generators_clip(name: str) -> Relation:
    """The relation that a CLIP branch which reads the generator's features has no CLIP of its own."""
    return Relation(
        (f"MODEL.CLIP_BRANCH.{name}", BRANCH_KIND, f"MODEL.CLIP.{name}"),
        f"empty or equal to MODEL.CLIP.{name} where KIND is backbone",
        lambda value, kind, own: kind != "backbone" or value in ("", own),
    )


def of_masks(key: str, wanted: Any, why: str, of: str = "") -> Relation:
    """The relation that a key has the only value that goes with masks which come without class scores."""
    return Relation(
        (key, SOURCE),
        f"{wanted!r} for masks, {why}",
        lambda value, source: value == wanted or source != "masks",
        of,
    )


def whole_batches(model: str, why: str) -> Relation:
    """The relation that a model is not trained on parts of a batch."""
    return Relation(("SOLVER.ACCUMULATE",), f"1, {why}", lambda passes: passes == 1, model)


RELATIONS: list[Relation] = [
    whole_batches("CLIPSelf", "for its loss averages over all regions of a batch"),
    whole_batches("FViT", "for batch norms would see parts of a batch"),
    *map(of_teacher, CORRELATED),
    *(of_crops(key) for key in KEYS if key.startswith(objectives.prefix)),
    Relation(
        (WEIGHTS, TARGET),
        "greater than 0 for one objective at least, such as CROPS 1.0",
        lambda weights, target: any(weights.values()) or target != "crops",
    ),
    Relation(
        (WEIGHTS,),
        "greater than 0 for one beside CONTEXT, such as CROPS: CONTEXT alone trains queries that no output uses",
        lambda weights: {name for name, weight in weights.items() if weight} != {"CONTEXT"},
    ),
    Relation(
        (TEACHER, *CORRELATED),
        "none unless CONTEXT, COHERENCE or SPATIAL is greater than 0: only these use a teacher",
        lambda teacher, *weights: teacher == "none" or any(weights),
    ),
    Relation(
        ("MODEL.CLIP.ATTENTION", "MODEL.CLIP.DENSE"),
        '"none" unless DENSE is "token", for both say what the last block does',
        lambda attention, dense: attention == "none" or dense == "token",
    ),
    Relation(
        ("MODEL.CLIP.TRAINABLE_BLOCKS",),
        "-1 for all blocks, or 1 or more: 0 trains nothing",
        lambda count: count != 0,
        "CLIPSelf",
    ),
    Relation(
        ("SOLVER.MIX_WITH_START", "MODEL.WEIGHTS"),
        "() without a start to mix with, MODEL.WEIGHTS or --model",
        lambda fractions, start: not fractions or bool(start),
    ),
    Relation(
        ("MODEL.PRESERVATION.WEIGHT", "MODEL.WEIGHTS"),
        "0 without a start to preserve, MODEL.WEIGHTS or --model",
        lambda weight, start: not weight or bool(start),
    ),
    Relation(
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "SOLVER.CLIP_GRADIENTS.ENABLED"),
        "greater than 0, for gradients are cut to this norm",
        lambda norm, enabled: norm > 0 or not enabled,
    ),
    Relation(
        ("TEST.AUG.ENABLED", "TEST.AUG.FLIP"),
        "False unless TEST.AUG.FLIP is True, the only augmentation that is averaged",
        lambda enabled, flip: flip or not enabled,
    ),
    Relation(
        ("INPUT.FORMAT",),
        "RGB, as which images are read",
        lambda channels: channels == "RGB",
        IMAGES,
    ),
    Relation(
        ("TEST.LABEL_FILES", "DATASETS.TEST"),
        'a file for each of DATASETS.TEST ("" keeps its own names), or () to keep the names of all',
        lambda files, datasets: len(files) in (0, len(datasets)),
        EVALUATION,
    ),
    Relation(
        ("TEST.EXAMPLES.DATASETS", "TEST.EXAMPLES.NUMBER", "DATASETS.TEST"),
        "a data set with label maps for each of DATASETS.TEST",
        lambda sources, number, datasets: not number or len(sources) == len(datasets),
        EVALUATION,
    ),
    # Semantic segmentation.
    Relation(
        ("MODEL.CLIP.ATTENTION",),
        '"none", for CAT-Seg is trained on dense features without it',
        lambda attention: attention == "none",
        "CATSeg",
    ),
    Relation(
        ("MODEL.CAT_SEG.RESIDUAL", "MODEL.CLIP.DENSE"),
        '"none" unless DENSE is "token", for these dense features add none',
        lambda residual, dense: residual == "none" or dense == "token",
        "CATSeg",
    ),
    Relation(
        (f"{HEAD}.WINDOW_SIZES", f"{HEAD}.FEATURE_RESOLUTION"),
        "a divisor of FEATURE_RESOLUTION, or at least as large",
        lambda window, grid: window >= grid[0] or grid[0] % window == 0,
    ),
    Relation(
        (f"{HEAD}.POOLING_SIZES", f"{HEAD}.FEATURE_RESOLUTION"),
        "divisors of FEATURE_RESOLUTION",
        lambda sizes, grid: all(grid[0] % size == 0 for size in sizes),
    ),
    Relation(
        (f"{HEAD}.NUM_HEADS", f"{HEAD}.HIDDEN_DIMS"),
        "a divisor of HIDDEN_DIMS",
        lambda heads, width: width % heads == 0,
    ),
    Relation(
        (f"{HEAD}.DECODER_GUIDANCE_PROJ_DIMS", f"{HEAD}.HIDDEN_DIMS", f"{HEAD}.DECODER_DIMS"),
        "less than what their steps get, HIDDEN_DIMS and the first of DECODER_DIMS",
        lambda dims, hidden, decoder: dims[0] < hidden and dims[1] < decoder[0],
    ),
    Relation(
        ("TEST.BACKGROUND.THRESHOLD", "TEST.BACKGROUND.WORDS"),
        "greater than 0 unless WORDS is True: else no pixel can become background",
        lambda threshold, words: words or threshold > 0,
    ),
    Relation(
        ("MODEL.ZERO_SHOT.STRIDE", "MODEL.ZERO_SHOT.WINDOW"),
        "from a sixteenth of WINDOW, for memory grows with its square, to WINDOW",
        lambda stride, window: window <= 16 * stride <= 16 * window or window == 0,
    ),
    # Panoptic segmentation.
    of_masks("MODEL.WEIGHTS", "", "so that nothing generates any"),
    of_masks("MODEL.FUSION.MODE", "clip", "which have no class scores but CLIP's"),
    of_masks("MODEL.FUSION.VOID_DISCOUNT", 0.0, "which have no void but CLIP's"),
    of_masks("TEST.PANOPTIC.ROWS", ("clip",), "which have no class scores but CLIP's", EVALUATION),
    of_masks("TEST.PANOPTIC.VOID_SWEEP", (), "which have no void but CLIP's", EVALUATION),
    Relation(("INPUT.MIN_SCALE", "INPUT.MAX_SCALE"), "at most MAX_SCALE", operator.le),
    Relation(
        (SOURCE, KIND),
        "blocks where KIND is plain, another where it is not; masks goes with any KIND",
        lambda source, kind: source == "masks" or (source == "blocks") == (kind == "plain"),
    ),
    Relation(
        ("MODEL.MASK_GENERATOR.VARIANT", KIND),
        "fcclip for the kind plain",
        lambda variant, kind: variant == "fcclip" or kind != "plain",
    ),
    Relation(
        (f"{FORMER}.DIM_FEEDFORWARD", KIND),
        "greater than 0, or 0 for the kind plain",
        lambda width, kind: width > 0 or (width == 0 and kind == "plain"),
    ),
    Relation(
        (f"{FORMER}.HIDDEN_DIM", f"{FORMER}.NHEADS", KIND),
        "a multiple of 32, for groups of norms, and of NHEADS",
        lambda width, heads, kind: kind == "plain" or (width % 32 == 0 and width % heads == 0),
    ),
    Relation(
        (f"{FORMER}.SIZE_DIVISIBILITY", SOURCE),
        "a multiple of 32, which a mask generator needs",
        lambda side, source: source == "masks" or (side > 0 and side % 32 == 0),
        "OpenPanoptic",
    ),
    Relation(
        ("MODEL.CLIP_BRANCH.INPUT_SIZE", BRANCH_KIND),
        "0 for KIND backbone, which reads the generator's canvas as it is",
        lambda size, kind: not size or kind != "backbone",
    ),
    of_generators_clip("BACKBONE"),
    of_generators_clip("NAME"),
    of_generators_clip("WEIGHTS"),
    Relation(
        ("MODEL.CLIP_BRANCH.WEIGHTS", "MODEL.CLIP_BRANCH.NAME", "MODEL.CLIP.NAME"),
        "those of the architecture NAME, such as a distilled CLIP's",
        lambda weights, name, own: bool(weights) or name in ("", own),
    ),
    # Detection.
    Relation((f"{SIZES}.MIN_SCALE", f"{SIZES}.MAX_SCALE"), "at most MAX_SCALE", operator.le),
    Relation(
        ("MODEL.CLIP.LOW_RANK", "MODEL.FVIT.TRAIN_CLIP", "SOLVER.CLIP_MULTIPLIER"),
        "0 for a frozen image tower: TRAIN_CLIP True and a CLIP_MULTIPLIER above 0 train it",
        lambda rank, trains, multiplier: not rank or (trains and multiplier > 0),
        "FViT",
    ),
]


def require_valid(
    cfg: CfgNode,
    model: str,
    source: Callable[..., str] = lambda *keys: "the configuration",
    *,
    all_keys: bool = False,
) -> None:
    """Refuses values that a key may not have, and keys that do not go together.

    Configurations of other projects come to a model without `load_config`: its `from_config` calls this, too.

    Args:
        cfg: any configuration; keys that it lacks are not checked.
        model: class of a model in this package, whose keys count; or `IMAGES` or `EVALUATION`, with all keys.
        source: function of keys that returns what set them, for the message.
        all_keys: check the keys of other models too.

    Raises:
        InputError: names the key, and what set it.
    """
    values = dict[str, Any]()
    for name, value in leaves(cfg):
        if name in KEYS and (all_keys or KEYS[name].read_by(model)):
            section, _, last = name.rpartition(".")
            values.setdefault(section, {})[last] = value
            values[name] = value
    for name, key in KEYS.items():
        if name in values and (problem := key.problem(values[name])):
            raise InputError(f"{source(name)}: {name} {problem}")
    for keys, wanted, holds, of in RELATIONS:
        if of not in ("", model) or not values.keys() >= {*keys}:
            continue
        given = [values[name] for name in keys]
        if not holds(*given):
            got, *others = map(shown, given)
            beside = " and ".join(f"{name} {text}" for name, text in zip(keys[1:], others))
            raise InputError(
                f"{source(*keys)}: {keys[0]} must be {wanted}, got {got}"
                + (f" with {beside}" if beside else "")
            )
