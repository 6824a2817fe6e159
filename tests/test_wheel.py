"""The wheel holds the library and what it is shown with, and is enough: without Detectron2 for dense features, with it
for all.

What is marked heavy installs it, made from the sdist, in an environment of its own: minutes, and PyPI.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from clipself_seg.checkpoints.zoo import IN_WHEEL, SHIPPED_TAGS
from tests.conftest import ROOT
from tests.servers import free_address, started

FOLDERS = ("clipself_seg", "configs")
MOST_BYTES = 18_000_000
BUILD = "from setuptools import build_meta; build_meta.build_wheel('..')"
BUILD_SDIST = "from setuptools import build_meta; build_meta.build_sdist('..')"


def files(folder: Path) -> set[str]:
    """Paths of the files below a folder of the repository, without what Python leaves there."""
    paths = (path.relative_to(ROOT) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if "__pycache__" not in path.parts}


def build(tmp_path_factory, code: str, pattern: str) -> Path:
    """A file that setuptools builds from a copy, since building leaves folders in the source."""
    source = tmp_path_factory.mktemp("build") / "source"
    for name in FOLDERS:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    run([sys.executable, "-c", code], source)
    (path,) = source.parent.glob(pattern)
    return path


def run(command: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command that has to end well, in an environment that knows nothing of this checkout."""
    done = attempt(command, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def attempt(command: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """The same, of a command that may fail."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def larger_weights() -> set[str]:
    """Paths of the weights that lie in the repository alone."""
    larger = {stem for tag, stems in SHIPPED_TAGS.items() if tag not in IN_WHEEL for stem in stems}
    kept = {stem for tag in IN_WHEEL for stem in SHIPPED_TAGS[tag]}
    return {f"clipself_seg/mini/weights/{stem}.safetensors" for stem in larger - kept}


def test_the_wheel_holds_the_package_and_every_configuration_without_the_larger_weights(
    tmp_path_factory,
):
    wheel = build(tmp_path_factory, BUILD, "*.whl")
    wanted = files(ROOT / "clipself_seg") | {f"clipself_seg/{p}" for p in files(ROOT / "configs")}
    assert {".py", ".yaml", ".json", ".jpg", ".safetensors"} <= {Path(n).suffix for n in wanted}
    assert len(larger_weights()) == 4 and larger_weights() <= wanted
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    assert held == wanted - larger_weights()
    assert wheel.stat().st_size < MOST_BYTES


DENSE = """
import sys, torch
from clipself_seg.clip import TextBank, load_clip

clip = load_clip("ViT-Mini-8", "mini")
images = torch.rand(2, 3, 96, 128)
assert clip.encode_dense(images).shape == (2, clip.embed_dim, 12, 16)
boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.0, 0.0, 1.0, 1.0]])
scores = clip.encode_boxes(images, [boxes, boxes]) @ TextBank(clip).embed(["red star", "grass"]).T
assert scores.shape == (4, 2) and scores.isfinite().all()
try:
    import clipself_seg.prediction.predictor
except ModuleNotFoundError as error:
    print(error)
