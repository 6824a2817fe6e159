"""What a file claims is compared with what it holds, before anything of it is made."""

import zipfile

import pytest
import safetensors.torch
import torch

from clipself_seg.checkpoints import bounds
from clipself_seg.checkpoints.bounds import (
    MOST_HEADER_BYTES,
    MOST_TENSORS,
    OutOfBounds,
    open_safetensors,
)
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.errors import InputError


def written_anew(path, compression=zipfile.ZIP_STORED):
    """A file of `torch.save`, and its members by name."""
    torch.save({"visual.proj": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return members


def test_an_archive_written_anew_is_read(tmp_path):
    written_anew(tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt").tensors["visual.proj"].tolist() == [1, 1]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_an_archive_packed_as_torch_does_not_is_refused(tmp_path, compression):
    written_anew(tmp_path / "x.pt", compression)
    with pytest.raises(InputError, match="x.pt is refused: it is packed otherwise"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_of_two_files_of_one_name_is_refused(tmp_path):
    members = written_anew(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        archive.writestr(next(iter(members)).upper(), b"")
    with pytest.raises(InputError, match="x.pt is refused: two files in it have one name"):
        read_checkpoint(tmp_path / "x.pt")


def test_an_archive_that_claims_to_unpack_to_more_than_its_size_is_refused(tmp_path):
    members = written_anew(tmp_path / "x.pt")
    claimed = (1 << 30).to_bytes(4, "little")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    for name in members:  # sizes of the last list, 26 bytes before the name
        content[(place := content.rindex(name.encode()) - 26) : place + 8] = claimed * 2
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"x.pt is refused: its \d+ bytes claim to unpack to"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_safetensors_file_of_too_many_tensors_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = dict.fromkeys(map(str, range(MOST_TENSORS + 1)))
    entry = '"%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % name for name in tensors) + "}").encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=f"x.safetensors is refused: it holds {MOST_TENSORS + 1}"):
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
