"""Examples of the documentation run as they stand: snippets of pages, the page about data of one's own, notebooks."""

import ast
import glob
import importlib
import inspect
import json
import logging
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from clipself_seg import __main__ as console
from clipself_seg.choice import find_model
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.data.datasets import table
from clipself_seg.imports import VARIABLE
from clipself_seg.prediction.predictor import ImagePredictor
from lab.mini.writer import WorldSize, make_worlds
from tests.conftest import ROOT
from tests.prediction.test_video import make_video
from tests.registries import registries_kept
from tests.test_docs import BLOCKS
from tests.tiny import save_noise, small_worlds
from tests.training.test_hooks import registered  # noqa: F401  (a fixture)

DOCS = ROOT / "docs"


PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def python_blocks(page, marked=False):
    """Python code of a page that runs as it stands, or that marked by a comment "needs ..." in the line before."""
    blocks = re.findall(r"^([^\n]*)\n```python\n(.*?)^```", page.read_text(), re.M | re.S)
    return [code for before, code in blocks if before.startswith("<!-- needs ") == marked]


TORCH, FOLDER, TRANSFORMERS = python_blocks(DOCS / "guests.md")
DETECTRON2, LAZY, LOOP, DEFAULT, PREDICTOR, EVALUATOR, HOOKS, TRAIN = python_blocks(
    DOCS / "detectron2.md"
)
RESULTS, _, WHOLE_COCO = python_blocks(DOCS / "python.md")
(MASKS,) = (code for code in python_blocks(DOCS / "panoptic.md") if "masks=" in code)
(MINE,) = python_blocks(DOCS / "own_code.md")
# What these give is looked at below; the others have to run.
LOOKED_AT = {TORCH, FOLDER, TRANSFORMERS, RESULTS, WHOLE_COCO, MASKS, MINE}
LOOKED_AT |= {DETECTRON2, LAZY, LOOP, DEFAULT, PREDICTOR, EVALUATOR, HOOKS, TRAIN}
RUNNING = [(page.name, code) for page in PAGES for code in python_blocks(page)]
MARKED = [(page.name, code) for page in PAGES for code in python_blocks(page, marked=True)]
OPTIONAL = {"tokenizers"}  # of extras that the tests do without


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a `photo.jpg` in which an example runs."""
    save_noise(tmp_path / "photo.jpg", 45, 62)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def variables(example):
    """Variables of an example that has run."""
    names = {}
    exec(example, names)
    return names


@pytest.mark.parametrize(("page", "code"), [b for b in RUNNING if b[1] not in LOOKED_AT])
def test_an_example_runs_in_a_folder_with_an_image(folder, page, code):
    with registries_kept():
        assert {"model", "clip"} & variables(code).keys(), page


def parameters():
    """Names of the parameters of every method of models and predictors, by its name."""
    found = {}
    folders = (ROOT / "clipself_seg" / name for name in ("clip", "models", "prediction"))
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
                found.setdefault(node.name, set()).update(given)
    found["set_vocabulary"] |= found["read"]  # to which a predictor hands them on
    return found


def test_examples_that_need_weights_import_and_pass_what_there_is():
    methods, calls = parameters(), 0
    for page, code in MARKED:
        imported = {}
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                for name in {alias.name for alias in node.names} - OPTIONAL:
                    importlib.import_module(name)
            elif isinstance(node, ast.ImportFrom):
                exec(ast.unparse(node), imported)
            elif isinstance(node, ast.Constant) and str(node.value).endswith(".yaml"):
                assert load_config(node.value)
            elif isinstance(node, ast.Call):
                named = {keyword.arg for keyword in node.keywords}
                match node.func:
                    case ast.Name(id=name) if name in imported:
                        known = inspect.signature(imported[name]).parameters.keys()
                    case ast.Name(id="model" | "predictor"):
                        known = methods["forward"]
                    case ast.Attribute(ast.Name(id="model" | "predictor" | "clip"), attr=name):
                        own = getattr(ImagePredictor, name, None)
                        known = methods.get(name) or inspect.signature(own).parameters.keys()
                    case _:  # of others
                        continue
                assert not named - known, f"{page}: {ast.unparse(node)}"
                calls += len(named)
    assert len(MARKED) >= 10 and calls >= 5


def without_gradients(module):
    return all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_plain_torch_leaves_no_gradients_in_clip(folder):
    names = variables(TORCH)
    assert names["dense"].shape == (1, names["clip"].embed_dim, 20, 20)
    assert names["labels"].shape == (15, 20)  # 45 x 62 pixels are 116 x 160
    assert not names["dense"].requires_grad and not names["classes"].requires_grad
    assert without_gradients(names["clip"]) and names["head"].weight.grad is not None


def test_features_of_a_folder_are_in_cells_and_boxes_of_the_image(folder):
    names = variables(FOLDER)
    saved = np.load(folder / "features/photo.npz")
    size = names["clip"].embed_dim
    assert saved["dense"].shape == (size, 15, 20) and saved["of_boxes"].shape == (2, size)
    assert saved["cell"] == pytest.approx(62 / 20) and names["at_pixel"].shape == (size,)
    assert np.linalg.norm(saved["dense"].astype(np.float32), axis=0) == pytest.approx(1, abs=1e-2)


def test_a_detectron2_head_leaves_no_gradients_in_clip(folder, caplog):
    names = variables(DETECTRON2)
    assert names["scores"].shape == (3, 45, 62) and not names["scores"].requires_grad
    assert without_gradients(names["model"].backbone)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert all(p.grad is not None for p in names["model"].sem_seg_head.parameters())


@pytest.mark.usefixtures("catalogue")
def test_lazy_parts_and_detectron2s_loop_and_predictor_take_what_is_here(folder):
    assert {name: s.stride for name, s in variables(LAZY)["shapes"].items()} == {
        "block2": 8,
        "dense": 8,
    }
    Image.fromarray(np.arange(45 * 62, dtype=np.uint8).reshape(45, 62) % 3).save("photo.png")
    names = variables(LOOP)
    assert names["cfg"].is_frozen() and names["trainer"].iter == 2
    assert variables(PREDICTOR)["labels"].shape == (45, 62)
    assert variables(DEFAULT)["trainer"].iter == 2
    (folder / "model_final.pth").rename("model.pth")
    assert variables(PREDICTOR)["labels"].shape == (45, 62)
    variables(TRAIN)
    assert (folder / "output/mine/model_final.pth").is_file()


@pytest.mark.usefixtures("registered")
def test_the_hook_of_the_page_reports(folder, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "")
    (folder / "my_hooks.py").write_text(HOOKS)
    words = ["--import", "my_hooks.py", "--config-file", "mini/semseg", "DATASETS.TEST", "()"]
    words += ["DATALOADER.NUM_WORKERS", "0", "SOLVER.LOG_PERIOD", "1", "SOLVER.BASE_LR", "1e-4"]
    with small_worlds(folder, 2, 1, 2):
        assert train.main([*words, *QUICK.split()]) == 0
    assert "{'data_time':" in capsys.readouterr().out


def test_detectron2s_evaluator_reads_label_maps(folder):
    evaluator = variables(EVALUATOR)["evaluator"]
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save("truth.png")
    evaluator.input_file_to_gt_file = {"photo.jpg": "truth.png"}
    evaluator.reset()
    scores = torch.tensor([[[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]])
    evaluator.process([{"file_name": "photo.jpg"}], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 50


def test_beside_transformers_whose_pixel_values_are_what_preprocess_makes(folder):
    pytest.importorskip("transformers")
    names = variables(TRANSFORMERS)
    torch.testing.assert_close(names["probabilities"].sum(-1), torch.ones(1))
    assert names["heat"].shape == (1, 2, 20, 20) and not names["heat"].requires_grad
    assert without_gradients(names["model"])
    image = names["images"][0].resize((64, 64), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    theirs = names["processor"](64)(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs, names["model"].preprocess(pixels), atol=1e-5, rtol=0)


def test_the_example_of_results(folder):
    names = variables(RESULTS)
    assert len(names["results"]) == 2 and (folder / "overlay.png").is_file()
    assert len(names["annotations"]) == len(names["names"]) == len(names["boxes"])


def test_the_example_of_a_whole_coco_file_is_one(folder):
    results = variables(WHOLE_COCO)["results"]
    coco = COCO(folder / "coco.json")
    assert coco.getImgIds() == [1, 2] and len(coco.loadCats([1, 2, 3])) == 3
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    for label, annotation in zip(np.unique(results[1].labels), annotations, strict=True):
        assert annotation["category_id"] == results[1].category_ids[label]
        mask = results[1].labels == label
        assert (coco.annToMask(annotation) == mask).all() and annotation["area"] == mask.sum()


# Commands of the pages that draw or predict with the models of the project; test_docs.py parses the others.
SEEN = ("predict", "dense-maps", "explore")
TYPED = (words[1:] for words in BLOCKS if words[0] == "clipself-seg")
# Two that differ in the folder of their results are one. Ray is an extra: tests/prediction/test_ray_predict.py.
COMMANDS = {
    re.sub(r"--output \S+", "", " ".join(words)): words
    for words in TYPED
    if words[0] in SEEN and "--model mini" in " ".join(words) and "--ray" not in words
}


@pytest.fixture
def images(folder):
    """A folder with what those commands name."""
    folders = ("output/mini_world", "scenes")
    scenes = [f"{root}/mini/val/00000{n}.jpg" for root in folders for n in (0, 2, 7)]
    for name in ("photo.jpg", "folder/other.jpg", *scenes):
        save_noise(folder / name, 60, 80)
    page = (DOCS / "labelling_tools.md").read_text()
    (folder / "words.json").write_text(re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)[0])
    (folder / "masks").mkdir()
    masks = '[{"size": [60, 80], "counts": [0, 2400, 2400]}]'
    for name in ("photo", "other"):
        (folder / f"masks/{name}.json").write_text(masks)
    make_video(folder / "walk.mp4", count=2)
    return folder


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_with_the_models_of_the_project_runs(images, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    before = set(images.rglob("*"))
    words = [path for word in words for path in glob.glob(word) or [word]]  # as a shell does
    words = [str(ROOT / word) if word.startswith("docs/") else word for word in words]
    with registries_kept():
        assert console.main([*words, *(["--device", "cpu"] if words[0] == "predict" else [])]) == 0
    assert {path.suffix for path in set(images.rglob("*")) - before} & {
        ".html",
        ".jpg",
        ".mp4",
        ".png",
    }


def test_the_snippet_of_masks_from_elsewhere(images):
    (segment,) = variables(MASKS)["result"].segments
    assert segment.area == 2400 and segment.box == (0, 0, 40, 60)


def commands(page):
    """Commands of a page, joined where a line is continued."""
    text = (DOCS / page).read_text().replace("\\\n", " ")
    lines = re.findall(r"^    ((?:python|clipself-seg|cp) .*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


# Of the pages about data of one's own, with a step or two in place of hundreds.
QUICK = "SOLVER.IMS_PER_BATCH 1 SOLVER.MAX_ITER 1 SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 1"
SMALL = {"train": QUICK}


def run(words, monkeypatch):
    """A command of the page in this process."""
    program, *rest = words
    monkeypatch.setattr(sys, "argv", words)
    if program == "clipself-seg":
        assert console.main([*rest, *SMALL.get(rest[0], "").split()]) == 0
    elif program == "python":
        assert train.main([*rest[1:], *QUICK.split()]) == 0
    else:
        subprocess.run(words, check=True)


def few_scenes(worlds, train, monkeypatch):
    """Worlds with one scene to evaluate on in place of those that come with the package."""
    make_worlds(worlds, WorldSize(train=train, val=1, base=1))
    monkeypatch.setattr(table, "SHIPPED_WORLD", worlds)


@pytest.mark.usefixtures("catalogue")
def test_a_data_set_of_ones_own_is_registered_distilled_trained_and_predicted(folder, monkeypatch):
    for name in ("configs", "clipself_seg"):  # as in a checkout
        (folder / name).symlink_to(ROOT / name)
    copy, *others = commands("own_code.md")
    few_scenes(folder / "few", 3, monkeypatch)
    run(copy, monkeypatch)
    exec(compile(MINE, "mine.py", "exec"), {"__name__": "mine"})
    assert len(others) == 5
    for words in others:
        run(words, monkeypatch)
    mine = folder / "output/mine"
    assert "my_val_sem_seg" in (mine / "semseg/results.json").read_text()
    assert "my_val_boxes" in (mine / "detection/results.json").read_text()
    assert "red star" in (mine / "labels/classes.json").read_text()


@pytest.mark.usefixtures("catalogue")
def test_files_of_ones_own_data_are_trained_on_by_one_command_a_task(folder, monkeypatch):
    blocks = re.findall(
        r"^```yaml\n# (\S+)\n(.*?)^```", (DOCS / "own_data.md").read_text(), re.M | re.S
    )
    for name, text in blocks:
        (folder / name).write_text(text)
    monkeypatch.setenv("CLIPSELF_SEG_MINI", "my_data")
    copy, *others = commands("own_data.md")
    few_scenes(folder / "few", 12, monkeypatch)
    run(copy, monkeypatch)
    assert len(others) == 6 and [name for name, _ in blocks] == ["scenes.yaml", "screws.yaml"]
    for words in others:
        run(words, monkeypatch)
    mine = folder / "output/mine"
    assert "own_scenes_val_sem_seg" in (mine / "again/results.json").read_text()
    assert "own_instances_val_boxes" in (mine / "detection/results.json").read_text()
    assert "own_panoptic_val_panoptic" in (mine / "panoptic/results.json").read_text()
    assert (mine / "clip/clip_final.safetensors").is_file()


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# What a user is meant to import: docs/python.md, guests.md, detectron2.md, distillation.md and the generated worlds.
PUBLIC = {
    "clipself_seg.clip",
    "clipself_seg.config",
    "clipself_seg.data.datasets.table",
    "clipself_seg.data.images",
    "clipself_seg.data.vocabulary",
    "clipself_seg.training.run",
}


def cells(path, kind):
    """Cells of a notebook of one kind, "code" or "markdown"."""
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def source(cell):
    """Text of a cell."""
    return "".join(cell["source"])


def test_there_are_three_notebooks():
    assert len(NOTEBOOKS) == 3


@each_notebook
def test_a_notebook_says_what_it_needs_and_keeps_small_outputs(path):
    texts = [source(cell) for cell in cells(path, "markdown")]
    assert "**Needs:**" in texts[0] and path.stat().st_size < 300_000
    links = re.findall(r"\]\(([^)#]+)", "\n".join(texts))
    assert links and all((path.parent / link).exists() for link in links)
    code = cells(path, "code")
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any({"image/png", "image/jpeg"} & output["data"].keys() for output in outputs)
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data"}
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not re.search(r"/(work|root|home|tmp)/", path.read_text())


def test_the_checkpoints_for_photographs_go_with_the_predictors_of_the_notebook():
    text = source(cells(DOCS / "notebooks/2_own_words.ipynb", "code")[1])
    (pair,) = re.findall(r'For photographs: "([\w-]+)" and "([\w-]+)"', text)
    assert [find_model(name).task for name in pair] == ["panoptic", "detection"]


@each_notebook
def test_a_notebook_uses_what_is_public_and_there(path):
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("clipself_seg"):
                module = importlib.import_module(node.module)
                assert node.module in PUBLIC
                assert all(hasattr(module, alias.name) for alias in node.names)
