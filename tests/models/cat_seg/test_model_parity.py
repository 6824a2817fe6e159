"""CAT-Seg through its stock interface against the numbers of the official model (tests/parity)."""

import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from clipself_seg.config import load_config
from clipself_seg.models import CATSeg
from clipself_seg.models.cat_seg.cat_seg_checkpoint import write
from tests.conftest import PARITY, ROOT
from tests.parity.named_weights import named_input, named_state_dict, without_numbers


def reference(case: str) -> tuple[dict, dict[str, torch.Tensor]]:
    content = json.loads((PARITY / f"{case}.json").read_text())
    arrays = np.load(PARITY / f"{case}.npz")
    return content, {
        name: torch.from_numpy(arrays[name]) for name in arrays if arrays[name].dtype.kind in "fi"
    }


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return named_state_dict(json.loads((PARITY / "catseg_b.shapes.json").read_text()))


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory) -> CATSeg:
    path = tmp_path_factory.mktemp("cat_seg") / "model_final.pth"
    torch.save({"model": weights, "iteration": 79999}, path)
    with without_numbers():
        built = build_model(load_config(ROOT / "configs/semseg/catseg+openai_vitb16.yaml"))
    DetectionCheckpointer(built).load(str(path))
    path.unlink()
    return built


def window() -> torch.Tensor:
    return (128 + 40 * named_input("catseg:window", (3, 384, 384))).clamp(0, 255)


def prepare(model: CATSeg, case: str, weights: dict[str, torch.Tensor]):
    content, expected = reference(case)
    factors = content.get("weight_multipliers", {})
    model.load_state_dict(weights | {n: weights[n] * factor for n, factor in factors.items()})
    for layer, pooling in zip(model.aggregator.layers, content["pooling"]):
        layer.attention.pooling = pooling
    model.set_vocabulary(content["class_names"])
    return content, expected


@pytest.mark.parametrize(
    "case, tolerance",
    [
        ("catseg_b_forward", 2e-5),
        ("catseg_b_forward_pool2", 2e-5),
        ("catseg_b_forward_scaled", 3e-5),
    ],
)
def test_logits_of_a_window(model, weights, case, tolerance):
    _, expected = prepare(model.eval(), case, weights)
    with torch.no_grad():
        logits = model.window_logits(window()[None])
    torch.testing.assert_close(logits, expected["logits"], atol=tolerance, rtol=0)


def test_features_texts_and_prompts_of_a_window(model, weights):
    content, expected = prepare(model.eval(), "catseg_b_forward", weights)
    tokens = model.clip.tokenize(content["prompts"])
    assert tokens.tolist() == expected["tokens"].tolist()
    with torch.no_grad():
        text = model.texts.embed(model.names)[:, 0]
        images, _ = model._inputs(window()[None])
        features = model.clip.features(images, ("dense", "block3", "block7"))
        (guidance,) = model._guidance(images, features)
    torch.testing.assert_close(text, expected["text"], atol=1e-6, rtol=0)
    guiding = {
        "res3": guidance.appearance,
        "res4": guidance.decoder[0],
        "res5": guidance.decoder[1],
    }
    for name, tolerance in (("res3", 3e-5), ("res4", 7e-5), ("res5", 7e-5)):
        actual = guiding[name][None, ..., ::4, ::4]
        torch.testing.assert_close(actual, expected[name], atol=tolerance, rtol=0)


def test_loss_and_gradients_of_a_training_step(model, weights):
    content, expected = prepare(model.train(), "catseg_b_train_loss", weights)
    y, x = np.mgrid[:384, :384]
    labels = torch.from_numpy(((y // 64) * 5 + x // 48) % 12)
    labels[300:, 200:] = 255
    labels[:40, :64] = 255
    model.zero_grad()
    loss = model([{"image": window(), "sem_seg": labels}])["loss_sem_seg"]
    loss.backward()
    assert loss.item() == pytest.approx(content["loss"], abs=1e-6)
    # `write` names tensors; a model of gradients has the same names as one of weights.
    gradients = official_gradients(model)
    assert len(gradients) == content["trainable_parameters"] == 180
    for name, norm in content["grad_norms_of_all_trainable"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-4), name
    (zero,) = content["trainable_with_zero_grad"]
    assert not gradients[zero].any()
    names = np.load(PARITY / "catseg_b_train_loss.npz")["grad_names"]
    for index, name in enumerate(names.tolist()):
        part = expected[f"grad_{index:02d}"]
        actual = (
            gradients[name].flatten(1) if gradients[name].ndim > 1 else gradients[name][:, None]
        )
        limit = 2e-4 * part.abs().max().item()
        torch.testing.assert_close(actual[:8, :8], part, atol=limit, rtol=0, msg=name)


def official_gradients(model: CATSeg) -> dict[str, torch.Tensor]:
    names = {id(t): n for n, t in named_by_identity(model).items()}
    return {names[id(p)]: p.grad for p in model.parameters() if p.requires_grad}


def named_by_identity(model: CATSeg) -> dict[str, torch.Tensor]:
    """Official name -> our parameter: each tensor is numbered, exported, and found by its number."""
    own = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in own]
    with torch.no_grad():
        for number, parameter in enumerate(own):
            parameter.fill_(number + 1000)
        exported = write(model)["model"]
        parameters = {
            name: own[int(tensor.flatten()[0]) - 1000]
            for name, tensor in exported.items()
            if tensor.numel() and tensor.flatten()[0] >= 1000
        }
        for parameter, value in zip(own, kept):
            parameter.copy_(value)
    return parameters


def test_the_export_has_the_official_keys_and_loads_again(model, weights, tmp_path):
    prepare(model.eval(), "catseg_b_forward", weights)
    model.export(tmp_path / "model.pth")
    written = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    masks = {
        f"sem_seg_head.predictor.transformer.layers.{i}.swin_block.block_2.attn_mask": (4, 144, 144)
        for i in (0, 1)
    }
    assert len(written) == 484
    shapes = {name: tuple(tensor.shape) for name, tensor in written.items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()} | masks
    for name, tensor in weights.items():
        assert torch.equal(written[name], tensor), name
    DetectionCheckpointer(model).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    "preset, keys, trained",
    [("openai_vitl14_336", 652, 64_487_424), ("openai_vitb16", 484, 20_447_232)],
)
def test_names_and_sizes_of_the_official_models(preset, keys, trained):
    with torch.device("meta"):
        built = build_meta(preset)
    count = sum(p.numel() for p in built.clip.parameters() if p.requires_grad)
    assert (len(built.state_dict()) + 2, count) == (keys, trained)
    aggregator = sum(p.numel() for p in built.aggregator.parameters())
    assert aggregator == {484: 2_308_961, 652: 2_636_641}[keys]


def build_meta(preset: str) -> CATSeg:
    return CATSeg(load_config(ROOT / f"configs/semseg/catseg+{preset}.yaml"))
