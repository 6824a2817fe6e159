"""What is free is handed back before anything is kept; without glibc nothing is asked for."""

from __future__ import annotations

import ctypes
import types

from clipself_seg import memory


def test_what_loading_left_is_handed_back_before_freed_memory_is_kept(monkeypatch):
    called = []
    libc = types.SimpleNamespace(
        mallopt=lambda key, value: called.append(key),
        malloc_trim=lambda kept: called.append(f"trim to {kept}"),
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    memory.keep_freed_memory("cuda")
    assert called == []
    memory.keep_freed_memory()
    assert called == ["trim to 0", memory.M_MMAP_THRESHOLD, memory.M_TRIM_THRESHOLD]


def test_handing_back_undoes_keeping(monkeypatch):
    set_to = {}
    libc = types.SimpleNamespace(mallopt=set_to.__setitem__, malloc_trim=lambda kept: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    memory.keep_freed_memory()
    kept = dict(set_to)
    memory.hand_back_freed_memory()
    assert all(
        set_to[key] < kept[key] for key in (memory.M_MMAP_THRESHOLD, memory.M_TRIM_THRESHOLD)
    )


def test_another_library_than_glibc_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace())
    memory.keep_freed_memory()
