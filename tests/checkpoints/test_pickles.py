"""Pickles: torch's files to the bit, Detectron2's arrays; or refused where they name or claim what is not there."""

import argparse
import collections
import io
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from clipself_seg.checkpoints.pickles import read_numpy_pickle, read_torch
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.errors import InputError


@contextmanager
def within_a_megabyte():
    """What is inside takes less memory than that."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


class Forged:
    """What a pickle makes of a name, arguments and perhaps a state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


# torch's files.

ARCHIVE, OLD = True, False
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64)
DTYPES += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def save(content, path, archive=ARCHIVE):
    torch.save(content, path, _use_new_zipfile_serialization=archive)


def content():
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
        "types": {str(dtype): table.to(dtype) for dtype in DTYPES},
        "views": [table, table.T, table[1:3, ::2], table[0], table.flatten()[5], table[4:]],
        "none": torch.ones(0, 3),
        "scalar": torch.tensor(3),
        "plain": ["x", 1, 2.5, None, True, (1, (2,)), {"a": {3: b"\xff"}}, {1, 2}, 1j, 10**12],
        "beside": [torch.float16, torch.Size([2, 3]), torch.device("cpu")],
        "ordered": OrderedDict(b=1, a=2),
        "milestones": collections.Counter([8, 11]),
    }


@pytest.mark.parametrize("archive", [ARCHIVE, OLD])
def test_what_torch_reads_is_read_to_the_bit(tmp_path, archive):
    path = tmp_path / "x.pt"
    save(content(), path, archive)
    result = read_torch(path)
    views = result.pop("views")
    assert [(v.shape, v.stride(), v.storage_offset()) for v in views] == [
        (v.shape, v.stride(), v.storage_offset()) for v in content()["views"]
    ]
    assert views[0].data_ptr() == views[1].data_ptr()  # as in the file
    written = content()
    torch.testing.assert_close(views, written.pop("views"), rtol=0, atol=0)
    for name in ("plain", "beside", "ordered", "milestones"):
        assert result.pop(name) == written.pop(name)
    for name, tensors in written.items():
        if name != "optimizer":
            torch.testing.assert_close(result[name], tensors, rtol=0, atol=0)
    assert result["optimizer"]["param_groups"] == written["optimizer"]["param_groups"]


def test_an_archive_is_mapped_and_not_copied(tmp_path):
    save({"visual.proj": torch.ones(1000)}, tmp_path / "x.pt")
    tensors = read_checkpoint(tmp_path / "x.pt").tensors
    assert str(tmp_path / "x.pt") in Path("/proc/self/maps").read_text() and len(tensors) == 1


