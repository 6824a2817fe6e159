"""torch's files are read to the bit as torch reads them, or refused where they claim what is not there."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn

from clipself_seg.checkpoints import pickles
from clipself_seg.checkpoints.pickles import read_archive, read_pickles
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.errors import InputError
from tests.checkpoint_files import Node, save_torchscript

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
NEW = (torch.float8_e4m3fn, torch.uint16)
READERS = {True: read_archive, False: read_pickles}


def content(dtypes):
    """Everything that training leaves in a checkpoint."""
    torch.manual_seed(0)
    table = torch.randn(4, 6)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "foreach": None, "params": [0, 1]}
    return {
        "state_dict": model.state_dict(),
        "optimizer": {"state": {0: moments}, "param_groups": [group]},
        "parameters": dict(model.named_parameters()),
        "types": {str(dtype): table.to(dtype) for dtype in dtypes},
        "views": [table, table.T, table[1:3, ::2], table[0], table.flatten()[5], table[4:]],
        "none": torch.ones(0, 3),
        "scalar": torch.tensor(3),
        "plain": ["x", 1, 2.5, None, True, (1, (2,)), {"a": {3: b"\xff"}}],
        "type": torch.float16,
        "ordered": OrderedDict(b=1, a=2),
    }


def assert_same(one, other):
    """Equal values, types, shapes and strides."""
    if isinstance(one, torch.Tensor):
        layouts = [(t.dtype, t.shape, t.stride(), t.storage_offset()) for t in (one, other)]
        assert layouts[0] == layouts[1]
        flat = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
        assert torch.equal(*flat)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert type(one) is type(other) and len(one) == len(other)
        for pair in zip(one, other):
            assert_same(*pair)
    else:
        assert one == other


@pytest.mark.parametrize("archive", READERS)
def test_what_torch_reads_is_read_to_the_bit(tmp_path, archive):
    dtypes = (*FLOATS, *WHOLE, torch.complex64, *(NEW if archive else ()))
    path = tmp_path / "x.pt"
    torch.save(content(dtypes), path, _use_new_zipfile_serialization=archive)
    result = READERS[archive](path)
    assert_same(result, torch.load(path, weights_only=True))
    table, turned = result["views"][:2]
    assert table.data_ptr() == turned.data_ptr()  # as in the file
    assert table.untyped_storage().data_ptr() % 64 == 0  # as torch's own memory is


def test_sizes_and_places_beside_tensors_are_plain_data(tmp_path):
    beside = {"size": torch.ones(2, 3).shape, "place": torch.device("cpu"), "set": {1, 2}}
    torch.save(beside, tmp_path / "x.pt")
    assert read_archive(tmp_path / "x.pt") == {"size": (2, 3), "place": "cpu", "set": [1, 2]}


class Stored(NamedTuple):
    """A storage of a file that claims a number of elements."""

    count: int


class Claim:
    """A tensor of a file, whatever its storage holds."""

    def __init__(self, size, stride, count):
        self.arguments = (Stored(count), 0, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Writer(pickle.Pickler):
    """Writes storages as torch does."""

    def persistent_id(self, obj):
        return (
            ("storage", torch.FloatStorage, "0", "cpu", obj.count) if type(obj) is Stored else None
        )


def write_claim(path, claim, script):
    """An archive of a tensor whose storage holds four numbers."""
    buffer = io.BytesIO()
    Writer(buffer, 2).dump({"visual.proj": claim})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", buffer.getvalue())
        archive.writestr("x/data/0", bytes(16))
        if script:
            archive.writestr("x/constants.pkl", pickle.dumps(()))


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize(
    "size, stride, count, message",
    [
        ((1 << 29,), (0,), 4, "a tensor of 536870912 elements lies in a storage of 4"),
        ((1 << 29,), (1,), 1 << 29, "a storage claims 2147483648 bytes, the file has 16"),
        ((5,), (1,), 4, "a tensor of 5 elements"),
        ((2,), (1,), -1, "a storage claims no number"),
    ],
)
def test_more_than_an_archive_holds_is_refused(tmp_path, script, size, stride, count, message):
    write_claim(tmp_path / "x.pt", Claim(size, stride, count), script)
    with pytest.raises(InputError, match=f"x.pt is refused: {message}"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("archive", READERS)
def test_a_tensor_that_repeats_its_storage_is_refused(tmp_path, archive):
    repeated = {"visual.proj": torch.ones(1).expand(2)}
    torch.save(repeated, tmp_path / "x.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(InputError, match="x.pt is refused: a tensor of 2 elements lies in a s"):
        read_checkpoint(tmp_path / "x.pt")


def test_more_than_an_old_file_holds_is_refused_before_it_is_made(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    torch.save({"visual.proj": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    number = (1000).to_bytes(2, "little")
    path.write_bytes(whole.replace(b"M" + number, b"J\xff\xff\xff\x7f"))
    with monkeypatch.context() as patch:
        patch.setattr(pickles, "_empty", None)
        with pytest.raises(InputError, match="refused: a storage claims 8589934588 bytes"):
            read_checkpoint(path)
    path.write_bytes(whole.replace(number + b"\x00" * 6, b"\xff" * 8))
    with pytest.raises(InputError, match="the storage .* has another size"):
        read_checkpoint(path)
    path.write_bytes(whole[:-4])
    with pytest.raises(InputError, match="x.pt is truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: torch.ones(2).to_sparse(), "is sparse"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is a nested tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "is quantised"),
        (lambda: torch.ones(2, device="meta"), "has no values"),
    ],
    ids=["sparse", "nested", "quantised", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_no_model_takes_are_named(tmp_path, make, reason):
    tensor = make()
    torch.save({"visual.proj": torch.ones(2), "odd": tensor}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=f"x.pt: 'odd' {reason}; save the weights as dense"):
        read_checkpoint(tmp_path / "x.pt")
    torch.save({"model": {"visual.proj": torch.ones(2)}, "optimizer": tensor}, tmp_path / "x.pt")
    assert list(read_checkpoint(tmp_path / "x.pt").tensors) == ["visual.proj"]


def test_modules_that_hold_one_another_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_TENSORS", 100)
    save_torchscript({f"a{n}.weight": torch.ones(1) for n in range(40)}, tmp_path / "x.pt")
    assert len(read_checkpoint(tmp_path / "x.pt").tensors) == 40
    module = pickles.ScriptObject()
    for _ in range(40):
        outer = pickles.ScriptObject()
        outer.__setstate__({"one": module, "other": module})
        module = outer
    with pytest.raises(pickles.OutOfBounds, match="again and again"):
        pickles.script_tensors(module)


def test_a_big_endian_archive_is_refused(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as stored:
        with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
            for name in stored.namelist():
                order = name.endswith("/byteorder")
                archive.writestr(name, b"big" if order else stored.read(name))
    with pytest.raises(InputError, match="y.pt .*big-endian"):
        read_checkpoint(tmp_path / "y.pt")


def test_a_torchscript_archive_of_shared_weights_is_read(tmp_path):
    root = Node()
    root.register_buffer("one", torch.arange(6.0))
    root.register_buffer("other", root.one)
    torch.jit.save(torch.jit.script(root), tmp_path / "x.pt")
    tensors = read_checkpoint(tmp_path / "x.pt").tensors
    assert torch.equal(tensors["one"], tensors["other"]) and len(tensors["one"]) == 6
