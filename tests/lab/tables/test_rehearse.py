"""Two steps of one run of each recipe, on random weights of the real sizes."""

import pytest

from lab.mini.writer import WorldSize, make_worlds
from lab.tables import rehearse, table
from lab.tables.rehearse import rehearsals
from lab.tables.reproduce import Reproduction
from lab.tables.table import read_tables
from tests.lab.tables.test_every_command import evaluate_in_forks
from tests.lab.tables.worlds import write_table


def test_each_recipe_runs_two_steps_on_random_weights(tmp_path, monkeypatch, capsys):
    evaluate_in_forks(monkeypatch)
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path / "worlds"))
    write_table(tmp_path / "tables")
    monkeypatch.setattr(table, "FOLDER", tmp_path / "tables")
    make_worlds(tmp_path / "worlds", WorldSize(train=2, val=2, base=1), processes=1)
    given = Reproduction(scale="mini", seeds=[0], output=tmp_path / "output", docs=tmp_path)
    assert given.rehearse([]) == 0
    said = capsys.readouterr().out
    assert (
        "minutes left" not in said
        and said.endswith("2 of 2 recipes ran\n")
        and said.count("MODEL.CLIP.WEIGHTS ''") == 2
    )
    assert "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 1 " in said
    # What is rehearsed is no number of a table.
    assert not any(given.store.record(run) for run in given.wanted([]))


@pytest.fixture
def part_of_the_data(monkeypatch):
    """Every data set is there, but for PASCAL Context and the full ADE20K; of the others a part alone."""

    def missing_data(name, whole):
        return "Context" * (whole or "context" in name) or "ADE20K" * ("ade20k_full" in name)

    monkeypatch.setattr(rehearse, "missing_data", missing_data)


def test_a_recipe_is_rehearsed_once_by_its_shortest_run_with_its_own_batch(part_of_the_data):
    runs, lacking = rehearsals(read_tables(["2", "1c", "6", "fig4"]), "real", gpus=4)
    assert len({(run.config.partition("+")[0], run.evaluate) for run in runs}) == len(runs)
    (patches,) = (run for run in runs if "coco_patches" in run.config)
    values = patches.settings["config"]
    assert values["SOLVER.MAX_ITER"] == 2 and values["SOLVER.IMS_PER_BATCH"] == 4 * 2
    assert values["INPUT.REGIONS.STUDENT_SIZE"] == 320  # of Table 1c, the shortest
    assert "weights" in patches.settings and not patches.settings["weights"]
    assert lacking == ["the weights odise-caption, which are not random"]


def test_a_recipe_whose_data_are_missing_is_named_with_them(part_of_the_data):
    runs, lacking = rehearsals(read_tables(["5"]), "real", gpus=0)
    assert not [run for run in runs if run.evaluate]
    assert lacking[-1] == "ADE20K"  # of the shortest run, which has these data alone
