"""Locks of folders and half-written files: what a killed process leaves behind is in nobody's way."""

import contextlib
import errno
import fcntl
import gc
import json
import os
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from clipself_seg import files
from clipself_seg.errors import InputError
from clipself_seg.files import (
    alone_in,
    atomic_folder,
    atomic_path,
    clear_killed,
    read_json,
    remove_leftovers,
    require_regular_file,
    write_json,
)
from clipself_seg.models.model_base import save_atomically
from clipself_seg.prediction.onnx.graph import require_free
from lab.prepare.common import save_tiff
from tests.faults import run_python, start_python

# Locks the folder "out", forks a child that says its number and outlives it, and dies as by `kill -9`.
DIES = """
import os, signal, sys, time
from clipself_seg.files import alone_in

with alone_in("out"):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_in_place_of_a_folder_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "a").touch()
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(InputError, match=f"{folder} is a file or below one: give another"):
            with alone_in(folder):
                raise AssertionError


def test_the_second_is_refused_by_folder(tmp_path):
    with alone_in(tmp_path / "new"):
        with pytest.raises(InputError, match="new: another process is at work"):
            with alone_in(tmp_path / "new"):
                raise AssertionError
        with alone_in(tmp_path), alone_in(tmp_path / "beside"):
            pass
    with alone_in(tmp_path / "new"):
        pass


def test_a_child_that_outlives_a_killed_process_does_not_hold_its_lock(tmp_path):
    parent = start_python(DIES, cwd=tmp_path)
    child = int(parent.stdout.readline())
    try:
        with pytest.raises(InputError, match="another process is at work"), alone_in(
            tmp_path / "out"
        ):
            raise AssertionError
        parent.stdin.close()
        assert parent.wait() == -signal.SIGKILL
        with alone_in(tmp_path / "out"):
            os.kill(child, 0)  # still there
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_leaves_the_lock_to_its_parent(tmp_path):
    with alone_in(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(InputError), alone_in(tmp_path):
            raise AssertionError


def test_a_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    for name, system in (("cluster", fcntl), ("windows", None)):
        monkeypatch.setattr(files, "fcntl", system)
        with alone_in(tmp_path / name):
            assert f"{tmp_path / name} cannot be locked" in caplog.text


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    with atomic_path(tmp_path / "whole.txt") as temporary:
        young = shutil.copytree(temporary.parent, tmp_path / ".young.x1.part")
        old = tmp_path / ".old.x1.part"
        old.mkdir()
    (tmp_path / ".a world.part").mkdir()
    (tmp_path / "own.x.part").touch()
    day = time.time() - 24 * 3600
    os.utime(old, (day, day))
    kept = {".a world.part", "own.x.part", "whole.txt"}
    remove_leftovers(tmp_path, age=3600)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, young.name}
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
    remove_leftovers(tmp_path / "none")


def test_what_a_library_leaves_beside_its_file_goes_too(tmp_path):
    with pytest.raises(ValueError), atomic_path(tmp_path / "x.safetensors") as temporary:
        temporary.with_name(".tmpQz81ab").touch()  # as safetensors, killed before it renames
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("a" * 255, "\U0001f600" * 63):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text("whole")
        assert (tmp_path / name).read_text() == "whole"


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    target = tmp_path / "a.txt"
    for name in (None, "temporary"):
        with pytest.raises(OSError) as caught, atomic_path(target) as temporary:
            raise OSError(errno.ENOSPC, "No space left on device", name and str(temporary))
        assert caught.value.filename == str(target) and caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as caught, atomic_path(target):
        (tmp_path / "other").read_text()
    assert caught.value.filename == str(tmp_path / "other") and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "save, value, message",
    [
        # Torch closes its archive then, which fails too, by an exception of another kind.
        (save_atomically, {"a": torch.zeros(2**20)}, "too large"),
        (save_tiff, np.random.default_rng(0).integers(0, 9999, (400, 400), np.uint16), "Input/out"),
    ],
)
def test_a_full_disk_is_told_where_libraries_write(save, value, message, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(OSError, match=message) as caught:
            save(tmp_path / "a", value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.filename == str(tmp_path / "a") and not any(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    def mkdtemp(dir, prefix, suffix):
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/{prefix}x{suffix}")

    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "a.txt"):
        pass
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_a_killed_write_of_a_folder_is_cleared_by_the_next_one_and_a_live_one_is_left(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    code = "import os, sys; from clipself_seg.files import *\nwith atomic_folder(sys.argv[1]) as made:\n"
    run_python(f"{code} (made / 'x').touch(); os._exit(9)", tmp_path / "a")
    (left,) = tmp_path.glob(".a.*.part")
    (tmp_path / "a").rename(left / "earlier")  # killed between the two moves
    with pytest.raises(ValueError), atomic_folder(tmp_path / "a") as live:
        assert not left.exists() and (tmp_path / "a" / "old").exists()
        with atomic_folder(tmp_path / "a") as made:
            (made / "new").touch()
        assert live.exists() and [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
        raise ValueError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


KILLED = """
import os, sys
from clipself_seg.files import *

