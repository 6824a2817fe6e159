"""Pickles: plain data, torch's files to the bit, Detectron2's arrays; or refused where they claim what is not there."""

from __future__ import annotations

import collections
import io
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from clipself_seg.checkpoints import pickles
from clipself_seg.checkpoints.bounds import ForeignName, OutOfBounds
from clipself_seg.checkpoints.pickles import (
    PlainUnpickler,
    Stream,
    read_archive,
    read_numpy_pickle,
    read_pickles,
)
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.errors import InputError
from tests.checkpoint_files import Node, save_torchscript


@contextmanager
def within_a_megabyte():
    """What is inside takes less memory than that."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def load(content):
    return PlainUnpickler(Stream(content)).load()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_come_back(protocol):
    content = {
        "a": [1, -(10**30), 2.5, None, True, "é", b"\xff\x00", (), (1, (2, 3))],
        3: {"b": {}},
    }
    content["ordered"] = OrderedDict(b=1, a=2)
    content["ordered"]._metadata = {"version": 1}
    content["again"] = content["a"]
    result = load(pickle.dumps(content, protocol))
    assert result == content and result["again"] is result["a"]


def test_sets_become_lists():
    for values in ({1, 2}, frozenset((1, 2))):
        assert load(pickle.dumps({"s": values}, 4)) == {"s": [1, 2]}


HUGE = (1 << 24).to_bytes(4, "little")
TEXT = b"\x8c\x64" + b"x" * 100
HUNDRED = b"(" + b"K\x01K\x02\x86" * 100 + b"l"  # a hundred pairs
TUPLES = b"K\x01" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(100))  # each twice in the next


@pytest.mark.parametrize(
    "content, error",
    {
        "memo": (b"\x80\x02Nr" + HUGE + b".", None),
        "bytes": (b"\x80\x02B" + HUGE + b"x.", EOFError),
        "bytes of 8": (b"\x80\x04\x8e" + HUGE + b"\x00" * 4 + b"x.", EOFError),
        "bytearray": (b"\x80\x05\x96" + HUGE + b"\x00" * 4 + b"x.", EOFError),
        "frame": (b"\x80\x04\x95" + HUGE + b"\x00" * 4 + b"N.", None),
        "number": (b"\x80\x02\x8b" + HUGE + b"x.", EOFError),
        "line": (b"I12", EOFError),
        "nothing": (b"", EOFError),
        "no opcode": (b"\xff", pickle.UnpicklingError),
        "a key of a billion parts": (b"\x80\x02}" + TUPLES + b"Ns.", pickle.UnpicklingError),
        "an entry without a stack": (b"\x80\x02s.", pickle.UnpicklingError),
        "attributes of a function": (
            b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aNsb.",
            pickle.UnpicklingError,
        ),
        "another name": (b"\x80\x02cbuiltins\nbytearray\nK\x09\x85R.", ForeignName),
    }.values(),
)
def test_a_few_bytes_do_not_become_many(content, error):
    with within_a_megabyte(), nullcontext() if error is None else pytest.raises(error):
        assert load(content) is None


def test_copies_of_copies_are_refused():
    encode = b"\x80\x02c_codecs\nencode\nq\x00" + TEXT + b"\x8c\x06latin1\x86q\x01"
    once = encode.replace(b"q\x01", b"R.")
    assert load(once) == b"x" * 100
    many = encode + b"h\x00h\x01R" * 40 + b"."
    with pytest.raises(OutOfBounds, match="copies its contents again and again"):
        load(many)
    pairs = b"\x80\x02ccollections\nOrderedDict\nq\x00" + HUNDRED + b"\x85q\x01"
    with pytest.raises(OutOfBounds, match="copies its contents again and again"):
        load(pairs + b"h\x00h\x01R" * 40 + b".")


def test_a_pickle_of_endless_steps_is_refused(monkeypatch):
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    with pytest.raises(OutOfBounds, match="it takes more than 1000 steps"):
        load(b"\x80\x02" + b"]" * 1001 + b".")


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_come_back(tmp_path, protocol):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = collections.OrderedDict(weight=weight, count=np.int64(3), steps=np.array(7))
    content = {"model": model, "__author__": "somebody", "matching_heuristics": True}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(content, protocol))
    tensors = read_numpy_pickle(tmp_path / "R.pkl")
    assert np.array_equal(tensors["weight"].numpy(), weight)
    assert (int(tensors["count"]), int(tensors["steps"]), len(tensors)) == (3, 7, 3)


def test_code_is_refused_by_name_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({"model": {"weight": RunsCode()}}))
    with pytest.raises(InputError, match=r"R.pkl is refused: it names (posix|nt|os).mkdir"):
        read_numpy_pickle("R.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04}", pickle.dumps([1]), pickle.dumps({"a": 1})])
def test_what_holds_no_arrays_is_named(tmp_path, content):
    (tmp_path / "R.pkl").write_bytes(content)
    with pytest.raises(InputError, match="R.pkl"):
        read_numpy_pickle(tmp_path / "R.pkl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no weights at .*none.pkl"):
        read_numpy_pickle(tmp_path / "none.pkl")


class Forged:
    """What numpy makes of a name and arguments."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


