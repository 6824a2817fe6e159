"""That the script sees what readers must not do; and that it damages alike what is asked for alike."""

import contextlib
import ctypes
import dataclasses
import json
import mmap
import os
import random
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from clipself_seg.errors import InputError
from tests.fuzz import files
from tests.fuzz.mutations import LAYOUTS, mutate_json
from tests.fuzz.readers import Reader, all_readers
from tests.fuzz.sandbox import BAD, READ, REFUSED, Limits, Task, outcomes

LIMITS = Limits(seconds=30, memory=64 << 20)  # a busy machine may take its time
SHORT = dataclasses.replace(LIMITS, seconds=0.3)


def start_a_program(path):
    with contextlib.suppress(Exception):
        subprocess.run(["true"])


def connect(path):
    with contextlib.suppress(Exception):
        socket.create_connection(("127.0.0.1", 9))


def take_memory(path):
    # Fresh pages: what a process has freed and kept would not make it grow.
    with mmap.mmap(-1, 2 * LIMITS.memory) as pages:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1


def map_more_than_there_is(path):
    mmap.mmap(-1, 4 * LIMITS.memory).close()


def hide_want_of_memory(path):
    try:
        bytearray(1 << 40)
    except Exception:
        raise InputError(f"{path} is damaged; fetch it again") from None


def refuse_at_length(path):
    raise InputError(path.read_text() * 1000)


def write_elsewhere(path):
    with contextlib.suppress(Exception):
        (path.parents[1] / "elsewhere.txt").write_text("x")


@pytest.mark.parametrize(
    "read, kind",
    [
        (lambda path: {}["x"], "KeyError"),
        (lambda path: time.sleep(60), "hang"),
        (lambda path: ctypes.string_at(0), "signal 11"),
        (lambda path: os._exit(3), "exit 3"),
        (take_memory, "memory"),
        (map_more_than_there_is, "memory"),
        (hide_want_of_memory, "memory"),
        (refuse_at_length, "long sentence"),
        (start_a_program, "subprocess.Popen 'true'"),
        (connect, "socket."),
        (write_elsewhere, "open "),
    ],
)
def test_what_no_reader_may_do_is_seen(tmp_path, read, kind):
    (tmp_path / "a.txt").write_text("x")
    limits = SHORT if kind == "hang" else LIMITS
    task = Task(read, tmp_path, Path("a.txt"), lambda index: b"abc", limits)
    (outcome,) = outcomes(task, [7])
    assert (outcome.index, outcome.verdict) == (7, BAD) and outcome.kind.startswith(kind)


def test_readers_may_read_refuse_and_write_beside_the_file(tmp_path):
    def read(path):
        if path.read_bytes() == b"1":
            raise InputError(f"{path}: no")
        (path.parent / "out").mkdir(exist_ok=True)
        (path.parent / "out/b.txt").write_text("x")
        path.open("rb").close()
        if path.read_bytes() == b"2":
            os.open(path.parent / "missing", os.O_RDONLY)  # a command says so in a sentence
        if path.read_bytes() == b"4":
            os._exit(0)  # the others have to be read nevertheless

    (tmp_path / "a.txt").write_text("x")
    task = Task(read, tmp_path, Path("a.txt"), lambda index: b"%d" % index, LIMITS)
    verdicts = [outcome.verdict for outcome in outcomes(task, range(6))]
    assert verdicts == [READ, REFUSED, REFUSED, READ, BAD, READ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def make_json(folder):
    (folder / "a.json").write_text(json.dumps({"images": [{"id": 1, "name": "a"}], "more": None}))
    return folder / "a.json"


def test_bad_mutants_are_kept_and_the_same_every_time(tmp_path, monkeypatch, capsys):
    reader = Reader(make_json, lambda path: json.loads(path.read_text())["more"], "json")
    monkeypatch.setattr(files, "all_readers", lambda: {"some": reader})
    report = tmp_path / "report.json"
    words = ["--count", "30", "--seed", "3", "--json", str(report), "--keep"]
    assert [files.main([*words, str(tmp_path / name)]) for name in ("1", "2")] == [1, 1]
    kept = [{path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("1", "2")]
    assert kept[0] == kept[1]
    content = json.loads(report.read_text())
    numbers = content["formats"]["some"]
    assert numbers["mutants"] == 30 == numbers["read"] + numbers["bad"]
    names = {f"some-3-{outcome['index']}.json" for outcome in content["bad"]["some"]}
    assert kept[0].keys() == names and len(names) == numbers["bad"] > 3
    path = tmp_path / "1" / min(names)
    assert files.main(["--format", "some", "--file", str(path)]) == 1
    assert "Error" in capsys.readouterr().err


def test_mutants_of_structure_keep_the_form_of_their_layout():
    rng = random.Random(0)
    text = json.dumps({"a": [1, "b", {"c": 2.5}], "d": '{"e": 1}'}).encode()
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + bytes(4)
    for _ in range(20):
        changed = LAYOUTS["safetensors"](tensors, [], rng)
        assert int.from_bytes(changed[:8], "little") <= len(changed) - 8
        with contextlib.suppress(yaml.YAMLError, ValueError):
            yaml.safe_load(LAYOUTS["yaml"](text, [], rng)[:5000])
    parsed = set()
    for _ in range(60):
        with contextlib.suppress(ValueError, RecursionError):
            parsed.add(json.dumps(json.loads(mutate_json(text, [], rng))))
    assert len(parsed) > 20


def test_quick_readers_read_their_own_valid_files(tmp_path):
    quick = {name: reader for name, reader in all_readers().items() if reader.weight == 1}
    assert len(quick) >= 40
    for name, reader in quick.items():
        files._valid(reader, tmp_path / name)
