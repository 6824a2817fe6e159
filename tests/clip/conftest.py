"""The mini CLIP with random weights, for all tests of a file."""

import pytest
import torch

from clipself_seg.clip import CLIP, load_clip


@pytest.fixture(scope="module")
def mini() -> CLIP:
    """Other weights than a fresh model has in a test."""
    torch.manual_seed(1)
    return load_clip("ViT-Mini-8", None)
