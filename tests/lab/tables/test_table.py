"""Tables as data, and verdicts on their claims."""

import csv
import math
import re
from pathlib import Path

import pytest

from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.errors import InputError
from lab.tables.claims import (
    FAILS,
    FEW_SEEDS,
    HOLDS,
    NOISE,
    NOT_RUN,
    PRINTED,
    UNMEASURED,
    claim_verdicts,
    overall,
    verdict,
)
from lab.tables.runs import resolve
from lab.tables.table import FOLDER, SCALES, list_tables, read_table, read_tables
from tests.lab.tables.worlds import FOLLOWED, TABLE, write_table

TABLES = list_tables()
PAPER = "1a 1b 1c 2 3a 3b 4 5 6 7 A1 A2 A3 A4 A5 A6 fig1a fig1b fig3 fig4 figA1".split()
# What is compared here beside them.
OWN = [
    "backbone",
    "dense",
    "examples",
    "finetuning",
    "objectives",
    "one_tower",
    "void",
    "zero_shot",
]


def test_every_table_of_the_paper_is_there_and_in_its_order_before_those_of_this_project():
    assert TABLES == PAPER + OWN


def test_every_number_that_the_paper_prints_stands_under_the_table_that_prints_it():
    with open(Path(__file__).with_name("paper_numbers.csv"), newline="") as file:
        printed = {
            (line["table"], line["row"]): dict(zip(words[::2], map(float, words[1::2])))
            for line in csv.DictReader(file)
            for words in [line["numbers"].split()]
        }
    here = {
        (table.name, name): dict(row.paper)
        for table in read_tables()
        for name, row in table.rows.items()
        if row.paper or row.cite
    }
    assert here == printed and list(here) == list(printed)
    assert len(here) == 161 and sum(map(len, here.values())) == 498


# Inequalities that the paper's text makes, and its own numbers do not.
CONTRADICTED = {"5": ["12.4 and 12.4"], "6": ["52.3 and 52.3"], "A3": ["23.1 and 21.8"]}


@pytest.mark.parametrize("name", TABLES)
def test_what_the_paper_prints_is_as_its_claims_say_and_the_real_run_fills_its_columns(name):
    table = read_table(FOLDER / f"{name}.yaml")
    verdicts = [one for of in table.claims for one in claim_verdicts(table, of, {}, "real")]
    ends = f": {FAILS}"
    broken = [one.paper.removesuffix(ends) for one in verdicts if one.paper.endswith(ends)]
    assert broken == CONTRADICTED.get(name, [])
    for row in table.own.values():
        assert all(row.path(table.columns[column], "real") for column in row.paper)


