"""The plain decoder: official numbers with features of a tower or an image, names, sizes, masks in training only."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.plain_decoder import (
    PlainDecoder,
    PlainDecoderSizes,
    load_released,
    rotary_table,
)
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict

CASE = json.loads((PARITY / "pmt_decoder.json").read_text())
EXPECTED = np.load(PARITY / "pmt_decoder.npz")
GRID = tuple(CASE["grid"])
TAPS = [named_input(f"{CASE['tag']}:tap{i}", (2, 61, 64)) for i in range(CASE["taps"])]


def uniform(name: str, shape: Sequence[int]) -> Tensor:
    generator = np.random.Generator(np.random.Philox(zlib.crc32(f"uniform:{name}".encode())))
    return torch.from_numpy(generator.random(tuple(shape), dtype=np.float32))


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
    channels = {f"tap{i}": case["width"] for i in range(4)}
    decoder = PlainDecoder(
        channels=channels, sizes=sizes, masked_attention=True, classes=case["classes"]
    )
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
        drawn = iter(range(3))
        monkeypatch.setattr(
            torch,
            "rand",
            lambda size, device: uniform(f"{CASE['tag']}:annealed:{next(drawn)}", size),
        )
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
    with torch.device("meta"):
        decoder = PlainDecoder(
            channels={f"block{i}": width for i in range(4)}, sizes=sizes, classes=classes
        )
    assert sum(p.numel() for p in decoder.parameters()) == parameters
    assert len(decoder.state_dict()) == 164


TINY = PlainDecoderSizes(width=16, heads=2, queries=5, layers=2, hidden=24, patch=8)


def tiny(masked: bool = False, classes: int = 0, **channels: int) -> PlainDecoder:
    torch.manual_seed(0)
    return PlainDecoder(
        channels=channels or {"block0": 16, "block1": 16},
        text_width=12,
        sizes=TINY,
        masked_attention=masked,
        classes=classes,
    )


def test_a_released_decoder_loads_with_a_report():
    released = {f"network.{name}": t + 1 for name, t in tiny(classes=3).state_dict().items()}
    decoder = tiny(classes=3)
    assert load_released(decoder, released, "a.bin") == (
        f"plain decoder <- a.bin: {len(released)} loaded, 0 missing, 0 unexpected"
    )
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, released[f"network.{name}"])
    decoder = tiny()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    report = load_released(decoder, released, "a.bin")
    assert "; 2 of a classifier of fixed classes left out, 12 of the head" in report
    changed = {n for n, t in decoder.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {
        name.removeprefix("network.") for name in released if "class_head" not in name
    }


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("bn.1.bias"), "a.bin lacks 1 tensor of a plain decoder: bn.1.bias"),
        (lambda t: t.update(other=torch.ones(1)), "a.bin has 1 unexpected tensor .*: other"),
        (
            lambda t: t.update({"decoder.q.weight": torch.ones(7, 16)}),
            r"a.bin has decoder.q.weight of shape \(7, 16\), the decoder needs \(5, 16\)",
        ),
    ],
)
def test_a_released_decoder_that_does_not_fit_is_refused(change, message):
    released = tiny(classes=3).state_dict()
    change(released)
    with pytest.raises(InputError, match=message):
        load_released(tiny(), released, "a.bin")
