"""The bootstrap: what it takes from a wheel, which Python it accepts, when it has nothing to do."""

import ast
import csv
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import detectron2
import numpy as np
import pytest
import yaml
from PIL import Image

import setup_env
import setup_steps
from clipself_seg import pinned_wheels
from tests.conftest import ROOT

WHEEL = {
    "engine/__init__.py": b"",
    "engine/core.py": b"answer = 42\n",
    "engine/_C.cpython-310-x86_64-linux-gnu.so": b"\x7fELF",
    "tools/__init__.py": b"",
    "up_engine-1.0.dist-info/METADATA": (
        b"Metadata-Version: 2.1\nName: up-engine\nVersion: 1.0\n"
        b"Requires-Dist: numpy<2\nProvides-Extra: all\nLicense: MIT\n\nText\n"
    ),
    "up_engine-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\n",
    "up_engine-1.0.dist-info/top_level.txt": b"engine\ntools\n",
    "up_engine-1.0.dist-info/RECORD": b"engine/__init__.py,,\n",
}


@pytest.fixture
def wheel(tmp_path):
    """A wheel with what the real one has: a stray package, a binary, requirements too strict."""
    path = tmp_path / "up_engine-1.0-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in WHEEL.items():
            archive.writestr(name, content)
    return path


def test_only_the_package_and_its_metadata_are_unpacked(wheel, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    pinned_wheels.unpack_wheel(wheel, "engine", site)
    found = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    info = "up_engine-1.0.dist-info"
    names = ("INSTALLER", "METADATA", "RECORD", "WHEEL", "top_level.txt")
    assert found == {"engine/__init__.py", "engine/core.py"} | {f"{info}/{name}" for name in names}
    assert (site / info / "top_level.txt").read_text() == "engine\n"


def test_record_lists_every_file_with_its_hash(wheel, tmp_path):
    pinned_wheels.unpack_wheel(wheel, "engine", tmp_path)
    with open(tmp_path / "up_engine-1.0.dist-info/RECORD", newline="") as file:
        rows = {name: (digest, size) for name, digest, size in csv.reader(file)}
    # printf 'answer = 42\n' | openssl dgst -sha256 -binary | base64 | tr +/ -_ | tr -d =
    assert rows["engine/core.py"] == ("sha256=CndQInRPZMNShj8WXy4SWJhBmZm8V8gyBHcgNtDvay4", "12")
    assert rows.pop("up_engine-1.0.dist-info/RECORD") == ("", "")
    for name, row in rows.items():
        assert pinned_wheels.record_line(name, (tmp_path / name).read_bytes())[1:] == row


def test_after_an_interruption_it_is_unpacked_anew_with_metadata_that_asks_for_nothing(
    wheel, tmp_path
):
    (tmp_path / ".engine.part/engine").mkdir(parents=True)
    info = tmp_path / "up_engine-1.0.dist-info"
    info.mkdir()
    pinned_wheels.unpack_wheel(wheel, "engine", tmp_path)
    assert (tmp_path / "engine/core.py").exists() and not (tmp_path / ".engine.part").exists()
    unpacked = metadata.Distribution.at(info)
    about = (unpacked.metadata["Name"], unpacked.version, unpacked.metadata["License"])
    assert about == ("up-engine", "1.0", "MIT") and unpacked.requires is None


def test_detectron2s_reader_of_label_maps_is_mended_for_numpy_2(tmp_path):
    site = Path(detectron2.__file__).parents[1]
    with zipfile.ZipFile(tmp_path / "d2.whl", "w") as archive:
        archive.writestr("d2.dist-info/METADATA", "Name: d2\n")
        for name, (refused, taken) in pinned_wheels.MENDED.items():
            text = (site / name).read_bytes()
            archive.writestr(name, text if refused in text else text.replace(taken, refused))
    files = pinned_wheels.wanted_files(tmp_path / "d2.whl", "detectron2")
    for name, (refused, taken) in pinned_wheels.MENDED.items():
        assert refused not in files[name] and taken in files[name]
    module = {"__package__": "detectron2.evaluation", "__name__": "mended"}
    exec(files["detectron2/evaluation/sem_seg_evaluation.py"], module)
    labels = np.array([[0, 255], [3, 1]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    read = module["load_image_into_numpy_array"](str(tmp_path / "a.png"), dtype=int)
    assert (read == labels).all() and read.flags.writeable


def test_pins_are_complete_hashes():
    assert [pin.package for pin in pinned_wheels.PINS] == ["detectron2", "panopticapi"]
    assert all(len(bytes.fromhex(pin.sha256)) == 32 for pin in pinned_wheels.PINS)


def test_this_python_is_found_and_an_unsupported_one_refused(monkeypatch, tmp_path):
    assert setup_steps.find_python() == sys.executable
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    with pytest.raises(setup_steps.SetupError, match="3.10 to 3.13 is needed, but .* is 3.9"):
        setup_steps.find_python(str(old))
    monkeypatch.setattr(sys, "executable", str(old))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "python3.11").write_text("#!/bin/sh\necho 3.11\n")
    (tmp_path / "python3.11").chmod(0o755)
    assert setup_steps.find_python() == "python3.11"


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(setup_steps.SetupError, match="no virtual environment"):
        setup_steps.make_venv(tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_half_installed_packages_are_forgotten(tmp_path):
    for name in ("whole", "half"):
        (tmp_path / f"{name}-1.dist-info").mkdir()
    (tmp_path / "whole-1.dist-info/INSTALLER").write_text("pip\n")
    setup_steps.drop_half_installed(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole-1.dist-info"]


def test_a_complete_environment_is_known_by_its_stamp(tmp_path):
    assert not setup_env.is_complete(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    for stamp, complete in ((setup_env.IN_PROGRESS, False), (setup_env.fingerprint(), True)):
        (tmp_path / setup_env.STAMP).write_text(stamp)
        assert setup_env.is_complete(tmp_path) is complete


@pytest.mark.parametrize(
    "name, tests",
    [
        ("clipself_seg/clip/tower.py", "tests/clip/test_tower.py"),
        ("clipself_seg/commands/doctor.py", "tests/commands"),
        ("clipself_seg/pages.py", "tests/test_pages.py"),
        ("tools/setup_env.py", "tests/tools/test_setup_env.py"),
        ("tests/clip/test_tower.py", "tests/clip/test_tower.py"),
        ("docs/clip.md", "tests/test_docs.py"),
        ("setup.cfg", None),
    ],
)
def test_the_quick_tests_of_a_file_are_its_own_or_those_of_its_folder(name, tests):
    assert setup_env.tests_of(name) == tests


@pytest.mark.parametrize("status, left", [(0, 0), (1, 1), (None, 0)])
def test_quick_tests_what_changed_and_ends_after_a_minute(monkeypatch, capsys, status, left):
    ran = []

    class Tests:
        def __init__(self, command, **_):
            ran.append(command[command.index("-x") + 1 :])

        def wait(self, timeout=None):
            if timeout and status is None:
                raise subprocess.TimeoutExpired("pytest", timeout)
            return status

        def send_signal(self, number):
            ran.append(number)

    monkeypatch.setattr(setup_env, "changed_files", lambda: ["clipself_seg/pages.py", "x.py"])
    monkeypatch.setattr(subprocess, "call", lambda words, **_: 0)
    monkeypatch.setattr(subprocess, "Popen", Tests)
    assert setup_env.quick(Path("python")) == left
    assert ran[0] == [*setup_env.HOUSE, "tests/test_pages.py"]
    assert ("a minute is over" in capsys.readouterr().out) == (len(ran) == 2) == (status is None)


def test_a_folder_of_tests_is_tested_without_lint(monkeypatch):
    ran = []
    monkeypatch.setattr(setup_env, "lint", lambda python: pytest.fail("lint"))
    monkeypatch.setattr(subprocess, "call", lambda words, **_: ran.append(words[-3:]) or 0)
    assert setup_env.test(Path("python"), ["clip", "-k", "word"]) == 0
    assert ran == [["tests/clip", "-k", "word"]]


def test_the_hooks_of_a_commit_have_the_versions_of_the_environment():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    wanted = [line.strip() for line in (ROOT / "setup.cfg").read_text().splitlines()]
    assert {hook["id"] for hook in hooks} == {"black", "isort", "flake8"}
    assert all(set(hook["additional_dependencies"]) <= {*wanted} for hook in hooks)


def test_all_tests_are_those_marked_heavy_too(monkeypatch):
    given, installed = [], []
    monkeypatch.setattr(setup_env, "is_complete", lambda venv: True)
    monkeypatch.setattr(setup_env, "test", lambda python, arguments: given.append(arguments) or 0)
    monkeypatch.setattr(setup_steps, "run", lambda *words: installed.append(words[-1]))
    assert setup_env.main(["test-all", "-x"]) == setup_env.main(["test", "-x"]) == 0
    assert given == [["-m", "", "-x"], ["-x"]] and installed == [".[dev,docs,notebooks,ray]"]


@pytest.mark.parametrize(
    "words, started, said",
    [
        ("setup --venv /there", [], "to use it: . /there/bin/activate\n"),
        ("docs", ["-m mkdocs build --strict"], ""),
        ("demo --output x", ["-m clipself_seg demo --output x"], ""),
    ],
)
def test_a_command_starts_what_it_is_called_after(words, started, said, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(setup_env, "is_complete", lambda venv: True)
    monkeypatch.setattr(subprocess, "call", lambda w, **_: called.append(" ".join(w[1:])) or 0)
    assert setup_env.main(words.split()) == 0
    assert (called, capsys.readouterr().out) == (started, said)


@pytest.mark.parametrize("failing", ["", "black"])
def test_tests_run_side_by_side_after_lint_whose_failure_fails_them(failing, monkeypatch):
    ran = []
    monkeypatch.setattr(subprocess, "call", lambda w, cwd: ran.append(w) or failing in w)
    assert setup_env.test(Path("python"), ["-n", "0"]) == bool(failing)
    assert [words[2] for words in ran] == ["black", "isort", "flake8", "mypy", "pytest"]
    words = ran[-1]
    workers = [words[i + 1] for i, word in enumerate(words) if word == "-n"]
    assert words[:2] == ["python", "-m"] and workers == ["auto", "0"]


@pytest.mark.parametrize("module", [setup_env, setup_steps, pinned_wheels])
def test_the_bootstrap_is_readable_for_an_old_python(module):
    ast.parse(Path(module.__file__).read_text(), feature_version=(3, 6))


def test_help_is_quick_and_needs_no_environment():
    script = [sys.executable, "-S", setup_env.__file__, "--help"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=10, check=True)
    assert "quickstart" in done.stdout
