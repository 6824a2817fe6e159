"""The plain decoder: official numbers with features of a tower or an image, names, sizes, masks in training only."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.flops import count_flops
from clipself_seg.clip.openai import VisionTransformer
from clipself_seg.clip.runtime import without_values
from clipself_seg.clip.tower_kind import CLIP_MEAN, CLIP_STD
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.plain_decoder import (
    FIRST_BLOCK,
    PlainDecoder,
    PlainDecoderSizes,
    mask_probabilities,
    rotary_table,
)
from tests.conftest import PARITY
from tests.heads.panoptic.released import released_decoder
from tests.parity.named_weights import named_input, named_state_dict
from tests.parity.uniform_numbers import draw

CASE = json.loads((PARITY / "pmt_decoder.json").read_text())
EXPECTED = np.load(PARITY / "pmt_decoder.npz")
GRID = tuple(CASE["grid"])
TAPS = [f"tap{i}" for i in range(4)]
TAPS = [named_input(f"{CASE['tag']}:tap{i}", (2, 61, 64)) for i in range(CASE["taps"])]


def close(actual: Tensor, expected: np.ndarray, tolerance: float) -> None:
    torch.testing.assert_close(actual.detach(), torch.from_numpy(expected), atol=tolerance, rtol=0)


def weights_of(name: str, case: dict) -> dict[str, Tensor]:
    weights = named_state_dict(json.loads((PARITY / f"{name}.shapes.json").read_text()))
    for part, factor in case["weight_multipliers"].items():
        weights |= {n: t * factor for n, t in weights.items() if part in n}
    return weights


def official(name: str, case: dict) -> PlainDecoder:
    """A decoder with the official classifier and the case's weights; the norms of taps as in evaluation."""
    sizes = PlainDecoderSizes(
        case["width"], case["heads"], case["queries"], case["blocks"], case["hidden"], case["patch"]
    )
    decoder = released_decoder(TAPS, sizes, case["classes"], masked=True)
    weights = weights_of(name, case)
    left = decoder.load_state_dict(
        {n: t for n, t in weights.items() if not n.startswith("visual.")}, strict=False
    )
    assert not left.unexpected_keys
    assert all("num_batches" in n or n.endswith("probs") for n in left.missing_keys)
    return decoder.eval()


def masking(decoder: PlainDecoder, batch_statistics: bool = False) -> PlainDecoder:
    """The decoder in training, whose norms of taps keep their statistics unless asked otherwise."""
    decoder.train()
    decoder.bn.train(batch_statistics)
    return decoder


@pytest.fixture()
def decoder() -> PlainDecoder:
    return official("pmt_decoder", CASE)