@pytest.mark.parametrize("of_numpy", ["", "numpy._core.multiarray", "numpy.core.multiarray"])
def test_numbers_and_arrays_of_numpy_beside_weights_pass(tmp_path, of_numpy):
    """As training loops keep best scores: in an archive, and in old files of either version of NumPy."""
    beside = {"loss": np.float64(3.2), "step": np.int64(7), "done": np.bool_(True)}
    beside |= {"curve": np.arange(6.0).reshape(2, 3), "empty": np.zeros(0, ">f4")}
    beside["meta"] = {"hook_msgs": {"best_score": np.float32(37.6)}}  # mmcv's
    archive = OLD if of_numpy else ARCHIVE
    save({"model": {"visual.proj": torch.ones(2)}} | beside, tmp_path / "x.pt", archive)
    if of_numpy:
        written = (tmp_path / "x.pt").read_bytes()
        own = np.float64(1).__reduce__()[0].__module__.encode()
        (tmp_path / "x.pt").write_bytes(written.replace(own, of_numpy.encode()))
    assert list(read_checkpoint(tmp_path / "x.pt").tensors) == ["visual.proj"]


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Forged(os.mkdir, ("ran",)), "(posix|nt|os).mkdir"),
        (lambda: Forged(bytearray, (1 << 36,)), "builtins.bytearray"),
        (lambda: Forged(torch.Tensor, (1 << 36,)), "torch.Tensor"),
        (lambda: Forged(torch.UntypedStorage, (1 << 36,)), "torch.storage.UntypedStorage"),
        (lambda: argparse.Namespace(epochs=3), "argparse.Namespace"),
        (lambda: torch.ones(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (lambda: torch.ones(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
    ],
)
@pytest.mark.parametrize("archive", [ARCHIVE, OLD])
def test_what_is_no_dense_tensor_or_plain_data_is_refused_by_name(
    tmp_path, monkeypatch, make, name, archive
):
    monkeypatch.chdir(tmp_path)
    save({"model": {"visual.proj": torch.ones(2)}, "more": make()}, tmp_path / "x.pt", archive)
    with pytest.raises(InputError, match=f"x.pt is refused: it names {name}, .*; save the weights"):
        read_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_an_array_of_numpy_beside_weights_makes_no_room(tmp_path):
    array = Forged(np.ndarray, ((1 << 36,), np.dtype("O")))
    save({"model": {"visual.proj": torch.ones(2)}, "more": array}, tmp_path / "x.pt")
    with within_a_megabyte():
        assert list(read_checkpoint(tmp_path / "x.pt").tensors) == ["visual.proj"]


def test_a_dict_whose_attributes_hide_its_methods_is_refused(tmp_path):
    state = Forged(OrderedDict, ([("visual.proj", torch.ones(2))],), {"items": 3})
    save(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match="x.pt is truncated or no PyTorch file"):
        read_checkpoint(tmp_path / "x.pt")


def test_another_protocol_is_refused_in_a_sentence(tmp_path):
    torch.save({"visual.proj": torch.ones(2)}, tmp_path / "x.pt", pickle_protocol=4)
    with pytest.raises(InputError, match="it is pickled by protocol 4, .* save it anew$"):
        read_checkpoint(tmp_path / "x.pt")


class Stored(NamedTuple):
    """A storage of a file that claims a number of elements."""

    count: int


class Writer(pickle.Pickler):
    """Writes storages as torch does."""

    def persistent_id(self, obj):
        return (
            ("storage", torch.FloatStorage, "0", "cpu", obj.count) if type(obj) is Stored else None
        )


def write_claim(path, count, size, stride):
    """An archive of a tensor whose storage holds four numbers."""
    arguments = (Stored(count), 0, size, stride, False, OrderedDict())
    buffer = io.BytesIO()
    Writer(buffer, 2).dump({"visual.proj": Forged(torch._utils._rebuild_tensor_v2, arguments)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", buffer.getvalue())
        archive.writestr("x/data/0", bytes(16))
        archive.writestr("x/version", "3")


@pytest.mark.parametrize(
    "count, size, stride, message",
    [
        (4, (1 << 29,), (0,), "is refused: a tensor claims 536870912 numbers, and the file has"),
        (1 << 29, (1,), (1,), "is refused: a tensor claims 536870912 numbers"),
        (4, (100,), (0,), "is refused: the tensor 'visual.proj' of 400 bytes lies in a storage of"),
        (4, (5,), (1,), "is truncated or no PyTorch file"),
        (4, (200, 200, 200), (1, 1, 1), "is truncated or no PyTorch file"),
        (-4, (2,), (1,), "is truncated or no PyTorch file"),
    ],
)
def test_more_than_an_archive_holds_is_refused(tmp_path, count, size, stride, message):
    write_claim(tmp_path / "x.pt", 4, (4,), (1,))
    assert read_checkpoint(tmp_path / "x.pt").tensors["visual.proj"].tolist() == [0] * 4
    write_claim(tmp_path / "y.pt", count, size, stride)
    with within_a_megabyte(), pytest.raises(InputError, match=f"y.pt {message}"):
        read_checkpoint(tmp_path / "y.pt")


def test_more_than_an_old_file_holds_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    save({"visual.proj": torch.ones(1000)}, path, OLD)
    whole = path.read_bytes()
    number = (1000).to_bytes(2, "little")
    for changed, message in (
        (whole.replace(b"M" + number, b"J\xff\xff\xff\x7f"), "a tensor claims 2147483647 numbers"),
        (whole.replace(number + b"\x00" * 6, b"\xff" * 8), "is truncated or no PyTorch file"),
        (whole[:-4], "is truncated or no PyTorch file"),
    ):
        path.write_bytes(changed)
        with within_a_megabyte(), pytest.raises(InputError, match=f"x.pt .*{message}"):
            read_checkpoint(path)


@pytest.mark.parametrize("archive", [ARCHIVE, OLD])
def test_a_tensor_that_repeats_its_storage_is_refused(tmp_path, archive):
    save({"visual.proj": torch.ones(1).expand(2)}, tmp_path / "x.pt", archive)
    with pytest.raises(InputError, match="'visual.proj' of 8 bytes lies in a storage of 4"):
        read_checkpoint(tmp_path / "x.pt")


# Detectron2's pickles of arrays.


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_any_layout_come_back(tmp_path, protocol):
    model = OrderedDict(
        weight=np.arange(6, dtype=np.float32).reshape(2, 3),
        columns=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        half=np.ones((2, 0, 3), np.float16),
        flag=np.array([True, False]),
        complex=np.array(1j, np.complex64),
        number=np.uint8(200),
        count=np.int64(3),
    )
    model._metadata = {"version": 1}
    written = {"model": model, "__author__": "somebody", "matching_heuristics": True}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(written, protocol))
    tensors = read_numpy_pickle(tmp_path / "R.pkl")
    assert tensors.keys() == model.keys()
    assert all(np.array_equal(tensors[name].numpy(), model[name]) for name in model)


def test_code_is_refused_by_name_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "R.pkl").write_bytes(
        pickle.dumps({"model": {"weight": Forged(os.mkdir, ("ran",))}})
    )
    with pytest.raises(InputError, match=r"R.pkl is refused: it names (posix|nt|os).mkdir"):
        read_numpy_pickle("R.pkl")
    assert not (tmp_path / "ran").exists()


def test_a_page_of_a_name_is_not_repeated(tmp_path):
    (tmp_path / "R.pkl").write_bytes(b"\x80\x02c" + b"x" * 10_000 + b"\ny\n.")
    with pytest.raises(InputError, match="it names xxx") as caught:
        read_numpy_pickle(tmp_path / "R.pkl")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"\x80\x04}", pickle.dumps([1]), pickle.dumps({"a": 1})])
