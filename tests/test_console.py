"""`clipself-seg` and `python -m clipself_seg`: every command by one name, none slower for it, and what each says of a
mistake and of an interruption."""

import contextlib
import importlib
import signal
import sys

import numpy as np
import pytest

from clipself_seg import __main__ as console
from clipself_seg.commands import demo, train
from clipself_seg.commands.options import Command
from clipself_seg.errors import shown
from clipself_seg.prediction.loop import reason_of
from tests.conftest import ROOT
from tests.faults import run_python

CALLS = {
    "train_net.py": "runpy.run_path('train_net.py', run_name='__main__')",
    "clipself-seg": "runpy.run_module('clipself_seg', run_name='__main__')",
}


@pytest.fixture(autouse=True)
def argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])


def test_every_command_has_a_name():
    files = (ROOT / "clipself_seg/commands").glob("[!_]*.py")
    modules = {path.stem for path in files} - {"options", "verify"}  # of weights
    made = {
        value
        for name in modules
        for value in vars(importlib.import_module(f"clipself_seg.commands.{name}")).values()
        if isinstance(value, Command)
    }
    entries = console.COMMANDS.values()
    assert made <= {console.body(entry) for entry in entries}
    assert {entry.place.split(".")[0] for entry in entries} == modules


@pytest.mark.parametrize("program", CALLS)
def test_help_is_quick_because_nothing_heavy_is_imported(program):
    names = ["", *console.COMMANDS] if program == "clipself-seg" else [""]
    code = (
        "import runpy, sys\n"
        f"for name in {names}:\n"
        f"    sys.argv = ['{program}', *name.split(), '--help']\n"
        f"    try: {CALLS[program]}\n"
        "    except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'detectron2', 'numpy', 'cv2', 'PIL', 'scipy', 'matplotlib', 'yaml'}\n"
        "heavy |= {'huggingface_hub'}\n"
        "assert not heavy & sys.modules.keys()"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: {program} {name}".rstrip() in done.stdout for name in names)


def test_wrong_names_and_paths_are_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "a.jpg").touch()
    common = [str(tmp_path / "a.jpg"), "--words", "dog, cat"]
    calls = [
        ["predict", *common, "--model", "no-such"],
        ["predict", *common, "--model", "no/such.pth", "--config-file", "mini/semseg.yaml"],
        ["predict", *common, "--config-file", "no/such.yaml"],
        ["predict", "no/such.jpg", "--words", "dog, cat"],
        ["predict", common[0], "--words", "no/such.txt"],
        ["predict", common[0], "--words", "no_such"],
        ["train", "--config-file", "no/such.yaml"],
        ["eval", "--config-file", "no/such.yaml"],
        ["explore", "no/such.jpg", "--words", "dog, cat"],
        ["dense-maps", common[0], "--words", "no/such.json"],
        ["predict", *common, "--opts", "MODEL.CLIP.WEIGHTS", "no-such.safetensors"],
        ["train", "--config-file", "mini/patches.yaml", "MODEL.CLIP.VISUAL_INIT", "no/such"],
        ["eval", "MODEL.WEIGHTS", common[0], "MODEL.WEIGHTS", "no-such.pth"],
    ]
    code = (
        "import sys\n"
        "from clipself_seg.__main__ import main\n"
        f"assert [main(words) for words in {calls}] == [2] * {len(calls)}\n"
        "assert not {'torch', 'detectron2'} & sys.modules.keys()"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) >= len(calls) and "Traceback" not in done.stderr
    assert all("such" in line for line in done.stderr.splitlines() if line.startswith("error: "))


def test_train_net_takes_the_whole_command_line():
    code = "import runpy, sys; sys.argv = ['train_net.py', '--no-such-option']; "
    done = run_python(code + CALLS["train_net.py"])
    assert done.returncode == 2 and "error: " in done.stderr.splitlines()[-1]


def test_help_lists_sixteen_commands_at_most(capsys):
    assert console.main(["--help"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:3] > "  "}
    assert console.COMMANDS.keys() <= listed and len(console.COMMANDS) <= 16


def test_eval_is_training_without_training(monkeypatch):
    called = []
    monkeypatch.setattr(train.main, "body", called.append)
    assert not console.main(["eval", "--config-file", "mini/patches.yaml", "SEED", "3"])
    (args,) = called
    assert args.eval_only and args.config_file == "mini/patches.yaml" and args.opts == ["SEED", "3"]