"""
PLACE = "import clipself_seg, pathlib; print(pathlib.Path(clipself_seg.__file__).parent)"
MISSING = "detectron2 is not installed, and this needs it: clipself-seg install-detectron2\n"


def test_dense_features_and_texts_need_no_detectron2():
    hidden = "import sys; sys.modules['detectron2'] = None"
    assert run([sys.executable, "-c", hidden + DENSE], ROOT).stdout == MISSING


@pytest.mark.heavy
def test_an_environment_with_the_wheel_alone_walks_the_whole_road(tmp_path_factory, tmp_path):
    run([sys.executable, "-m", "venv", tmp_path / "venv"], tmp_path)
    bin = tmp_path / "venv" / "bin"
    run([bin / "pip", "install", build(tmp_path_factory, BUILD_SDIST, "*.tar.gz")], tmp_path)
    run([bin / "pip", "check"], tmp_path)

    assert run([bin / "python", "-c", DENSE], tmp_path).stdout == MISSING
    clipself_seg = bin / "clipself-seg"
    assert "detectron2 is missing" in attempt([clipself_seg, "doctor"], tmp_path).stdout
    run([clipself_seg, "scenes", "--output", "scenes"], tmp_path)
    predict = ("predict", "scenes/mini/val", "--words", "red star, grass", "--model")
    refused = attempt([clipself_seg, *predict, "mini"], tmp_path)
    assert (refused.returncode, refused.stderr) == (2, f"error: {MISSING}")
    packages = Path(run([bin / "python", "-c", PLACE], tmp_path).stdout.strip())
    assert {path.name for path in (packages / "mini").iterdir()} == {"CARD.md", "weights", "world"}

    run([clipself_seg, "install-detectron2"], tmp_path)
    assert "keeping the detectron2" in run([clipself_seg, "install-detectron2"], tmp_path).stdout
    for task in ("semantic", "panoptic", "detection"):
        words = (*predict, "mini", "--task", task, "--output", task)
        assert "13 of 13 " in run([clipself_seg, *words], tmp_path).stdout
    absent = attempt([clipself_seg, *predict, "mini-eva"], tmp_path)
    assert absent.returncode == 2 and "a clone of the repository" in absent.stderr
    assert "mini-eva" not in run([clipself_seg, "weights"], tmp_path).stdout
    run([clipself_seg, "demo"], tmp_path)
    steps = ("SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()", "OUTPUT_DIR", "trained")
    run([clipself_seg, "train", "--config-file", "mini/patches", *steps], tmp_path)
    evaluation = ("eval", "--config-file", "mini/regions.yaml", "OUTPUT_DIR", "out")
    run([bin / "python", "-m", "clipself_seg", *evaluation], tmp_path)
    provenance = json.loads((tmp_path / "out" / "results.json").read_text())["provenance"]
    assert provenance["command"].startswith("clipself-seg eval ")
    assert provenance["mini worlds"].startswith("the small worlds that come with the package")
    run([clipself_seg, "doctor"], tmp_path)


NOTEBOOK = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=3600).execute()
"""
WATCH = """
import sys
def watch(event, given):
    if event in ("socket.getaddrinfo", "socket.connect"):
        sys.stderr.write(f"\\nasked {given!r}\\n")
sys.addaudithook(watch)
"""
ASK = """
import sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
print(client.predict(handle_file(sys.argv[2]), "red star, grass", api_name="/find")["annotations"])
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Programs of an environment without this project, whose pip finds the wheel of it."""
    folder = tmp_path_factory.mktemp("bare")
    wheel = build(tmp_path_factory, BUILD, "*.whl")
    run([sys.executable, "-m", "venv", folder], folder)
    with pytest.MonkeyPatch.context() as patch:
        found = f"{wheel.parent} {os.environ.get('PIP_FIND_LINKS', '')}"
        patch.setenv("PIP_FIND_LINKS", found.strip())
        yield folder / "bin"


@pytest.mark.heavy
def test_the_notebooks_install_the_wheel_and_run(bare, tmp_path):
    run([bare / "pip", "install", "nbclient", "ipykernel"], tmp_path)
    for notebook in sorted(ROOT.glob("docs/notebooks/*.ipynb")):
        shutil.copy(notebook, tmp_path)
        run([bare / "python", "-c", NOTEBOOK, notebook.name], tmp_path)
        run([bare / "pip", "show", "clipself_seg"], tmp_path)


@pytest.mark.heavy
def test_the_space_answers_a_client_of_gradio_and_asks_for_no_address(bare, tmp_path):
    run([bare / "pip", "install", "-r", ROOT / "docs/examples/space/requirements.txt"], tmp_path)
    scene = ROOT / "clipself_seg/mini/world/mini/val/000000.jpg"
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    app, address = [bare / "python", ROOT / "docs/examples/space/app.py"], free_address()
    settings = {"MODEL": "mini", "GRADIO_SERVER_PORT": address[17:], "PYTHONPATH": str(tmp_path)}
    with started(app, tmp_path, address, **settings) as said:
        answer = run([bare / "python", "-c", ASK, address, scene], tmp_path).stdout
        assert "red star" in answer and "grass" in answer and answer.count(".png") == 2
        for host in ("example.org", "10.0.0.1", "huggingface.co"):
            named = {"path": f"https://{host}/a.png", "meta": {"_type": "gradio.FileData"}}
            for data in ([named, "grass"], [None, named]):
                call = httpx.post(f"{address}/gradio_api/call/find", json={"data": data}).json()
                events = httpx.get(f"{address}/gradio_api/call/find/{call['event_id']}")
                assert "event: error" in events.text
            for route, status in (("file", 403), ("proxy", 400)):
                answer = httpx.get(f"{address}/gradio_api/{route}=https://{host}/a.png")
                assert answer.status_code == status
        serving = said.read_text().partition("Running on")[2].splitlines()  # before, pip fetches
    asked = [line for line in serving if line.startswith("asked ")]
    assert asked and all("127.0.0.1" in line for line in asked)
