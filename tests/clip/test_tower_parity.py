"""Newer towers against the numbers of their libraries on named weights (tests/parity): SigLIP 2 and PE-Core."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip import DenseCLIP, kinds, load_clip
from clipself_seg.clip.tower import DENSE
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict

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
        path = folder / "open_clip.pt"
        torch.save(weights, path)
        kinds._configs()[name] = about["open_clip_model"]
        try:
            self.clip: DenseCLIP = load_clip(name, path)
        finally:
            del kinds._configs()[name]
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
def case(request, tmp_path_factory) -> Case:
    with torch.no_grad():
        yield Case(request.param, tmp_path_factory.mktemp(request.param))


def thinned(dense_1Ehw: Tensor, steps: tuple[int, int, int]) -> Tensor:
    rows, columns, channels = steps
    return dense_1Ehw[0].permute(1, 2, 0)[::rows, ::columns, ::channels]


def test_embeddings_and_dense_features(case):
    of_tokens, of_dense = STEPS[case.name]
    visual, image = case.clip.visual, case.image(case.side, case.side)
    tokens_BLD, _ = visual.final_tokens(image)
    tokens_LD = visual.norm(tokens_BLD)[0]
    case.expect(tokens_LD[:: of_tokens[0], :: of_tokens[1]], "tokens")
    case.expect(visual(image)[0], "image_embed")
    case.expect(case.clip.text(case.tokens), "text_embed")
    dense = visual.dense(image)
    case.expect(thinned(dense, of_dense), "dense")
    case.expect(thinned(visual.dense(case.image(*case.wide)), of_dense), "dense_wide")
    weights = case.masks().flatten(1).float()
    unit = F.normalize(dense[0].flatten(1), dim=0)
    means = (weights / weights.sum(-1, keepdim=True)) @ unit.T
    case.expect(means, "region_mean", tolerance=1e-6)


def test_regions_by_masked_attention(case):
    visual, image, masks = case.clip.visual, case.image(case.side, case.side), case.masks()
    regions = visual.masked_attention(image, [masks])
    case.expect(regions, "region_attention")
    row, column = masks[3].nonzero()[0]
    torch.testing.assert_close(
        regions[3], visual.features(image, [DENSE])[DENSE][0, :, row, column], atol=1e-5, rtol=0
    )
    if visual.prefix:
        visual.choose_regions(True)
        regions = visual.masked_attention(image, [masks])
        visual.choose_regions(False)
        case.expect(regions, "region_attention_class")
    torch.testing.assert_close(regions[4:], visual(image), atol=1e-5, rtol=0)
