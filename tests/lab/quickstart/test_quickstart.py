"""The quickstart's chapters, runs and folder."""

import json

import pytest
from PIL import Image

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in
from clipself_seg.visualization.overlays import SEEN, UNSEEN
from lab.quickstart import chapters, quickstart
from lab.quickstart.chapters import (
    CHAPTERS,
    DETECTORS,
    LIVE,
    PANOPTIC_VIEWS,
    Made,
    Table,
    TableRow,
    View,
    results_of,
)
from lab.tables.store import Store
from tests.lab.tables.worlds import finish

ROWS = [row for chapter in CHAPTERS for row in chapter.rows]


def images_of(run):
    """Images that a training draws."""
    values = {**run.defaults, **run.settings["config"]}
    return values["SOLVER.MAX_ITER"] * values["SOLVER.IMS_PER_BATCH"]


def test_a_full_quickstart_trains_longer_and_no_two_rows_are_one_run():
    short, full = ({row: row.run(kind) for row in ROWS} for kind in (False, True))
    assert len({run.name for run in short.values()}) == len(ROWS) == 16
    for row in ROWS:
        assert short[row].evaluate is not row.training
        assert (images_of(short[row]) < images_of(full[row]) / 2) == row.training
        assert (short[row].name == full[row].name) == (not row.training)


def test_runs_are_on_the_worlds_that_are_drawn_and_a_failed_one_ends_the_quickstart(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", "elsewhere")  # which is put back
    drawn, made = [], []

    def stop(runs, store, *, at_once):
        trains = [not run.evaluate for run in runs]
        assert trains == sorted(trains, reverse=True) and len(runs) == 16  # the long ones begin
        made.append((store.folder, {run.settings["data"]["mini_val_panoptic"] for run in runs[:2]}))
        raise InputError("the run failed")

    def draw(root, size):
        drawn.append(size.val)
        (root / "mini").mkdir(parents=True, exist_ok=True)
        (root / "mini" / "manifest.json").write_text(json.dumps(size.val))

    monkeypatch.setattr(quickstart, "make_worlds", draw)
    monkeypatch.setattr(quickstart, "make_all", stop)
    for full in (False, True):
        with pytest.raises(InputError, match="the run failed"):
            quickstart.run_quickstart(tmp_path, full=full)
    assert drawn == [100, 200]
    assert made == [(tmp_path / "runs", {100}), (tmp_path / "runs", {200})]


def test_two_quickstarts_do_not_meet(tmp_path):
    with alone_in(tmp_path), pytest.raises(InputError, match="another process"):
        quickstart.run_quickstart(tmp_path)


def made_in(folder, rows):
    return Made({row: row.run(False) for row in rows}, Store(folder / "runs"), folder / "worlds")


def test_a_table_has_what_the_runs_of_its_rows_have_left(tmp_path):
    made = made_in(tmp_path, LIVE)
    table = Table(LIVE[:1], lambda rows, style: f"{style}: {rows}", "live ", lambda r: r["val"])
    with pytest.raises(InputError, match="/runs/patches-.* has no results: remove it"):
        results_of(table, made, {})
    finish(made.store, made.runs[LIVE[0]], {"val": {"x": 1.5}})
    results = results_of(table, made, {})
    title = LIVE[0].title
    assert results.rows == {title: {"x": 1.5}} and results.table("simple").startswith("simple: ")
    assert results.provenances[f"live {title}"]["commit"] == "abc"


def _annotation(category: int, x: int, **more: float) -> dict:
    return {"id": 1, "image_id": 7, "category_id": category, "bbox": [x, 40, 60, 60]} | more


def _write(path, content) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def test_each_column_has_the_sure_boxes_of_its_run_and_the_truth_knows_what_is_seen(
    tmp_path, monkeypatch
):
    image = tmp_path / "worlds/mini/val/000007.jpg"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (500, 300), (128, 128, 128)).save(image)
    classes = Vocabulary.load("mini_things").classes
    known, new = (next(c.dataset_id for c in classes if c.seen is seen) for seen in (True, False))
    images = [{"id": 7, "file_name": "a/000007.jpg", "height": 300, "width": 500}]
    true = [_annotation(known, 10), _annotation(new, 400)]
    categories = [{"id": c.dataset_id, "name": c.names[0]} for c in classes]
    content = {"images": images, "annotations": true, "categories": categories}
    _write(tmp_path / "worlds/mini/annotations/instances_val.json", content)
    boxes = ([_annotation(new, 9, score=0.6)], [_annotation(known, 10, score=0.9)])
    made = made_in(tmp_path, DETECTORS)
    for row, entries in zip(DETECTORS, (*boxes, [_annotation(new, 9, score=1)]), strict=True):
        _write(made.file(row, "detections_mini_val_boxes.json"), entries)
    monkeypatch.setattr(chapters, "WORLDS", ("mini",))
    (row,) = chapters.detection_images(made)["mini"]
    columns = list(row.tiles.values())
    seen, unseen = ([(c == k).all(axis=-1).any() for c in columns] for k in (SEEN, UNSEEN))
    assert seen == [True, False, True, False] and unseen == [True, False, False, True]


def test_a_view_has_the_weights_that_were_trained_or_those_that_it_names(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(chapters, "load", lambda *given, **named: loaded.append((given, named)))
    row = TableRow("", "semseg", training=True)
    made = made_in(tmp_path, [row])
    View("", row).predictor(made)
    PANOPTIC_VIEWS[0].predictor()
    (trained, of_row), (shipped, of_view) = loaded
    assert trained == (tmp_path / "runs" / made.runs[row].name / "model_final.pth",)
    assert of_row == {"config_file": "configs/mini/semseg.yaml", "opts": ()}
    assert shipped == ("mini-open-panoptic",) and of_view["opts"] == ("MODEL.FUSION.MODE", "clip")