def test_the_exit_status_is_that_of_the_command(monkeypatch):
    monkeypatch.setattr(demo, "demo", lambda: 7)
    assert console.main(["demo"]) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predcit"], 'unknown command "predcit": did you mean "predict"'),
        ([], "usage: clipself-seg COMMAND"),
    ],
)
def test_names_that_are_none_are_refused_with_the_nearest(words, message, capsys):
    assert console.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "begin"),
    [
        ("from clipself_seg.__main__ import main; main(sys.argv[1:])", "error: "),
        ("import clipself_seg.prediction.predictor", ""),
    ],
)
def test_without_detectron2_it_is_said_what_brings_it(tmp_path, call, begin):
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        f"try: {call}\n"
        "except ModuleNotFoundError as error: print(error, file=sys.stderr)"
    )
    done = run_python(code, "predict", tmp_path, "--words", "red star", "--model", "mini")
    brings = "detectron2 is not installed, and this needs it: clipself-seg install-detectron2\n"
    assert done.stderr.endswith(begin + brings)


# Command -> what is true of it the next time; the others begin anew.
GOES_ON = {
    "eval": "a training that has a checkpoint goes on with --resume, all else begins anew",
    "install-detectron2": "the same command goes on with what is missing",
    "predict": "the same command goes on with --skip-existing, and begins anew without",
    "train": "a training that has a checkpoint goes on with --resume, all else begins anew",
}


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", console.COMMANDS)
def test_an_interrupted_command_promises_what_it_keeps(monkeypatch, capsys, name):
    command = console.body(console.COMMANDS[name])
    monkeypatch.setattr(command, "parser", interrupted)
    assert command([]) == 130
    again = GOES_ON.get(name, "the same command begins anew")
    assert capsys.readouterr().err == f"interrupted; what is complete stays: {again}\n"


def test_an_interruption_while_a_command_is_imported_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert console.main(["predict"]) == 130
    assert capsys.readouterr().err.startswith("interrupted; what is complete stays: ")


def test_an_interruption_before_anything_can_say_it_is_no_traceback():
    code = (
        "import runpy, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'clipself_seg.errors': raise KeyboardInterrupt\n"
        f"sys.meta_path.insert(0, Interrupted())\n{CALLS['clipself-seg']}"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (130, "")


def test_an_interruption_that_a_library_turns_into_another_error_is_a_sentence(monkeypatch, capsys):
    """As torch's import does: numpy's falls within it, and fails when it is tried again."""

    def body(args):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr(sys, "argv", ["a"])
    command = Command(body, lambda parser: None, "", "it goes on")
    for _ in range(2):
        assert command([]) == 130
        assert capsys.readouterr().err == "interrupted; what is complete stays: it goes on\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "error, size",
    [
        (np._core._exceptions._ArrayMemoryError((1 << 20, 1 << 26), np.dtype("f8")), "512. TiB"),
        (
            RuntimeError("can't allocate memory: you tried to allocate 3221225472 bytes."),
            "3221225472 bytes",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0"), "20.00 MiB"),
        (MemoryError(), "more than there is"),
        (RuntimeError("could not create a primitive"), "more than there is"),
    ],
)
def test_memory_that_there_is_not_is_a_sentence_with_its_size_and_keys(
    monkeypatch, capsys, error, size
):
    def starved():
        raise error

    monkeypatch.setattr(demo, "demo", starved)
    assert console.main(["demo"]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(f"error: out of memory, {size} asked for at once: ")
        and "SOLVER.IMS_PER_BATCH" in said
    )
    assert reason_of(error) == said.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    "value, text",
    [
        ("a", "'a'"),
        ("a" * 100, f"'{'a' * 60}...'"),
        (1.5, "1.5"),
        (1 << 100_000, "of type int"),
        ([1] * 1000, "[1, 1, 1, 1, 1, 1, ...]"),
        ([[[7] * 6] * 6] * 6, f"{str([[[7] * 6] * 6] * 6)[:200]}..."),
        ([1 << 100_000, {"a": len}], "[of type int, {'a': of type builtin_function_or_method}]"),
    ],
    ids=[str(number) for number in range(7)],
)
def test_a_value_of_a_file_is_shown_in_short(value, text):
    assert shown(value) == text
