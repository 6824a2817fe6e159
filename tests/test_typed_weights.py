"""Commands and snippets of README and docs/*.md that name published weights run as they stand, on stand-ins of the
files, with real photographs, and with small worlds in place of data sets. What is not run is in `NOT_RUN`, with its
reason. Those of the shipped models and of a reader's own data are run by test_examples.py.
"""

import glob
import re
import shutil
import sys

import pytest
import torch
from PIL import Image

from clipself_seg import __main__ as console
from clipself_seg.checkpoints.mask_models import MASK_MODELS
from clipself_seg.checkpoints.zoo import Entry, zoo
from clipself_seg.config import load_config
from tests import standins
from tests.conftest import ROOT
from tests.explore.test_server import JSON, request
from tests.mask_models import save_mask_model
from tests.registries import registries_kept
from tests.test_docs import BLOCKS
from tests.test_examples import MARKED
from tests.tiny import small_worlds

pytestmark = pytest.mark.heavy
TAKING = {"predict", "dense-maps", "explore", "serve", "export", "eval", "train", "weights"}
SHIPPED = r"(--model|--config-file|WEIGHTS) (original CLIP=)?mini"
# Part of a command or snippet -> the reason why it is not run.
NOT_RUN = {
    r'(--model|MODEL.WEIGHTS) output/|"output/': "a file of the reader's own training",
    r"export/|my_sets.py|screws.yaml|clip.mp4|--example ": "data of the reader",
    r"wds:/data|dinov2": "archives of the reader, and a teacher that is no entry of the zoo",
    r"LABEL_FILES": "class names that go with the data of Vistas alone",
    r"weights (check|verify|--may-ship)|weights$": "names none, or computes with their numbers",
    r"export --task detection": "of zeros all boxes have one score, whose order onnxruntime does not keep",
    r"InferenceSession|model.py|push_to_hub|to_fiftyone": "what another command or program made",
    r"odise_caption_coco": "crops of 512 pixels, in minutes each; commands run with smaller ones",
}
# Beginning of a configuration -> small worlds in place of data sets, and sizes that take seconds.
SMALL = {
    "distill/": "DATASETS.TRAIN ('mini_train',)",
    "distill/coco_region_text": "DATASETS.TRAIN ('mini_train_region_text',)",
    "regions/": "DATASETS.TEST ('mini_val_panoptic',) TEST.REGIONS.TEMPLATES single",
    "whole_images/": "TEST.REGIONS.TEMPLATES single",
    "zero_shot/": "DATASETS.TEST ('mini_val_sem_seg',)",
    "semseg/": "DATASETS.TRAIN ('mini_train_sem_seg',) DATASETS.TEST ('mini_val_sem_seg',)",
    "panoptic/": "DATASETS.TRAIN ('mini_train_panoptic_with_sem_seg',)"
    " DATASETS.TEST ('mini_val_panoptic_with_sem_seg',)",
    "panoptic/odise": "INPUT.MIN_SIZE_TEST 64 MODEL.DIFFUSION.CROP 64",
    "detection/": "DATASETS.TRAIN ('mini_base_boxes',) DATASETS.TEST ('mini_val_boxes',)",
}
TOKEN = "0123456789abcdef"
STEPS = "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 1 SOLVER.WARMUP_ITERS 0 DATASETS.TEST ()"


def is_run(text):
    """False for a command or snippet that is in `NOT_RUN`."""
    return not any(re.search(part, text) for part in NOT_RUN)


def of_published():
    """Commands that take published weights, by their text without GPUs and folders of results."""
    for words in BLOCKS:
        text = re.sub(r" --num-gpus \d+| OUTPUT_DIR \S+", "", " ".join(words))
        if words[0] == "clipself-seg" and words[1] in TAKING and not re.search(SHIPPED, text):
            yield text, words[1:]


COMMANDS = {text: words for text, words in of_published() if is_run(text)}
SNIPPETS = [(page, code) for page, code in MARKED if is_run(code)]


@pytest.fixture
def folder(tmp_path, data_dir, monkeypatch):
    """A folder with what commands name, in which weights that are fetched are stand-ins."""
    photo = Image.open(min((data_dir / "coco/val2017").glob("*.jpg")))
    photo.thumbnail((160, 160))
    for name in ("photo.jpg", "other.jpg", "folder/other.jpg", "photos/class/other.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    worlds, weights = tmp_path / "worlds", tmp_path / "weights"
    with standins.fetched(weights), small_worlds(worlds, 1, 1, 1), registries_kept():
        for name in ("sam2", "eomt"):
            repository = MASK_MODELS[name].repository.replace("/", "--")
            save_mask_model(name, weights / "hub" / repository / "main")
        nouns = worlds / "mini/annotations/region_text_train.json"
        shutil.copy(nouns.with_name("instances_train.json"), nouns)
        yield tmp_path
    shutil.rmtree(tmp_path / "output", ignore_errors=True)


def on_this_machine(words):
    """A command's words without GPUs, with two steps and small worlds."""
    words = [path for word in words for path in glob.glob(word) or [word]]  # as a shell does
    words = [str(ROOT / word) if word.startswith("docs/") else word for word in words]
    if "--num-gpus" in words:
        at = words.index("--num-gpus")
        del words[at : at + 2]
    if words[0] == "serve":
        return [*words, "--port", "0", "--token", TOKEN]
    if words[0] in ("eval", "train"):
        of = dict(zip(words, words[1:]))
        config = of.get("--config-file") or zoo()[of["--model"]].configs[0]
        if config.startswith("whole_images/") and "--data" not in of:
            words += ["--data", "photos"]
        for beginning, keys in SMALL.items():
            words += keys.split() if config.startswith(beginning) else []
        words += STEPS.split() if words[0] == "train" else []
        words += ["DATALOADER.NUM_WORKERS", "0"]
    return words


def answer_once(server, sockets):
    """Ask what would listen for an answer."""
    testclient = pytest.importorskip("starlette.testclient")
    client = testclient.TestClient(server.config.app, base_url="http://127.0.0.1")
    headers = JSON | {"authorization": f"Bearer {TOKEN}"}
    assert client.post("/api/semantic", content=request(), headers=headers).status_code == 200


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_runs(words, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr("uvicorn.Server.run", answer_once)
    for recipe, tower in re.findall(r"output/distill/(\w+)\+(\w+)/", " ".join(words)):
        clip = load_config(f"regions/coco+{tower}").MODEL.CLIP.NAME
        file = f"output/distill/{recipe}+{tower}/clip_final.safetensors"
        standins.write(Entry(name=tower, file=file, model=clip), folder)
    assert console.main(on_this_machine(words)) == 0


@pytest.mark.parametrize(("page", "code"), SNIPPETS)
def test_a_snippet_runs(page, code, folder):
    exec(code, {"image": torch.zeros(3, 64, 64, dtype=torch.uint8)})
