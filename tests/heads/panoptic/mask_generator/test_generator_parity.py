"""ODISE's mask generator (caption model) against the numbers of the official code (tests/parity)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from clipself_seg.heads.panoptic.generator import MaskGenerator
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict

CHANNELS = {f"s{i}": 512 for i in (2, 3, 4, 5)}
CASE = json.loads((PARITY / "odise_head.json").read_text())


@pytest.fixture(scope="module", params=["plain", "spread"])
def case(request):
    """Generator, what it gives and what it should; queries of the plain case are nearly alike."""
    prefix = "" if request.param == "plain" else "spread_"
    weights = named_state_dict(json.loads((PARITY / "odise_head.shapes.json").read_text()))
    for name, factor in CASE["weight_multipliers"].items() if prefix else ():
        weights[name] *= factor
    generator = MaskGenerator(channels=CHANNELS).eval()
    generator.load_state_dict(weights, strict=True)
    stored = np.load(PARITY / "odise_head.npz")
    names = [n for n in stored if n.startswith("spread_") == bool(prefix)]
    expected = {name.removeprefix("spread_"): stored[name] for name in names}
    tag = str(expected["tag"])
    height, width = CASE["canvas"]
    features = {
        name: named_input(f"{tag}:{name}", (1, 512, height >> i, width >> i))
        for i, name in enumerate(CHANNELS, 2)
    }
    with torch.no_grad():
        decoded = generator.sem_seg_head.pixel_decoder(features)
        predictions = generator.sem_seg_head.predictor(decoded[1], decoded[0], every_layer=True)
        yield generator, decoded, predictions, expected


def expect(actual: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    torch.testing.assert_close(
        actual.float(), torch.from_numpy(expected).float(), atol=tolerance, rtol=0
    )


def test_pixel_decoder(case):
    _, (mask_features, maps), _, expected = case
    expect(mask_features[0, ::8, ::4, ::4], expected["mask_features"], 2e-5)
    for index, step in enumerate((1, 2, 4)):
        memory = maps[index][0, ::8, ::step, ::step]
        expect(memory, expected[f"memory_s{5 - index}"], 5e-5)


def test_queries_masks_embeddings_and_class_logits(case):
    generator, _, predictions, expected = case
    last = predictions[-1]
    expect(last.states[0], expected["query_state"], 4e-5)
    masks = last.mask_logits[0]
    expect(masks[:, 2::8, 2::8], expected["masks_sub"], 3e-4)
    stored = expected["masks"].astype(np.float32)
    error = np.abs(masks[:: 100 // len(stored)].numpy() - stored)
    assert (error <= 3e-4 + np.abs(stored) / 1024).all()
    area = (masks > 0).sum(dim=(1, 2))
    assert (area - torch.from_numpy(expected["mask_area"])).abs().max() <= 2
    expect(last.embeddings[0], expected["e"], 2e-5)
    expect(last.object_logits[0], expected["object_void_logits"], 3e-5)
    expect(generator.sem_seg_head.predictor.post_mask_embed.scale, expected["tau"], 1e-5)
    text = named_input(f"{expected['tag']}:text", (10, 768))
    expect(generator.text_head(text), expected["text_projected"], 5e-6)
    scores = generator.scores(last, text, CASE["synonyms_per_class"])
    expect(scores.class_logits[0], expected["class_logits"], 3e-5)
    torch.testing.assert_close(scores.void_prob, last.object_logits.softmax(-1)[..., 1])


def test_initial_queries_and_every_layer(case):
    generator, (mask_features, maps), predictions, expected = case
    assert len(predictions) == 10
    masks = torch.stack([p.mask_logits[0, ::10, 2::8, 2::8] for p in predictions[:9]])
    expect(masks, expected["layer_masks_sub"], 3e-4)
    queries = torch.from_numpy(expected["layer_e_queries"]).long()
    embeddings = torch.stack([p.embeddings[0, queries] for p in predictions[:9]])
    expect(embeddings, expected["layer_e_sub"], 2e-5)
    (last,) = generator.sem_seg_head.predictor(maps, mask_features)
    torch.testing.assert_close(vars(last), vars(predictions[9]))
