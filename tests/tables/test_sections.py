"""What the page says about a table of made-up numbers."""

from __future__ import annotations

import json

import pytest

from clipself_seg.errors import InputError
from clipself_seg.tables.runs import resolve
from clipself_seg.tables.sections import find_number, make_section
from clipself_seg.tables.store import Store
from clipself_seg.tables.table import read_table
from tests.tables.worlds import FOLLOWED, finish, write_table


def boxes(number):
    return {"mini_val_panoptic": {"64": {"boxes.thing.top1": number}}}


def section_of(folder, numbers, scale="mini"):
    """The section after runs by seed, and of the original, whatever the seed."""
    table = read_table(write_table(folder / "tables"))
    store = Store(folder / "runs")
    runs = {name: [resolve(table.runs[scale], name, 0)] for name in table.shown_runs(scale)}
    if "patches" in runs:
        runs["patches"] = [resolve(table.runs[scale], "patches", seed) for seed in range(3)]
    for name, values in numbers.items():
        for run, value in zip(runs[name], values):
            finish(store, run, boxes(value))
    return make_section(table, scale, runs, store)


def test_rows_claims_commands_and_cost(tmp_path):
    section = section_of(tmp_path, {"original": [20.0], "patches": [70.0, 71.0, 72.0]})
    assert section.headings == ["row", "Boxes: paper", "Boxes: here", "claims"]
    assert section.body == [
        ["original CLIP", "18.2", "20.0", "1 holds"],
        ["CLIPSelf, patches", "72.1", "71.0 ± 1.0", "1 holds"],
    ]
    assert section.claims == [
        ["1. Patches are better.", "", "", "", "holds"],
        [
            "Boxes: original CLIP < CLIPSelf, patches",
            "18.2 < 72.1",
            "20.0 < 71.0",
            "+51.0 ± 0.6",
            "holds",
        ],
    ]
    assert section.reasons == []
    original, patches = section.commands
    assert original[2:] == ["any", "abc", "123", "1.5"] and patches[2] == "0 1 2"
    assert patches[1].startswith(
        "python train_net.py --config-file configs/mini/patches.yaml --resume"
    )
    assert " OUTPUT_DIR output/reproduce/" in patches[1] and str(tmp_path) not in patches[1]
    assert sum(section.minutes.values()) == 6


def test_a_claim_that_does_not_hold_says_why(tmp_path):
    section = section_of(tmp_path, {"original": [20.0], "patches": [10.0, 11.0, 12.0]})
    assert section.claims[1][2:] == ["20.0 and 11.0", "-9.0 ± 0.6", "does not hold"]
    assert section.reasons == ["Claim 1 does not hold here: One step is not enough."]


def test_a_claim_within_noise_says_why(tmp_path):
    section = section_of(tmp_path, {"original": [11.0], "patches": [10.0, 11.0, 12.5]})
    assert section.reasons == ["Claim 1 is within noise here: One step is not enough."]


def test_what_was_not_run_or_has_one_seed_says_so(tmp_path):
    section = section_of(tmp_path, {"original": [20.0]})
    assert section.body[1] == ["CLIPSelf, patches", "72.1", "not run", "1 not run"]
    assert section.commands[1][2] == "not run" and section.reasons == []
    section = section_of(tmp_path, {"patches": [70.0]})
    assert section.body[1][2:] == ["70.0", "1 no verdict"]


def test_a_row_that_a_scale_does_not_have_says_so(tmp_path):
    section = section_of(tmp_path, {}, "real")
    assert section.body[1][2:] == ["-", "1 not in the real world"]
    assert section.reasons == ["Not in the real world (for tests). Rows: CLIPSelf, patches"]
    assert len(section.commands) == 1


def followed_section(folder):
    """A section whose rows have numbers of two runs."""
    table = read_table(write_table(folder / "tables", FOLLOWED))
    store = Store(folder / "runs")
    runs = {name: [resolve(table.runs["mini"], name, 0)] for name in table.shown_runs("mini")}
    finish(store, runs["original"][0], boxes(20.0))
    half = {"boxes.thing.top1": 70.0, "alpha_0.5-boxes.thing.top1": 60.0}
    finish(store, runs["patches"][0], {"mini_val_panoptic": {"64": half}})
    finish(store, runs["original pixels"][0], {"mini_val_sem_seg": {"mIoU": 10.0}})
    finish(store, runs["patches pixels"][0], {"mini_val_sem_seg": {"mIoU": 40.0}})
    return make_section(table, "mini", runs, store)


def test_a_row_shows_numbers_and_commands_of_the_run_that_follows_its_own(tmp_path):
    section = followed_section(tmp_path)
    rows = [dict(zip(section.headings, row)) for row in section.body]
    assert [row["Boxes: here"] for row in rows] == ["20.0", "70.0"]
    assert [row["mIoU: here"] for row in rows] == ["10.0", "40.0"]
    # The original's run finished, and has no mixtures.
    assert [row["Boxes, alpha 0.5: here"] for row in rows] == ["-", "60.0"]
    assert [command[0] for command in section.commands] == [
        "original CLIP",
        "original CLIP, pixels",
        "CLIPSelf, patches",
        "CLIPSelf, patches, pixels",
    ]
    training, evaluation = section.commands[3][1].split("; then ")
    assert "--resume" in training and "configs/mini/zero_shot.yaml --eval-only" in evaluation
    assert len(section.minutes) == 4


def test_a_path_has_to_fit_one_number():
    numbers = {"a/160/x": 1.0, "a/64/y": 2.0, "a/64/x": 3.0}
    assert find_number(numbers, "a/*/y") == 2 and find_number(numbers, "a/*") is None
    with pytest.raises(InputError, match=r"a/\*/x fits a/160/x and a/64/x"):
        find_number(numbers, "a/*/x")


def test_the_protocols_of_the_runs_stand_below_the_table_once_for_each_data_set(tmp_path):
    table = read_table(write_table(tmp_path / "tables"))
    store = Store(tmp_path / "runs", tmp_path / "kept")
    runs = {name: [resolve(table.runs["mini"], name, 0)] for name in table.shown_runs("mini")}
    for name, size in (("original", "64 px"), ("patches", "96 px")):
        finish(store, runs[name][0], boxes(20.0))
        path = tmp_path / "runs" / runs[name][0].name / "results.json"
        content = json.loads(path.read_text())
        path.write_text(
            json.dumps(
                content | {"protocol": {"mini_val_panoptic": {"words": "few", "size": size}}}
            )
        )
    section = make_section(table, "mini", runs, Store(tmp_path / "runs", tmp_path / "kept"))
    assert section.reasons == ["Protocol of mini_val_panoptic: words: few | size: 64 px or 96 px"]