@pytest.mark.parametrize("name", TABLES)
def test_every_run_has_a_configuration_that_loads_and_the_data_that_its_columns_read(name):
    table = read_table(FOLDER / f"{name}.yaml")
    for scale in SCALES:
        assert set(table.shown_runs(scale)) <= table.runs[scale].keys()
        for row in table.own.values():
            if scale in row.absent:
                continue
            for of, name_of_run in row.runs().items():
                columns = [column for column in table.columns.values() if column.of == of]
                paths = [path for c in columns if (path := row.path(c, scale))]
                if name_of_run not in table.runs[scale]:
                    assert of and not paths
                    continue
                assert paths
                run = resolve(table.runs[scale], name_of_run, seed=0)
                # What follows "@" is the fraction of a mixture with the start.
                names = {path.split("/")[0].partition("@")[0] for path in paths}
                assert names <= set(run.settings["data"])
                if scale == "mini":
                    assert all(0 < one.minutes <= 20 for one in run.with_needs())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    title: Boxes\n", "", r'9.yaml: columns: boxes: "title" is missing'),
        ("minutes: 0.1", "minutes: soon", "mini: original: minutes cannot be 'soon'"),
        ("minutes: 0.1", "minuts: 1", 'original: unknown key "minuts": did you mean "minutes"'),
        ("figure: curve", "figure: curv", "figure cannot be 'curv'; did you mean \"curve\""),
        ("run: patches", "run: patch", "of mini: there is no 'patch'; did you mean \"patches\""),
        ("{boxes: 72.1}", "{box: 72.1}", "paper: there is no 'box'; did you mean \"boxes\""),
        ("{boxes: 72.1}", "{boxes: much}", "paper: boxes cannot be 'much'"),
        ("order: original < patches", "order: original > patches", "order cannot be 'original > "),
        ("evaluate: True", "weights: {A: {run: patches}}", "weights of a run above"),
        (
            "columns:\n",
            "columns:\n  other: {title: Other}\n",
            "columns: other has no number: give it a path under mini or real",
        ),
        (FOLLOWED, "- 1", "9.yaml is .* and has to be an object"),
        ("about: For tests.", "about: !!python/object/apply:os.getcwd []", "not a usable YAML"),
        ("mini: mini_val_sem_seg", "real: mini_val_sem_seg", "of, in real: there is no 'pixels'"),
        ("keep: [MODEL.CLIP.DENSE]", "rows: [patch]", "rows: there is no 'patch'; did you mean"),
        ("keep: [MODEL.CLIP.DENSE]", "rows: [1]", "rows cannot be .*: give a list of names"),
        ("[boxes, miou]", "[boxes]", "points cannot have .*: give pairs of columns"),
        ("points: [[", "# [[", 'figure "plane" needs points'),
    ],
)
def test_a_broken_table_is_refused_by_place(tmp_path, old, new, message):
    text = TABLE if old in TABLE else FOLLOWED
    assert old in text
    with pytest.raises(InputError, match=message):
        read_table(write_table(tmp_path, text.replace(old, new, 1)))


def test_a_run_that_follows_has_the_rows_weights_and_the_keys_that_it_keeps(tmp_path):
    table = read_table(write_table(tmp_path, FOLLOWED))
    original, patches = (resolve(table.runs["mini"], f"{row} pixels", seed=1) for row in table.rows)
    assert table.shown_runs("mini") == ["original", "original pixels", "patches", "patches pixels"]
    assert table.shown_runs("real") == ["original"]
    assert not original.needs and original.seed is None
    assert patches.needs == {"MODEL.CLIP.WEIGHTS": patches.needs["MODEL.CLIP.WEIGHTS"]}
    assert (
        patches.needs["MODEL.CLIP.WEIGHTS"].name == resolve(table.runs["mini"], "patches", 1).name
    )
    kept = [run.settings["config"].get("MODEL.CLIP.DENSE") for run in (original, patches)]
    assert kept == [None, "value"] and patches.config == "configs/mini/zero_shot.yaml"


def test_weights_that_a_row_only_reads_are_handed_on(tmp_path):
    text = FOLLOWED.replace(
        "    evaluate: True\n    minutes: 0.1",
        "    evaluate: True\n    weights: {MODEL.CLIP.WEIGHTS: mini-clipself}\n    minutes: 0.1",
        1,
    )
    table = read_table(write_table(tmp_path, text))
    given = [table.runs["mini"][name].weights for name in ("original", "original pixels")]
    assert given == 2 * [{"MODEL.CLIP.WEIGHTS": "mini-clipself"}]


def test_a_run_that_follows_some_rows_leaves_the_others_without_its_numbers(tmp_path):
    text = FOLLOWED.replace("keep: [MODEL.CLIP.DENSE]", "rows: [patches]")
    table = read_table(write_table(tmp_path, text))
    assert table.shown_runs("mini") == ["original", "patches", "patches pixels"]
    paths = [row.path(table.columns["miou"], "mini") for row in table.rows.values()]
    assert paths == [None, "mini_val_sem_seg/mIoU"]


def test_a_name_that_is_no_table_is_refused_and_case_does_not_matter(tmp_path):
    with pytest.raises(InputError, match='no table "1d"; did you mean|no table "1d": did you mean'):
        read_tables(["1d"])
    assert [table.name for table in read_tables(["a1", "A1", "2"])] == ["A1", "2"]


