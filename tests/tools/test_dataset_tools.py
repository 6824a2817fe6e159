"""From archives to a set that the check calls fine, by the commands alone."""

from __future__ import annotations

import json
import re
import shutil
import sys

import check_datasets
import prepare_ade20k_panoptic
import prepare_ade150
import prepare_ade847
import prepare_coco_captions
import prepare_coco_panoptic_semseg
import prepare_coco_stuff
import prepare_pascal_context_59
import prepare_pascal_context_459
import prepare_voc20
import pytest

from tests.small_coco import write_small_coco


def run(monkeypatch, tool, *words) -> int:
    monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, words)])
    return tool.main()


@pytest.fixture
def root(data_dir, tmp_path, monkeypatch):
    """Writable copies of the real archives, found by the environment variable."""
    for path in sorted(data_dir.rglob("*")):
        name = path.relative_to(data_dir)
        if path.is_file() and name.parts[0] in ("coco-stuff", "ADEChallengeData2016", "VOCdevkit"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, tmp_path / name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


NAMES = [
    "coco_2017_test_stuff_all_sem_seg",
    "ade20k_150_test_sem_seg",
    "voc_2012_test_sem_seg",
    "voc_2012_test_background_sem_seg",
]


def test_prepared_sets_are_fine_as_subsets_and_the_json_says_why(
    root, monkeypatch, tmp_path, capsys
):
    report = tmp_path / "check.json"
    checks = (check_datasets, *NAMES, "--json", report)
    assert run(monkeypatch, *checks, "--allow-subset") == 1
    assert [entry["state"] for entry in json.loads(report.read_text())] == ["unprepared"] * 4
    assert "mend: python tools/prepare_voc20.py" in capsys.readouterr().out
    assert run(monkeypatch, prepare_coco_stuff, "--splits", "val2017", "--processes", 1) == 0
    assert run(monkeypatch, prepare_ade150, "--root", root, "--processes", 1) == 0
    assert run(monkeypatch, prepare_voc20, "--processes", 1) == 0
    assert "annotations_detectron2/validation: 17 written" in capsys.readouterr().out
    assert run(monkeypatch, *checks, "--allow-subset", "--full") == 0
    entries = json.loads(report.read_text())
    assert [entry["labelled"] for entry in entries] == [20, 17, 3, 3]
    assert all(entry["fine"] and entry["notes"] for entry in entries)
    assert run(monkeypatch, *checks) == 1
    assert "17 of 2000 images" in capsys.readouterr().out


def test_panoptic_coco_is_fine_as_a_subset_once_it_is_prepared(
    data_dir, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_small_coco(data_dir, tmp_path, 3)
    checks = (check_datasets, "coco_2017_val_panoptic_with_sem_seg", "--allow-subset")
    assert run(monkeypatch, *checks) == 1
    (mend,) = re.findall("mend: python tools/(.*)", capsys.readouterr().out)
    assert mend == "prepare_coco_panoptic_semseg.py --splits val2017"
    words = ("--splits", "val2017", "--processes", 1)
    assert run(monkeypatch, prepare_coco_panoptic_semseg, *words) == 0
    assert "panoptic_semseg_val2017: 3 written" in capsys.readouterr().out
    assert run(monkeypatch, *checks) == 0


@pytest.mark.parametrize(
    "tool",
    [
        prepare_ade847,
        prepare_ade20k_panoptic,
        prepare_coco_captions,
        prepare_coco_panoptic_semseg,
        prepare_pascal_context_59,
        prepare_pascal_context_459,
    ],
)
def test_a_missing_archive_is_an_error_and_status_2(monkeypatch, tmp_path, capsys, tool):
    assert run(monkeypatch, tool, "--root", tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")


def test_wrong_words_are_status_2(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, check_datasets, "ade20k_sem_seg_150") == 2
    assert "did you mean" in capsys.readouterr().err
    assert run(monkeypatch, prepare_ade150, "--root", tmp_path, "--processes", 0) == 2
    assert "--processes 0" in capsys.readouterr().err
