"""Runs of several models in one table and one picture."""

import json

import pytest

from clipself_seg.commands.compare import compare
from clipself_seg.errors import InputError
from clipself_seg.evaluation import comparison
from clipself_seg.evaluation.comparison import comparison_notes, comparison_tables, read_comparison


def write_run(folder, results):
    folder.mkdir()
    content = {"results": results, "provenance": {}}
    (folder / "results.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    small, large = {"boxes.thing.top1": 20.0}, {"boxes.thing.top1": 30.0, "crops.thing.top5": 99.0}
    original = write_run(tmp_path / "original", {"coco": {"640": large, "96": small}})
    student = write_run(tmp_path / "student", {"coco": {"96": large}, "mini": {"96": small}})
    return [original, f"CLIPSelf={student}/results.json"]


def test_models_and_sizes_share_table_and_picture(tmp_path, runs, capsys, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        comparison, "plot_size_curve", lambda curves, path: drawn.update({path.name: curves})
    )
    assert compare([*runs, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "original, 640 px" in said and "\nmini, percent" in said
    assert drawn.keys() == {"size_curve_coco.png", "size_curve_mini.png"}
    assert [*map(list, drawn["size_curve_coco.png"].values())] == [[640, 96], [96]]
    lines = (tmp_path / "out/tables.csv").read_text().splitlines()
    assert lines[0] == "coco" and lines[2:5] == [
        '"original, 96 px",20.0,-,-,-,-,-,-,-',
        '"original, 640 px",30.0,-,-,-,-,-,-,99.0',
        '"CLIPSelf, 96 px",30.0,-,-,-,-,-,-,99.0',
    ]
    table = comparison_tables(read_comparison(runs[1:]), "csv")["coco"]  # of one size
    assert table.splitlines()[1].startswith("CLIPSelf,30.0,")
    markdown = (tmp_path / "out/tables.md").read_text()
    assert markdown.startswith("## coco\n\n| model") and "**30.0** |" in markdown
    assert (tmp_path / "out/tables.tex").exists()


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"ade": {"images": 30.0}},
        {"coco": {"bbox": {"AP": 1.0}, "segm": {"AP": None}}},
        {"coco": {"640": {"boxes.thing.top1": "many"}}},
        {"coco": {"640": {"boxes.thing.top1": 10**400}}},
        {"coco": {"640": {"images": 3.0}}},
        {"coco": [1.0]},
    ],
)
def test_what_has_no_numbers_is_refused_by_file(tmp_path, results):
    run = write_run(tmp_path / "run", results)
    with pytest.raises(InputError, match=r"run/results\.json has no numbers"):
        read_comparison([run])


def test_each_task_has_its_columns_and_lines(tmp_path):
    semantic = write_run(tmp_path / "a", {"ade": {"mIoU": 30.0, "mACC": 40.0, "IoU-dog": 1.0}})
    panoptic = {"coco": {"clip": {"PQ": 1.0}, "fused": {"PQ": 2.0, "alpha": 0.4}, "sweep": [1]}}
    panoptic["coco"]["void_0.5"] = {"PQ": 3.0}
    boxes = {"lvis": {"bbox": {"AP": 3.0, "AP50-unseen": 4.0}}}
    both = write_run(tmp_path / "b", panoptic | boxes | {"ade": {"mIoU": 31.0}})
    tables = comparison_tables(read_comparison([semantic, both]), "csv")
    assert tables == {
        "ade": "model,mIoU,mAcc\na,30.0,40.0\nb,31.0,-",
        "coco": "model,,PQ\nb,CLIP only,1.0\nb,fused,2.0\nb,void_0.5,3.0",
        "lvis": "model,AP,novel AP50\nb,3.0,4.0",
    }
    regions = write_run(tmp_path / "c", {"ade": {"640": {"boxes.thing.top1": 20.0}}})
    with pytest.raises(InputError, match="of another task for ade: compare tasks apart"):
        read_comparison([semantic, regions])


def test_a_picture_stays_in_its_folder_whatever_the_data_set_is_called(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "plot_size_curve", lambda curves, path: drawn.append(path))
    run = write_run(tmp_path / "run", {"../../x": {"96": {"boxes.thing.top1": 20.0}}})
    assert compare([run, "--output", str(tmp_path / "out")]) == 0
    assert drawn == [tmp_path / "out" / "size_curve_.._.._x.png"]


def test_a_name_has_one_run_of_each_data_set(tmp_path, runs):
    boxes = write_run(tmp_path / "boxes", {"lvis": {"bbox": {"AP": 3.0}}})
    given = read_comparison([runs[0], f"original={boxes}"])
    assert {dataset: [*models] for dataset, models in given.items()} == {
        "coco": ["original"],
        "lvis": ["original"],
    }
    with pytest.raises(InputError, match='two runs called "original" have numbers of coco: give'):
        read_comparison([runs[0], f"original={runs[1].partition('=')[2]}"])
    with pytest.raises(InputError, match="missing"):
        read_comparison([str(tmp_path / "missing")])


# Of more values than memory holds.
LAUGHS = "MODEL: {CLIP: {WEIGHTS: mini}}\na0: &a0 {x: 1, y: 2}\n" + "\n".join(
    f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 99)
)


@pytest.mark.parametrize(
    "config, given",
    [
        ("MODEL:\n  CLIP: {WEIGHTS: mini, VISUAL_INIT: ''}\n", "MODEL.CLIP.WEIGHTS mini, 7 steps"),
        (None, "hash 'abc', 7 steps"),
        ("[" * 9999, "hash 'abc', 7 steps"),
        (LAUGHS, "MODEL.CLIP.WEIGHTS mini, 7 steps"),
    ],
)
def test_weights_are_part_of_what_is_compared(config, given, tmp_path):
    origins = {"a": {"config": config, "weights_hash": "abc", "iterations": 7}, "b": {}}
    runs = [write_run(tmp_path / name, {"ade": {"mIoU": 1.0}}) for name in origins]
    for run, origin in zip(runs, origins.values()):
        path = f"{run}/results.json"
        content = json.loads(open(path).read())
        content |= {"provenance": origin, "protocol": {"ade": {"words": "9"}}}
        open(path, "w").write(json.dumps(content))
    assert comparison_notes(runs)[1:] == [f"Different weights of ade: a: {given}; b: -"]


def test_protocols_say_what_runs_share_and_where_they_differ(tmp_path, runs, capsys):
    for folder, size in (("original", "64 px"), ("student", "96 px")):
        path = tmp_path / folder / "results.json"
        protocol = {"coco": {"words": "133", "size": size}}
        content = json.loads(path.read_text()) | {"protocol": protocol}
        if folder == "student":
            content["provenance"]["mini worlds"] = "the small ones"
        path.write_text(json.dumps(content))
    notes = [
        "Protocol of coco: words: 133",
        "Different size of coco: original: 64 px; CLIPSelf: 96 px",
        "Different mini worlds of coco: original: -; CLIPSelf: the small ones",
    ]
    assert comparison_notes(runs) == notes
    assert compare([*runs, "--output", str(tmp_path / "out")]) == 0
    assert "\n".join(notes) in capsys.readouterr().out
    assert all(note in (tmp_path / "out/tables.md").read_text() for note in notes)
