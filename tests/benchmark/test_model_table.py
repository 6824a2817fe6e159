"""fvcore's table of a model against this project's own count of operations."""

from __future__ import annotations

import re

import pytest

from bench.model_table import model_table
from clipself_seg.clip import load_clip
from clipself_seg.errors import InputError
from clipself_seg.tables.flops import tower_flops


def test_multiply_adds_are_half_of_our_operations_and_blocks_have_rows():
    text = model_table("ViT-Mini-8", 64, 3)
    visual = load_clip("ViT-Mini-8", None).visual
    total = float(re.search(r"^\| model .*\| ([\d.]+)M ", text, re.MULTILINE)[1]) * 1e6
    ours = tower_flops(visual, 64, 64).dense / 2
    assert 1 <= total / ours < 1.02  # fvcore counts norms as well
    assert "visual.transformer.resblocks.0" in text and "64 x 64" in text


def test_a_size_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(InputError, match="multiple of 8"):
        model_table("ViT-Mini-8", 65, 2)