@pytest.mark.parametrize(
    ("smaller", "larger", "word"),
    [
        # Differences 2, 3, 4: mean 3, standard error 1 / sqrt(3); Student's t is 4.303 for three seeds.
        ({0: 1, 1: 1, 2: 1}, {0: 3, 1: 4, 2: 5}, HOLDS),
        ({0: 3, 1: 4, 2: 5}, {0: 1, 1: 1, 2: 1}, FAILS),
        # Differences 1, 2, 3: mean 2, which is 3.46 standard errors.
        ({0: 1, 1: 1, 2: 1}, {0: 2, 1: 3, 2: 4}, NOISE),
        # The same spread of seven seeds, for which t is 2.447: 2 is 6.5 standard errors.
        (dict.fromkeys(range(7), 1), dict(enumerate([2, 3, 4, 3, 2, 4, 3])), HOLDS),
        ({0: 1, 1: 1}, {0: 2, 1: 2}, FEW_SEEDS),
        ({0: 1, 1: 1, 2: 1}, {0: 2, 1: 2, 5: 9}, FEW_SEEDS),
        ({0: 1}, {1: 2}, NOT_RUN),
        ({}, {0: 2, 1: 2, 2: 2}, NOT_RUN),
        # What no seed moves pairs with every seed; between two such numbers the sign decides.
        ({None: 1}, {0: 3, 1: 4, 2: 5}, HOLDS),
        ({None: 1}, {None: 1.5}, HOLDS),
        ({None: 2}, {None: 1.5}, FAILS),
    ],
)
def test_verdict_by_hand(smaller, larger, word):
    assert verdict(smaller, larger)[0] == word


def test_mean_and_standard_error_by_hand():
    _, mean, error = verdict({0: 1, 1: 1, 2: 1}, {0: 2, 1: 3, 2: 4})
    assert (mean, error) == (2, pytest.approx(3**-0.5))
    _, mean, error = verdict({None: 1}, {None: 1.5})  # no seed moves it, so that no error is known
    assert mean == 0.5 and math.isnan(error)


def made_up(claim, sign):
    """Numbers in a claim's order; with a sign of -1 the other way round."""
    levels = {}
    for column in claim.columns or ("",):
        for one in claim.order:
            low, high = one.low.in_column(column), one.high.in_column(column)
            known = [levels.setdefault(cell, 0) for cell in (*low.cells, *low.less, *high.less)]
            levels |= {cell: max(levels.get(cell, 0), max(known) + 1) for cell in high.cells}
    return {
        cell: {seed: sign * level + 0.001 * seed for seed in range(3)}
        for cell, level in levels.items()
    }


@pytest.mark.parametrize("name", list_tables())
@pytest.mark.parametrize(("sign", "word"), [(1, HOLDS), (-1, FAILS)])
def test_every_claim_is_evaluated_on_made_up_numbers(name, sign, word):
    (table,) = read_tables([name])
    for claim in table.claims:
        if not claim.order or claim.rows() - table.own.keys():
            continue  # nothing of it is measured
        cells = made_up(claim, sign)
        mini, real = (claim_verdicts(table, claim, cells, scale) for scale in ("mini", "real"))
        absent = {f"not in the {scale} world" for scale in SCALES}
        assert {one.verdict for one in (*mini, *real)} <= {word, *absent}, claim.says
        mini_alone = any("real" in table.rows[row].absent for row in claim.rows())
        assert overall(real) == ("not in the real world" if mini_alone else word), claim.says


def test_the_largest_of_several_cells_is_compared_seed_by_seed(tmp_path):
    text = TABLE.replace("original < patches", '"original < max(original, patches)"')
    table = read_table(write_table(tmp_path, text))
    cells = {("original", "boxes"): {0: 1, 1: 5, 2: 5}, ("patches", "boxes"): {0: 3, 1: 4, 2: 9}}
    (one,) = claim_verdicts(table, table.claims[0], cells, "mini")
    assert (one.detail, one.paper, one.verdict) == ("+2.0 ± 1.2", "18.2 < 72.1", NOISE)
    assert one.text == "Boxes: original CLIP < best of (original CLIP; CLIPSelf, patches)"
    del cells["patches", "boxes"]
    assert claim_verdicts(table, table.claims[0], cells, "mini")[0].verdict == NOT_RUN
    assert (
        claim_verdicts(table, table.claims[0], cells, "real")[0].verdict == "not in the real world"
    )


