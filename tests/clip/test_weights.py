"""Checkpoint files: every layout loads, everything else is refused by name, nothing is executed."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.clip import DenseCLIP, list_architectures, load_clip, save_clip
from clipself_seg.clip.build import find_architecture
from clipself_seg.clip.signatures import TELLING, first_gap, signature_of
from clipself_seg.clip.weights import to_native, to_official, to_open_clip
from clipself_seg.errors import InputError

MINI = "ViT-Mini-8"
KINDS = ("safetensors", "zip", "legacy", "torchscript")


@pytest.fixture(scope="module")
def mini():
    torch.manual_seed(1)
    return load_clip(MINI, None)


@pytest.fixture
def official(mini):
    return to_official({k: v.clone() for k, v in mini.state_dict().items()}, separate_text=False)


def same_weights(a, b) -> bool:
    return a.weights_hash() == b.weights_hash()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "module"])
def test_wrapped_and_bare_state_dicts_load_and_optimiser_state_is_ignored(
    mini, official, tmp_path, wrapper
):
    content = (
        official if wrapper is None else {wrapper: official, "optimizer": {"state": {}}, "epoch": 6}
    )
    torch.save(content, tmp_path / "x.pt")
    assert same_weights(load_clip(MINI, tmp_path / "x.pt"), mini)


def test_module_prefix_and_half_precision_load(mini, official, tmp_path, caplog):
    content = {f"module.{k}": v.half() for k, v in official.items()}
    torch.save({"state_dict": content}, tmp_path / "half.pt")
    with caplog.at_level(logging.INFO):
        loaded = load_clip(MINI, tmp_path / "half.pt")
    torch.testing.assert_close(loaded.visual.proj, mini.visual.proj.half().float())
    count = len(official)
    line = f"half.pt (state dict): {count} loaded, {count} converted, 0 missing, 0 unexpected"
    assert line in caplog.text


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("layout", ["official", "open_clip"])
def test_saved_models_load_back(mini, tmp_path, suffix, layout):
    path = tmp_path / f"saved.{suffix}"
    save_clip(mini, path, layout=layout)
    assert same_weights(load_clip(MINI, path), mini)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_equal_models_give_equal_bytes(mini, tmp_path, suffix):
    paths = [tmp_path / f"{number}" / f"clip.{suffix}" for number in range(6)]
    for path in paths:
        save_clip(mini, path)
    assert len({path.read_bytes() for path in paths}) == 1


def test_facts_of_older_versions_are_read(official, tmp_path):
    facts = {"name": MINI, "activation": "quick_gelu", "pixel_mean": "[0.5, 0.5, 0.5]"}
    safetensors.torch.save_file(official, tmp_path / "old.safetensors", metadata=facts)
    loaded = load_clip(MINI, tmp_path / "old.safetensors")
    assert loaded.quick_gelu and loaded.mean == (0.5, 0.5, 0.5)


def save_as(kind, tensors, path):
    """A file of one of `KINDS`, whatever its name."""
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif kind == "torchscript":
        save_torchscript(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("suffix", ["safetensors", "SAFETENSORS", "pt", "bin"])
def test_what_is_in_a_file_decides_how_it_is_read(mini, official, tmp_path, suffix):
    for number, kind in enumerate(KINDS):
        path = tmp_path / f"{number}.{suffix}"
        save_as(kind, official, path)
        loaded = load_clip(MINI, path)
        assert same_weights(loaded, mini)
        assert (kind == "safetensors") == ("(safetensors)" in str(loaded.report))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_normalisation_of_pixels_is_saved_with_the_weights(tmp_path, suffix):
    half = (0.5, 0.5, 0.5)
    clip = DenseCLIP(architecture=find_architecture(MINI), quick_gelu=False, mean=half, std=half)
    save_clip(clip, tmp_path / f"half.{suffix}")
    loaded = load_clip(MINI, tmp_path / f"half.{suffix}")
    assert (loaded.mean, loaded.std) == (half, half)


def test_a_normalisation_that_is_none_is_refused(official, tmp_path):
    torch.save({"state_dict": official, "pixel_mean": "[1, 2]"}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="x.pt: pixel_mean is .* not three numbers"):
        load_clip(MINI, tmp_path / "x.pt")


def test_eva_names_survive_both_layouts():
    names = load_clip("EVA02-B-16", None).state_dict()
    for convert in (to_official, to_open_clip):
        assert list(to_native(convert(names, separate_text=True))) == list(names)


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
    torch.save(official, tmp_path / "untold.pt")
    assert not load_clip("ViT-B-16", tmp_path / "untold.pt").quick_gelu
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    told = warning.getMessage()
    assert all(word in told for word in ("untold.pt", "ViT-B-16 gives", "as ViT-B-16-quickgelu"))
    caplog.clear()
    save_clip(load_clip(MINI, None), tmp_path / "told.pt")
    load_clip("ViT-B-16", tmp_path / "told.pt")
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


class Node(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_torchscript(tensors, path) -> None:
    """An archive whose module has the tensors as buffers under their dotted names."""
    root = Node()
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, Node())
            node = getattr(node, parent)
        node.register_buffer(leaf, tensor)
    torch.jit.save(torch.jit.script(root), path)


def test_torchscript_archive_is_read_as_data_and_gets_quickgelu(official, tmp_path):
    content = {name: tensor.half() for name, tensor in official.items()}
    constants = ("input_resolution", "context_length", "vocab_size")
    save_torchscript(content | dict.fromkeys(constants, torch.tensor(77)), tmp_path / "openai.pt")
    clip = load_clip(MINI, tmp_path / "openai.pt")
    assert clip.quick_gelu and "TorchScript" in str(clip.report) and "QuickGELU" in str(clip.report)
    torch.testing.assert_close(clip.visual.proj.detach(), official["visual.proj"].half().float())


def test_openai_state_dict_gets_quickgelu_whatever_the_name_says(official, tmp_path):
    torch.save(official | {"input_resolution": torch.tensor(64)}, tmp_path / "openai.pt")
    assert load_clip(MINI, tmp_path / "openai.pt").quick_gelu


def test_position_table_of_another_grid_is_resized_and_reported(official, tmp_path):
    official["visual.positional_embedding"] = torch.randn(
        1 + 16, len(official["visual.class_embedding"])
    )
    torch.save(official, tmp_path / "small.pt")
    assert "positions resized" in str(load_clip(MINI, tmp_path / "small.pt").report)


POSITIONS = "visual.positional_embedding"
ODD = {  # tensor -> what it becomes (None: missing), and what the error says of it
    "other width": (POSITIONS, torch.ones(37, 64), r"is \(37, 64\), the model needs"),
    "class token only": (POSITIONS, torch.ones(1, 128), r"is \(1, 128\), the model needs"),
    "one row": (POSITIONS, torch.ones(128), r"is \(128,\), the model needs"),
    "scalar": (POSITIONS, torch.ones(()), r"is \(\), the model needs"),
    "no square": (POSITIONS, torch.ones(36, 128), r"is \(36, 128\).*square grid"),
    "no kernel": ("visual.conv1.weight", None, "of 4 dimensions, here it is missing"),
    "kernel of no dimensions": ("visual.conv1.weight", torch.ones(()), r"here it is \(\)"),
    "projection of one": ("visual.proj", torch.ones(128), r"of 2 dimensions, here it is \(128,\)"),
    "projection of none": ("visual.proj", torch.ones(()), r"of 2 dimensions, here it is \(\)"),
    "one number": ("ln_final.bias", torch.ones(1), r"is \(1,\), the model needs"),
    "sparse": ("ln_final.bias", torch.ones(128).to_sparse(), "is sparse"),
    "meta": ("ln_final.bias", torch.ones(128, device="meta"), "has no values"),
    "NaN": ("ln_final.bias", torch.full((128,), float("nan")), "has NaN or infinite"),
    "infinite": ("logit_scale", torch.tensor(float("inf")), "has NaN or infinite"),
    "too large": ("logit_scale", torch.tensor(1e300, dtype=torch.float64), "has NaN or infinite"),
}


@pytest.mark.parametrize("name, value, message", ODD.values(), ids=ODD.keys())
def test_one_odd_tensor_is_named_with_its_file(official, tmp_path, name, value, message):
    del official[name]
    torch.save(official | ({} if value is None else {name: value}), tmp_path / "odd.pt")
    with pytest.raises(InputError, match=f"odd.pt.*{name}.*{message}") as caught:
        load_clip(MINI, tmp_path / "odd.pt")
    assert len(str(caught.value).splitlines()) <= 2


def test_a_resnet_without_what_tells_its_width_is_no_image_tower():
    whole = load_clip("RN50", None).state_dict()
    assert signature_of(whole)
    for name, rank in TELLING["ResNet"].items():
        without = {key: tensor for key, tensor in whole.items() if key != name}
        for given in (without, without | {name: torch.ones(())}):
            assert signature_of(given) is None
            assert f"ResNet has {name} of {rank} dimensions" in first_gap(given)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def _bad_files(official, folder) -> dict[str, str]:
    """File name -> what the error must say."""
    torch.save(official, folder / "good.pt")
    whole = (folder / "good.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "empty.pt").write_bytes(b"")
    torch.save({"state_dict": official, "extra": Bomb()}, folder / "bomb.pt")
    (folder / "raw.pt").write_bytes(pickle.dumps(Bomb()))
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in official.items()}, folder / "good.safetensors"
    )
    cut = (folder / "good.safetensors").read_bytes()[:-100]
    (folder / "cut.safetensors").write_bytes(cut)
    torch.save({}, folder / "nothing.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"fc.weight": torch.ones(2)}, folder / "foreign.pt")
    missing = {k: v for k, v in official.items() if k != "visual.ln_post.bias"}
    torch.save(missing, folder / "missing.pt")
    torch.save(official | {"visual.extra": torch.ones(1)}, folder / "extra.pt")
    torch.save(official | {"ln_final.bias": torch.ones(3)}, folder / "shape.pt")
    torch.save(
        official | {"ln_final.bias": official["ln_final.bias"].to(torch.int8)}, folder / "int8.pt"
    )
    return {
        "absent.pt": "no checkpoint at .*absent.pt",
        "truncated.pt": "truncated.pt is truncated",
        "text.pt": "text.pt is (refused|truncated)",
        "empty.pt": "empty.pt is truncated",
        "bomb.pt": "bomb.pt is refused.*system",
        "raw.pt": "raw.pt is refused",
        "cut.safetensors": "cut.safetensors is truncated",
        "nothing.pt": "holds no tensors",
        "list.pt": "holds a list, not a state dict",
        "foreign.pt": "no CLIP image tower .*fc.weight",
        "missing.pt": "lacks 1 tensor .visual.ln_post.bias",
        "extra.pt": "has 1 unexpected tensor .visual.extra",
        "shape.pt": r"ln_final.bias is \(3,\), the model needs",
        "int8.pt": "ln_final.bias is int8, not floating point",
    }


def test_bad_files_are_refused_by_name_and_nothing_runs(official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, message in _bad_files(official, tmp_path).items():
        with pytest.raises(InputError, match=message) as caught:
            load_clip(MINI, tmp_path / name)
        assert len(str(caught.value).splitlines()) <= 2, name
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.pt").write_bytes(b"")
    monkeypatch.setattr("clipself_seg.checkpoints.read.Path.open", refuse)
    with pytest.raises(InputError, match="x.pt cannot be read .Permission denied"):
        read_checkpoint(tmp_path / "x.pt")


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes cut off somewhere, or with some of them changed."""
    if rng.random() < 0.3:
        return data[: rng.integers(len(data))]
    changed = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        changed[place] = rng.integers(256)
    return bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path, kind):
    # Small tensors: most bytes are those that say how to read the file.
    tensors = {"visual.proj": torch.ones(2, 2), "logit_scale": torch.ones(1)}
    whole = tmp_path / ("whole.safetensors" if kind == "safetensors" else "whole.pt")
    save_as(kind, tensors, whole)
    assert read_checkpoint(whole).tensors.keys() == tensors.keys()
    rng, refused = np.random.default_rng(0), 0
    for number in range(60):
        path = tmp_path / f"damaged_{number}{whole.suffix}"
        path.write_bytes(damaged(whole.read_bytes(), rng))
        try:
            read_checkpoint(path)
        except InputError as error:
            refused += 1
            assert path.name in str(error) and len(str(error).splitlines()) <= 2
    assert refused > 10


