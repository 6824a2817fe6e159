"""A report of the installation (`doctor`), and the two packages that PyPI lacks (`install_detectron2`)."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from clipself_seg import __version__
from clipself_seg.commands.options import CommandLine, command
from clipself_seg.errors import InputError

DETECTRON2 = "clipself-seg install-detectron2"


@command(lambda parser: None)
def doctor(args: argparse.Namespace) -> int:
    """Show what is installed, on which device, which data sets and weights are found, and how to get the rest.

        clipself-seg doctor

    Looks whether the files of each data set are there; in a clone, `python tools/check_datasets.py` reads images, too.
    The status is 0 if everything that this project needs is installed, 1 if not; extras and data sets may be missing.
    """
    complete = _versions()
    _device()
    _weights()
    _datasets()
    return 0 if complete else 1


# Module -> what pip brings it by; the rest of what setup.cfg asks for comes with these.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip": "open_clip_torch",
    "numpy": "numpy",
    "PIL": "Pillow",
    "cv2": "opencv-python-headless",
}
# Extra of the wheel -> modules that it brings.
EXTRAS = {
    "captions": ("nltk",),
    "demo": ("fastapi", "uvicorn"),
    "diffusion": ("diffusers",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "fiftyone": ("fiftyone",),
    "heic": ("pillow_heif",),
    "masks": ("transformers",),
    "ray": ("ray", "pyarrow"),
    "supervision": ("supervision",),
    "timm": ("timm",),
    "tokenizers": ("tokenizers", "sentencepiece"),
    "video": ("trackers",),
    "webdataset": ("webdataset",),
}


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


def _versions() -> bool:
    """Says what is installed; whether everything that models need is."""
    _say(
        f"clipself_seg {__version__} in {os.path.dirname(os.path.dirname(__file__))}",
        f"Python {platform.python_version()} on {platform.platform()}",
        "",
        "Packages",
    )
    commands = {module: f"pip install {project}" for module, project in NEEDED.items()}
    commands |= {"detectron2": DETECTRON2, "panopticapi": DETECTRON2}
    for extra, modules in EXTRAS.items():
        commands |= dict.fromkeys(modules, f'pip install "clipself_seg[{extra}]"')
    projects = metadata.packages_distributions()
    for module, wanted in commands.items():
        version = metadata.version(projects[module][0]) if module in projects else "?"
        _say(f"  {module} {version if is_there(module) else f'is missing: {wanted}'}")
    return all(map(is_there, (*NEEDED, "detectron2")))


def _device() -> None:
    _say("", "Device")
    if not is_there("torch"):
        _say("  not known without torch")
        return
    import torch

    _say(f"  CPU, {torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}")
    if all(map(is_there, NEEDED)):  # which the block imports
        took = _time_of_bfloat16()
        _say(f"  --precision bfloat16: a block of ViT-B/16 takes {took:.2f} of its time in float32")
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        _say(f"  no GPU or driver found; torch is built for {built}, see docs/install.md")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        _say(f"  GPU {number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def _time_of_bfloat16() -> float:
    """Time of a block over an image of 768 px in bfloat16, divided by that in float32; it takes about two seconds."""
    import torch
    from torch.utils.benchmark import Timer

    from clipself_seg.clip.layers import ResidualBlock
    from clipself_seg.clip.precision import autocast

    block = ResidualBlock(width=768, heads=12)
    torch.nn.init.normal_(block.attn.in_proj_weight, std=0.02)
    given = {"block": block, "tokens_BLD": torch.randn(1, 48 * 48 + 1, 768)}
    timer = Timer("block(tokens_BLD)", globals=given, num_threads=torch.get_num_threads())

    def seconds(precision: torch.dtype | None) -> float:
        with torch.no_grad(), autocast(torch.device("cpu"), precision):
            return float(timer.timeit(2).mean)  # after two calls to warm up

    return seconds(torch.bfloat16) / seconds(None)


def _weights() -> None:
    from clipself_seg.checkpoints.locate import VARIABLE, check_entry, present_file, weights_folder
    from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, shipped_tags, zoo

    here, damaged = [], []
    for entry in zoo().values():
        if own := present_file(entry):
            try:
                check_entry(*own, hashed=False)
                here.append(entry.name)
            except (InputError, ImportError) as error:  # safetensors may be missing
                damaged.append(f"  not usable: {error}")
    _say(
        "",
        "Weights",
        f"  that come with the package: {', '.join([*shipped_tags(), *SHIPPED_MODELS])}",
        f"  official ones in {weights_folder()} (${VARIABLE}): {', '.join(here) or 'none yet'}",
        *dict.fromkeys(damaged),
        f"  {len(zoo())} have names by which they are fetched: clipself-seg weights lists them",
    )


def _datasets() -> None:
    _say("", "Data sets")
    if not is_there("detectron2"):
        _say(f"  not known without Detectron2: {DETECTRON2}")
        return
    from clipself_seg.data.datasets.table import COCO, DATASETS, MINI

    for root in (COCO, MINI):
        _say(f"  ${root.variable}: {os.environ.get(root.variable) or f'not set: {root.path}'}")
    here = [name for name, entry in DATASETS.items() if not entry.missing()]
    _say(
        f"  with their files: {', '.join(here) or 'none'}",
        f"  {len(DATASETS) - len(here)} of {len(DATASETS)} are without: a run that needs one says how to get it",
    )


def _install_options(parser: CommandLine) -> None:
    text = "wheel, folder of wheels or page with them, in place of PyPI; their hashes are compared"
    parser.add_argument("--from", dest="origin", default="", metavar="PATH|ADDRESS", help=text)


@command(_install_options, again="the same command goes on with what is missing")
def install_detectron2(args: argparse.Namespace) -> None:
    """Bring Detectron2 and panopticapi, which PyPI does not have under their own names, into this environment.

        clipself-seg install-detectron2
        clipself-seg install-detectron2 --from wheels

    Fetches re-uploads of their Python sources, pinned by version and sha256 (clipself_seg/pinned_wheels.py), with
    pip, and unpacks them beside the other packages; their compiled parts stay out, which nothing here needs.
    What can be imported already is kept. pip uninstall sal-detectron2 panopticapi-lite takes them out again.
    Upstream's own sources, whose Detectron2 takes a C++ compiler to build, do as well: docs/install.md.
    """
    from clipself_seg.pinned_wheels import PINS, install

    for pin in PINS:
        if is_there(pin.package):
            sys.stdout.write(f"keeping the {pin.package} that is there\n")
            continue
        folder = packages_folder()
        install(pin, sys.executable, folder, run, args.origin)
        sys.stdout.write(f"{pin.package}: {pin.project} {pin.version} is in {folder}\n")


def is_there(package: str) -> bool:
    """True if a package, and not only a folder of that name, could be imported; imports nothing."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def packages_folder() -> Path:
    """The folder where pip puts pure Python.

    Raises:
        InputError: it may not be written.
    """
    folder = Path(sysconfig.get_path("purelib"))
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} may not be written: make an environment (python -m venv)")
    return folder


def run(*command: object) -> None:
    """Runs a command with its output shown.

    Raises:
        InputError: it failed.
    """
    words = [str(word) for word in command]
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"{sys.executable} has no pip: python -m ensurepip, or uv pip install pip, brings it"
        )
    if status := subprocess.call(words):
        raise InputError(
            f"`{shlex.join(words)}` failed (exit status {status}), see above; the same command tries again"
        )
