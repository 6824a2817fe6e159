"""Towers against published numbers: CLIPSelf's models, and SigLIP 2 and PE-Core of their libraries (tests/parity)."""

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from clipself_seg.clip import CLIP, find_kind, load_clip
from clipself_seg.clip.tower import DENSE
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
def case(request, tmp_path_factory) -> tuple[str, CLIP, dict[str, np.ndarray]]:
    name = request.param
    shapes = json.loads((PARITY / f"{name}.shapes.json").read_text())
    # Of the formats, the one that is written and read soonest.
    path = tmp_path_factory.mktemp(name) / "official.safetensors"
    save_file(named_state_dict(shapes), path)
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
def test_dense_features_boxes_and_masks(case, which, monkeypatch):
    name, clip, expected = case
    # What pools the dense features of an image takes the same ones: a large tower computes them once.
    monkeypatch.setattr(clip.visual, "dense", functools.cache(clip.visual.dense))
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


TOLERANCE = 3e-5
# How many tokens, and rows, columns and channels of dense features, a case leaves out.
STEPS = {"towers_siglip2": ((7, 8), (2, 2, 4)), "towers_pe_core_t": ((7, 4), (3, 3, 4))}


class Case:
    """A loaded model, its inputs and what the library makes of them."""

    def __init__(self, name: str, folder: Any) -> None:
        self.name = name
        about = json.loads((PARITY / f"{name}.json").read_text())
        shapes = json.loads((PARITY / f"{name}.shapes.json").read_text())
        weights = named_state_dict(shapes)
        for key, factor in about["weight_multipliers"].items():
            weights[key] = weights[key] * factor
        path = folder / "open_clip.safetensors"
        save_file(weights, path)
        find_kind._configs()[name] = about["open_clip_model"]
        try:
            self.clip: CLIP = load_clip(name, path)
        finally:
            del find_kind._configs()[name]
            path.unlink()
        self.expected = dict(np.load(PARITY / f"{name}.npz"))
        self.tokens = torch.tensor(about["tokens"])
        self.wide = tuple(about["wide"])
        self.side = self.clip.image_size

    def image(self, height: int, width: int) -> Tensor:
        values = named_input(f"{self.name}:image:{height}x{width}", (1, 3, height, width))
        return self.clip.normalise((0.5 + 0.2 * values).clamp(0, 1))

    def masks(self) -> Tensor:
        h = w = self.side // self.clip.patch_size
        masks = named_input(f"{self.name}:masks", (5, h, w)) > 0
        masks[3] = False
        masks[3, h // 2, w // 3] = True
        masks[4] = True
        return masks

    def expect(self, actual: Tensor, key: str, tolerance: float = TOLERANCE) -> None:
        wanted = torch.from_numpy(self.expected[key]).float()
        torch.testing.assert_close(actual, wanted.reshape(actual.shape), atol=tolerance, rtol=0)


@pytest.fixture(scope="module", params=STEPS)
def library_case(request, tmp_path_factory) -> Case:
    with torch.no_grad():
        yield Case(request.param, tmp_path_factory.mktemp(request.param))


def thinned(dense_1Ehw: Tensor, steps: tuple[int, int, int]) -> Tensor:
    rows, columns, channels = steps
    return dense_1Ehw[0].permute(1, 2, 0)[::rows, ::columns, ::channels]


def test_embeddings_and_dense_features(library_case):
    of_tokens, of_dense = STEPS[library_case.name]
    visual, image = library_case.clip.visual, library_case.image(
        library_case.side, library_case.side
    )
    tokens_BLD, _ = visual.final_tokens(image)
    tokens_LD = visual.norm(tokens_BLD)[0]
    library_case.expect(tokens_LD[:: of_tokens[0], :: of_tokens[1]], "tokens")
    library_case.expect(visual(image)[0], "image_embed")
    library_case.expect(library_case.clip.text(library_case.tokens), "text_embed")
    dense = visual.dense(image)
    library_case.expect(thinned(dense, of_dense), "dense")
    library_case.expect(
        thinned(visual.dense(library_case.image(*library_case.wide)), of_dense), "dense_wide"
    )
    weights = library_case.masks().flatten(1).float()
    unit = F.normalize(dense[0].flatten(1), dim=0)
    means = (weights / weights.sum(-1, keepdim=True)) @ unit.T
    library_case.expect(means, "region_mean", tolerance=1e-6)


def test_regions_by_masked_attention(library_case):
    visual, image, masks = (
        library_case.clip.visual,
        library_case.image(library_case.side, library_case.side),
        library_case.masks(),
    )
    regions = visual.masked_attention(image, [masks])
    library_case.expect(regions, "region_attention")
    row, column = masks[3].nonzero()[0]
    torch.testing.assert_close(
        regions[3], visual.features(image, [DENSE])[DENSE][0, :, row, column], atol=1e-5, rtol=0
    )
    if visual.prefix:
        visual.region_sees_prefix = True
        regions = visual.masked_attention(image, [masks])
        visual.region_sees_prefix = False
        library_case.expect(regions, "region_attention_class")
    torch.testing.assert_close(regions[4:], visual(image), atol=1e-5, rtol=0)
