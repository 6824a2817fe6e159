"""Finds out which model a user means: its task, configuration and weights, by a name, a file or a folder.

A name is looked up without torch or Detectron2, so that a wrong one is refused at once. What the model of a
configuration does is said by the class that its MODEL.META_ARCHITECTURE names, of this package or registered elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipself_seg.checkpoints import locate
from clipself_seg.checkpoints.mask_models import is_mask_model_name
from clipself_seg.checkpoints.zoo import (
    MINI_CLIP,
    MINI_CLIPS,
    SCHEME,
    SHIPPED_CONFIGS,
    SHIPPED_TAGS,
    Entry,
    entry_of,
    shipped_model,
    shipped_tags,
    zoo,
)
from clipself_seg.errors import InputError, known, nearest
from clipself_seg.yaml_files import leaves, merge_layers, read_layers, read_tree

TASKS = ("semantic", "panoptic", "detection")
MINI = "mini"  # stands for the shipped model of a task, which knows the generated worlds
# Task -> model where none is named: of those that are fetched without an account, with the most permissive licence.
DEFAULTS = {"semantic": "catseg-base", "panoptic": "tipsv2-l14", "detection": "tipsv2-l14"}
# To begin with: README's table.
FIRST = (
    *("catseg-base", "catseg-large", "tipsv2-l14", "fcclip-convnext-large"),
    *("fvit-eva02-vitb16-lvis-patches", "clipself-eva02-vitb16-coco-patches"),
)
MASKS = "eomt"  # finds the masks that a CLIP alone names
# What is said of them.
PARTS_ALONE = (
    "no number of both together is published, of the parts COCO PQ 56.0 and ADE20K-150 mIoU 24.7"
)
REASONS = {
    "semantic": "it downloads by itself, and no term is non-commercial",
    "panoptic": f"it names the masks of {MASKS}: {PARTS_ALONE}",
    "detection": f"it names the masks of {MASKS}, whose boxes these are: {PARTS_ALONE}",
}
# Task -> model with a training for it: to train further, to evaluate, and for pages that fuse two scores.
TRAINED = {
    "semantic": "catseg-base",
    "panoptic": "fcclip-convnext-large",
    "detection": "fvit-eva02-vitb16-lvis-patches",
}
# Task -> the shipped model that "mini" stands for.
MINIS = dict(zip(TASKS, SHIPPED_CONFIGS, strict=True))
# Folder of the configurations of a task -> the task.
FOLDERS = {"semseg": "semantic", "panoptic": "panoptic", "detection": "detection"}
CLIP_KEY = "MODEL.CLIP.WEIGHTS"
# Keys of what predicts; entries of other keys are parts of models.
MODEL_KEYS = ("MODEL.WEIGHTS", CLIP_KEY)
DISTILLATION = "distillation"  # a task of training and evaluation, not of prediction
# Configurations of a CLIP alone, which segments without training, names masks that another model found, or is
# distilled; those of the generated worlds' CLIPs begin with "mini/".
ZERO_SHOT_CONFIG, MINI_ZERO_SHOT_CONFIG = "zero_shot/base", "mini/zero_shot"
MASKS_CONFIG, MINI_MASKS_CONFIG = "panoptic/masks", "mini/panoptic_masks"
DISTILL_CONFIG, MINI_DISTILL_CONFIG = "distill/coco_patches", "mini/patches"
# Part of a CLIP's name -> tower whose configuration its family needs beside the name.
FAMILIES = {"SigLIP": "siglip2_vitb16", "PE-Core": "pe_core_vitb16", "TIPSv2": "tipsv2_vitb14"}
# Pattern of a CLIP's name -> key and value that it needs beside `ZERO_SHOT_CONFIG`: windows of 336 pixels are no
# multiple of a stride of 32, and convolutional towers have no attention whose values would be dense features.
NEEDED = {
    r"-32(-|$)|^RN\d|^convnext": ("MODEL.ZERO_SHOT.WINDOW", "352"),
    r"^RN\d|^convnext": ("MODEL.CLIP.DENSE", "token"),
}
# What a run leaves in its folder, the first that is there.
RUN_FILES = ("model_final.pth", "clip_final.safetensors")
CONFIG = "config.yaml"
# Any of them makes a folder with a configuration one of save_pretrained, and none of a run.
PRETRAINED_FILES = ("model.safetensors", "clip.safetensors")
# All that a folder of save_pretrained may have. The first is required, and the second or the third.
FOLDER_FILES = (
    CONFIG,
    *PRETRAINED_FILES,
    "clip_branch.safetensors",
    "vocabulary.json",
    "trained.json",
    "README.md",
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


class ModelChoice(NamedTuple):
    """A model that somebody means.

    Attributes:
        task: one of `TASKS`.
        config_file: its configuration; empty for a folder of `save_pretrained`.
        weights: its weights, as configurations name them; None for those of the configuration.
        opts: further keys and values in turn.
        key: key of the configuration that takes the weights.
        clip: name of a CLIP alone, as `load_clip` takes it; empty for a model that was trained.
    """

    task: str
    config_file: str
    weights: str | None
    opts: tuple[str, ...] = ()
    key: str = "MODEL.WEIGHTS"
    clip: str = ""

    @property
    def score_key(self) -> str:
        """Key of the score that a detection has to exceed: of boxes, or of the segments that they are made of."""
        if self.key == CLIP_KEY:
            return "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"
        return "MODEL.FVIT.SCORE_THRESHOLD"

    def values(self, opts: Sequence[str] = ()) -> dict[str, Any]:
        """Keys and values that files, the zoo's settings and options set; none of a folder of `save_pretrained`.

        Args:
            opts: further keys and values in turn.
        """
        if not self.config_file:
            return {}
        typed = (*self.opts, *([] if self.weights is None else [self.key, self.weights]), *opts)
        values = dict(leaves(merge_layers(read_layers(self.config_file))))
        entry = zoo().get(self.weights or "")
        values |= dict(entry.settings if entry else ())
        return values | dict(zip(typed[::2], typed[1::2]))


def find_model(
    model: str | os.PathLike[str] | None = None,
    task: str | None = None,
    config_file: str | os.PathLike[str] | None = None,
) -> ModelChoice:
    """Finds the task, the configuration and the weights of a model.

    A CLIP alone does every task: it segments without training, and names the masks that `MASKS` finds.

    Args:
        model: a name (of the zoo, or "mini" for the shipped model of the task), a file of weights beside which
            its run's config.yaml lies, the folder of a run or of `save_pretrained`, or a repository of the
            hub; None for the model in `DEFAULTS`.
        task: one of `TASKS`; None for that of the model, or semantic.
        config_file: configuration in place of the one that belongs to the model.

    Raises:
        InputError: nothing is known by that name, it does another task, or its configuration has to be named.
    """
    require_task(task)
    named = None if model is None else os.fspath(model).removeprefix(SCHEME)
    if config_file is not None:
        choice = _configured(os.fspath(config_file), named)
    else:
        choice = _named(DEFAULTS[task or TASKS[0]] if named is None else named, task)
        if task in TASKS[1:] and choice.clip:
            choice = _naming_masks(choice, task)
    if task and task != choice.task:
        raise InputError(f"{config_file or named} does {choice.task}: leave out the task {task}")
    return choice


def require_task(task: str | None) -> None:
    """Refuses what is no task; None stands for any.

    Raises:
        InputError: names the nearest task.
    """
    if task is not None:
        hint = " (semantic: a class of each pixel; panoptic: segments; detection: boxes and masks of instances)"
        known(task, TASKS, "task", hint=hint)


def is_repository(model: str) -> bool:
    """True of a repository of the hub, ``hf-hub:org/name`` or org/name, with @revision or without, that is no file."""
    if os.path.exists(model) or of_weights(model):
        return False
    if model.startswith(locate.HUB):
        return not locate.hub_name(model).file
    return bool(HUB_NAME.fullmatch(model)) and not model.endswith(locate.SUFFIXES)


def find_distillation(model: str | None = None) -> ModelChoice:
    """Finds the recipe that distils a CLIP from image patches, and measures its regions.

    Args:
        model: a CLIP, as for `find_model`; "mini" for the recipe of the generated world; None for EVA-02's B/16.

    Raises:
        InputError: as `find_model`; it is no CLIP alone.
    """
    if model is None or model == MINI:
        config = MINI_DISTILL_CONFIG if model else f"{DISTILL_CONFIG}+eva02_vitb16"
        return ModelChoice(DISTILLATION, config, None)
    choice = find_model(model)
    if not choice.clip:
        raise InputError(f"{model} is no CLIP alone: name one, such as openai-vitb16")
    config = MINI_DISTILL_CONFIG
    if choice.clip not in MINI_CLIPS.values():
        configs = zoo()[model].configs if model in zoo() else ()
        own = (config for config in configs if config.startswith(f"{DISTILL_CONFIG}+"))
        config = next(own, DISTILL_CONFIG)
    return choice._replace(task=DISTILLATION, config_file=config, opts=_clip_name(choice.clip))


def of_weights(name: str) -> ModelChoice | None:
    """The model that a name of the zoo or of a shipped model stands for; None for any other text."""
    for task, mini in MINIS.items():
        if name == mini:
            return ModelChoice(task, SHIPPED_CONFIGS[mini], mini)
    if name in SHIPPED_TAGS:
        return _without_training(shipped_model(name), name)
    clip, _, tag = name.partition(":")
    entry = zoo().get(name) or entry_of(tag, clip)
    return None if entry is None else _of_entry(entry)


def list_models(task: str | None = None) -> list[str]:
    """Names that `clipself_seg.load` takes: those of a task, or all.

    A CLIP alone counts as semantic, since it segments without training.

    Args:
        task: one of `TASKS`; None for all.

    Raises:
        InputError: there is no such task.
    """
    require_task(task)
    return [name for name in _model_names() if task in (None, find_model(name).task)]


def _model_names() -> list[str]:
    models = [name for name, entry in zoo().items() if entry.key in MODEL_KEYS]
    return [*SHIPPED_CONFIGS, *shipped_tags(), *models]


def find_clip(weights: str) -> tuple[str, str]:
    """Finds a CLIP's name and its weights, as `load_clip` takes them.

    Args:
        weights: name of a CLIP in the zoo or of a shipped one, or a file or folder of a distillation.

    Raises:
        InputError: nothing is known by that name, nothing says of which CLIP it is, or it is another model.
    """
    choice = of_weights(weights) or find_model(weights)
    if not choice.clip:
        raise InputError(f"{weights} is a model for {choice.task}, and no CLIP alone: name a CLIP")
    return choice.clip, choice.weights or weights


def _of_entry(entry: Entry) -> ModelChoice:
    if entry.key not in MODEL_KEYS:
        option = "--masks" if entry.key == "MODEL.MASK_GENERATOR.OUTPUTS" else entry.key
        raise InputError(f"{entry.name} is a part of a model, which {option} takes: name a model")
    if entry.key == CLIP_KEY:
        return _without_training(entry.model, entry.name)
    config = entry.configs[0]
    return ModelChoice(FOLDERS[config.partition("/")[0]], config, entry.name)


def _named(model: str, task: str | None) -> ModelChoice:
    """The choice of a name, a file or a folder without a configuration of its own."""
    if model == MINI:
        mini = MINIS[task or TASKS[0]]
        return ModelChoice(task or TASKS[0], SHIPPED_CONFIGS[mini], mini)
    place = Path(model)
    if not place.exists():
        if choice := of_weights(model):
            return choice
        if is_repository(model):
            return _named(str(_fetched(model)), task)
        if locate.is_remote(model):
            raise InputError(f"{model[:200]} does not say what model it is: name its configuration")
        raise _unknown(model)
    config = (place if place.is_dir() else place.parent) / CONFIG
    if not config.is_file():
        if entry := next((one for one in zoo().values() if one.file == place.name), None):
            if (own := locate.own_file(entry)) and place.samefile(own):
                return _of_entry(entry)
            raise InputError(
                f"{place} has the name of the official file of {entry.name}: put it into {locate.weights_folder()} "
                f"and give that name, or name its configuration"
            )
        from clipself_seg.clip.weights import clip_of_file  # seconds

        file = place / locate.TRANSFORMERS_FILES[0] if (place / "config.json").is_file() else place
        if file.is_file() and (clip := clip_of_file(file)):
            return _without_training(clip, str(file))
        raise InputError(
            f"{place} has no {CONFIG} {'in' if place.is_dir() else 'beside'} it: name its configuration, --config-file "
            "semseg/catseg+openai_vitb16 of CAT-Seg or zero_shot/base+openai_vitb16 of a CLIP alone, with --opts "
            "MODEL.CLIP.DENSE_OVERRIDE True of an original one (dense-maps, explore and serve: --clip-name ViT-B-16)"
        )
    if place.is_dir():
        if any((place / file).exists() for file in PRETRAINED_FILES):
            # Of anybody: no other file that it may name is read.
            return _of_values(dict(leaves(read_tree(config))), "", model)
        place = next((place / file for file in RUN_FILES if (place / file).exists()), place)
        if place.is_dir():
            raise InputError(f"{place} has no {' and no '.join(RUN_FILES)}: name a file of weights")
    return _configured(str(config), str(place))


def _fetched(model: str) -> Path:
    """The folder of a repository of the hub, see `is_repository`, which is fetched once.

    Raises:
        NotFetched: no such repository, or it cannot be fetched.
        InputError: others published it, and it is no model of `save_pretrained`.
    """
    name = locate.hub_name(locate.HUB + model.removeprefix(locate.HUB))
    if is_mask_model_name(name.repository):
        raise InputError(f"{model} finds masks, and names none: give it as --masks")
    if names := " or ".join(entry.name for entry in locate.entries_of(name)):
        raise InputError(f"{model} has the official weights of {names}: give that name")
    try:
        return locate.hub_folder(name, [CONFIG], FOLDER_FILES[1:])
    except InputError as error:
        lost = f"no folder {model} is here, and " * (not model.startswith(locate.HUB))
        raise type(error)(
            f"{lost}{error} (a repository has to be of this project's save_pretrained; of a CLIP that others "
            f"published: --config-file zero_shot/base+openai_vitb16 --model {locate.HUB}{name.repository})"
        ) from None


def _configured(config_file: str, weights: str | None) -> ModelChoice:
    """The choice of a configuration, by the class that it names; one of a distillation or region reader is its CLIP.

    Raises:
        InputError: no such class is registered, or it predicts nothing.
    """
    return _of_values(dict(leaves(merge_layers(read_layers(config_file)))), config_file, weights)


def _of_values(values: Mapping[str, Any], config_file: str, weights: str | None) -> ModelChoice:
    """See `_configured`; `values` are those of the configuration."""
    from clipself_seg.models.build import registered_model  # seconds

    name = str(values.get("MODEL.META_ARCHITECTURE", "CLIPSelf"))
    model = registered_model(name)
    if getattr(model, "purpose", ""):
        key = getattr(model, "weights_key", "MODEL.WEIGHTS")
        return ModelChoice(model.task(), config_file, weights, key=key)
    if weights is None or model.task() != "regions":
        raise InputError(
            f"{config_file or weights} is of {name}, which predicts nothing: name a model, or the CLIP that it wrote; "
            "a class of yours predicts as a subclass of a model of this package (docs/add_your_own.md, section 5)"
        )
    return _without_training(str(values.get("MODEL.CLIP.NAME", MINI_CLIP)), weights)


def _without_training(name: str, weights: str) -> ModelChoice:
    """Semantic segmentation by a CLIP alone.

    Args:
        name: open_clip's name of the CLIP.
        weights: as for `load_clip`.
    """
    mini = name in MINI_CLIPS.values()
    config = MINI_ZERO_SHOT_CONFIG if mini else ZERO_SHOT_CONFIG + _tower(name)
    opts = _clip_name(name)
    for pattern, needed in NEEDED.items():
        opts += needed if re.search(pattern, name) else ()
    return ModelChoice("semantic", config, weights, opts, CLIP_KEY, name)


def _clip_name(clip: str) -> tuple[str, ...]:
    """The key and value that name a CLIP; none for the one that the configurations of the generated worlds name."""
    return () if clip == MINI_CLIP else ("MODEL.CLIP.NAME", clip)


def _tower(clip: str) -> str:
    """The end of the name of a configuration of the tower in `FAMILIES` that a CLIP's family needs; "" for none."""
    return next((f"+{tower}" for part, tower in FAMILIES.items() if part in clip), "")


def _naming_masks(choice: ModelChoice, task: str) -> ModelChoice:
    """Panoptic segmentation, or detection, by the CLIP of a choice of `_without_training`, which names masks."""
    # The CLIP itself names them.
    opts = (*_clip_name(choice.clip), "MODEL.CLIP_BRANCH.WEIGHTS", "")
    if choice.clip in MINI_CLIPS.values():
        return choice._replace(task=task, config_file=MINI_MASKS_CONFIG, opts=opts)
    opts += ("MODEL.MASK_GENERATOR.OUTPUTS", MASKS)
    config = MASKS_CONFIG + (_tower(choice.clip) or "+openai_vitb16")
    return choice._replace(task=task, config_file=config, opts=opts)


def _unknown(model: str) -> InputError:
    if os.sep in model or model.endswith(locate.SUFFIXES):
        return locate.no_checkpoint(model)
    return InputError(
        f'no model "{model}": {nearest(model, [MINI, *_model_names()], FIRST)} (clipself-seg weights lists all; what '
        "finds masks, such as sam2, goes with --masks)"
    )
