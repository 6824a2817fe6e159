"""The small commands: what they write can be read, what they are given wrong is named."""

import hashlib
import importlib.util
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_seg import pinned_wheels
from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import load_clip, save_clip
from clipself_seg.commands import doctor
from clipself_seg.commands.demo import demo, scenes
from clipself_seg.commands.doctor import install_detectron2
from clipself_seg.commands.explore import dense_maps
from clipself_seg.commands.export import convert, export
from clipself_seg.data.datasets.table import DATASETS, SHIPPED_WORLD
from lab.tables.runs import make_run
from lab.tables.store import Store
from mini import mini_world
from repeat_seeds import repeat_seeds
from tests.lab.tables.worlds import finish
from tests.weight_server import serving


def run(command, *words) -> int:
    return command([str(word) for word in words])


def test_converted_student_has_the_official_wrapper_and_the_same_weights(tmp_path):
    clip = load_clip("ViT-Mini-8", None)
    save_clip(clip, tmp_path / "student.safetensors")
    words = ("--clip-name", "ViT-Mini-8", "--weights", tmp_path / "student.safetensors")
    assert run(convert, *words, "--output", tmp_path / "official.pt") == 0
    content = torch.load(tmp_path / "official.pt", weights_only=True)
    assert {"epoch", "name", "state_dict"} <= content.keys()
    assert {"token_embedding.weight", "visual.proj", "logit_scale"} <= content["state_dict"].keys()
    assert load_clip("ViT-Mini-8", tmp_path / "official.pt").weights_hash() == clip.weights_hash()


def test_the_dense_feature_of_the_weights_is_kept_and_said(tmp_path, capsys):
    clip = load_clip("ViT-Mini-8", "mini", dense=DenseFeature("multi_value", 2))
    clip.distilled = clip.visual.dense_feature
    save_clip(clip, tmp_path / "student.safetensors")
    words = ("--clip-name", "ViT-Mini-8", "--weights", tmp_path / "student.safetensors")
    assert run(convert, *words, "--output", tmp_path / "official.pt") == 0
    said = capsys.readouterr().out
    assert "dense feature multi_value of 2 blocks" in said.splitlines()[0]
    assert said.splitlines()[-1] == "dense feature of the weights: multi_value of 2 blocks"
    assert load_clip("ViT-Mini-8", tmp_path / "official.pt").distilled == clip.distilled


def test_unknown_layout_is_one_line_and_status_2(tmp_path, capsys):
    words = ("--clip-name", "ViT-Mini-8", "--weights", "mini", "--layout", "openclip")
    assert run(convert, *words, "--output", tmp_path / "x.pt") == 2
    assert (
        capsys.readouterr().err
        == 'error: unknown layout of OpenAI ViT "openclip": did you mean "open_clip"?\n'
    )


def test_worlds_are_written_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ("--output", "~/worlds", "--train", 1, "--val", 1, "--base", 1)
    assert run(mini_world, *words) == 0 == run(mini_world, *words)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("written") and said[1].endswith("complete already")
    assert (tmp_path / "worlds/mini/manifest.json").is_file()  # where the data sets are read
    monkeypatch.setenv("CLIPSELF_SEG_MINI", "")
    assert mini_world.parser().parse_args([]).output == "output/mini_world"


def test_numbers_of_finished_runs_are_printed_with_their_spread(tmp_path, capsys):
    for seed, number in ((3, 10.0), (4, 14.0)):
        finished = make_run("configs/mini/semseg.yaml", {}, seed=seed)
        finish(Store(tmp_path), finished, {"val": {"mIoU": number, "mACC": 1.0}})
    words = ("configs/mini/semseg.yaml", "--seeds", 3, 4, "--output", tmp_path, "--show", "/mIoU")
    assert run(repeat_seeds, *words) == 0
    said = capsys.readouterr().out
    assert "12.00 +- 2.83" in said and "mACC" not in said
    assert said.splitlines()[-1] == str(tmp_path / "seeds.json")
    assert run(repeat_seeds, "configs/mini/semseg.yaml", "--seeds", 3) == 2


@pytest.fixture
def exported(monkeypatch):
    """The CLIPs that would be exported, and folders."""
    calls = []

    def keep(clip, folder):
        calls.append((clip, folder))
        return {"dense.onnx": {"1x3x64x64": 6.66e-7}}

    monkeypatch.setattr("clipself_seg.prediction.onnx.export.export_towers", keep)
    return calls


