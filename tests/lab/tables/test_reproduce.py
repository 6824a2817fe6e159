"""Every table by one command, and any configuration under several seeds."""

import pytest

from clipself_seg.errors import InputError
from lab import ROOT
from lab.mini.writer import WorldSize, make_worlds
from lab.tables import execution, reproduce, table
from lab.tables.execution import plan
from lab.tables.repeat import repeat, spread_table
from lab.tables.reproduce import Reproduction, refuse_other_worlds
from lab.tables.runs import make_run
from lab.tables.store import Store
from reproduce import reproduce as reproduce_command
from tests.lab.tables.test_every_command import evaluate_in_forks
from tests.lab.tables.worlds import finish, write_table


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder with one table, and a world of two scenes."""
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path / "worlds"))
    write_table(tmp_path / "tables")
    monkeypatch.setattr(table, "FOLDER", tmp_path / "tables")
    return tmp_path


def reproduction(folder, scale="mini", seeds=(0,), docs="docs"):
    where = {"output": folder / "output", "docs": docs and folder / docs}
    return Reproduction(scale=scale, seeds=seeds, **where)


def test_a_table_of_two_rows_from_end_to_end(tables, capsys, monkeypatch):
    evaluate_in_forks(monkeypatch)
    make_worlds(tables / "worlds", WorldSize(train=2, val=2, base=1), processes=1)
    assert reproduction(tables).run(["9"]) == 0
    said = capsys.readouterr().out
    assert said.count("$ clipself-seg ") == 2 and "[2/2]" in said
    page = (tables / "docs" / "tables" / "9.md").read_text()
    assert "not run" not in page and "| no verdict |" in page
    # In another folder what is kept is enough, and nothing runs again.
    (tables / "output").rename(tables / "elsewhere")
    assert reproduction(tables).run([]) == 0
    assert "$ " not in capsys.readouterr().out
    assert (tables / "docs" / "tables" / "9.md").read_text() == page


def test_the_pages_of_the_project_are_those_of_its_records(tmp_path):
    assert reproduce_command(["--page", "--output", str(tmp_path)]) == 0
    written = sorted((tmp_path / "page" / "tables").glob("*.md"))
    assert len(written) > 25
    for page in written:
        assert page.read_text() == (ROOT / "docs" / "tables" / page.name).read_text(), page.name


def test_without_docs_the_results_of_the_project_are_read_and_not_written(tables, monkeypatch):
    monkeypatch.setattr(reproduce, "DOCS", tables / "docs")
    made = reproduction(tables)
    for run in made.wanted(["9"]):
        finish(made.store, run, {"mini_val_panoptic": {"64": {"boxes.thing.top1": 50.0}}})
    (tables / "output").rename(tables / "elsewhere")
    before = {path: path.read_bytes() for path in (tables / "docs").rglob("*.*")}
    alone = reproduction(tables, docs=None)
    assert before and not plan(alone.wanted(["9"]), alone.store)
    alone.write_page()
    assert "50.0" in (tables / "output" / "page" / "tables" / "9.md").read_text()
    assert before == {p: p.read_bytes() for p in (tables / "docs").rglob("*.*")}


def test_list_and_dry_run_need_no_data_and_run_nothing(tables, capsys):
    given = reproduction(tables, seeds=(0, 1))
    given.list_rows([])
    said = capsys.readouterr().out
    assert "9: Table 9: a small one" in said
    assert "CLIPSelf, patches: 0 of 2 finished, 0.2 core-minutes a seed" in said
    given.dry_run(["9"])
    said = capsys.readouterr().out
    assert said.count("clipself-seg ") == 3 and "3 runs, 0.5 core-minutes" in said
    assert "--num-gpus" not in said and "on 2 cores" in said
    given.dry_run(["9"], gpus=4)
    of_gpus = capsys.readouterr().out
    assert "--num-gpus 4" in of_gpus and "cores" not in of_gpus
    patches, _ = given.runs_of(*reproduce.read_tables(["9"]), [0, 1])["patches"]
    finish(given.store, patches, {"mini_val_panoptic": {"64": {"boxes.thing.top1": 1.0}}})
    assert "finished" not in said
    given.dry_run(["9"])
    said = capsys.readouterr().out
    assert "2 runs" in said and "1 of 3 are finished" in said and "another --docs" in said
    assert not (tables / "docs" / "tables" / "index.md").exists()


def test_the_page_shows_every_seed_that_is_there(tables):
    given = reproduction(tables, seeds=(5,))
    for run in given.runs_of(*reproduce.read_tables(["9"]), [0, 1, 2, 5])["patches"]:
        boxes = {"boxes.thing.top1": 1.0 * run.seed}
        finish(given.store, run, {"mini_val_panoptic": {"64": boxes}})
    given.write_page()
    assert "2.0 ± 2.2" in (tables / "docs" / "tables" / "9.md").read_text()


def test_the_plan_on_real_data_has_hours_and_commands_whatever_is_missing(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    plan = Reproduction(scale="real", seeds=[0], output=tmp_path / "output", docs=tmp_path)
    plan.dry_run(["2"])
    said = capsys.readouterr().out
    assert said.count("# 2; lacks what is missing") == said.count("  clipself-seg ") == 3
    assert " 16 A100 hours  clipself-seg train" in said and " 17 A100 hours  clipself" in said
    assert "  3 A100 minutes  clipself-seg eval" in said and "3 runs, 33 A100 hours\n" in said
    assert "      33 A100 hours  table 2: 3 runs" in said
    assert "COCO; size: 21.3 GB, unpacked as much again; licence: annotations CC" in said
    assert (
        "merged2b_s8b_b131k (EVA02-B-16); size: about 299 MB; licence: MIT" in said
        and "disk: about 5 GB" in said
    )


def test_without_a_go_ahead_the_plan_on_real_data_is_printed_and_nothing_runs(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    words = ["--real", "--table", "1c", "2", "--seeds", "0", "--output", str(tmp_path / "out")]
    assert reproduce_command(words) == 0
    said = capsys.readouterr().out
    assert "$ " not in said and said.endswith("nothing was started: --start runs this\n")
    # Patches of 1,024 pixels and the original CLIP are of both tables, and stand once.
    assert said.count("   # 1c, 2; lacks") == 2
    assert not (tmp_path / "out").exists()
    assert reproduce_command([*words, "--start"]) == 1
    said = capsys.readouterr().out
    assert "missing: coco_2017_train: " in said and "https://cocodataset.org" in said
    assert reproduce_command([*words, "--hours", "0"]) == 2
    assert "--hours 0 pays for nothing" in capsys.readouterr().err


def test_a_budget_goes_to_most_numbers_an_hour_and_says_which_tables_are_complete(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    given = Reproduction(scale="real", seeds=[0, 1], output=tmp_path / "out", docs=tmp_path)
    todo = plan(given.wanted(["1b", "2"]), given.store)
    within = [run.name for run in given.within(todo, ["1b", "2"], 40)]
    said = capsys.readouterr().out
    assert "40 hours pay for 3 of" in said
    assert "  seed 0: 2 complete\n  seed 1: no table complete\n" in said
    # The evaluation's six numbers take minutes; patches' have those of both tables.
    assert [name.split("-")[0] for name in within] == [
        "coco+eva02_vitb16",
        "coco_patches+eva02_vitb16_seed0",
        "coco_proposals+eva02_vitb16_seed0",
    ]


def test_a_run_that_fails_is_said_and_the_page_is_written(tables, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "run_all", lambda todo, *_, **__: {todo[0].name: "the reason"})
    assert reproduction(tables).run([]) == 1
    assert "failed: regions-" in capsys.readouterr().out
    assert (tables / "docs" / "tables" / "9.md").exists()


CONFIG = "configs/mini/patches.yaml"
OTHER = "configs/mini/panoptic.yaml"


def write(folder, seed, options=None, **numbers):
    finish(Store(folder), make_run(CONFIG, options or {}, seed=seed), {"val": numbers})


@pytest.fixture
def made(monkeypatch):
    """Runs that would be made: their numbers are 1."""
    made = []

    def run_all(runs, store, **_):
        for run in runs:
            made.append(run)
            finish(store, run, {"val": {"PQ": 1.0}})
        return {}

    monkeypatch.setattr(execution, "run_all", run_all)
    return made


def test_a_run_that_is_missing_is_made_with_its_seed(tmp_path, made):
    write(tmp_path, 0, mIoU=1.0)
    repeat([CONFIG], [0, 1], tmp_path)
    assert [run.seed for run in made] == [1]


def test_one_seed_has_no_spread_and_a_failed_run_is_named(tmp_path, monkeypatch):
    for seeds, words, said in (
        ([3, 3], [], "two different seeds"),
        ([3, 4], ["KEY"], '"KEY" has no value'),
        ([3, 4], ["DATASETS.TEST", "()"], f"{CONFIG} evaluates nothing: give DATASETS.TEST"),
    ):
        with pytest.raises(InputError, match=said):
            repeat([CONFIG], seeds, tmp_path, words)
    failed = lambda runs, store, **_: {runs[0].name: "the reason"}  # noqa: E731
    monkeypatch.setattr(execution, "run_all", failed)
    with pytest.raises(InputError, match="the run .*/patches_seed3-.* failed: the reason"):
        repeat([CONFIG], [3, 4], tmp_path)


def test_a_number_that_is_none_in_one_run_has_no_spread(tmp_path):
    for seed, number in enumerate((1.5, float("nan"))):
        write(tmp_path, seed, PQ=number, AP=1.0)
    assert "nan +- nan" in spread_table(repeat([CONFIG], (0, 1), tmp_path))


def test_a_world_of_other_sizes_is_refused_and_not_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    refuse_other_worlds()
    manifest = tmp_path / "mini" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text('{"format": 1, "train": 20, "val": 30, "base": 20, "seed": 0}')
    for option in ([], ["--dry-run"]):
        assert reproduce_command([*option, "--table", "1a"]) == 2
        assert "set CLIPSELF_SEG_MINI to another folder" in capsys.readouterr().err
    assert "30" in manifest.read_text()
