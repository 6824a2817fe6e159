"""Reads open_clip's tokenizer and model configs without importing open_clip.

Importing open_clip takes seconds, since it brings torchvision, timm and, where they are installed, transformers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "open_clip"
SECTIONS = {"embed_dim", "vision_cfg", "text_cfg"}  # a JSON without one of them is no model's


@functools.cache
def tokenizer() -> Any:
    """The `SimpleTokenizer` of CLIP's texts."""
    module = _tokenizer_module()
    # The module makes one for itself, which takes a while.
    return getattr(module, "_tokenizer", None) or module.SimpleTokenizer()


def _tokenizer_module() -> ModuleType:
    name = f"{NAME}.tokenizer"
    spec = importlib.util.spec_from_file_location("_tokenizer_alone", _folder() / "tokenizer.py")
    if name in sys.modules or spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:  # a version whose file is not for itself
        return importlib.import_module(name)
    return module


def model_configs() -> dict[str, dict[str, Any]]:
    """Model configs by name, as `open_clip.get_model_config` gives them."""
    if NAME in sys.modules:  # some may have been added
        module = importlib.import_module(NAME)
        return {name: module.get_model_config(name) for name in module.list_models()}
    files = {path.stem: path for path in (_folder() / "model_configs").glob("*.json")}
    configs = {name: json.loads(path.read_text()) for name, path in files.items()}
    return {name: config for name, config in configs.items() if config.keys() >= SECTIONS}


def _folder() -> Path:
    spec = importlib.util.find_spec(NAME)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {NAME!r}", name=NAME)
    return Path(spec.origin).parent
