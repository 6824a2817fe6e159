"""Files of TIPSv2: published layouts, towers without texts, broken tensors, published sizes."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from clipself_seg.checkpoints.dense_feature import GATED, DenseFeature
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import load_clip, save_clip
from clipself_seg.clip.kinds import find_architecture
from clipself_seg.clip.text import same_text_tower
from clipself_seg.clip.tips import read_timm, read_transformers
from clipself_seg.errors import InputError
from tests.clip.test_tips import close
from tests.small_towers import small_towers
from tests.tips_layouts import save_tips

NAME = "small-TIPSv2"


def test_a_file_of_another_model_with_registers_is_left_as_it_is():
    others = {
        "reg_token": torch.zeros(1, 4, 8),
        "pos_embed": torch.zeros(1, 4, 8),
        "cls_token": torch.zeros(1, 1, 8),
    }
    assert read_timm(others).keys() == others.keys()


def test_a_temperature_that_is_no_divisor_is_said_and_not_taken(caplog):
    native = read_transformers({"temperature": torch.tensor(-0.1)})
    assert native["logit_scale"].exp().item() == pytest.approx(1 / 0.005065968, rel=1e-5)
    assert "-0.1" in caplog.text
    assert read_transformers({"temperature": torch.tensor(0.5)})["logit_scale"].exp() == 2
    assert read_transformers({})["logit_scale"].exp().item() == pytest.approx(197.4, abs=0.1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small model of random weights; its name is known meanwhile."""
    with small_towers(tmp_path_factory.mktemp("weights")):
        torch.manual_seed(5)
        yield load_clip(NAME, None)


@pytest.mark.parametrize(
    "layout, suffix, parts",
    [
        ("official", "safetensors", {"vision_encoder", "text_encoder", "temperature"}),
        ("official", "pt", {"vision_encoder", "text_encoder", "temperature"}),
        ("transformers", "safetensors", {"vision_model", "text_model", "temperature"}),
    ],
)
def test_a_saved_model_has_published_names_and_loads_bit_for_bit(
    small, tmp_path, layout, suffix, parts
):
    path = tmp_path / f"clip.{suffix}"
    save_tips(small, path, layout)
    loaded = load_clip(NAME, path)
    assert loaded.weights_hash() == small.weights_hash()
    assert str(loaded.report).startswith(f"{NAME} <- clip.{suffix}")
    assert "0 missing, 0 unexpected" in str(loaded.report)
    assert loaded.mean == (0, 0, 0) and loaded.std == (1, 1, 1)
    stored = load_tensors(path)
    assert {name.split(".")[0] for name in stored} == parts
    assert loaded.logit_scale.exp().item() == pytest.approx(197.4, abs=0.1)


def test_a_gate_is_saved_and_loaded(small, tmp_path):
    gated = load_clip(NAME, None, dense=DenseFeature(GATED, 2))
    torch.nn.init.normal_(gated.visual.dense_gate.weight)
    gated.distilled = DenseFeature(GATED, 2)
    save_clip(gated, tmp_path / "clip.safetensors")
    loaded = load_clip(NAME, tmp_path / "clip.safetensors")
    assert loaded.weights_hash() == gated.weights_hash()
    assert loaded.visual.dense_feature == DenseFeature(GATED, 2)


def load_tensors(path):
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)["state_dict"]


@torch.no_grad()
def test_a_file_of_the_image_tower_alone_loads_without_texts(small, tmp_path):
    save_tips(small, tmp_path / "timm.safetensors", "timm")
    image = load_clip(NAME, tmp_path / "timm.safetensors")
    pixels = torch.rand(1, 3, 56, 70)
    close(image.encode_dense(pixels), small.encode_dense(pixels), 1e-6)
    assert "no text tower" in str(image.report)
    with pytest.raises(InputError, match="timm.safetensors has an image tower alone"):
        image.encode_text("a cat")
    save_clip(image, tmp_path / "again.safetensors")
    again = load_clip(NAME, tmp_path / "again.safetensors")
    assert again.weights_hash() == image.weights_hash()
    assert same_text_tower(small.text, again.text) and same_text_tower(again.text, small.text)


def test_a_file_without_some_texts_is_refused(small, tmp_path):
    save_clip(small, tmp_path / "clip.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "clip.safetensors")
    del tensors["text_encoder.ln_final.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match="text.ln_final.weight"):
        load_clip(NAME, tmp_path / "part.safetensors")


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("temperature", torch.ones(3)),
        ("temperature", torch.tensor(2)),
        ("vision_model.embeddings.cls_token", torch.zeros(2, 1, 32)),
        ("vision_model.embeddings.register_tokens", torch.zeros(1, 4, 32)),
        ("vision_model.encoder.layer.0.attention.k_proj.weight", torch.zeros(31, 32)),
        ("vision_model.encoder.layer.0.attention.k_proj.weight", torch.zeros(32, 32).long()),
        ("text_model.encoder.layers.0.self_attn.q_proj.bias", torch.zeros(32, 1)),
        ("text_model.encoder.layers.0.self_attn.v_proj.bias", torch.tensor(1.0)),
    ],
)
def test_misshapen_tensors_are_refused(small, tmp_path, name, tensor):
    save_tips(small, tmp_path / "clip.safetensors", "transformers")
    tensors = safetensors.torch.load_file(tmp_path / "clip.safetensors") | {name: tensor}
    safetensors.torch.save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="bad.safetensors"):
        load_clip(NAME, tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("pos_embed", None),
        ("pos_embed", torch.zeros(2, 3, 16, 32)),
        ("reg_token", torch.zeros(32)),
        ("blocks.1.attn.qkv.bias", torch.zeros(95)),
    ],
)
def test_misshapen_tensors_of_timms_layout_are_refused(small, tmp_path, name, tensor):
    save_tips(small, tmp_path / "timm.safetensors", "timm")
    tensors = safetensors.torch.load_file(tmp_path / "timm.safetensors") | {name: tensor}
    tensors = {n: t for n, t in tensors.items() if t is not None}
    safetensors.torch.save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="bad.safetensors"):
        load_clip(NAME, tmp_path / "bad.safetensors")


def test_a_file_of_another_size_is_refused_by_its_signature(small, tmp_path):
    save_clip(small, tmp_path / "clip.safetensors")
    with pytest.raises(InputError, match=r"TIPSv2 \(width 32, 4 blocks, stride 14, embedding 32\)"):
        load_clip("TIPSv2-B-14", tmp_path / "clip.safetensors")


def test_texts_go_through_the_repositorys_tokenizer(small):
    tokens = small.tokenize(["a cat", "a photo of a dog"])
    assert tokens.shape == (2, 64) and (tokens != 0).sum(1).tolist() == [
        small.token_count("a cat"),
        small.token_count("a photo of a dog"),
    ]
    assert small.encode_text("a cat").shape == (1, 32)


@pytest.mark.parametrize(
    "name, image, text",
    [("B-14", 86, 110), ("L-14", 304, 184), ("SO400M-14", 413, 448), ("g-14", 1136, 389)],
)
def test_published_sizes_have_the_published_numbers_of_parameters(name, image, text):
    architecture = find_architecture(f"TIPSv2-{name}")
    with torch.device("meta"):
        towers = [
            build(architecture, False)
            for build in (architecture.kind.build_image, architecture.kind.build_text)
        ]
    counts = [round(sum(p.numel() for p in tower.parameters()) / 1e6) for tower in towers]
    assert counts == [image, text]
    entry = zoo()[f"tipsv2-{name.replace('-', '').lower()}"]
    assert entry.model == f"TIPSv2-{name}" and "CC BY 4.0" in entry.licence
