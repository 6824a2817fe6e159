"""Small models of the kinds of CLIP whose published ones are large, by names that `load_clip` knows in a test, and
their tokenizer."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipself_seg.clip import find_kind, pe_core, siglip

REPOSITORY = "tests/small"  # where their tokenizers are looked for
TOKENIZER_WORDS = ("a", "cat", "dog", "photo", "of", "on", "the")
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
SIGLIP: dict[str, Any] = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 32, "timm_model_name": "vit_small_siglip"},
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 60,
        "hf_tokenizer_name": REPOSITORY,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "proj_bias": True,
        "act_kwargs": {"approximate": "tanh"},
        **siglip.FIXED,
    },
}
PE_CORE: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "timm_model_name": "vit_small_pe_core"},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
POOLED = {"small-SigLIP": SIGLIP, "small-PE-Core": PE_CORE}
SMALL = {"small-TIPSv2": TIPS, **POOLED}
SIGLIP_SHAPE = siglip.Shape(32, 4, 2, 8)
PE_SHAPE = pe_core.Shape(32, 4, 2, 8, 4)


def write_tokenizer(path: Path) -> Path:
    """Write a ``tokenizer.json`` as TIPSv2 has it, whose tokens are some letters and words, less than 40."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = sorted({letter for word in TOKENIZER_WORDS for letter in word})
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "▁", *letters])}
    merges = []
    for first, second in (("c", "a"), ("ca", "t"), ("d", "o"), ("do", "g"), ("o", "f")):
        vocabulary[first + second] = len(vocabulary)
        merges.append((first, second))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.save(str(path))
    return path


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
        patch.setitem(siglip.SHAPES, "vit_small_siglip", SIGLIP_SHAPE)
        patch.setitem(pe_core.SHAPES, "vit_small_pe_core", PE_SHAPE)
        for name, config in SMALL.items():
            patch.setitem(find_kind._configs(), name, config)
        yield tuple(SMALL)
