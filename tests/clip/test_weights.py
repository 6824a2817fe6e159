"""Checkpoint files: every layout loads, everything else is refused by name."""

import dataclasses
import logging

import pytest
import safetensors.torch
import torch

from clipself_seg.clip import load_clip, save_clip
from clipself_seg.clip.find_kind import KINDS as TOWERS
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.clip.weights import to_layout, to_native
from clipself_seg.errors import InputError
from tests.checkpoint_files import KINDS, save_as

MINI = "ViT-Mini-8"


@pytest.fixture
def official(mini):
    return to_layout({k: v.clone() for k, v in mini.state_dict().items()}, TOWERS["OpenAI ViT"])


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "module"])
def test_wrapped_and_bare_state_dicts_load_and_optimiser_state_is_ignored(
    mini, official, tmp_path, wrapper
):
    content = (
        official if wrapper is None else {wrapper: official, "optimizer": {"state": {}}, "epoch": 6}
    )
    torch.save(content, tmp_path / "x.pt")
    assert load_clip(MINI, tmp_path / "x.pt").weights_hash() == mini.weights_hash()


def test_module_prefix_and_half_precision_load(mini, official, tmp_path, caplog):
    content = {f"module.{k}": v.half() for k, v in official.items()}
    torch.save({"state_dict": content}, tmp_path / "half.pt")
    with caplog.at_level(logging.INFO):
        loaded = load_clip(MINI, tmp_path / "half.pt")
    torch.testing.assert_close(loaded.visual.proj, mini.visual.proj.half().float())
    count = len(official)
    line = f"half.pt (state dict): {count} loaded, {count} converted, 0 missing, 0 unexpected"
    assert line in caplog.text


def test_metadata_of_older_versions_are_read(official, tmp_path):
    metadata = {"name": MINI, "activation": "quick_gelu", "pixel_mean": "[0.5, 0.5, 0.5]"}
    safetensors.torch.save_file(official, tmp_path / "old.safetensors", metadata=metadata)
    loaded = load_clip(MINI, tmp_path / "old.safetensors")
    assert loaded.quick_gelu and loaded.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("suffix", ["safetensors", "SAFETENSORS", "pt", "bin"])
def test_what_is_in_a_file_decides_how_it_is_read(mini, official, tmp_path, suffix):
    for number, kind in enumerate(KINDS):
        path = tmp_path / f"{number}.{suffix}"
        save_as(kind, official, path)
        loaded = load_clip(MINI, path)
        assert loaded.weights_hash() == mini.weights_hash()
        assert (kind == "safetensors") == ("(safetensors)" in str(loaded.report))


def test_old_flat_eva_text_and_rotary_buffers_are_understood():
    flat = {"text.logit_scale": torch.ones(()), "text_projection": torch.ones(1)}
    flat |= {
        "visual.rope.freqs_cos": torch.ones(1),
        "visual.blocks.0.attn.rope.freqs_sin": torch.ones(1),
    }
    assert list(to_native(flat)) == ["logit_scale", "text.text_projection"]


def test_weights_that_do_not_tell_their_activation_are_loaded_with_a_warning(
    official, tmp_path, caplog, monkeypatch
):
    # The mini model under the name of one that exists with both activations.
    both = dataclasses.replace(find_architecture(MINI), name="ViT-B-16")
    monkeypatch.setattr("clipself_seg.clip.model.find_architecture", lambda name: both)
    torch.save(official, tmp_path / "unrecorded.pt")
    assert not load_clip("ViT-B-16", tmp_path / "unrecorded.pt").quick_gelu
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    message = warning.getMessage()
    assert all(
        part in message for part in ("unrecorded.pt", "ViT-B-16 gives", "as ViT-B-16-quickgelu")
    )
    caplog.clear()
    save_clip(load_clip(MINI, None), tmp_path / "recorded.pt")
    load_clip("ViT-B-16", tmp_path / "recorded.pt")
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_names_of_openais_weights_get_quickgelu_from_a_file_that_does_not_say_it(
    official, tmp_path, monkeypatch
):
    mini = dataclasses.replace(find_architecture(MINI), name="ViT-B-16")
    monkeypatch.setattr("clipself_seg.clip.model.find_architecture", lambda name: mini)
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    save_as("safetensors", official, tmp_path / "ViT-B-16-openai.safetensors")
    assert load_clip("openai-vitb16").quick_gelu and load_clip("ViT-B-16", "openai").quick_gelu


POSITIONS = "visual.positional_embedding"
ODD = {  # tensor -> what it becomes (None: missing), and what the error says of it
    "other width": (POSITIONS, torch.ones(37, 64), r"is \(37, 64\), the model needs"),
    "no square": (POSITIONS, torch.ones(36, 128), r"is \(36, 128\).*square grid"),
    "one number": ("ln_final.bias", torch.ones(1), r"of shape \(1,\), the model needs"),
    "NaN": ("ln_final.bias", torch.full((64,), float("nan")), "NaN or infinite"),
    "missing": ("visual.ln_post.bias", None, "lacks 1 tensor"),
    "extra": ("visual.extra", torch.ones(1), "has 1 unexpected tensor: "),
}


@pytest.mark.parametrize("name, value, message", ODD.values(), ids=ODD.keys())
def test_one_odd_tensor_is_named_with_its_file(official, tmp_path, name, value, message):
    official.pop(name, None)
    torch.save(official | ({} if value is None else {name: value}), tmp_path / "odd.pt")
    with pytest.raises(InputError, match=f"odd.pt(?=.*{name}).*{message}") as caught:
        load_clip(MINI, tmp_path / "odd.pt")
    assert len(str(caught.value).splitlines()) <= 2


def test_a_file_of_no_clip_is_named(tmp_path):
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="foreign.pt holds no CLIP image tower, .*fc.weight"):
        load_clip(MINI, tmp_path / "foreign.pt")


def test_file_of_another_architecture_is_refused_with_its_own_name(official, tmp_path):
    torch.save(official, tmp_path / "mini.pt")
    with pytest.raises(InputError, match='OpenAI ViT .*EVA ViT .*load it as "ViT-Mini-8"'):
        load_clip("EVA02-B-16", tmp_path / "mini.pt")


def test_exact_gelu_weights_are_refused_by_a_quickgelu_model(mini, tmp_path, monkeypatch):
    # The mini model under the name of one that exists with both activations.
    name = "ViT-B-32-quickgelu"
    quick = dataclasses.replace(find_architecture(MINI), name=name, quick_gelu=True)
    monkeypatch.setattr("clipself_seg.clip.model.find_architecture", lambda name: quick)
    save_clip(mini, tmp_path / "gelu.pt")
    with pytest.raises(InputError, match='exact GELU.*load it as "ViT-B-32"'):
        load_clip(name, tmp_path / "gelu.pt")
