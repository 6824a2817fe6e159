#!/usr/bin/env python3
"""Make the virtual environment if need be, then run one of the project's commands in it.

    python3 tools/setup_env.py [setup | demo | quickstart | tables | test | quick | test-all | lint | docs] [arguments]

setup       the environment only (the default)
demo        what the weights that come with the project see, in a minute: clipself-seg demo
quickstart  every task on the mini world, in six minutes: tools/quickstart.py
tables      the paper's tables in miniature: tools/reproduce.py (--table 3a: one)
test        lint and the tests, some side by side; arguments go to pytest (-n 0: one by one), and folders and
            files of tests/ are tested without lint (make test ARGS=clip)
quick       format and tests of what changed since main, a minute at most
test-all    the same, with those marked heavy, such as the wheel in an environment of its own, and
            with the extras that they need
lint        formatting, unused code, complexity and types
docs        the site of the documentation: output/site/index.html

This runs before anything is installed: it uses the standard library alone, and the syntax of
Python 3.6, so that an old interpreter still reads as far as the message about its version.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

import setup_steps as steps
from setup_steps import ROOT, SetupError, say

STAMP = "clipself_seg-setup"
IN_PROGRESS = "in progress"
SOURCES = ("clipself_seg", "tools", "tests", "train_net.py")
CHECKS = (
    ("black", "--check", "--quiet", "--diff", "--line-length", "100") + SOURCES,
    ("isort", "--check-only", "--diff") + SOURCES,
    ("flake8",) + SOURCES,
    ("mypy",),
)
# A worker a core; each holds up to 2 GB, so few where there are many cores. Tests that share what a
# module sets up stay together for as long as no worker is idle. A later -n takes precedence.
SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
HOUSE = ("tests/test_house.py", "tests/test_architecture.py")
QUICK = 60  # seconds
# What the commands that show something run.
SHOWN = {
    "demo": ("-m", "clipself_seg", "demo"),
    "quickstart": ("tools/quickstart.py",),
    "tables": ("tools/reproduce.py",),
}
# In place of the choice in setup.cfg, and the extras that tests marked heavy need.
EVERYTHING = ("-m", "")
EXTRAS = ".[dev,docs,notebooks,ray]"
# Everything that decides what belongs into the environment.
DECISIVE = (
    "setup.cfg",
    "pyproject.toml",
    "tools/setup_env.py",
    "tools/setup_steps.py",
    "clipself_seg/pinned_wheels.py",
)
FIRST_IMPORT = "import cv2, open_clip, detectron2.engine, panopticapi.evaluation, clipself_seg"

EPILOG = """
torch, its like and every other package come from PyPI through pip, so pip's own settings hold: a
machine without a GPU saves 3 GB of download with
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu before the command.
An environment that exists is used as it is (--venv "$CONDA_PREFIX" for conda's): pip installs only
what is missing there, and a detectron2 that is already there is kept.
"""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one set-up of this checkout run at a time."""
    folder = os.open(str(ROOT), os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this checkout to end")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def fingerprint() -> str:
    """Changes with the decisive files, and with the place, to which the environment points."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in DECISIVE:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def read(stamp: Path) -> str:
    """The stamp of an earlier set-up; empty without one."""
    return stamp.read_text() if stamp.exists() else ""


def is_complete(venv: Path) -> bool:
    """True if an earlier set-up of the same files came to its end."""
    stamp = venv / STAMP
    return (venv / "bin/python").exists() and read(stamp) == fingerprint()


def set_up(venv: Path, wanted: Optional[str], detectron2: str) -> None:
    """Make the environment complete; every step looks first at what is there."""
    begin = time.time()
    say("[1/4] virtual environment %s" % venv)
    python = steps.make_venv(venv, wanted)
    site = steps.site_packages(python)
    stamp = venv / STAMP
    if read(stamp) == IN_PROGRESS:
        steps.drop_half_installed(site)
    stamp.write_text(IN_PROGRESS)
    steps.add_pip(python, site)
    say("[2/4] torch and everything else that PyPI has (the first time this takes minutes)")
    steps.run(python, "-m", "pip", "install", "--editable", ".[dev,docs]")
    say("[3/4] detectron2 and panopticapi")
    if detectron2 == "source":
        steps.build_pinned(python)
    steps.run(python, "-m", "clipself_seg", "install-detectron2")
    say("[4/4] first import")
    steps.run(python, "-c", FIRST_IMPORT)
    stamp.write_text(fingerprint())
    say("environment complete after %.0f s: %s" % (time.time() - begin, python))


def lint(python: Path) -> int:
    """Run every check, also after one has failed, and name those that failed at the end."""
    failed = []
    for check in CHECKS:
        say("lint: " + check[0])
        if subprocess.call([str(python), "-m", *check], cwd=str(ROOT)):
            failed.append(check[0])
    say("lint: failed: " + ", ".join(failed) if failed else "lint: no complaints")
    return 1 if failed else 0


def test(python: Path, arguments: Sequence[str]) -> int:
    """Lint, then the tests whatever lint said; of folders and files of tests/ the tests alone."""
    arguments = ["tests/" + a if (ROOT / "tests" / a).exists() else a for a in arguments]
    named = any(argument.startswith("tests/") for argument in arguments)
    linted = 0 if named else lint(python)
    command = [str(python), "-m", "pytest", *SIDE_BY_SIDE, *arguments]
    tested = subprocess.call(command, cwd=str(ROOT))
    if linted:
        say("lint failed, see above the tests")
    return tested or linted


def git(*words: str) -> List[str]:
    """The lines that git prints; none where it fails."""
    command = ["git", "-C", str(ROOT), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True)
    return done.stdout.splitlines()


def changed_files() -> List[str]:
    """Files that are new or differ from where the branch left main."""
    base = git("merge-base", "HEAD", "main") or ["HEAD"]
    names = git("diff", "--name-only", base[0])
    names += git("ls-files", "--others", "--exclude-standard")
    return sorted(name for name in names if (ROOT / name).exists())


def tests_of(name: str) -> Optional[str]:
    """The tests of a file: its own file of tests, else those of its folder; None where there are none."""
    path = Path(name)
    if name.startswith("tests/"):
        return name if path.name.startswith("test_") and path.suffix == ".py" else None
    if path.suffix == ".md":
        return "tests/test_docs.py"
    if path.parts[0] not in ("clipself_seg", "tools"):
        return None
    mirrored = Path("tests", *path.parts[1:-1])
    for folder in (mirrored, Path("tests/tools")):
        own = folder / ("test_%s.py" % path.stem)
        if (ROOT / own).exists():
            return str(own)
    return str(mirrored) if mirrored.name != "tests" and (ROOT / mirrored).exists() else None


def quick(python: Path) -> int:
    """Format and tests of what changed since main; the tests end with the first failure, or after `QUICK` seconds."""
    names = changed_files()
    code = [name for name in names if name.endswith(".py")]
    failed = 0
    for check in CHECKS[:-1] if code else ():
        words = [*check[: -len(SOURCES)], *code]
        failed |= subprocess.call([str(python), "-m", *words], cwd=str(ROOT))
    tests = sorted({tests for tests in map(tests_of, names) if tests})
    command = [str(python), "-m", "pytest", "-q", "-x", *HOUSE, *tests]
    say("quick: " + " ".join(command))
    process = subprocess.Popen(command, cwd=str(ROOT))
    try:
        return process.wait(timeout=QUICK) or failed
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
    say("quick: a minute is over and nothing failed so far; make test runs everything")
    return failed


def docs(python: Path) -> int:
    """Build the site of the documentation; a link that leads nowhere is an error."""
    # mkdocs-material's advertisement of its successor.
    quiet = dict(os.environ, NO_MKDOCS_2_WARNING="1")
    command = [str(python), "-m", "mkdocs", "build", "--strict"]
    return subprocess.call(command, cwd=str(ROOT), env=quiet)


def show(python: Path, command: str, arguments: Sequence[str]) -> int:
    """Run one of `SHOWN`."""
    return subprocess.call([str(python), *SHOWN[command], *arguments], cwd=str(ROOT))


def parse(words: Optional[Sequence[str]]) -> Tuple[argparse.Namespace, List[str]]:
    """Options, and what is left over for the command."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    choices = ("setup", *SHOWN, "test", "quick", "test-all", "lint", "docs")
    parser.add_argument("command", nargs="?", choices=choices, default="setup", metavar="command")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: .venv here")
    parser.add_argument("--python", help="interpreter for a new environment (default: this one)")
    source = "source: build upstream's own from GitHub; needs git, a C++ compiler, nvcc for CUDA"
    parser.add_argument("--detectron2", choices=("wheel", "source"), default="wheel", help=source)
    parser.add_argument("--force", action="store_true", help="all steps, even if complete")
    options, rest = parser.parse_known_args(words)
    if rest and options.command not in ("test", "test-all", *SHOWN):
        parser.error("%s takes no argument %s" % (options.command, rest[0]))
    return options, rest


def main(words: Optional[Sequence[str]] = None) -> int:
    """Set up if need be and run the command; its exit status, or 2 if there is no environment."""
    options, rest = parse(words)
    venv = options.venv.absolute()
    try:
        with alone():
            if options.force or options.detectron2 == "source" or not is_complete(venv):
                set_up(venv, options.python, options.detectron2)
            if options.command == "test-all":
                steps.run(venv / "bin" / "python", "-m", "pip", "install", "--editable", EXTRAS)
    except (SetupError, OSError) as error:
        sys.stderr.write("error: %s\n" % error)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130
    python = venv / "bin" / "python"
    if options.command == "lint":
        return lint(python)
    if options.command == "quick":
        return quick(python)
    if options.command == "docs":
        return docs(python)
    if options.command in ("test", "test-all"):
        return test(python, rest if options.command == "test" else [*EVERYTHING, *rest])
    if options.command in SHOWN:
        return show(python, options.command, rest)
    say("to use it: . %s" % (venv / "bin" / "activate"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
