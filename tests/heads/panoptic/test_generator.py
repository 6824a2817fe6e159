"""The mask generator: queries and masks by hand, sizes and names of ODISE's, its numbers, training."""

import json

import numpy as np
import pytest
import torch

from clipself_seg.heads.panoptic.generator import (
    GENERATORS,
    CaptionGenerator,
    GeneratorSizes,
    MaskGenerator,
    PooledMaskEmbed,
    pool_masks,
)
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict

OFFICIAL = {f"s{i}": 512 for i in (2, 3, 4, 5)}
TINY = GeneratorSizes(32, 4, 6, encoder_layers=1, encoder_hidden=32, decoder_layers=3)
CHANNELS = {"s2": 8, "s3": 12, "s4": 16, "s5": 20}
CASE = json.loads((PARITY / "odise_head.json").read_text())


def official(variant: str) -> MaskGenerator:
    with torch.device("meta"):
        return GENERATORS[variant](channels=OFFICIAL)


def tiny(variant: str = "caption") -> MaskGenerator:
    return GENERATORS[variant](channels=CHANNELS, text_width=10, sizes=TINY)


def maps(batch: int = 1, height: int = 64, width: int = 96) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(batch, channels, height >> i, width >> i)
        for i, (name, channels) in enumerate(CHANNELS.items(), 2)
    }


def test_names_and_shapes_are_those_of_the_checkpoints():
    expected = json.loads((PARITY / "odise_head.shapes.json").read_text())
    state = official("caption").state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected
    label = set(official("label").state_dict())
    caption = {name.replace("word_head", "category_head") for name in state}
    predictor = "sem_seg_head.predictor.class_embed"
    assert caption - label == {f"{predictor}.weight", f"{predictor}.bias"}
    assert label - caption == {"category_head.null_embed"}


@pytest.mark.parametrize("variant", GENERATORS)
def test_the_factor_of_cosines_has_a_ceiling(variant):
    decoder = tiny(variant).sem_seg_head.predictor
    (learned,) = (p for name, p in decoder.named_parameters() if name.endswith("logit_scale"))
    for logarithm, factor in ((9.0, 100), (2.0, 7.389056)):
        torch.nn.init.constant_(learned, logarithm)
        assert decoder.scale.item() == pytest.approx(factor)


@pytest.mark.parametrize("variant", ["caption", "label"])
def test_training_reaches_every_parameter(variant):
    generator, text = tiny(variant), torch.randn(5, 10)
    loss = torch.zeros(())
    for prediction in generator(maps(batch=2), every_layer=True):
        scores = generator.scores(prediction, text, [2, 1, 2])
        loss = loss + scores.void_logits.log_softmax(-1)[..., 0].mean()
        loss = loss + scores.class_logits.square().mean() + prediction.mask_logits.sigmoid().mean()
    loss.backward()
    assert not [name for name, p in generator.named_parameters() if p.grad is None]


@torch.no_grad()
def test_queries_with_an_empty_mask_look_everywhere():
    decoder = tiny().eval().sem_seg_head.predictor
    coarse_to_fine = [torch.randn(1, 32, side, side) for side in (2, 4, 8)]
    # Of each query the whole mask is positive in one of the two, and empty in the other.
    features = torch.randn(1, 32, 1, 1).expand(-1, -1, 16, 16)
    both = [decoder(coarse_to_fine, sign * features, every_layer=True) for sign in (1, -1)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one.states, other.states)


@torch.no_grad()
def test_void_of_the_label_model_is_one_more_text():
    generator, text = tiny("label").eval(), torch.randn(5, 10)
    (prediction,) = generator(maps())
    scores = generator.scores(prediction, text, [2, 1, 2])
    assert scores.class_logits.shape == (1, 6, 3) and scores.void_logits.shape == (1, 6, 4)
    as_class = generator.category_head.text_proj(torch.cat([text, torch.zeros(1, 10)]))
    cosines = torch.cosine_similarity(prediction.embeddings[:, :, None], as_class, dim=-1) / 0.07
    expected = torch.stack([c.amax(-1) for c in cosines.split([2, 1, 2, 1], -1)], dim=-1)
    torch.testing.assert_close(scores.void_logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.void_prob, expected.softmax(-1)[..., -1])


def test_means_over_positive_pixels_by_hand():
    features = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)
    masks = torch.tensor([[[1.0, -1.0], [0.1, 0.0]], [[-1.0, -1.0], [-1.0, 0.0]]])[None]
    # A logit of zero, a probability of one half, is outside; an empty mask pools to zero.
    assert pool_masks(features, masks).flatten().tolist() == pytest.approx([2.0, 0.0])


def test_masks_get_no_gradient_and_features_do():
    features, masks = (torch.randn(1, n, 3, 3).requires_grad_() for n in (4, 2))
    module = PooledMaskEmbed(4)
    module(torch.randn(1, 2, 4), features, masks).square().sum().backward()
    assert masks.grad is None and features.grad is not None and features.grad.abs().sum() > 0


@torch.no_grad()
def test_autocast_leaves_out_the_pixel_decoder_of_fcclip_and_the_encoder_of_odise():
    for variant, exact in (("fcclip", True), ("label", False)):
        generator, given, seen = tiny(variant).eval(), maps(), list[tuple]()
        decoder = generator.sem_seg_head.pixel_decoder
        features, levels = decoder(given)
        decoder.register_forward_hook(lambda _, inputs, outputs, seen=seen: seen.append(outputs))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            generator(given)
        ((low, low_levels),) = seen
        assert torch.equal(low.float(), features) == exact
        assert all(level.dtype == torch.float32 for level in low_levels)
        assert all(map(torch.equal, low_levels, levels)) == exact


def test_first_temperature_is_that_of_clip():
    assert tiny().sem_seg_head.predictor.scale.item() == pytest.approx(1 / 0.07)


@pytest.fixture(scope="module", params=["plain", "spread"])
def case(request):
    """Generator, what it gives and what it should; queries of the plain case are nearly alike."""
    prefix = "" if request.param == "plain" else "spread_"
    weights = named_state_dict(json.loads((PARITY / "odise_head.shapes.json").read_text()))
    for name, factor in CASE["weight_multipliers"].items() if prefix else ():
        weights[name] *= factor
    generator = CaptionGenerator(channels=OFFICIAL).eval()
    generator.load_state_dict(weights, strict=True)
    stored = np.load(PARITY / "odise_head.npz")
    names = [n for n in stored if n.startswith("spread_") == bool(prefix)]
    expected = {name.removeprefix("spread_"): stored[name] for name in names}
    tag = str(expected["tag"])
    height, width = CASE["canvas"]
    features = {
        name: named_input(f"{tag}:{name}", (1, 512, height >> i, width >> i))
        for i, name in enumerate(OFFICIAL, 2)
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
    expect(generator.sem_seg_head.predictor.scale, expected["tau"], 1e-5)
    text = named_input(f"{expected['tag']}:text", (10, 768))
    expect(generator.word_head(text), expected["text_projected"], 5e-6)
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
