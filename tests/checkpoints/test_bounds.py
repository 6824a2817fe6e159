"""What a file claims is compared with what it holds, before anything of it is made."""

from __future__ import annotations

import zipfile

import pytest
import safetensors.torch
import torch

from clipself_seg.checkpoints import bounds
from clipself_seg.checkpoints.bounds import (
    MOST_HEADER_BYTES,
    MOST_TENSORS,
    MOST_UNPACKED_ANYWAY,
    OutOfBounds,
    check_bytes,
    check_view,
    open_safetensors,
)
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.errors import InputError


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, 4),
        torch.ones(3, 4).T,
        torch.ones(3, 4)[1:, ::2],
        torch.ones(7)[7:],
        torch.ones(()),
        torch.ones(0, 1 << 40),
        torch.ones(77).expand(1, -1),
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ],
)
def test_views_of_their_storage_pass(tensor):
    count = tensor.untyped_storage().nbytes() // 4
    check_view(tensor.shape, tensor.stride(), tensor.storage_offset(), count)


@pytest.mark.parametrize(
    "size, stride, offset, message",
    [
        ((1 << 29,), (0,), 0, "a tensor of 536870912 elements lies in a storage of 12"),
        ((13,), (1,), 0, "a tensor of 13 elements"),
        ((4, 4), (1, 1), 0, "a tensor of 4 x 4 elements"),  # overlapping windows
        ((3,), (6,), 0, "a tensor of 3 elements"),
        ((3,), (1,), 10, "a tensor of 3 elements"),
        ((), (), 12, "a tensor of 1 elements"),
        ((0,), (1,), 13, "a tensor of 0 elements"),
        ((3,), (-1,), 5, "numbers from 0 on"),
        ((3,), (1,), -1, "numbers from 0 on"),
        ((True,), (1,), 0, "numbers from 0 on"),
        ((1 << 1000,), (1,), 0, "numbers from 0 on"),
        (("3",), (1,), 0, "numbers from 0 on"),
        ((1,) * 65, (1,) * 65, 0, "65 dimensions"),
        ((1, 1), (1,), 0, "2 dimensions and 1 strides"),
    ],
)
def test_a_tensor_that_is_more_than_its_storage_is_refused(size, stride, offset, message):
    with pytest.raises(OutOfBounds, match=message):
        check_view(size, stride, offset, 12)


@pytest.mark.parametrize("claimed", [9, 1 << 40, -1, 1 << 1000, 4.0])
def test_a_storage_that_is_more_than_its_bytes_is_refused(claimed):
    check_bytes(8, 8)
    with pytest.raises(OutOfBounds, match="a storage claims"):
        check_bytes(claimed, 8)


@pytest.mark.parametrize("entry", ["data/0", "other"])
def test_an_archive_that_unpacks_to_many_times_its_size_is_refused(tmp_path, entry):
    torch.save({"visual.proj": torch.ones(2)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"more/{entry}", bytes(MOST_UNPACKED_ANYWAY))
    with pytest.raises(InputError, match=r"x.pt is refused: its \d+ bytes claim to unpack to 16"):
        read_checkpoint(tmp_path / "x.pt")


def test_an_archive_that_somebody_deflated_is_read(tmp_path):
    tensor = torch.arange(500.0)
    torch.save({"visual.proj": tensor}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as stored:
        with zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in stored.namelist():
                archive.writestr(name, stored.read(name))
    assert torch.equal(read_checkpoint(tmp_path / "y.pt").tensors["visual.proj"], tensor)


def test_an_archive_packed_as_torch_does_not_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x/data.pkl", b"")
    with pytest.raises(InputError, match="x.pt is refused: it is packed otherwise"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_safetensors_file_of_too_many_tensors_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = dict.fromkeys(map(str, range(MOST_TENSORS + 1)))
    entry = '"%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % name for name in tensors) + "}").encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(
        InputError, match=f"x.safetensors is refused: it holds {MOST_TENSORS + 1} t"
    ):
        read_checkpoint(path)


def test_a_safetensors_file_with_an_endless_header_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    metadata = {"note": " " * MOST_HEADER_BYTES}
    safetensors.torch.save_file({"x": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(OutOfBounds, match="its header has .* bytes"):
        with open_safetensors(path):
            pass


@pytest.mark.parametrize(
    "make",
    [lambda: torch.nn.Linear(1 << 20, 1 << 20), lambda: torch.arange(1 << 40)]
    + [lambda: torch.nn.Parameter(torch.randn(size=(1 << 40,), device="cpu"))],
)
def test_a_tensor_is_measured_before_it_takes_memory(tmp_path, make):
    """One of 4 TB, for which torch would raise another error, or fill the machine."""
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    with bounds.building_within([tmp_path / "a.safetensors"]):
        with pytest.raises(OutOfBounds, match="more than the 3 numbers in 1 tensors that"):
            make()


def test_modules_are_built_within_what_weights_hold(tmp_path, monkeypatch):
    safetensors.torch.save_file(
        {"a": torch.ones(30, 10), "b": torch.ones(100)}, tmp_path / "a.safetensors"
    )
    monkeypatch.setattr(bounds, "MOST_BUILT_ANYWAY", 0)
    monkeypatch.setattr(bounds, "MOST_LAYERS_ANYWAY", 0)
    with bounds.building_within([tmp_path / "a.safetensors"]):
        torch.nn.Linear(39, 40)
        with pytest.raises(OutOfBounds, match="more than the 400 numbers in 2 tensors that"):
            torch.nn.Linear(1, 1)
    with bounds.building_within([tmp_path / "a.safetensors"]):
        with pytest.raises(OutOfBounds):
            torch.nn.ModuleList(torch.nn.BatchNorm1d(1) for _ in range(2))
    torch.nn.Linear(100, 100)
    (tmp_path / "a.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="a.safetensors"):
        with bounds.building_within([tmp_path / "a.safetensors"]):
            raise AssertionError
