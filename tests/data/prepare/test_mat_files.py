"""Arrays of MATLAB files as SciPy reads them, and damaged files that would end its process."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import scipy.io

from clipself_seg.data.prepare import pascal
from clipself_seg.data.prepare.pascal import read_mat_array


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_arrays_are_those_that_scipy_reads(tmp_path, kind, compressed):
    path = tmp_path / "a.mat"
    wanted = np.arange(35).reshape(5, 7).astype(kind)
    arrays = {"other": np.ones((2, 2)), "text": "a", "LabelMap": wanted, "small": wanted[:1, :1]}
    scipy.io.savemat(path, arrays, do_compression=compressed)
    read = scipy.io.loadmat(path)
    for name in ("LabelMap", "small", "other"):
        own = read_mat_array(path, name)
        np.testing.assert_array_equal(own, read[name])
    assert read_mat_array(path, "LabelMap").dtype == kind


def test_what_is_no_array_of_this_name_is_told(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.ones((2, 3))})
    with pytest.raises(ValueError, match="no array LabelMap"):
        read_mat_array(path, "LabelMap")
    good = path.read_bytes()
    for wrong, said in (
        (bytes(64), "no MATLAB 5 file"),
        (good[:-9], "longer than the file"),
        (good[:132] + struct.pack("<I", 2**31) + good[136:], "longer than the file"),
        (good.replace(struct.pack("<ii", 2, 3), struct.pack("<ii", 2, 9)), r"6 numbers.*\[2, 9\]"),
        (good.replace(struct.pack("<II", 9, 48), struct.pack("<II", 99, 48)), "not of numbers"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=said):
            read_mat_array(path, "a")


def test_a_small_file_does_not_unpack_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pascal, "LARGEST", 2**20)
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.ones((2, 3))})
    bomb = zlib.compress(bytes(2**21))
    path.write_bytes(path.read_bytes()[:128] + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(ValueError, match="unpacks to more than an image has"):
        read_mat_array(path, "a")