def test_a_clip_by_name_and_what_is_said_of_it(exported, capsys, tmp_path):
    out = tmp_path / "onnx"
    assert run(export, "--model", "mini-clipself", "--output", out) == 0
    ((clip, folder),) = exported
    assert folder == str(out) and clip.report is not None and not clip.training
    said = capsys.readouterr().out
    assert said.startswith("tracing, then comparing with torch")
    assert said.endswith(f"1x3x64x64: 6.7e-07 of the largest value\nwritten: {out}\n")


def test_the_clip_of_a_configuration_is_that_inside_its_trained_model(exported, tmp_path):
    config = ("--config-file", "configs/mini/semseg.yaml", "--output", tmp_path)
    assert run(export, *config, "--model", "mini-cat-seg") == 0
    ((clip, _),) = exported
    assert not clip.training and clip.logit_scale.device.type == "cpu"
    assert any("q_proj_weight" in name for name in clip.state_dict())  # CAT-Seg's own attention


def test_the_task_chooses_among_the_models_of_a_name(exported, tmp_path):
    assert run(export, "--model", "mini", "--task", "panoptic", "--output", tmp_path) == 0
    ((clip, _),) = exported
    assert not any("q_proj_weight" in name for name in clip.state_dict())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--model", "mini-fvit", "--task", "panoptic"), "does detection: leave out the"),
        ((), "no model: name one, such as --model eva02-vitb16"),
        (("--model", "mini-clipself", "--opts", "SEED", "1"), "a CLIP alone, without a config"),
        (("--model", "mini-clipslef"), 'did you mean "mini-clipself"'),
    ],
)
def test_what_names_no_clip_is_told_in_a_line(exported, words, reason, tmp_path, capsys):
    assert run(export, *words, "--output", tmp_path) == 2 and not exported
    assert reason in capsys.readouterr().err


def test_the_path_of_the_demos_page_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("clipself_seg.commands.demo.write_demo", lambda folder: folder / "i.html")
    assert run(demo, "--output", tmp_path) == 0
    assert capsys.readouterr().out == f"Page: {tmp_path / 'i.html'}\n"


def test_the_scenes_of_the_package_are_copied_and_nothing_is_replaced(tmp_path, capsys):
    assert run(scenes, "--output", tmp_path / "mine") == 0
    copied = {path.relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("*")}
    assert copied == {path.relative_to(SHIPPED_WORLD) for path in SHIPPED_WORLD.rglob("*")}
    assert run(scenes, "--output", tmp_path / "mine") == 2
    assert "mini exists: name another folder" in capsys.readouterr().err


def test_images_are_drawn_and_bad_ones_named(tmp_path, capsys):
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "one.png").read_bytes()[:60])
    words = [tmp_path / "one.png", tmp_path / "broken.png", "--model", "mini-clipself"]
    words += ["--size", 64, "--clusters", 2, "--words", "dog|puppy, grass"]
    words += ["--output", tmp_path / "out"]
    assert run(dense_maps, *words) == 1
    said = capsys.readouterr()
    assert "1 of 2 drawn" in said.out and "broken.png cannot be decoded" in said.err
    written = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".lock"}
    assert written == {"one.png", "dense_maps.json"}
    assert run(dense_maps, *words[:-1], tmp_path) == 2
    assert "one.png would replace the image itself: give another" in capsys.readouterr().err
    assert Image.open(tmp_path / "one.png").size == (60, 40)


@pytest.fixture
def quick(monkeypatch):
    """Without the run of two seconds."""
    monkeypatch.setattr(doctor, "_time_of_bfloat16", lambda: 1)


