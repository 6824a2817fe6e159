"""Checkpoints of every format, the names of their tensors, and the dense feature that they are for."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from clipself_seg.checkpoints.dense_feature import (
    ANY,
    DenseFeature,
    feature_of_run,
    require_feature,
    stated_feature,
)
from clipself_seg.checkpoints.read import fit, is_finite, read_checkpoint
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.errors import InputError
from tests.checkpoint_files import KINDS, Bomb, save_as


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.pt").write_bytes(b"")
    monkeypatch.setattr("clipself_seg.checkpoints.read.Path.open", refuse)
    with pytest.raises(InputError, match="x.pt cannot be read .Permission denied"):
        read_checkpoint(tmp_path / "x.pt")


def _bad_files(folder) -> dict[str, str]:
    """File name -> what the error must say."""
    tensors = {"visual.proj": torch.ones(64, 64), "logit_scale": torch.ones(1)}
    for kind, suffix in (("zip", "pt"), ("safetensors", "safetensors")):
        save_as(kind, tensors, folder / "whole")
        whole = (folder / "whole").read_bytes()
        (folder / f"half_{kind}.{suffix}").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "text.safetensors").write_text("not a checkpoint")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "page.safetensors").write_text("\n<!DOCTYPE html><html>")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with zipfile.ZipFile(folder / "zipped.pth", "w") as archive:
        archive.writestr("clipself/openai_vitb16.pt", "")
    torch.save({"state_dict": tensors, "extra": Bomb()}, folder / "bomb.pt")
    (folder / "raw.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save({}, folder / "nothing.pt")
    torch.save({"state_dict": {"epoch": 1}}, folder / "numbers.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"state_dict": tensors, "pixel_mean": "[1, 2]"}, folder / "two.pt")
    np.savez(folder / "vision.npz", cls_token=np.zeros((1, 1, 4)), pos_embed=np.zeros((1, 5, 4)))
    return {
        "absent.pt": "no checkpoint at .*absent.pt",
        "half_zip.pt": "half_zip.pt is truncated",
        "half_safetensors.safetensors": "half_safetensors.safetensors is truncated",
        "text.pt": "text.pt is truncated or no PyTorch file",
        "text.safetensors": "text.safetensors is truncated or no safetensors file",
        "empty.pt": "empty.pt is empty",
        "page.safetensors": "page.safetensors is a web page in place of weights: open it",
        "pointer.pt": "pointer.pt is a pointer of Git LFS in place of weights: fetch",
        "zipped.pth": "zipped.pth is an archive of other files .clipself/openai_vitb16.pt.: unpack it",
        "bomb.pt": "bomb.pt is refused.*system",
        "raw.pt": "raw.pt is truncated or no PyTorch file",
        "nothing.pt": "nothing.pt holds no tensors",
        "numbers.pt": "numbers.pt holds no tensors",
        "list.pt": "list.pt holds a list, not a state dict",
        "two.pt": r"two.pt: pixel_mean is '\[1, 2\]', and has to be the JSON of three",
        "vision.npz": "vision.npz has numpy's arrays .* not read here: .* tipsv2-b14, tipsv2-l14",
    }


def test_bad_files_are_refused_by_name_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, message in _bad_files(tmp_path).items():
        with pytest.raises(InputError, match=message) as caught:
            read_checkpoint(tmp_path / name)
        assert len(str(caught.value).splitlines()) <= 2, name
    assert not (tmp_path / "exploded").exists()


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
    # The header is filled up to eights; the longest one's length begins with " <", as a web page may.
    for length in (*range(0, 264, 8), 15_298):
        path = tmp_path / f"{length}.safetensors"
        safetensors.torch.save_file(
            {"visual.proj": torch.ones(2)}, path, metadata={"note": length * "x"}
        )
        first.add(path.read_bytes()[0])
        assert read_checkpoint(path).format == "safetensors"
    assert path.read_bytes().startswith(b" <")
    assert first == set(range(0, 256, 8))  # 0x80, with which a pickle begins, among them


def test_changed_bytes_of_an_archive_are_found(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"visual.proj": torch.full((64, 64), 1 / 3)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\xab\xaa\xaa\x3e") + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="x.pt is truncated.*checksum of .*data/0"):
        read_checkpoint(path)


def test_a_torchscript_archive_is_refused_with_the_name_of_the_same_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-B-16.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(), protocol=2))
        archive.writestr("archive/constants.pkl", pickle.dumps(()))
    said = "ViT-B-16.pt is a TorchScript archive, .* give the name, such as openai-vitb16, of others save"
    with pytest.raises(InputError, match=said):
        read_checkpoint(tmp_path / "ViT-B-16.pt")
    assert "openai-vitb16" in zoo()


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "entry, value, message",
    [
        ("activation", "relu", "activation is 'relu', and has to be 'gelu' or"),
        ("activation", torch.ones(3), "activation is of type Tensor, and has to be 'gelu' or"),
        ("pixel_mean", DEEP, r"pixel_mean is '\[\[.*\.\.\.', and has to be the JSON of three"),
        (
            "pixel_mean",
            f"[1, 2, 1{'0' * 400}]",
            "pixel_mean is .*, and has to be the JSON of three",
        ),
        ("pixel_std", "[1, 1, 0]", "pixel_std is '.1, 1, 0.', and has to be the JSON of three"),
    ],
)
def test_entries_beside_the_tensors_that_are_not_what_they_should_be_are_named(
    tmp_path, entry, value, message
):
    torch.save({"state_dict": {"visual.proj": torch.ones(2)}, entry: value}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=f"x.pt: {message}") as caught:
        read_checkpoint(tmp_path / "x.pt")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1, 2]", r"metadata of .*x.safetensors is \[1, 2\], and has to be an object"),
        (DEEP, "metadata of .*x.safetensors cannot be read as JSON .its brackets"),
        ('{"activation": ["gelu"]}', r"x.safetensors: activation is \['gelu'\]"),
    ],
)
def test_metadata_that_are_not_what_they_should_be_are_named(tmp_path, text, message):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"visual.proj": torch.ones(2)}, path, metadata={"facts": text})
    with pytest.raises(InputError, match=message):
        read_checkpoint(path)


def test_a_tensor_under_a_number_is_named(tmp_path):
    torch.save({"model": {3: torch.ones(2)}}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="x.pt: the name of a tensor is 3, not text"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "wanted, given, message",
    [
        ("abcde", "ax", "a.pt lacks 4 tensors: b, c, d, ...; fetch it again"),
        ("a", "abx", "a.pt has 2 unexpected tensors: b, x; fetch it again"),
        ("a", ["a", "x" * 10_000], f"a.pt has 1 unexpected tensor: {'x' * 200}...; fetch it again"),
    ],
)
def test_fit_names_what_lacks_before_what_is_unexpected_and_no_page_of_a_name(
    wanted, given, message
):
    names = [dict.fromkeys(names, torch.ones(2)) for names in (given, wanted)]
    with pytest.raises(InputError) as caught:
        fit(*names, "a.pt", remedy="fetch it again")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "tensor, message",
    [
        (torch.ones(3), r"a of shape \(3,\), the model needs \(2,\): give the size"),
        (torch.ones(2, dtype=torch.int8), "a as int8, not floating point"),
        (torch.tensor([1.0, torch.nan]), "NaN or infinite numbers in a"),
    ],
)
def test_fit_refuses_other_shapes_integers_and_what_is_no_number(tensor, message):
    with pytest.raises(InputError, match=f"a.pt has {message}"):
        fit({"a": tensor}, {"a": torch.ones(2)}, "a.pt", remedy="", sizes="give the size")


def test_fit_gives_the_modules_order_shapes_and_types():
    tensors = {"b": torch.ones(2, dtype=torch.float16), "a": torch.ones(1, 1)}
    fitted = fit(tensors, {"a": torch.ones(()), "b": torch.zeros(2)}, "a.pt", remedy="")
    assert [*fitted] == ["a", "b"] and fitted["a"].shape == ()
    assert fitted["b"].dtype == torch.float32


THREE = DenseFeature("multi_value", 3)
HERE = Path("clip.pt")


@pytest.mark.parametrize("feature", [DenseFeature(), DenseFeature("value"), THREE, ANY])
def test_what_a_file_says_comes_back(feature):
    assert stated_feature(feature.entries(), HERE) == feature
    assert stated_feature({}, HERE) == DenseFeature("token", 5)  # of one block, whatever the number


@pytest.mark.parametrize(
    "stored",
    [
        {"dense_feature": "values"},
        {"dense_feature": ["token"]},
        {"dense_feature": "multi_value", "dense_feature_blocks": "0"},
        {"dense_feature": "multi_value", "dense_feature_blocks": "9" * 5000},
        {"dense_feature": "multi_value", "dense_feature_blocks": "³"},
    ],
)
def test_what_no_file_says_is_refused_by_name(stored):
    with pytest.raises(InputError, match="clip.pt: its dense feature is .*fetch it again"):
        stated_feature(stored, HERE)


@pytest.mark.parametrize("wrong", [("values", 3), ("multi_value", 0), ("multi_value", True)])
def test_a_choice_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="unknown dense feature|blocks of a dense feature"):
        DenseFeature(*wrong)


def test_other_weights_are_refused_with_both_names_and_the_way_out():
    with pytest.raises(InputError) as caught:
        require_feature(DenseFeature("value"), THREE, HERE)
    said = str(caught.value)
    assert "clip.pt" in said and "multi_value of 3 blocks" in said
    assert "MODEL.CLIP.DENSE is value" in said
    assert "MODEL.CLIP.DENSE multi_value MODEL.CLIP.DENSE_BLOCKS 3" in said
    assert "MODEL.CLIP.DENSE_OVERRIDE True" in said
    with pytest.raises(InputError, match="multi_value of 2 blocks"):
        require_feature(THREE, DenseFeature("multi_value", 2), HERE)
    for stated in (THREE, ANY):
        require_feature(THREE, stated, HERE)
    require_feature(DenseFeature("value"), THREE, HERE, override=True)


def test_of_a_silent_file_the_original_is_said_first():
    with pytest.raises(InputError) as caught:
        require_feature(DenseFeature("value"), DenseFeature(), HERE)
    said = str(caught.value).rpartition(
        "set MODEL.CLIP.DENSE_OVERRIDE True (override=True of load_"
    )[2]
    assert said == "clip) if it is an original CLIP, MODEL.CLIP.DENSE token if it was distilled"


def test_a_run_from_before_there_was_a_choice_is_of_token():
    assert feature_of_run({"SEED": 0}, HERE) == DenseFeature()
    keys = {"MODEL.CLIP.DENSE": "multi_value", "MODEL.CLIP.DENSE_BLOCKS": 2}
    assert feature_of_run(keys, HERE) == DenseFeature("multi_value", 2)
    with pytest.raises(InputError, match="its dense feature is"):
        feature_of_run(keys | {"MODEL.CLIP.DENSE_BLOCKS": [2]}, HERE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64])
def test_what_is_not_finite_is_found_in_every_type(dtype):
    assert is_finite(torch.arange(9).to(dtype)) and is_finite(torch.zeros(0, dtype=dtype))
    for number in (float("nan"), float("inf"), -float("inf")):
        values = torch.arange(9.0)
        values[3] = number
        assert dtype == torch.int64 or not is_finite(values.to(dtype))
