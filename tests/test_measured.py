"""Numbers of README and docs are those of the records that are kept of them."""

import re
import statistics
from datetime import datetime, timedelta

import pytest
from write_tables import with_seconds

from bench import jobs
from clipself_seg.files import read_json
from clipself_seg.training.metrics import flatten_numbers
from tests.conftest import ROOT

QUICKSTART = "docs/quickstart.md"
LONG = "token: crops, 3,000 steps on 2,000 scenes"
PRESERVED = "the same, then 300 steps + preservation"
THREE = ("Boxes Top1", "Stuff Masks Top1", "Own Crops Top1")
# Page -> generated table, its columns, and begins of the page's rows -> rows of the table.
SUMMARIES = {
    "README.md": (
        "objectives",
        (*THREE, "Whole Images Top1"),
        {"original |": "original, token", "CLIPSelf |": LONG, "preserved": PRESERVED},
    ),
    "docs/objectives.md": (
        "objectives",
        (*THREE, "Grouping", "zero-shot mIoU"),
        {
            "original |": "original, token",
            "crops, 100 steps": "token: crops",
            "+ spatial": "token: + spatial correlation",
            "+ coherence": "token: + coherence",
            "+ preservation": "token: + preservation",
            "crops, 3,000": LONG,
            "the same": PRESERVED,
        },
    ),
    "docs/finetuning.md": (
        "finetuning",
        ("own ten, faded", "the ten, ordinary scenes", "others, first world")
        + ("others, second world",),
        {
            "before": "CAT-Seg, before",
            "after": "CAT-Seg, plain",
            "mixed": "CAT-Seg, plain, mixed with the start",
            "`aggregation_alone`": "CAT-Seg, aggregation alone",
            "`last_blocks`": "CAT-Seg, last block",
            "`low_rank`": "CAT-Seg, low rank",
            "`preserved`": "CAT-Seg, preserved",
            "`low_rank+preserved`": "CAT-Seg, low rank and preserved",
        },
    ),
}


def decimals(text: str) -> list[str]:
    """Numbers of a text that have a decimal."""
    return re.findall(r"\d+\.\d", text)


def numbers(row: str) -> list[str]:
    """Those with a decimal, behind the first cell."""
    return decimals(row.split("|", 2)[2])


def rows(page: str) -> list[str]:
    return [row for row in (ROOT / page).read_text().splitlines() if row.startswith("| ")]


@pytest.mark.parametrize("page", SUMMARIES)
def test_a_row_is_that_of_the_generated_table(page):
    table, columns, names = SUMMARIES[page]
    cells = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in rows(f"docs/tables/{table}.md")
    ]
    places = [cells[0].index(f"{column}: here") for column in columns]
    for begin, name in names.items():
        kept = next(row for row in cells if row[0] == name)
        wanted = [kept[place].partition(" ")[0] for place in places]
        assert wanted in [numbers(row) for row in rows(page) if row.startswith(f"| {begin}")]


@pytest.mark.parametrize(
    ("page", "row", "record"),
    [
        (QUICKSTART, "original CLIP | 21", "regions-4ddd1dec323b"),
        (QUICKSTART, "patches, live", "patches_seed0-d7522e9be34e"),
        (QUICKSTART, "proposals, live", "proposals_seed0-65c8df957da9"),
        (QUICKSTART, "patches, shipped", "regions-a8fbb1e96795"),
        (QUICKSTART, "original CLIP | 9", "zero_shot-7f90d75547a8"),
        (QUICKSTART, "original CLIP, values", "zero_shot-0f8bf15ad4f5"),
        (QUICKSTART, "CLIPSelf | ", "zero_shot-70644623292a"),
        ("docs/distillation.md", "original | 93", "whole_images-d3a665f54f0f"),
        ("docs/distillation.md", "CLIPSelf by patches, s", "whole_images-85caa951fe50"),
        ("docs/distillation.md", "CLIPSelf by proposals, s", "whole_images-78918d98021d"),
    ],
)
def test_a_row_is_that_of_one_record(page, row, record):
    results = read_json(ROOT / f"docs/tables/runs/{record}.json")["results"]
    measured = {f"{number:.1f}" for _, number in flatten_numbers(results)}
    (own,) = (own for own in rows(page) if own.startswith(f"| {row}"))
    assert numbers(own) and measured.issuperset(numbers(own))


