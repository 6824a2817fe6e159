"""The steps that make the environment: interpreter, pip, detectron2 and panopticapi.

Standard library only, in the syntax of Python 3.6: see setup_env.py. Every step looks at what is
there first, so that an interrupted set-up goes on where it stopped.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # nothing is installed yet

from clipself_seg.pinned_wheels import PINS  # noqa: E402

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


def say(message: str) -> None:
    """Write a line at once, so that it stands before the output of the next command."""
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


def run(*command: object) -> None:
    """Run a command with its output shown; a failure ends the set-up."""
    words = [str(word) for word in command]
    # A default of `pip install --user` is refused inside a virtual environment; that root should
    # use one is good advice that we follow.
    quiet = {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment = dict(os.environ, PIP_USER="0", **quiet)
    status = subprocess.call(words, cwd=str(ROOT), env=environment)
    if status:
        raise SetupError(
            "`%s` failed (exit status %d), see above.\n"
            "What is installed is kept: the same command goes on from here."
            % (" ".join(words), status)
        )


def ask(python: object, code: str) -> Optional[str]:
    """The output of an interpreter for `code`; None if it cannot be run or fails."""
    try:
        done = subprocess.run(
            [str(python), "-c", code],
            cwd=str(ROOT),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            universal_newlines=True,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def version_of(python: object) -> Optional[str]:
    """Version such as ``3.11``; None for an interpreter that does not run."""
    return ask(python, "import sys; print('%d.%d' % sys.version_info[:2])")


def find_python(wanted: Optional[str] = None) -> str:
    """The interpreter for a new environment: the wanted one, this one, or one on PATH."""
    names = ("3.12", "3.11", "3.13", "3.10")
    candidates = [wanted] if wanted else [sys.executable] + ["python" + name for name in names]
    for candidate in candidates:
        if version_of(candidate) in PYTHONS:
            return candidate
    raise SetupError(
        "Python %s to %s is needed, but %s is %s.\n"
        "Install python3.12, say, or name one: --python PATH"
        % (PYTHONS[0], PYTHONS[-1], candidates[0], version_of(candidates[0]) or "none")
    )


def site_packages(python: Path) -> Path:
    """The folder where an environment keeps its pure Python packages."""
    folder = ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    if folder is None:
        raise SetupError("%s does not run" % python)
    return Path(folder)


def make_venv(venv: Path, wanted: Optional[str]) -> Path:
    """The environment's interpreter; the environment is made if it has none that runs."""
    python = venv / "bin" / "python"
    version = version_of(python)
    if version is None:
        if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
            raise SetupError(
                "%s exists and is no virtual environment: move it, or name another: --venv DIR"
                % venv
            )
        # pip is brought in by `add_pip`, since some systems ship venv without the means for it.
        run(find_python(wanted), "-m", "venv", "--without-pip", venv)
    elif version not in PYTHONS:
        raise SetupError(
            "%s has Python %s, but %s to %s is needed: remove it, or name another: --venv DIR"
            % (venv, version, PYTHONS[0], PYTHONS[-1])
        )
    return python


def add_pip(python: Path, site: Path) -> None:
    """Bring pip into the environment: Python's bundled copy, or else through another pip."""
    complete = any(site.glob("pip-*.dist-info/INSTALLER"))
    if complete and ask(python, "import pip._internal") is not None:
        return
    if ask(python, "import ensurepip.__main__") is not None:
        run(python, "-m", "ensurepip", "--upgrade", "--default-pip")
        return
    # Debian and Ubuntu keep ensurepip in a package of its own. A pip outside can install pip too.
    outside = ask(python, "import sys; print(sys._base_executable)")
    if ask(outside, "import pip._internal") is not None:
        run(outside, "-m", "pip", "install", "--upgrade", "--target", site, "pip")
        return
    raise SetupError(
        "This Python comes without pip and without ensurepip.\n"
        "On Debian and Ubuntu: apt-get install python3-venv; then run this again."
    )


def drop_half_installed(site: Path) -> None:
    """Forgets packages that pip had not finished when it was interrupted, so that they come anew.

    pip writes a package's INSTALLER file when all its other files are in place.
    """
    for info in site.glob("*.dist-info"):
        if not (info / "INSTALLER").exists():
            shutil.rmtree(str(info))


def build_pinned(python: Path) -> None:
    """Upstream's own way: from source, Detectron2 with its compiled extension; needs git and a compiler."""
    run(python, "-m", "pip", "install", "setuptools", "wheel", "ninja")
    for pin in PINS:
        run(python, "-m", "pip", "uninstall", "--yes", pin.package, pin.project)
        run(python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", pin.source)
