"""The interface of `load_clip` against the numbers of the official CLIPSelf model (tests/parity)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from clipself_seg.clip import DenseCLIP, load_clip
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict

CASES = {  # case -> open_clip's name, sizes, size of the image embedding
    "clipself_openai_b16": ("ViT-B-16-quickgelu", (224, 256), 224),
    "clipself_eva02_b16": ("EVA02-B-16", (224, 256), 224),
    "clipself_openai_rn50x4": ("RN50x4-quickgelu", (288, 320), 288),
}
BOXES = torch.tensor(
    [(0, 0, 1, 1), (0.1, 0.2, 0.55, 0.9), (0.5, 0, 0.52, 0.31), (0.33, 0.66, 0.99, 0.97)]
)
TEXTS = ["a photo of a cat", "This is a blurry photo of the traffic light."]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> tuple[str, DenseCLIP, dict[str, np.ndarray]]:
    name = request.param
    shapes = json.loads((PARITY / f"{name}.shapes.json").read_text())
    path = tmp_path_factory.mktemp(name) / "official.pt"
    torch.save({"state_dict": named_state_dict(shapes)}, path)
    clip = load_clip(CASES[name][0], path)
    path.unlink()
    with torch.no_grad():
        yield name, clip, dict(np.load(PARITY / f"{name}.npz"))


def masks(h: int, w: int) -> Tensor:
    x, y = torch.arange(w) / w, (torch.arange(h) / h)[:, None]
    circle = (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.1
    return torch.stack([circle, (x > 0.7).expand(h, w), (y < 0.05).expand(h, w), x + y < 0.6])


def expect(actual: Tensor, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    reference = torch.from_numpy(expected).float()
    torch.testing.assert_close(actual, reference, atol=tolerance, rtol=0)


@pytest.mark.parametrize("which", [0, 1], ids=["native size", "other size"])
def test_dense_features_boxes_and_masks(case, which):
    name, clip, expected = case
    side = CASES[name][1][which]
    images = named_input(f"{name}:{side}x{side}", (1, 3, side, side))
    dense = clip.encode_dense(images)
    cells = masks(*dense.shape[-2:])
    expect(dense, expected[f"dense_{side}x{side}"], tolerance=1e-3)
    expect(clip.encode_boxes(images, [BOXES]), expected[f"boxes_{side}x{side}"])
    expect(clip.encode_masks(images, [cells]), expected[f"masks_{side}x{side}"])
    if f"masked_attention_boxes_{side}x{side}" in expected:
        read = clip.encode_boxes(images, [BOXES], masked_attention=True)
        expect(read, expected[f"masked_attention_boxes_{side}x{side}"])
        read = clip.encode_masks(images, [cells], masked_attention=True)
        expect(read, expected[f"masked_attention_masks_{side}x{side}"])


def test_image_embeddings(case):
    name, clip, expected = case
    side = CASES[name][2]
    expect(clip.encode_image(named_input(f"{name}:image", (2, 3, side, side))), expected["image"])


def test_tokens_and_text_embeddings(case):
    _, clip, expected = case
    assert clip.tokenize(TEXTS).tolist() == expected["tokens"].tolist()
    expect(clip.encode_text(TEXTS), expected["text"])
