"""The command that lists, fetches and checks official weights."""

import os
import shutil
import subprocess
import sys

import pytest

from clipself_seg import list_models
from clipself_seg.checkpoints import zoo as zoo_module
from clipself_seg.checkpoints.mask_models import NEEDED
from clipself_seg.checkpoints.needs import missing_parts
from clipself_seg.checkpoints.zoo import IN_WHEEL, SHIPPED, SHIPPED_TAGS, zoo
from clipself_seg.clip import load_clip
from clipself_seg.commands.weights import main
from clipself_seg.errors import InputError

PICKLE = b"\x80"  # its beginning


def test_every_name_is_listed_once_by_task(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    (tmp_path / zoo()["catseg-base"].file).touch()
    assert main([]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = [row[0] for row in rows if row and row[0] in zoo()]
    thrice = [name for name, entry in zoo().items() if len(entry.tasks) == 3]
    assert sorted(names) == sorted([*zoo(), *thrice, *thrice]) and "tipsv2-l14" in thrice
    (row,) = (row for row in rows if row and row[0] == "catseg-base")
    assert row[:6] == ["catseg-base", "MIT*", "ask", "819", "MB", "yes"] and "mIoU" in row
    assert main(["--task", "detection"]) == 0
    said = capsys.readouterr().out
    assert "fvit-eva02-vitb16-lvis-patches" in said and "catseg-base" not in said


@pytest.mark.parametrize("answer", ["yes", "ask", "no"])
def test_names_are_listed_by_whether_they_may_be_shipped(answer, capsys):
    assert main(["--may-ship", answer]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    listed = {row[0] for row in rows if row} & zoo().keys()
    assert listed == {name for name, entry in zoo().items() if entry.may_ship == answer}


def test_a_line_has_a_hundred_letters_at_most(capsys, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", "w")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > len(zoo()) and max(map(len, lines)) <= 100


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_an_output_that_nobody_reads_to_its_end_is_no_error(unbuffered):
    command = [sys.executable, "-m", "clipself_seg", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **how) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_get_says_where_a_file_is_or_what_to_fetch(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    path = tmp_path / zoo()["fcclip-r50"].file
    assert main(["get", "fcclip-r50"]) == 2
    assert f"save it as {tmp_path}" in capsys.readouterr().err
    for file in (path, tmp_path / zoo()["openai-rn50"].file):
        file.write_bytes(PICKLE)
    assert main(["get", "fcclip-r50"]) == 0
    assert str(path) in capsys.readouterr().out
    folder = tmp_path / "hub" / "facebook--sam2.1-hiera-large" / "main"
    folder.mkdir(parents=True)
    for name in NEEDED:
        (folder / name).write_bytes(PICKLE)
    assert main(["get", "sam2"]) == 0
    assert f"sam2: {folder} (Apache-2.0)" in capsys.readouterr().out
    assert main(["get", "fclip-r50"]) == 2
    assert 'did you mean "fcclip-r50"' in capsys.readouterr().err
    assert main(["get"]) == 2


def test_check_names_files_and_refuses_others(tmp_path, capsys):
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    (path := tmp_path / zoo()["fcclip-r50"].file).write_bytes(PICKLE)
    assert main(["check", str(tmp_path)]) == 0
    said = f"{path}: fcclip-r50, whose exact size is not published"
    assert capsys.readouterr().out == f"{said}\n"
    path.write_text("<html>")
    assert main(["check", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith(f"fcclip-r50: error: {path} is a web page in place")
    (tmp_path / zoo()["catseg-large"].file).touch()
    assert main(["check", str(tmp_path)]) == 1
    assert "has 0 bytes, and the official file has 2298213993" in capsys.readouterr().out


def test_check_of_all_finds_what_came_from_the_hub(tmp_path, capsys, monkeypatch, stand_ins):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "hub" / "spaces--hamacojr--CAT-Seg-weights" / "main" / "model_base.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(PICKLE)
    assert main(["check"]) == 0
    assert f"{path}: catseg-base, whose exact size is not published\n" == capsys.readouterr().out


def test_a_wheel_has_the_small_weights_and_says_where_the_others_are(tmp_path, capsys, monkeypatch):
    for stem in {part for tag in IN_WHEEL for part in SHIPPED_TAGS[tag]}:
        shutil.copy(SHIPPED / f"{stem}.safetensors", tmp_path)
    monkeypatch.setattr(zoo_module, "SHIPPED", tmp_path)
    assert main([]) == 0
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("With the package")]
    assert line.startswith(f"With the package: {', '.join(IN_WHEEL)}, mini-cat-seg")
    others = SHIPPED_TAGS.keys() - IN_WHEEL
    assert others and not others & {*list_models()} and {*IN_WHEEL} <= {*list_models()}
    assert load_clip("ViT-Mini-8", "mini-clipself").name == "ViT-Mini-8"
    for tag in others:
        with pytest.raises(InputError, match=f'"{tag}" are not here .*clone of the repository'):
            load_clip(tag)


def test_check_says_so_where_no_file_has_a_known_name(tmp_path, capsys):
    (tmp_path / "photo.jpg").touch()
    assert main(["check", str(tmp_path)]) == 1
    said = f"no published file in {tmp_path}"
    assert said in capsys.readouterr().out


def test_get_says_in_a_line_what_models_need_beside_their_files_and_where_each_goes(
    tmp_path, capsys, monkeypatch
):
    """The tokenizer of a TIPSv2, and the CLIP of an F-ViT, without which nothing predicts offline."""
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = ("tipsv2-b14", "fvit-eva02-vitb16-coco-patches", "EVA02-B-16:merged2b_s8b_b131k")
    assert main(["get", *names[:2], "eomt"]) == 2
    line, *_, error = capsys.readouterr().err.splitlines()
    assert line.startswith("to be fetched, 2,353 MB and more: ")
    for name in (*names, "tokenizer of google/tipsv2-b14", "eomt"):
        assert line.count(f" {name} (size ") == 1
    for file in (*(zoo()[name].file for name in names), "hub/google--tipsv2-b14/main"):
        assert error.count(str(tmp_path / file)) == 1


def test_a_clip_that_names_masks_needs_the_weights_of_its_own_name_and_its_tokenizer(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    values = {"MODEL.CLIP.NAME": "ViT-B-16", "MODEL.CLIP.WEIGHTS": "/x/student.pt"}
    for name, weights, *wanted in (
        ("RN50-quickgelu", "openai", "openai-rn50"),
        ("ViT-B-16-SigLIP", "webli", "ViT-B-16-SigLIP:webli", "tokenizer of timm/ViT-B-16-SigLIP"),
        ("TIPSv2-B-14", "tipsv2-b14", "tipsv2-b14", "tokenizer of google/tipsv2-b14"),
        ("", "openai", "openai-vitb16"),  # of MODEL.CLIP.NAME
    ):
        values |= {"MODEL.CLIP_BRANCH.NAME": name, "MODEL.CLIP_BRANCH.WEIGHTS": weights}
        assert [part.entry.name for part in missing_parts(values)] == wanted