moved = 0
def replace(*paths, replace=os.replace, **_):
    global moved
    if moved == int(sys.argv[2]):
        os._exit(9)
    replace(*paths)
    moved += 1

os.replace = shutil.rmtree = replace
with atomic_files(Path(sys.argv[1])) as made:
    for name in ("a.onnx", "a.json", "a.py"):
        (made / name).write_text(name)
    if sys.argv[2] == "-1":
        os._exit(9)
"""


@pytest.mark.parametrize("moved", range(-1, 4))
def test_files_of_a_killed_export_are_all_there_or_none_of_them(tmp_path, moved):
    run_python(KILLED, tmp_path / "a.onnx", moved)
    assert len([*tmp_path.glob(".a.onnx.*.part")]) == 1
    assert (tmp_path / "a.onnx").exists() == (moved == 3)
    clear_killed(tmp_path / "a.onnx")
    names = [] if moved < 0 else ["a.json", "a.onnx", "a.py"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(path.read_text() == path.name for path in tmp_path.iterdir())


def test_an_export_that_was_killed_when_it_was_complete_leaves_nothing_beside_it(tmp_path):
    code = "import os, sys; from clipself_seg.files import *\nshutil.rmtree = lambda *_, **__: os._exit(9)\n"
    run_python(f"{code}with atomic_folder(sys.argv[1]): pass", tmp_path / "a")
    assert len([*tmp_path.glob(".a.*.part")]) == 1
    with pytest.raises(InputError, match="is there already"):
        require_free([tmp_path / "a"])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_takes_the_place_of_no_file(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(OSError, match="no folder that could be replaced"):
        with atomic_folder(tmp_path / "a"):
            pass
    assert (tmp_path / "a").read_text() == "mine"


def test_a_full_disk_is_told_with_the_name_of_the_folder(tmp_path):
    for name in (None, "inside", "elsewhere"):
        with pytest.raises(OSError) as caught, atomic_folder(tmp_path / "a") as made:
            raise OSError(errno.ENOSPC, "No space", str(made / name) if name == "inside" else name)
        assert caught.value.filename == (
            "elsewhere" if name == "elsewhere" else str(tmp_path / "a")
        )
    assert not any(tmp_path.iterdir())


def test_a_disk_that_is_full_while_a_folder_is_copied_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "part")

    (tmp_path / "from").mkdir()
    for name in "ab":
        (tmp_path / "from" / name).touch()
    with pytest.raises(OSError) as caught, atomic_folder(tmp_path / "to") as made:
        shutil.copytree(tmp_path / "from", made, copy_function=full, dirs_exist_ok=True)
    assert caught.value.filename == str(tmp_path / "to")
    assert caught.value.strerror == "[Errno 28] No space left on device"


def test_json_comes_back_and_what_is_none_or_too_large_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1, None]}
    (tmp_path / "a.json").write_text('{"é": 1}', "utf-8-sig")  # as some editors write it
    assert read_json(tmp_path / "a.json") == {"é": 1}
    (tmp_path / "a.json").write_text("[" * 99_999)
    with pytest.raises(InputError, match="file .*a.json .*nested too deeply"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="a.json has 99999 bytes, and 9999 at most are read"):
        read_json(tmp_path / "a.json", most_bytes=9999)


@pytest.mark.parametrize("content", ['{"a": ["\\ud800"]}', '{"\\uDFFF": 1}'])
def test_half_a_letter_is_refused_and_a_whole_one_is_read(tmp_path, content):
    write_json(tmp_path / "a.json", "\N{GRINNING FACE}")
    assert read_json(tmp_path / "a.json") == "\N{GRINNING FACE}"
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match="a.json has half of a letter"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("content", ['{"a": [1]}', "[" * 100_000, "{"])
def test_the_collector_rests_while_json_is_parsed_and_is_then_as_before(
    tmp_path, monkeypatch, enabled, content
):
    (tmp_path / "a.json").write_text(content)
    seen = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: seen.append(gc.isenabled()) or loads(text))
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.suppress(InputError):
            read_json(tmp_path / "a.json")
        assert (seen, gc.isenabled()) == ([False], enabled)
    finally:
        (gc.enable if before else gc.disable)()


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no name of a file"):
        require_regular_file(f"{tmp_path}/a\0b.png")