@pytest.mark.parametrize(
    ("page", "begin", "record", "count"),
    [
        ("fig1a", "`mini-large`, as it comes", "longer_training", 2),
        ("fig1b", "When they are shrunk", "shrunk_scenes", 4),
        ("A1", "When they are shrunk", "shrunk_scenes", 4),
        ("A1", "masked attention has 61.6", "other_readouts", 7),
        ("fig1b", "At 640 pixels it has", "other_readouts", 2),
    ],
)
def test_a_reason_that_was_tested_has_its_record(page, begin, record, count):
    results = read_json(ROOT / f"docs/measured/{record}.json")["results"]
    text = (ROOT / f"docs/tables/{page}.md").read_text()
    (said,) = re.findall(rf"{begin}.*?\(docs/measured/{record}", text)
    measured = {f"{number:.1f}" for _, number in flatten_numbers(results)}
    assert len(measured & set(decimals(said))) == count


@pytest.mark.parametrize(
    ("page", "sentence", "table", "count"),
    [
        ("detection", "Novel AP50\nof boxes .*? in the first", "3a", 4),
        ("quickstart", "Over three seeds of 400 steps .* with CLIPSelf", "3a", 4),
        ("objectives", "values of three blocks are far better .* stuff 76.4\n.*?\\)", "dense", 4),
        ("objectives", "In the mini world boxes go from .*?\\[", "1c", 3),
        ("finetuning", "F-ViT's AP of the own ten .*? 25.3", "finetuning", 9),
        ("panoptic", "one distilled tower is about as good as two .*? 43.4", "one_tower", 6),
        ("semantic", "In the mini world `value` .*? 54.7", "zero_shot", 2),
        ("predict", "CLIPSelf finds 8.0 absent words .*? with `drop`", "absent_words", 2),
        ("predict", "without training: mIoU 39.3 .*? 45.3", "examples", 5),
    ],
)
def test_a_sentence_has_the_numbers_of_its_table(page, sentence, table, count):
    (said,) = re.findall(sentence, (ROOT / f"docs/{page}.md").read_text(), re.S)
    own = decimals(said)
    kept = decimals((ROOT / f"docs/tables/{table}.md").read_text())
    assert len(own) == count and set(own) <= set(kept), set(own) - set(kept)


def test_the_second_world_s_novel_ap50_is_the_mean_of_its_records():
    text = (ROOT / "docs/detection.md").read_text()
    table = rows("docs/tables/3a.md")
    for run, said in (("e32de0745451", "37.4 ± 1.4"), ("87e7227cd63f", "13.1 ± 1.1")):
        (row,) = (row for row in table if f"_seed0-{run}" in row)
        kept = [
            next((ROOT / "docs/tables/runs").glob(f"*-{one}.json"))
            for one in re.findall(r"\d: (\w{12})", row)
        ]
        novel = [
            read_json(path)["results"]["mini2_val_boxes"]["bbox"]["AP50-unseen"] for path in kept
        ]
        mean, deviation = statistics.fmean(novel), statistics.stdev(novel)
        assert len(novel) == 3 and f"{mean:.1f} ± {deviation:.1f}" == said and said in text


def test_the_space_that_readme_and_install_state_was_measured():
    kept = read_json(ROOT / "docs/measured/first_steps.json")["results"]
    install = (ROOT / "docs/install.md").read_text()
    for command, size in kept["GB"].items():
        (row,) = (
            r for r in rows("docs/install.md") if r.startswith(f"| `{command.split(', ')[0]}`")
        )
        assert f"{size} GB" in row
    said = set(re.findall(r"(\d\.\d) GB", (ROOT / "README.md").read_text()))
    assert said <= {str(size) for size in kept["GB"].values()} and "1.7 GB" in install
    assert kept["seconds"]["make demo"] < 60 and kept["seconds"]["make test"] < 660


def test_the_seconds_of_readme_are_those_that_were_measured():
    readme = (ROOT / "README.md").read_text()
    assert with_seconds(readme) == readme, "python tools/write_tables.py"


def test_the_table_of_speed_is_that_of_one_sitting():
    record = read_json(ROOT / "docs/measured/speed.json")["jobs"]
    origins = [of["provenance"] for of in record.values()]
    assert len({(of["device"], of["torch"]) for of in origins}) == 1
    assert not any("dirty" in of["commit"] for of in origins)
    first, *_, last = sorted(datetime.fromisoformat(of["date"]) for of in origins)
    assert last - first < timedelta(hours=2)
    rows = {f"{job.label}: {row}" for job in jobs.JOBS for row in job.rows}
    assert read_json(jobs.OFFICIAL)["jobs"].keys() < rows