F4 = np.dtype("f4")
RECONSTRUCT, (_, _, CODE), _ = np.ones(1, F4).__reduce__()
SCALAR = np.float32(1).__reduce__()[0]
CLAIMS = {
    "an array made whole": Forged(RECONSTRUCT, (np.ndarray, (1 << 24,), CODE)),
    "a shape without bytes": Forged(
        RECONSTRUCT, (np.ndarray, (0,), CODE), (1, (1 << 40,), F4, False, b"")
    ),
    "objects": Forged(
        RECONSTRUCT, (np.ndarray, (0,), CODE), (1, (1 << 24,), np.dtype("O"), False, [])
    ),
    "a scalar of gigabytes": Forged(SCALAR, (np.dtype("V200000000"),)),
    "an array of no size each": Forged(
        RECONSTRUCT, (np.ndarray, (0,), CODE), (1, (1 << 40,), np.dtype("V0"), False, b"")
    ),
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_arrays_that_claim_more_than_the_file_holds_are_refused(tmp_path, claim):
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({"model": {"weight": claim}}, 2))
    with within_a_megabyte(), pytest.raises(InputError, match="R.pkl is refused"):
        read_numpy_pickle(tmp_path / "R.pkl")


def test_nine_bytes_do_not_become_gigabytes(tmp_path):
    (tmp_path / "R.pkl").write_bytes(b"\x80\x02Nr\x00\x00\x00\x01.")  # the memo's entry 2 ** 24
    with within_a_megabyte(), pytest.raises(InputError, match="R.pkl holds a NoneType, not arrays"):
        read_numpy_pickle(tmp_path / "R.pkl")


def test_arrays_of_the_same_bytes_again_and_again_are_refused(tmp_path):
    content = b"x" * 4000
    arrays = {
        str(n): Forged(RECONSTRUCT, (np.ndarray, (0,), CODE), (1, (1000,), F4, False, content))
        for n in range(5)
    }
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(arrays, 4))
    with pytest.raises(InputError, match="R.pkl is refused: a storage claims 20000 bytes"):
        read_numpy_pickle(tmp_path / "R.pkl")


def test_arrays_of_any_layout_come_back(tmp_path):
    arrays = {
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "half": np.ones((2, 0, 3), np.float16),
        "flag": np.array([True, False]),
        "complex": np.array(1j, np.complex64),
        "number": np.uint8(200),
    }
    for protocol in (2, 5):
        (tmp_path / "R.pkl").write_bytes(pickle.dumps(arrays, protocol))
        tensors = read_numpy_pickle(tmp_path / "R.pkl")
        assert all(np.array_equal(tensors[name].numpy(), arrays[name]) for name in arrays)


def test_a_pickle_of_python_2_is_read(tmp_path):
    raw = bytes(range(200, 206))
    (tmp_path / "R.pkl").write_bytes(
        b"\x80\x02}U\x06weightcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x06\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x06" + raw + b"tbs."
    )
    assert read_numpy_pickle(tmp_path / "R.pkl")["weight"].tolist() == list(raw)


def test_an_array_under_a_number_is_named(tmp_path):
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({None: np.ones(1)}))
    with pytest.raises(InputError, match="R.pkl: the name of an array is None, not text"):
        read_numpy_pickle(tmp_path / "R.pkl")


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
