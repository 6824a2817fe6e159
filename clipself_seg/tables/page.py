"""The page: all tables in Markdown and HTML, each one in LaTeX and CSV, and its figure."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from clipself_seg.evaluation.tables import format_table, write_tables
from clipself_seg.files import atomic_path
from clipself_seg.pages import render
from clipself_seg.tables.claims import ABSENT, FAILS, HOLDS, NOISE
from clipself_seg.tables.figure import write_figure
from clipself_seg.tables.sections import CLAIM_HEADINGS, COMMAND_HEADINGS, Section

NAMES = {"mini": "tables", "real": "tables_real"}
TITLES = {"mini": "The paper's tables in miniature", "real": "The paper's tables"}
COMMANDS = {"mini": "clipself-seg reproduce", "real": "clipself-seg reproduce --real"}
ABOUT = {
    "mini": (
        "Every table of the CLIPSelf paper with the numbers that it prints and those of the same "
        "comparison in the mini world: a generated world of 44 classes and one small ViT. What may be "
        "compared with the paper is which row is better, and not the numbers. A second world, mini2, has "
        "classes of its own. Tables that the paper does not have stand last."
    ),
    "real": (
        "Every table of the CLIPSelf paper with the numbers that it prints and those measured here. "
        "Tables that the paper does not have stand last."
    ),
}
VERDICTS = (HOLDS, FAILS, NOISE)
RULE = (
    "Numbers are mean ± standard deviation over seeds. A claim holds if the mean of the paired differences is "
    "above two standard errors, does not hold if it is below minus two, and is within noise between them; fewer "
    "than three seeds give no verdict. Where no seed moves a number, the sign decides."
)


def write_page(sections: Sequence[Section], folder: Path, scale: str) -> Path:
    """Write all formats; returns the Markdown file.

    `{folder}/tables.md` is the page; `{folder}/tables/` has `index.html`, and for each table NAME.tex, NAME.csv and,
    if it has one, the figure NAME.png. Those of real data are beside them, called `tables_real`.

    Args:
        sections: tables.
        folder: such as docs.
        scale: "mini" or "real".
    """
    name = NAMES[scale]
    parts = folder / name
    parts.mkdir(parents=True, exist_ok=True)
    figures = {section.table.name for section in sections if write_figure(section, parts)}
    for section in sections:
        _write_latex(section, parts / f"{section.table.name}.tex")
        _write_csv(section, parts / f"{section.table.name}.csv")
    markdown = folder / f"{name}.md"
    _write(markdown, _markdown(sections, figures, scale))
    _write(parts / "index.html", _html(sections, figures, scale))
    return markdown


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _cost(sections: Sequence[Section], scale: str) -> str:
    minutes: dict[str, float | None] = {}
    for section in sections:
        minutes |= section.minutes
    known = [value for value in minutes.values() if value is not None]
    lacking = len(minutes) - len(known)
    without = f" without those of {lacking} runs, whose system does not say" if lacking else ""
    return (
        f"{len(minutes)} runs, {sum(known):.0f} core-minutes{without}. "
        f"Written by `{COMMANDS[scale]}`."
    )


def _summary_headings(scale: str) -> tuple[str, ...]:
    return ("inequalities of claims", *VERDICTS, "no verdict", ABSENT.format(scale=scale))


def _summary(sections: Sequence[Section], scale: str) -> list[list[str]]:
    """A line for each table, and one for all: how many inequalities of its claims have each verdict."""
    verdicts = [[row[-1] for row in section.claims if not _sums_up(row)] for section in sections]
    titles = [*(section.table.title for section in sections), "all"]
    every = [verdict for own in verdicts for verdict in own]
    absent = ABSENT.format(scale=scale)
    return [
        [title, *(str(number or "") for number in _counts(own, absent))]
        for title, own in zip(titles, [*verdicts, every])
    ]


def _counts(verdicts: Sequence[str], absent: str) -> list[int]:
    judged = [verdicts.count(word) for word in VERDICTS]
    missing = verdicts.count(absent)
    return [*judged, len(verdicts) - sum(judged) - missing, missing]


def _markdown(sections: Sequence[Section], figures: set[str], scale: str) -> str:
    blocks = [f"# {TITLES[scale]}", ABOUT[scale], RULE, _cost(sections, scale)]
    linked = [
        [f"[{title}](#{_slug(title)})" if title != "all" else title, *counts]
        for title, *counts in _summary(sections, scale)
    ]
    blocks.append(markdown_table(_summary_headings(scale), linked))
    for section in sections:
        table = section.table
        blocks.append(f"## {table.title}")
        blocks.append(table.about)
        blocks.append(markdown_table(section.headings, section.body))
        if table.name in figures:
            blocks.append(f"![{table.title}]({NAMES[scale]}/{table.name}.png)")
        if section.claims:
            blocks.append(markdown_table(CLAIM_HEADINGS, _marked(section.claims, "**{}**")))
        blocks += [f"* {reason}" for reason in section.reasons]
        if section.commands:
            body = [[row, f"`{command}`", *rest] for row, command, *rest in section.commands]
            blocks.append("<details><summary>Commands</summary>")
            blocks.append(markdown_table(COMMAND_HEADINGS, body))
            blocks.append("</details>")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _slug(title: str) -> str:
    """What Markdown viewers make of a heading to link to it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _marked(claims: Sequence[Sequence[str]], mark: str) -> list[list[str]]:
    """Claims with the lines that sum up marked."""
    return [
        [mark.format(cell) if cell and _sums_up(row) else cell for cell in row] for row in claims
    ]


def _sums_up(row: Sequence[str]) -> bool:
    """Whether a line is a claim's own, above those of its inequalities."""
    return row[0].partition(".")[0].isdigit()


def markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Without blanks that align columns, which would change with every number."""
    rows = [headings, ["---"] * len(headings), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def _html(sections: Sequence[Section], figures: set[str], scale: str) -> str:
    return render(
        "tables.html",
        title=TITLES[scale],
        about=(ABOUT[scale], RULE, _cost(sections, scale).replace("`", "")),
        summary_headings=_summary_headings(scale),
        claim_headings=CLAIM_HEADINGS,
        command_headings=COMMAND_HEADINGS,
        summary=_summary(sections, scale),
        names={section.table.title: section.table.name for section in sections},
        sections=sections,
        figures=figures,
        sums_up=_sums_up,
        kinds={HOLDS: "right", FAILS: "wrong"},
        marks={HOLDS: "\N{CHECK MARK} ", FAILS: "\N{BALLOT X} "},
    )


def _write_latex(section: Section, path: Path) -> None:
    style = "latex_booktabs"
    text = format_table(section.headings, section.body, style, left=len(section.headings))
    write_tables(path, {section.table.title: text}, style)


def _write_csv(section: Section, path: Path) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("row", "column", "paper", "here", "seed"))
        for name, row in section.table.rows.items():
            for key, column in section.table.columns.items():
                paper = row.paper.get(key, "")
                heading = column.title(section.scale)
                values = section.cells.get((name, key), {})
                for seed, value in values.items():
                    known = "" if seed is None else seed
                    writer.writerow((row.title, heading, paper, value, known))
                if not values:
                    writer.writerow((row.title, heading, paper, "", ""))