def test_equal_numbers_are_within_noise_unless_the_claim_allows_them(tmp_path):
    cells = {(row, "boxes"): {0: 1.0, 1: 2.0, 2: 3.0} for row in ("original", "patches")}
    for relation, word in (("<", NOISE), ("<=", HOLDS)):
        text = TABLE.replace("order: original <", f"order: original {relation}")
        table = read_table(write_table(tmp_path, text))
        assert claim_verdicts(table, table.claims[0], cells, "mini")[0].verdict == word


def test_a_difference_of_two_cells_is_compared_seed_by_seed(tmp_path):
    order = '"patches.boxes - original.boxes < patches.boxes; original < patches"'
    table = read_table(write_table(tmp_path, TABLE.replace("original < patches", order)))
    cells = {("original", "boxes"): {0: 1, 1: 2, 2: 3}, ("patches", "boxes"): {0: 3, 1: 5, 2: 7}}
    gain, second = claim_verdicts(table, table.claims[0], cells, "mini")
    assert (gain.paper, gain.here, gain.detail) == ("53.9 < 72.1", "3.0 and 5.0", "+2.0 ± 0.6")
    assert gain.text == "Boxes: CLIPSelf, patches minus original CLIP < CLIPSelf, patches"
    assert second.paper == "18.2 < 72.1"


OTHER = "rows:\n  vild: {title: ViLD, cite: 'Gu, ICLR 2021', paper: {boxes: 72.1}}\n"


@pytest.mark.parametrize(
    ("order", "paper", "word"),
    [
        ("vild < patches", f"72.1 and 72.1: {FAILS}", PRINTED[False]),
        ("vild <= patches", "72.1 <= 72.1", PRINTED[True]),
    ],
)
def test_what_compares_with_another_method_is_judged_on_the_papers_numbers(
    tmp_path, order, paper, word
):
    text = TABLE.replace("rows:\n", OTHER).replace("original < patches", order)
    table = read_table(write_table(tmp_path, text))
    assert list(table.own) == ["original", "patches"] and "" not in table.shown_runs("mini")
    cells = {("patches", "boxes"): {seed: 99.0 for seed in range(3)}}
    verdicts = claim_verdicts(table, table.claims[0], cells, "mini")
    assert [(one.paper, one.verdict) for one in verdicts] == [(paper, word)]
    assert overall(verdicts) == word


def test_another_methods_row_has_no_run_and_a_claim_that_nothing_measures_says_why(tmp_path):
    for line in ("run: original", "absent: {mini: for tests}"):
        other = OTHER.replace("title: ViLD", f"title: ViLD, {line}")
        with pytest.raises(InputError, match=f"vild: unknown key \"{line.split(':')[0]}\""):
            read_table(write_table(tmp_path, TABLE.replace("rows:\n", other)))
    text = TABLE.replace("order: original < patches, ", "")
    (claim,) = read_table(write_table(tmp_path, text)).claims
    assert not claim.order and overall([]) == UNMEASURED
    with pytest.raises(InputError, match='claims: 1: "why" is missing'):
        read_table(write_table(tmp_path, text.replace(", why: One step is not enough.", "")))


def test_the_zoo_prints_the_papers_numbers_of_a_row():
    printed = [
        match.groups()
        for entry in zoo().values()
        if (match := re.fullmatch(r"Table (A?\d): (.*)", entry.published))
    ]
    assert len(printed) == 13
    for name, text in printed:
        numbers = sorted(map(float, re.findall(r"\d+\.\d+", text)))
        rows = read_table(FOLDER / f"{name}.yaml").rows.values()
        assert numbers in [sorted(row.paper.values()) for row in rows], text
