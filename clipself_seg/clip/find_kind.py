"""The table of CLIP's kinds, and how a model's name, its config or the tensors of a file find theirs.

`register_kind` enters a kind, one of this project or of somebody else's: write a file with a `TowerKind`, and name it
at the end of this one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from clipself_seg.checkpoints.locate import HUB, SUFFIXES
from clipself_seg.checkpoints.needs import ARCHITECTURES, open_clip_folder
from clipself_seg.clip.convnext import CONVNEXT
from clipself_seg.clip.eva import EVA
from clipself_seg.clip.openai import OPENAI_VIT, RESNET
from clipself_seg.clip.pe_core import PE_CORE, PE_CORE_G
from clipself_seg.clip.siglip import SIGLIP
from clipself_seg.clip.tips import TIPS
from clipself_seg.clip.tower_kind import Architecture, Config, Signature, Tensors, TowerKind
from clipself_seg.errors import InputError, nearest
from clipself_seg.imports import OR_IMPORT

# A file is of the first kind whose tensors it has: those that have all of another's, and more, stand before it.
KINDS: dict[str, TowerKind] = {}
SECTIONS = {"embed_dim", "vision_cfg", "text_cfg"}  # a JSON without one of them is no model's


def kind_of(config: Config) -> TowerKind | None:
    """The kind of a model by its config; None if there is none with all of its keys."""
    return next((kind for kind in KINDS.values() if kind.supports(config)), None)


def model_configs() -> dict[str, Config]:
    """open_clip's model configs by name, as its `get_model_config` gives them, without importing it."""
    configs = _read_configs(open_clip_folder() / "model_configs")
    return {name: config for name, config in configs.items() if config.keys() >= SECTIONS}


def _read_configs(folder: Path) -> dict[str, Config]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@functools.cache
def _configs() -> dict[str, Config]:
    return model_configs() | _read_configs(ARCHITECTURES)


def list_architectures() -> list[str]:
    """Names of the models that `load_clip` accepts, sorted."""
    return sorted(name for name, config in _configs().items() if kind_of(config))


def find_architecture(name: str) -> Architecture:
    """The architecture of an open_clip model name (``ViT-B/16`` and ``ViT-B-16`` alike).

    Raises:
        InputError: the name is unknown (the message has the nearest known one), or the model is of
            a kind that is not in `KINDS` (CoCa, ...), without dense features here.
    """
    given, name = name, name.replace("/", "-")
    config = _configs().get(name)
    if config is not None and (kind := kind_of(config)):
        return Architecture(
            name=name,
            kind=kind,
            embed_dim=config["embed_dim"],
            vision=config["vision_cfg"],
            text=config["text_cfg"],
            quick_gelu=config.get("quick_gelu", False),
            logit_bias=config.get("init_logit_bias"),
        )
    close = nearest(name, list_architectures())
    if config is not None:
        reason = f"is neither {' nor '.join(KINDS)}: no dense features for it here; {close}"
    elif given.startswith(HUB):
        reason = (
            'is a model of the Hugging Face hub: give the name of its architecture, such as "ViT-B-16", and as its '
            f'weights "{given}", or open_clip\'s tag of them'
        )
    elif given.endswith(SUFFIXES):
        reason = 'is a file: give the name of its model, such as "ViT-B-16", before it'
    else:
        reason = f"is no CLIP model that is known here; {close}{OR_IMPORT}"
    raise InputError(f'"{given}" {reason}')


def register_kind(kind: TowerKind, configs: Mapping[str, Config] | None = None) -> TowerKind:
    """Adds a kind of CLIP's towers, and its models, which ``MODEL.CLIP.NAME`` and `load_clip` name.

    Args:
        kind: the kind; files are looked at for its tensors before those of the others.
        configs: name of a model -> its config in open_clip's form; None where open_clip or `ARCHITECTURES` has them.

    Raises:
        InputError: a name that exists, or a kind that would take models or files of another one.
    """
    known, others, configs = _configs(), dict(KINDS), configs or {}
    if taken := sorted({kind.name} & KINDS.keys() | configs.keys() & known.keys()):
        raise InputError(f'there is a "{taken[0]}" already: register yours by another name')
    models = [name for name, config in known.items() if kind.supports(config) and kind_of(config)]
    files = [k.name for k in others.values() if kind.key_tensors.items() <= k.key_tensors.items()]
    if models or files:
        raise InputError(
            f"the kind {kind.name} would take {' and '.join([*models, *files][:3])} from another kind: let `supports` "
            "refuse other configs, and name a tensor in `key_tensors` that no other kind has"
        )
    KINDS.clear()
    KINDS.update({kind.name: kind} | others)
    known.update(configs)
    return kind


def signature_of(tensors: Tensors) -> Signature | None:
    """Signature of the image tower among tensors under native names, or None without image tower."""
    for kind in KINDS.values():
        names = kind.key_tensors
        if all(name in tensors and tensors[name].dim() == rank for name, rank in names.items()):
            return kind.signature(tensors)
    return None


for own in (CONVNEXT, RESNET, OPENAI_VIT, EVA, TIPS, SIGLIP, PE_CORE_G, PE_CORE):
    register_kind(own)
