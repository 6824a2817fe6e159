"""The two pinned wheels that pip does not install itself: how they are downloaded, verified and unpacked.

Standard library only, in the syntax of Python 3.6, for tools/setup_env.py.
"""

import base64
import csv
import hashlib
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Tuple

DOWNLOAD = (
    "-m pip download --no-deps --only-binary=:all: --python-version=3.10 --implementation=cp"
    " --require-hashes"
)


class Pin(NamedTuple):
    """A wheel that is taken by hash and unpacked here instead of installed by pip, and where upstream's sources are."""

    project: str
    version: str
    sha256: str
    package: str
    source: str


# Neither detectron2 nor panopticapi is on PyPI under its own name. These are re-uploads of their
# sources. The hashes make sure that what is installed is what was compared with upstream
# (detectron2: commit a59f0563). pip is not allowed to install them itself, for three reasons:
# the wheel of detectron2 is tagged for Python 3.10 although its Python sources run on any;
# it holds a top-level package `tools`, which would shadow this project's; and both ask for
# numpy < 2, which neither needs. What they really need is listed in setup.cfg.
PINS = (
    Pin(
        "sal-detectron2",
        "0.7.2",
        "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561",
        "detectron2",
        "git+https://github.com/facebookresearch/detectron2.git@a59f05630a8f205756064244bf5beb8661f96180",
    ),
    Pin(
        "panopticapi-lite",
        "0.2.0",
        "58d3ffa842a72240162e7fa744c602a0a5320baabbdb3295d770374f4639b486",
        "panopticapi",
        "git+https://github.com/cocodataset/panopticapi.git@7bb4655548f98f3fedc07bf37e9040a992b054b0",
    ),
)


# File of Detectron2 -> what NumPy 2 refuses in it, and what does the same under both.
MENDED = {
    "detectron2/evaluation/sem_seg_evaluation.py": (b"copy=copy, dtype=dtype)", b"dtype=dtype)"),
    "detectron2/layers/mask_ops.py": (b"np.array(mask, copy=False)", b"np.array(mask)"),
}


def record_line(name: str, content: bytes) -> Tuple[str, str, str]:
    """A file's line in a wheel's RECORD: name, hash and size."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return name, "sha256=" + digest, str(len(content))


def wanted_files(wheel: Path, package: str) -> Dict[str, bytes]:
    """The files of a wheel that are installed: one package, mended for NumPy 2, and its metadata, without requirements.

    Compiled extensions stay out: they are built for one Python and one torch, and elsewhere fail
    in ways that are hard to read. detectron2 falls back to Python where they are missing.
    """
    files = {}
    with zipfile.ZipFile(str(wheel)) as archive:
        for name in archive.namelist():
            top, _, rest = name.partition("/")
            ours = top == package or (top.endswith(".dist-info") and rest != "RECORD")
            if ours and rest and not name.endswith(("/", ".so")):
                refused, taken = MENDED.get(name, (b"", b""))
                files[name] = archive.read(name).replace(refused, taken)
    info = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/METADATA"))
    lines = files[info + "/METADATA"].decode().splitlines(True)
    kept = [line for line in lines if not line.startswith(("Requires-Dist:", "Provides-Extra:"))]
    files[info + "/METADATA"] = "".join(kept).encode()
    files[info + "/top_level.txt"] = (package + "\n").encode()
    files[info + "/INSTALLER"] = b"clipself_seg\n"
    return files


def unpack_wheel(wheel: Path, package: str, site: Path) -> None:
    """Installs `package` from a wheel into `site` so that pip can list it and uninstall it."""
    files = wanted_files(wheel, package)
    info = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/METADATA"))
    part = site / (".%s.part" % package)
    for leftover in (part, site / info):
        shutil.rmtree(str(leftover), ignore_errors=True)
    for name, content in files.items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(content)
    with open(str(part / info / "RECORD"), "w", newline="") as record:
        rows = [record_line(name, content) for name, content in sorted(files.items())]
        csv.writer(record, lineterminator="\n").writerows(rows + [(info + "/RECORD", "", "")])
    # The package comes last: once it can be imported, everything else is in place.
    (part / info).rename(site / info)
    (part / package).rename(site / package)
    part.rmdir()


def install(
    pin: Pin, python: object, site: Path, run: Callable[..., None], origin: str = ""
) -> None:
    """Fetches a wheel, whose hash pip compares, unpacks it, and compiles its modules, as pip does.

    Otherwise they are compiled at each start where Python may not write: an image, PYTHONDONTWRITEBYTECODE.

    Args:
        pin: entry of `PINS`.
        python: interpreter that has pip.
        site: folder of its packages.
        run: runs a command, given word by word, and raises an error if that fails.
        origin: wheel, folder of wheels or address that is asked in place of PyPI; the hash stays.
    """
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text("%s==%s --hash=sha256:%s\n" % (pin.project, pin.version, pin.sha256))
        words = DOWNLOAD.split() + (["--no-index", "--find-links", origin] if origin else [])
        run(python, *words, "--dest", folder, "--requirement", requirement)
        unpack_wheel(next(Path(folder).glob("*.whl")), pin.package, site)
    run(python, "-Wignore", "-m", "compileall", "-q", site / pin.package)
