"""Small models with random weights of the kinds whose published ones are large, for tests of every task."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch

from clipself_seg.clip import DenseCLIP, build, load_clip, pe_core, siglip, siglip_files
from clipself_seg.clip.tokenizer_files import FileTokenizer

VOCABULARY = 60
SIGLIP_SHAPE = siglip.Shape(32, 4, 2, 8)
PE_SHAPE = pe_core.Shape(32, 4, 2, 8, 4)
CONFIGS: dict[str, dict[str, Any]] = {
    "SigLIP-Small": {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 32, "timm_model_name": "vit_small_siglip"},
        "text_cfg": {
            "context_length": 12,
            "vocab_size": VOCABULARY,
            "hf_tokenizer_name": "nobody/nothing",
            "width": 32,
            "heads": 2,
            "layers": 2,
            "proj_bias": True,
            "act_kwargs": {"approximate": "tanh"},
            **siglip.FIXED,
        },
    },
    "PE-Core-Small": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "timm_model_name": "vit_small_pe_core"},
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    },
}
NAMES = tuple(CONFIGS)


def _pieces(repository: str, *, vocabulary: int, padding: int) -> FileTokenizer:
    """Token ids of words by their hashes."""

    def encode(text: str) -> list[int]:
        return [2 + zlib.crc32(word.encode()) % (vocabulary - 2) for word in text.split()] + [1]

    return FileTokenizer(encode, padding)


def make_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `load_clip` know the names of `CONFIGS`, and gives SigLIP a tokenizer without a file."""
    monkeypatch.setitem(siglip.SHAPES, "vit_small_siglip", SIGLIP_SHAPE)
    monkeypatch.setitem(pe_core.SHAPES, "vit_small_pe_core", PE_SHAPE)
    monkeypatch.setattr(siglip_files, "repository_tokenizer", _pieces)
    for name, config in CONFIGS.items():
        monkeypatch.setitem(build._configs(), name, config)


def small_clip(name: str, seed: int = 0) -> DenseCLIP:
    """A small model whose parameters are all random, those that start at 0 or 1 too."""
    torch.manual_seed(seed)
    clip = load_clip(name, None)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.dim() <= 1 and parameter.numel() > 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return clip
