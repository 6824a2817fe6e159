"""Generator outputs on disk: what is read is what was written, and of the image that was asked for."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from clipself_seg.data import generator_outputs
from clipself_seg.data.generator_outputs import (
    LARGEST,
    GeneratorOutput,
    check_outputs,
    hash_classes,
    output_path,
    read_output,
    save_output,
)
from clipself_seg.errors import InputError

NAMES = (("dog", "puppy"), ("grass",), ("sky",))
IDENTITY = {"image_id": 139, "file_name": "a/000139.jpg", "names": NAMES}


def output(queries=4, classes=3):
    """As a generator of somebody else's may give it: numpy arrays."""
    rng = np.random.default_rng(0)
    masks, logits = rng.normal(0, 9, (queries, 6, 8)), rng.normal(0, 9, (queries, classes))
    arrays = (masks, logits, rng.random(queries))
    return GeneratorOutput(*(torch.from_numpy(array) for array in arrays), (24, 32), (24, 30))


def read(folder, **other):
    return read_output(folder, **{**IDENTITY, "image_size": (24, 30)} | other)


@pytest.fixture
def folder(tmp_path):
    save_output(tmp_path, output(), **IDENTITY, weights="none")
    return tmp_path


def test_what_is_read_is_what_was_written_up_to_the_half_precision_of_masks(folder):
    stored, given = read(folder), output()
    assert (stored.canvas, stored.image_size) == ((24, 32), (24, 30))
    assert torch.equal(stored.mask_logits, given.mask_logits.half().float())
    assert torch.equal(stored.class_logits, given.class_logits.float())
    assert torch.equal(stored.void_prob, given.void_prob.float())
    assert read(folder, file_name="elsewhere/000139.jpg").canvas == (24, 32)
    assert output_path("x", "val/a b").name == "val_a_b.safetensors"
    save_output(folder, output(queries=0), **IDENTITY, weights="none")
    assert read(folder).mask_logits.shape == (0, 6, 8)


def test_a_file_is_what_its_description_says(folder):
    (path,) = folder.iterdir()
    assert path.name == "139.safetensors" == output_path(folder, 139).name
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["file_name"] == "000139.jpg" and metadata["weights"] == "none"
    assert json.loads(metadata["settings"]) == {}
    assert json.loads(metadata["canvas"]) == [24, 32] and json.loads(metadata["image_size"]) == [
        24,
        30,
    ]
    assert metadata["classes"] == hash_classes(NAMES)
    tensors = load_file(path)
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert shapes == {
        "mask_logits": (torch.float16, (4, 6, 8)),
        "class_logits": (torch.float32, (4, 3)),
        "void_prob": (torch.float32, (4,)),
    }
    # Two bytes a pixel of a mask, and little else.
    assert path.stat().st_size < 2 * 4 * 6 * 8 + 800


def test_logits_beyond_half_precision_stay_finite(tmp_path):
    given = output()
    given.mask_logits[0], given.mask_logits[1] = 1e9, -torch.inf
    save_output(tmp_path, given, **IDENTITY, weights="none")
    masks = read(tmp_path).mask_logits
    assert masks.isfinite().all() and (masks[0] > 0.99 * LARGEST).all() and (masks[1] < 0).all()


@pytest.mark.parametrize(
    "other, message",
    [
        ({"file_name": "b/000285.jpg"}, "another image.*000139.jpg.*000285.jpg"),
        ({"image_size": (48, 60)}, r"another size.*\(24, 30\).*\(48, 60\).*MIN_SIZE_TEST"),
        ({"names": (("dog",), *NAMES[1:])}, "another vocabulary"),
        ({"names": NAMES[::-1]}, "another vocabulary"),
        ({"image_id": 285}, "285.safetensors is missing.*generator-outputs"),
    ],
)
def test_outputs_of_something_else_are_refused(folder, other, message):
    with pytest.raises(InputError, match=message):
        read(folder, **other)


def test_damaged_and_foreign_files_are_refused(folder):
    (path,) = folder.iterdir()
    content = path.read_bytes()
    header = ('{"x":"' + "x" * 5000 + '"}').encode()
    long = len(header).to_bytes(8, "little") + header
    for part in (b"", content[:40], content[:-10], b"x" * 400, long):
        path.write_bytes(part)
        with pytest.raises(InputError, match="139.safetensors is damaged.*write it ag") as caught:
            read(folder)
        assert len(str(caught.value)) < 400 + len(str(folder))
    save_file({"mask_logits": torch.zeros(1, 2, 2)}, path)
    with pytest.raises(InputError, match="no generator output: it lacks.*canvas.*void_prob"):
        read(folder)


