"""Pickles of arrays are read as data: arrays come back, anything that could run code is refused."""

from __future__ import annotations

import collections
import os
import pickle

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
