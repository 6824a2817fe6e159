"""Small models of the kinds of CLIP whose published ones are large, by names that `load_clip` knows in a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipself_seg.clip import build
from tests.tokenizers import write_tokenizer

REPOSITORY = "tests/small"  # where their tokenizers are looked for
TIPS: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 56,
        "patch_size": 14,
        "width": 32,
        "layers": 4,
        "heads": 2,
        "hidden": 64,
        "gated": False,
        "register_tokens": 1,
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 40,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "hidden": 64,
        "hf_tokenizer_name": REPOSITORY,
    },
}
SMALL = {"small-TIPSv2": TIPS}


@contextlib.contextmanager
def small_towers(folder: Path) -> Iterator[tuple[str, ...]]:
    """Their names, which `load_clip` knows inside of the context.

    Args:
        folder: for the tokenizer, in place of the user's folder of weights.
    """
    place = folder / "hub" / REPOSITORY.replace("/", "--") / "main"
    place.mkdir(parents=True)
    write_tokenizer(place / "tokenizer.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPSELF_SEG_WEIGHTS", str(folder))
        for name, config in SMALL.items():
            patch.setitem(build._configs(), name, config)
        yield tuple(SMALL)