@pytest.mark.parametrize("value", ["24x32", "[24]", "[0, 32]", "null", f"[24, {'9' * 5000}]"])
def test_sizes_that_are_none_are_refused(folder, value):
    (path,) = folder.iterdir()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata=metadata | {"canvas": value})
    with pytest.raises(InputError, match="canvas is .*, not a JSON list of rows and columns"):
        read(folder)


def test_arrays_of_numpy_are_taken(tmp_path):
    given = output()
    arrays = (getattr(given, name).numpy() for name in ("mask_logits", "class_logits", "void_prob"))
    sizes = (tuple(map(np.int64, pair)) for pair in (given.canvas, given.image_size))
    save_output(tmp_path, GeneratorOutput(*arrays, *sizes), **IDENTITY, weights="none")
    assert torch.equal(read(tmp_path).class_logits, given.class_logits.float())


def test_a_folder_that_lacks_images_is_refused_before_any_is_read(tmp_path):
    save_output(tmp_path, output(), **IDENTITY | {"image_id": 7}, weights="none")
    assert check_outputs(tmp_path, "ade", [7]) == {"weights": "none", "settings": "{}"}
    with pytest.raises(InputError, match="2 of 3 generator outputs of ade .* that of image 8"):
        check_outputs(tmp_path, "ade", [7, 8, "a/b"])


def test_outputs_of_two_generators_are_refused(tmp_path):
    for image, weights, padding in ((7, "one", 0), (8, "other", 0), (9, "one", 128)):
        how = {"weights": weights, "settings": {"padding": padding}}
        save_output(tmp_path, output(), **IDENTITY | {"image_id": image}, **how)
    assert check_outputs(tmp_path, "ade", [9]) == {"weights": "one", "settings": '{"padding": 128}'}
    with pytest.raises(InputError, match=r"generators: one .* .image 7., other .* .image 8."):
        check_outputs(tmp_path, "ade", [7, 8])
    with pytest.raises(InputError, match=r'one {"padding": 0} .image 7., one {"padding": 128}'):
        check_outputs(tmp_path, "ade", [7, 9])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"void_prob": torch.tensor([0.5, 5.0, -1.0, 0.1])}, "void_prob is outside of 0 to 1"),
        ({"class_logits": torch.full((4, 3), torch.nan)}, "a logit is not finite"),
        ({"mask_logits": torch.zeros(2, 6, 8)}, r"masks \(2, 6, 8\), class logits \(4, 3\)"),
        ({"class_logits": torch.zeros(4, 2)}, r".*class logits \(4, 2\).*do not fit 3 classes"),
        ({"canvas": (20, 32)}, r"its canvas \(20, 32\) is smaller than \(24, 30\)"),
    ],
)
def test_numbers_that_are_no_scores_are_refused(tmp_path, change, message, monkeypatch):
    wrong = dataclasses.replace(output(), **change)
    with pytest.raises(InputError, match=f"139.safetensors: {message}"):
        save_output(tmp_path, wrong, **IDENTITY, weights="none")
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:  # as another program may write it
        patch.setattr(generator_outputs, "_check", lambda *_: None)
        save_output(tmp_path, wrong, **IDENTITY, weights="none")
    with pytest.raises(InputError, match=f"139.safetensors: {message}"):
        read(tmp_path)


def test_a_file_has_to_say_which_generator_made_it(folder):
    (path,) = folder.iterdir()
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "weights"}
    save_file(load_file(path), path, metadata=metadata)
    for call in (lambda: read(folder), lambda: check_outputs(folder, "ade", [139])):
        with pytest.raises(InputError, match=r"139.safetensors is no .* it lacks \['weights'\]"):
            call()


def test_equal_outputs_give_equal_bytes(tmp_path):
    for number in range(6):  # safetensors alone writes six orders of the metadata
        save_output(
            tmp_path / str(number), output(), **IDENTITY | {"file_name": "é.jpg"}, weights="é"
        )
    contents = {path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert len(contents) == 1
    assert torch.equal(
        read(tmp_path / "0", file_name="é.jpg").void_prob, output().void_prob.float()
    )
