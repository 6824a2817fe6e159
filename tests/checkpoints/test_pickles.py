"""Pickles of arrays are read as data: arrays come back, anything that could run code is refused."""

from __future__ import annotations

import collections
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from clipself_seg.checkpoints.pickles import read_numpy_pickle
from clipself_seg.errors import InputError


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
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="R.pkl is refused"):
            read_numpy_pickle(tmp_path / "R.pkl")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_nine_bytes_do_not_become_gigabytes(tmp_path):
    (tmp_path / "R.pkl").write_bytes(b"\x80\x02Nr\x00\x00\x00\x01.")  # the memo's entry 2 ** 24
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="R.pkl holds a NoneType, not arrays by their names"):
            read_numpy_pickle(tmp_path / "R.pkl")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


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