def test_what_holds_no_arrays_is_named(tmp_path, content):
    (tmp_path / "R.pkl").write_bytes(content)
    with pytest.raises(InputError, match="R.pkl"):
        read_numpy_pickle(tmp_path / "R.pkl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no weights at .*none.pkl"):
        read_numpy_pickle(tmp_path / "none.pkl")


F4 = np.dtype("f4")
RECONSTRUCT, (_, _, CODE), _ = np.ones(1, F4).__reduce__()
SCALAR = np.float32(1).__reduce__()[0]


def array(shape, dtype, content):
    return Forged(RECONSTRUCT, (np.ndarray, (0,), CODE), (1, shape, dtype, False, content))


CLAIMS = {
    "a shape without bytes": array((1 << 40,), F4, b""),
    "bytes without a shape": array((1,), F4, bytes(8)),
    "objects": array((1 << 24,), np.dtype("O"), []),
    "a scalar of gigabytes": Forged(SCALAR, (np.dtype("V200000000"),)),
    "an array of no size each": array((1 << 40,), np.dtype("V0"), b""),
    "bytes by their number": Forged(bytes, (1 << 24,)),
    "attributes of a class": Forged(RECONSTRUCT, (), (None, {"fill": 3})),
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_arrays_that_claim_more_than_the_file_holds_are_refused(tmp_path, claim):
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({"model": {"weight": claim}}, 2))
    with within_a_megabyte(), pytest.raises(InputError, match="R.pkl is (refused|truncated)"):
        read_numpy_pickle(tmp_path / "R.pkl")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\x00\x00\x00\x01.",  # the memo's entry 2 ** 24
        b"\x80\x05\x96\x00\x00\x00\x01\x00\x00\x00\x00x.",  # 2 ** 24 bytes
        b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aNsb.",  # an attribute of a function
    ],
)
def test_nine_bytes_do_not_become_gigabytes(tmp_path, content):
    (tmp_path / "R.pkl").write_bytes(content)
    with within_a_megabyte(), pytest.raises(
        InputError, match="R.pkl is (.* and has to be an object|refused: it is d|tr)"
    ):
        read_numpy_pickle(tmp_path / "R.pkl")


def test_arrays_of_the_same_bytes_again_and_again_are_refused(tmp_path):
    content = b"x" * 4000
    arrays = {str(n): array((1000,), F4, content) for n in range(5)}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(arrays, 4))
    with pytest.raises(InputError, match="R.pkl is refused: its arrays claim 20000 bytes"):
        read_numpy_pickle(tmp_path / "R.pkl")


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
    with pytest.raises(InputError, match="R.pkl is an object with the key None, and has to be"):
        read_numpy_pickle(tmp_path / "R.pkl")
