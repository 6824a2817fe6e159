"""Finds the architecture of a model name: open_clip's model configs and the project's own ones."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from clipself_seg.checkpoints.hub import HUB
from clipself_seg.clip.kind import Architecture
from clipself_seg.clip.kinds import KINDS, kind_of
from clipself_seg.clip.open_clip_files import model_configs
from clipself_seg.errors import InputError, nearest

OWN_CONFIGS = Path(__file__).parent / "architectures"


@functools.cache
def _configs() -> dict[str, dict[str, Any]]:
    configs = model_configs()
    for path in sorted(OWN_CONFIGS.glob("*.json")):
        configs[path.stem] = json.loads(path.read_text())
    return configs


def list_architectures() -> list[str]:
    """Names of the models that `load_clip` accepts, sorted."""
    return sorted(name for name, config in _configs().items() if kind_of(config))


def find_architecture(name: str) -> Architecture:
    """The architecture of an open_clip model name (``ViT-B/16`` and ``ViT-B-16`` alike).

    Raises:
        InputError: the name is unknown (the message has the nearest known one), or the model is of
            a kind that is not in `kinds.KINDS` (CoCa, ...), without dense features here.
    """
    given, name = name, name.replace("/", "-")
    if given.startswith(HUB):
        raise InputError(
            f'"{given}" is a model of the Hugging Face hub: give the name of its architecture, such as '
            f'"ViT-B-16", and as its weights "{given}", or open_clip\'s tag of them'
        )
    config = _configs().get(name)
    if config is None:
        raise InputError(f'unknown CLIP model "{given}"; {nearest(name, list_architectures())}')
    kind = kind_of(config)
    if kind is None:
        raise InputError(
            f'"{given}" is neither {" nor ".join(KINDS)}: '
            f"no dense features for it here; {nearest(name, list_architectures())}"
        )
    return Architecture(
        name=name,
        kind=kind,
        embed_dim=config["embed_dim"],
        vision=config["vision_cfg"],
        text=config["text_cfg"],
        quick_gelu=config.get("quick_gelu", False),
        logit_bias=config.get("init_logit_bias"),
    )
