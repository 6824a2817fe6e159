"""From archives to a set that the check calls fine, by the commands alone."""

import inspect
import json
import shutil

import pytest

import check_datasets
import prepare
from lab.prepare.common import PREPARATIONS


def prepared(data_set, *words) -> int:
    return prepare.prepared(data_set)([str(word) for word in words])


def checked(*words) -> int:
    return check_datasets.main([str(word) for word in words])


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
    checks = (*NAMES, "--json", report)
    assert checked(*checks, "--allow-subset") == 1
    assert [entry["state"] for entry in json.loads(report.read_text())] == ["unprepared"] * 4
    assert "mend: python tools/prepare.py voc20" in capsys.readouterr().out
    assert prepared("coco_stuff", "--splits", "val2017", "--processes", 1) == 0
    assert prepared("ade150", "--root", root, "--processes", 1) == 0
    assert prepared("voc20", "--processes", 1) == 0
    assert "annotations_detectron2/validation: 17 written" in capsys.readouterr().out
    assert checked(*checks, "--allow-subset", "--full") == 0
    entries = json.loads(report.read_text())
    assert [entry["labelled"] for entry in entries] == [20, 17, 3, 3]
    assert all(entry["fine"] and entry["notes"] for entry in entries)
    assert checked(*checks) == 1
    assert "17 of 2000 images" in capsys.readouterr().out


NAMED = {name: text for names in prepare.CONTENTS.values() for name, text in names.items()}


@pytest.mark.parametrize("data_set", NAMED)
def test_a_missing_archive_is_an_error_and_status_2(tmp_path, capsys, data_set):
    assert prepared(data_set, "--root", tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")
    # What is listed is the beginning of the help text.
    assert inspect.getdoc(PREPARATIONS[data_set].prepare).startswith(NAMED[data_set])


def test_wrong_words_are_status_2(tmp_path, capsys):
    assert checked("ade20k_sem_seg_150") == 2
    assert "did you mean" in capsys.readouterr().err
    assert prepared("ade150", "--root", tmp_path, "--processes", 0) == 2
    assert "--processes: has to be at least 1, got 0" in capsys.readouterr().err