def test_a_whole_environment_gets_versions_device_data_and_weights(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert run(doctor.doctor) == 0
    said = capsys.readouterr().out
    # Python 3.10 does not tell which project every module is of.
    assert " ?\n" not in said
    assert "\n  detectron2 " in said and "\n  CPU, " in said and "mini-fvit" in said
    assert "$CLIPSELF_SEG_MINI: " in said and ": True" not in said
    assert f"$DETECTRON2_DATASETS: {tmp_path}" in said
    ratio = re.search(r"a block of ViT-B/16 takes ([\d.]+) of its time in float32\n", said)
    assert 0.1 < float(ratio[1]) < 10
    assert "mini_val, " in said and "lvis_v1_train" not in said
    assert f"of {len(DATASETS)} are without: a run that needs one" in said


def test_a_damaged_official_file_is_not_counted_as_here(capsys, monkeypatch, tmp_path, quick):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, content in (
        ("catseg-base", b"\x80eights"),
        ("openai-vitb16", b"<!DOCTYPE html>"),
        ("openai-vitb32", b"version https://git-lfs.github.com/spec/v1"),
        ("swin-base", b"\x80eights"),
    ):
        (tmp_path / zoo()[name].file).write_bytes(content)
    assert run(doctor.doctor) == 0
    said = capsys.readouterr().out
    assert (
        "official ones in " in said and f"{tmp_path} ($CLIPSELF_SEG_WEIGHTS): swin-base\n" in said
    )
    assert said.count("  not usable: ") == 3
    assert "model_base.pth, the file of catseg-base, has 7 bytes" in said
    assert "is a web page in place" in said and "is a pointer of Git LFS" in said


def test_what_is_missing_is_said_with_the_command_that_brings_it(capsys, monkeypatch):
    for module in ("detectron2", "nltk", "cv2", "tokenizers"):
        monkeypatch.setitem(sys.modules, module, None)
    assert run(doctor.doctor) == 1
    said = capsys.readouterr().out
    assert "cv2 is missing: pip install opencv-python-headless" in said
    assert said.count(": clipself-seg install-detectron2") == 2
    assert 'nltk is missing: pip install "clipself_seg[captions]"' in said
    assert 'tokenizers is missing: pip install "clipself_seg[tokenizers]"' in said


def test_an_environment_without_detectron2_is_examined_to_the_end():
    hidden = "import sys; sys.modules['detectron2'] = None; from clipself_seg.__main__ import main"
    words = [sys.executable, "-c", f"{hidden}; sys.exit(main(['doctor']))"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "\n  CPU, " in done.stdout and "\nWeights\n" in done.stdout
    assert done.stdout.endswith("not known without Detectron2: clipself-seg install-detectron2\n")


def test_an_environment_without_extras_is_whole(capsys, monkeypatch, quick):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert run(doctor.doctor) == 0
    assert "diffusers is missing: " in capsys.readouterr().out


PIN = pinned_wheels.Pin("up-engine", "1.0", "0" * 64, "engine_of_a_test", "git+https://up")
CONTENT = {
    "engine_of_a_test/__init__.py": "answer = 42\n",
    "up_engine-1.0.dist-info/METADATA": "Name: up-engine\nVersion: 1.0\n",
    "up_engine-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\n",
}


@pytest.fixture
def site(monkeypatch, tmp_path) -> Path:
    """The folder of packages of an environment with one pinned wheel."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(pinned_wheels, "PINS", (PIN,))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop(PIN.package, None)


WHEEL = "up_engine-1.0-cp310-none-any.whl"


@pytest.mark.parametrize("origin", ["wheels", f"wheels/{WHEEL}", f"http://ADDRESS/{WHEEL}"])
def test_a_wheel_of_the_pinned_hash_is_fetched_and_then_kept(
    origin, site, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    wheel = tmp_path / "wheels" / WHEEL
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    if origin == "wheels":
        assert run(install_detectron2, "--from", origin) == 2 and not list(site.iterdir())
    pin = PIN._replace(sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(pinned_wheels, "PINS", (pin,))
    with serving() as server:
        server.files[f"/{WHEEL}"] = wheel.read_bytes()
        origin = origin.replace("http://ADDRESS", server.address)
        assert run(install_detectron2, "--from", origin) == 0
    assert len([*site.rglob("*.pyc")]) == 1
    assert importlib.import_module(PIN.package).answer == 42
    monkeypatch.setattr(subprocess, "call", lambda words: pytest.fail(str(words)))
    assert run(install_detectron2) == 0
    assert "keeping the engine_of_a_test that is there" in capsys.readouterr().out


def test_a_folder_without_code_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "detectron3").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not doctor.is_there("detectron3") and doctor.is_there("json")


def test_a_failed_download_is_one_line_and_leaves_nothing(site, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(subprocess, "call", lambda words: called.append(words) or 1)
    assert run(install_detectron2) == 2
    assert "failed (exit status 1), see above" in capsys.readouterr().err
    assert "--require-hashes" in called[0] and "--no-index" not in called[0]
    assert not list(site.iterdir())


def test_an_environment_without_pip_is_told_how_to_get_it(site, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pip", None)
    assert run(install_detectron2) == 2
    assert "has no pip: python -m ensurepip" in capsys.readouterr().err
