"""A table from its file to its page, with train_net.py itself."""

from __future__ import annotations

import pytest

from clipself_seg.mini.writer import WorldSize, make_worlds
from clipself_seg.tables import reproduce as module
from clipself_seg.tables.reproduce import Reproduction
from tests.tables.worlds import finish, write_table


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder with one table, and a world of two scenes."""
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path / "worlds"))
    write_table(tmp_path / "tables")
    return tmp_path


def reproduction(folder, scale="mini", seeds=(0,), docs="docs"):
    return Reproduction(
        scale=scale,
        seeds=seeds,
        output=folder / "output",
        docs=folder / docs,
        tables=folder / "tables",
    )


def test_a_table_of_two_rows_from_end_to_end(tables, capsys):
    make_worlds(tables / "worlds", WorldSize(train=2, val=2, base=1), processes=1)
    assert reproduction(tables).run(["9"]) == 0
    said = capsys.readouterr().out
    assert said.count("$ python train_net.py") == 2 and "[2/2]" in said
    page = (tables / "docs" / "tables.md").read_text()
    assert "not run" not in page and "| no verdict |" in page
    # In another folder what is kept is enough, and nothing runs again.
    (tables / "output").rename(tables / "elsewhere")
    assert reproduction(tables).run([]) == 0
    assert "$ python" not in capsys.readouterr().out
    assert (tables / "docs" / "tables.md").read_text() == page


def test_list_and_dry_run_need_no_data_and_run_nothing(tables, capsys):
    given = reproduction(tables, seeds=(0, 1))
    given.list_rows([])
    said = capsys.readouterr().out
    assert "9: Table 9: a small one" in said
    assert "CLIPSelf, patches: 0 of 2 finished, 0.2 core-minutes a seed" in said
    given.dry_run(["9"])
    said = capsys.readouterr().out
    assert said.count("python train_net.py") == 3 and "3 runs, 0 core-minutes" in said
    patches, _ = given.runs_of(module.read_tables(["9"], tables / "tables")[0], [0, 1])["patches"]
    finish(given.store, patches, {"mini_val_panoptic": {"64": {"boxes.thing.top1": 1.0}}})
    assert "finished" not in said
    given.dry_run(["9"])
    said = capsys.readouterr().out
    assert "2 runs" in said and "1 of 3 are finished" in said and "another --docs" in said
    assert not (tables / "docs" / "tables.md").exists()


def test_the_page_shows_every_seed_that_is_there(tables):
    given = reproduction(tables, seeds=(5,))
    (table,) = module.read_tables(["9"], tables / "tables")
    for run in given.runs_of(table, [0, 1, 2, 5])["patches"]:
        finish(
            given.store, run, {"mini_val_panoptic": {"64": {"boxes.thing.top1": 1.0 * run.seed}}}
        )
    given.write_page()
    assert "2.0 ± 2.2" in (tables / "docs" / "tables.md").read_text()


def test_rows_on_real_data_without_files_are_left_out_with_the_way_to_get_them(
    tables, capsys, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tables))
    assert reproduction(tables, "real").run([]) == 1
    said = capsys.readouterr().out
    assert (
        said.startswith("missing: coco_2017_val_panoptic: ") and "https://cocodataset.org" in said
    )
    assert "$ python" not in said
    assert "not run" in (tables / "docs" / "tables_real.md").read_text()


def test_a_run_that_fails_is_said_and_the_page_is_written(tables, capsys, monkeypatch):
    monkeypatch.setattr(module, "run_all", lambda todo, *_, **__: {todo[0].name: "the reason"})
    assert reproduction(tables).run([]) == 1
    assert "failed: regions-" in capsys.readouterr().out
    assert (tables / "docs" / "tables.md").exists()


def test_a_dry_run_prints_the_commands_of_its_gpus(tables, capsys):
    given = reproduction(tables)
    given.dry_run(["9"], gpus=4)
    said = capsys.readouterr().out
    assert "--num-gpus 4" in said and "cores" not in said
    given.dry_run(["9"])
    said = capsys.readouterr().out
    assert "--num-gpus" not in said and "on 2 cores" in said