def test_a_safetensors_file_may_begin_with_any_byte(tmp_path):
    first = set()
    for length in range(0, 264, 8):  # the header is filled up to eights
        path = tmp_path / f"{length}.safetensors"
        safetensors.torch.save_file(
            {"visual.proj": torch.ones(2)}, path, metadata={"note": length * "x"}
        )
        first.add(path.read_bytes()[0])
        assert read_checkpoint(path).format == "safetensors"
    assert first == set(range(0, 256, 8))  # 0x80, with which a pickle begins, among them


def test_changed_bytes_of_an_archive_are_found(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"visual.proj": torch.full((64, 64), 1 / 3)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\xab\xaa\xaa\x3e") + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="x.pt is truncated.*checksum of .*data/0"):
        read_checkpoint(path)


def test_torchscript_archive_with_a_foreign_name_is_refused(tmp_path):
    import zipfile

    payload = pickle.dumps(Bomb(), protocol=2)
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", payload)
        archive.writestr("evil/constants.pkl", pickle.dumps(()))
    with pytest.raises(InputError, match="refused.*system"):
        read_checkpoint(tmp_path / "evil.pt")


def test_file_of_another_architecture_is_refused_with_its_own_name(official, tmp_path):
    torch.save(official, tmp_path / "mini.pt")
    with pytest.raises(
        InputError, match='OpenAI ViT .width.*EVA ViT .width 768.*load it as "ViT-Mini-8"'
    ):
        load_clip("EVA02-B-16", tmp_path / "mini.pt")


def test_exact_gelu_weights_are_refused_by_a_quickgelu_model(tmp_path):
    plain = load_clip("ViT-B-32", None)
    save_clip(plain, tmp_path / "gelu.pt")
    with pytest.raises(InputError, match='exact GELU.*load it as "ViT-B-32"'):
        load_clip("ViT-B-32-quickgelu", tmp_path / "gelu.pt")


@pytest.mark.parametrize(
    "name, hint",
    [("ViT-B16", "ViT-B-16"), ("EVA02-B16", "EVA02-B-16"), ("coca_ViT-B-32", "neither")],
)
def test_unknown_or_unsupported_model_name_gets_the_nearest_one(name, hint):
    with pytest.raises(InputError, match=hint):
        load_clip(name, None)


@pytest.mark.parametrize("name", [None, 5])
def test_a_model_name_that_is_no_text_is_refused(name):
    with pytest.raises(InputError, match=f"{name} is no name of a CLIP model"):
        load_clip(name, None)


def test_unknown_tag_gets_the_nearest_one():
    with pytest.raises(InputError, match='neither a file nor a tag; did you mean "openai"'):
        load_clip("ViT-B-16", "opnai")


def test_every_config_and_its_state_dict_agree_on_the_signature():
    for name in ("ViT-B-32", "EVA02-B-16", "RN50", MINI):
        clip = load_clip(name, None)
        assert signature_of(clip.state_dict()) == find_architecture(name).signature


def test_named_towers_of_the_issue_are_all_known():
    known = set(list_architectures())
    for name in (
        "ViT-B-32",
        "ViT-B-16",
        "ViT-L-14",
        "ViT-L-14-336",
        "RN50",
        "RN50x4",
        "RN50x16",
        "RN50x64",
    ):
        assert {name, f"{name}-quickgelu"} <= known
    assert {"EVA02-B-16", "EVA02-L-14", "EVA02-L-14-336", MINI} <= known