def allowed_cells(decoder: PlainDecoder, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collects, at every block, which cells queries may read."""
    seen: list[Tensor] = []
    plain = decoder.decoder._allowed

    def allowed(*args):
        seen.append(plain(*args))
        return seen[-1]

    monkeypatch.setattr(decoder.decoder, "_allowed", allowed)
    return seen


@torch.no_grad()
def test_positions_norms_and_fusion_are_official(decoder):
    cosine, sine = rotary_table(GRID, 16, 0, torch.device("cpu"))
    for table, name in ((cosine, "rope_cos"), (sine, "rope_sin")):
        close(torch.cat([table, table], dim=1), EXPECTED[name], 2e-6)
    normed = decoder.normalise(TAPS)
    close(normed[0][:, ::5, ::4], EXPECTED["normed_tap0"], 2e-6)
    close(decoder.decoder.fuse(normed)[:, ::2, ::4], EXPECTED["fused"], 1e-5)


@pytest.mark.parametrize("variant", ["masked", "plain", "annealed", "train"])
def test_predictions_are_official(decoder, variant, monkeypatch):
    cells = allowed_cells(decoder, monkeypatch)
    if variant != "plain":
        masking(decoder, batch_statistics=variant == "train")
    if variant == "annealed":
        probs = torch.tensor(CASE["attention_mask_probs"])
        decoder.decoder.attn_mask_probs.copy_(probs)
        draw(monkeypatch, f"{CASE['tag']}:annealed")
    predictions = decoder.decode(TAPS, GRID)
    masks = torch.stack([p.mask_logits for p in predictions])
    classes = torch.stack([p.embeddings for p in predictions])
    close(masks[..., ::2, ::2], EXPECTED[f"{variant}_mask_logits"], 2e-4)
    close(classes, EXPECTED[f"{variant}_class_logits"], 4e-5)
    if variant != "train":
        assert_packed(masks[-1] > 0, EXPECTED[f"{variant}_last_masks"])
    if variant in ("masked", "annealed"):
        first = CASE["queries"] + CASE["prefix"]
        assert all(one[..., :first].all() for one in cells)
        assert_packed(torch.stack(cells)[..., first:], EXPECTED[f"{variant}_allowed"])
    if variant == "train":
        check_training(decoder, masks, classes)


def assert_packed(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(np.packbits(found.numpy()), expected)


def check_training(decoder: PlainDecoder, masks: Tensor, classes: Tensor) -> None:
    """Gradients of all predictions, and the running statistics after the step."""
    loss = torch.zeros(())
    for i, (mask, logits) in enumerate(zip(masks, classes)):
        weights = [
            named_input(f"{CASE['tag']}:cot_{k}{i}", x.shape)
            for k, x in (("m", mask), ("k", logits))
        ]
        loss = loss + (weights[0] * mask).sum() / 100 + (weights[1] * logits).sum()
    loss.backward()
    assert loss.item() == pytest.approx(EXPECTED["train_loss"].item(), abs=5e-4)
    parameters = dict(decoder.named_parameters())
    for name, parameter, step in (
        ("q", "decoder.q.weight", 1),
        ("scaler0", "decoder.scalers.0", 1),
        ("bn0", "bn.0.weight", 1),
        ("k_proj", "decoder.blocks.0.attention.k_proj.weight", 8),
        ("class_head", "decoder.class_head.weight", 1),
    ):
        gradient = parameters[parameter].grad
        assert gradient is not None
        close(gradient[::step], EXPECTED[f"train_grad_{name}"], 2e-4)
    close(decoder.bn[0].running_mean, EXPECTED["train_running_mean0"], 1e-6)
    close(decoder.bn[0].running_var, EXPECTED["train_running_var0"], 1e-6)


RELEASED = {  # width, heads, queries, classes -> trained parameters
    "small": (384, 6, 200, 133, 7_692_038),
    "base": (768, 12, 200, 133, 30_424_454),
    "large": (1024, 16, 200, 133, 53_935_238),
    "large, ADE20K": (1024, 16, 100, 150, 53_850_263),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_decoders_have_these_names_and_numbers(name):
    width, heads, queries, classes, parameters = RELEASED[name]
    sizes = PlainDecoderSizes(width, heads, queries, hidden=width)
    with without_values():
        decoder = released_decoder(TAPS, sizes, classes)
    assert sum(p.numel() for p in decoder.parameters()) == parameters
    assert len(decoder.state_dict()) == 164


TINY = PlainDecoderSizes(width=16, heads=2, queries=5, layers=2, hidden=24, patch=8)


def tiny(masked: bool = False, **channels: int) -> PlainDecoder:
    torch.manual_seed(0)
    return PlainDecoder(
        channels=channels or {"block0": 16, "block1": 16},
        text_width=12,
        sizes=TINY,
        masked_attention=masked,
    )


CLIP = json.loads((PARITY / "pmt_clip.json").read_text())


def clip_taps(reading: str) -> list[Tensor]:
    """Taps of the case's tower and images, the class token first in the official reading."""
    tower = VisionTransformer(
        image_size=64,
        patch_size=8,
        width=128,
        layers=4,
        heads=4,
        embed_dim=128,
        quick_gelu=CLIP["quick_gelu"],
    ).eval()
    weights = weights_of("pmt_clip", CLIP)
    of_tower = {n.removeprefix("visual."): t for n, t in weights.items() if n.startswith("visual.")}
    tower.load_state_dict(of_tower | {"proj": tower.proj})
    tiles = named_input(f"{CLIP['tag']}:tiles", (2, 3, 4, 4))
    noise = named_input(f"{CLIP['tag']}:image", (2, 3, 64, 64))
    low = tiles.repeat_interleave(16, 2).repeat_interleave(16, 3)
    pixels = ((0.5 + 0.2 * low + 0.12 * noise).clamp(0, 1) * 255).round() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    images = (pixels - mean) / std
    if reading == "patches":
        names = [f"block{i}" for i in CLIP["taps"]]
        maps = tower.features(images, names)
        return [tower.final_norm(maps[name].flatten(2).transpose(1, 2)) for name in names]
    tokens, _, _ = tower.embed(images)
    taps = []
    for block in tower.stack:
        tokens = block(tokens)
        taps.append(tower.final_norm(tokens))
    return taps


@torch.no_grad()
@pytest.mark.parametrize("reading", ["official", "patches"])
def test_a_frozen_clip_and_the_decoder_are_official(reading):
    expected = np.load(PARITY / "pmt_clip.npz")
    taps = clip_taps(reading)
    for index, tap in enumerate(taps):
        close(tap[:, ::3, ::8], expected[f"{reading}_tap{index}"], 2e-5)
    decoder = official("pmt_clip", CLIP)
    for variant in ("plain", "masked"):
        if variant == "masked":
            masking(decoder)
        predictions = decoder.decode(taps, (8, 8))
        masks = torch.stack([p.mask_logits for p in predictions])
        close(masks[..., ::2, ::2], expected[f"{reading}_{variant}_mask_logits"], 3e-4)
        classes = torch.stack([p.embeddings for p in predictions])
        close(classes, expected[f"{reading}_{variant}_class_logits"], 4e-5)
        assert_packed(masks[-1] > 0, expected[f"{reading}_{variant}_last_masks"])


def test_probabilities_of_masks_are_official():
    case = json.loads((PARITY / "pmt_schedule.json").read_text())
    assert case["end"][0] == FIRST_BLOCK
    for step, expected in zip(case["steps"], case["attention_mask_probs"], strict=True):
        found = mask_probabilities(step, 12 * 7391, 6)
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("total, blocks", [(1, 3), (400, 1), (400, 3), (3000, 2)])
def test_masks_go_one_block_after_another_in_trainings_of_any_length(total, blocks):
    probs = np.array([mask_probabilities(step, total, blocks) for step in range(total + 1)])
    assert (np.diff(probs, axis=0) <= 0).all() and (np.diff(probs, axis=1) >= 0).all()
    assert (probs[-1] == 0).all() and (probs[total * 5 // 6 :] == 0).all()
    assert total == 1 or (probs[0] == 1).all()


def features(grid: tuple[int, int] = (4, 6), batch: int = 2, **channels: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = channels or {"block0": 16, "block1": 16}
    return {n: torch.randn(batch, c, *grid, generator=generator) for n, c in wide.items()}


TEXTS = torch.nn.functional.normalize(torch.randn(4, 12), dim=1)


@pytest.mark.parametrize("masked", [False, True])
def test_training_reaches_every_parameter(masked):
    decoder = tiny(masked, block0=16, dense=10)  # another width has a linear layer
    predictions = decoder(features(block0=16, dense=10), every_layer=True)
    assert len(predictions) == (3 if masked else 1)
    loss = torch.zeros(())
    for prediction in predictions:
        scores = decoder.scores(prediction, TEXTS, [2, 1, 1])
        assert scores.class_logits.shape == (2, 5, 3) and scores.void_logits.shape == (2, 5, 4)
        assert prediction.mask_logits.shape == (2, 5, 8, 12)
        loss = loss + scores.void_logits.log_softmax(-1)[..., 0].mean()
        loss = loss + prediction.mask_logits.sigmoid().mean()
    loss.backward()
    assert not [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]


@torch.no_grad()
def test_classes_and_void_are_cosines_in_clips_space():
    decoder = tiny().eval()
    (prediction,) = decoder(features())
    scores = decoder.scores(prediction, TEXTS, [2, 1, 1])
    with_void = torch.cat([TEXTS, decoder.void_embedding.weight])
    cosines = torch.cosine_similarity(prediction.embeddings[:, :, None], with_void, dim=-1) / 0.07
    expected = torch.stack([c.amax(-1) for c in cosines.split([2, 1, 1, 1], -1)], dim=-1)
    torch.testing.assert_close(scores.void_logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(scores.class_logits, scores.void_logits[..., :-1])


@torch.no_grad()
def test_evaluation_has_no_masks_and_no_random_numbers(monkeypatch):
    decoder, maps = tiny(masked=True), features()
    decoder.set_step(40, 100)  # half of the masks would be opened
    assert not torch.equal(decoder(maps)[0].mask_logits, decoder(maps)[0].mask_logits)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: pytest.fail("a random number"))
    decoder.eval()
    first, second = (decoder(maps, every_layer=True) for _ in range(2))
    assert len(first) == 1 and torch.equal(first[0].mask_logits, second[0].mask_logits)
    plain = tiny().eval()
    plain.load_state_dict(decoder.state_dict())
    assert torch.equal(plain(maps)[0].mask_logits, first[0].mask_logits)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(3, 9), (1, 1), (8, 8)])
def test_a_grid_of_any_size_and_a_batch_are_decoded(grid):
    decoder, maps = tiny().eval(), features(grid)
    (both,) = decoder(maps)
    assert both.mask_logits.shape == (2, 5, 2 * grid[0], 2 * grid[1])
    for index in (0, 1):
        (alone,) = decoder({name: m[index : index + 1] for name, m in maps.items()})
        torch.testing.assert_close(alone.mask_logits[0], both.mask_logits[index])


def test_positions_span_any_grid_alike():
    coarse, fine = (rotary_table(grid, 8, 3, torch.device("cpu")) for grid in ((2, 2), (6, 2)))
    assert coarse.shape == (2, 3 + 4, 4)
    assert torch.equal(coarse[0, :3], torch.ones(3, 4)) and not coarse[1, :3].any()
    # Row 1 of 6 is centred where row 0 of 2 is.
    torch.testing.assert_close(coarse[:, 3:5], fine[:, 5:7])


@pytest.mark.parametrize("patch, doublings", [(8, 1), (14, 2), (16, 2), (32, 3), (4, 1)])
def test_masks_have_a_quarter_of_the_stride(patch, doublings):
    assert PlainDecoderSizes(patch=patch).doublings == doublings


def test_a_width_that_does_not_fit_the_heads_is_refused():
    with pytest.raises(InputError, match="a width of 20 has to be a multiple of 4"):
        PlainDecoder(channels={"a": 20}, sizes=PlainDecoderSizes(width=20, heads=2))


# Name, side of the grid, G multiply-adds in evaluation and of a forward pass in training; five tokens before patches.
COSTS = [("small", 40, 32.4, 73.8), ("large", 80, 969, 1911)]


@torch.no_grad()
@pytest.mark.parametrize("name, side, evaluation, training", COSTS)
def test_costs_are_those_of_the_released_decoders(name, side, evaluation, training):
    width, heads, queries, classes, _ = RELEASED[name]
    sizes = PlainDecoderSizes(width, heads, queries, hidden=width)
    with without_values():
        decoder = released_decoder(TAPS, sizes, classes, masked=True)
        taps = [torch.zeros(1, 5 + side**2, width) for _ in TAPS]
        for trains, expected in ((False, evaluation), (True, training)):
            decoder.train(trains)
            found = count_flops(lambda: decoder.decode(taps, (side, side)))
            assert found / 2e9 == pytest.approx(expected, abs=0.06 if expected < 900 else 0.6)
