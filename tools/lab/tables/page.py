"""The page: all tables in Markdown and HTML, each one in LaTeX and CSV, and its figure."""

from __future__ import annotations

import csv
import re
import statistics
import textwrap
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipself_seg.evaluation.report import format_table, write_tables
from clipself_seg.files import atomic_path, write_text
from clipself_seg.pages import render
from lab.tables.claims import ABSENT, FAILS, FEW_SEEDS, HOLDS, NOISE, PRINTED
from lab.tables.sections import CLAIM_HEADINGS, COMMAND_HEADINGS, Section
from lab.tables.table import Table

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which differ for colour-blind readers too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":")
HATCHES = ("", "///", "...")
DPI = 100


def write_figure(section: Section, folder: Path) -> bool:
    """Write NAME.png; whether there was anything to draw.

    Args:
        section: a table with its numbers.
        folder: for the picture.
    """
    draw = {"bars": _bars, "curve": _curve, "plane": _plane}.get(section.table.figure)
    if draw is None or not section.cells:
        return False
    from matplotlib.figure import Figure

    # A paper's curve of which no numbers are printed has no panel.
    sides = [side for side in ("paper", "here") if _columns(section, side)]
    figure = Figure(layout="constrained", dpi=DPI)
    panels = figure.subplots(1, len(sides), squeeze=False)[0]
    handles: dict[str, Artist] = {}
    for panel, side in zip(panels, sides):
        draw(panel, section, side)
        if len(sides) > 1:
            panel.set_title(side)
        if section.table.figure != "plane":
            panel.set_ylim(0)
        handles |= {text: handle for handle, text in zip(*panel.get_legend_handles_labels())}
    if section.table.figure == "plane":
        width, height = 7.0, 5.0
    else:
        bars = max(len(_columns(section, side)) * len(_series(section, side)) for side in sides)
        width, height = 1 + max(4.0, 0.1 * bars) * len(sides), 3.0
    if handles:
        # The figure is as wide as its legend at least, and higher by it.
        texts = [textwrap.fill(text, 60) for text in handles]
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 2, "fontsize": "small"}
        box = figure.legend([*handles.values()], texts, **place).get_window_extent()
        width, height = max(width, box.width / DPI + 0.2), height + box.height / DPI
    figure.set_size_inches(width, height)
    with atomic_path(folder / f"{section.table.name}.png") as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return True


def _numbers(section: Section, row: str, column: str, side: str) -> list[float]:
    """The number of the paper, or those of all seeds; [] without."""
    if side == "paper":
        published = section.table.rows[row].paper.get(column)
        return [] if published is None else [published]
    return list(section.cells.get((row, column), {}).values())


def _columns(section: Section, side: str) -> dict[str, str]:
    """Columns with numbers -> their titles."""
    scale = "real" if side == "paper" else section.scale
    return {
        name: column.title(scale)
        for name, column in section.table.columns.items()
        if any(_numbers(section, row, name, side) for row in section.table.own)
    }


def _series(section: Section, side: str) -> list[tuple[int, str, list[list[float]]]]:
    """Number, title and numbers in each column of the rows that have any."""
    rows = enumerate(section.table.own.items())
    every = [
        (place, row.title, [_numbers(section, name, c, side) for c in _columns(section, side)])
        for place, (name, row) in rows
    ]
    return [one for one in every if any(one[2])]


def _bars(panel: Axes, section: Section, side: str) -> None:
    """A bar for the mean of each number, with the standard deviation of several seeds."""
    series = _series(section, side)
    width = 0.8 / max(1, len(series))
    for place, (number, title, columns) in enumerate(series):
        shown = [index for index, values in enumerate(columns) if values]
        middles = [index + (place - (len(series) - 1) / 2) * width for index in shown]
        means = [statistics.fmean(columns[index]) for index in shown]
        spreads = [_spread(columns[index]) for index in shown]
        rounds, colour = divmod(number, len(COLOURS))
        look: dict[str, Any] = {"color": COLOURS[colour], "hatch": HATCHES[rounds % len(HATCHES)]}
        panel.bar(middles, means, width, yerr=spreads, edgecolor="white", lw=0, **look, label=title)
    titles = _columns(section, side).values()
    panel.set_xticks(
        range(len(titles)),
        list(titles),
        fontsize="small",
        rotation=20,
        ha="right",
        rotation_mode="anchor",
    )


def _style(number: int) -> dict[str, Any]:
    """Colour, line and marker of a line: no two of the first 24 have all three alike."""
    rounds = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[rounds % len(LINES)],
        "marker": MARKERS[(number + rounds) % len(MARKERS)],
    }


def _curve(panel: Axes, section: Section, side: str) -> None:
    titles = list(_columns(section, side).values())
    for number, title, columns in _series(section, side):
        shown = [index for index, values in enumerate(columns) if values]
        means = [statistics.fmean(columns[index]) for index in shown]
        panel.plot(
            [titles[index] for index in shown],
            means,
            **_style(number),
            label=title,
        )
    panel.grid(alpha=0.3)


def _plane(panel: Axes, section: Section, side: str) -> None:
    """A line for each row through its pairs of columns, from the first one, which is filled, to the last."""
    table = section.table
    for number, (name, row) in enumerate(table.own.items()):
        pairs = [
            [_numbers(section, name, column, side) for column in pair] for pair in table.points
        ]
        means = [[statistics.fmean(one) for one in pair] for pair in pairs if all(pair)]
        if not means:
            continue
        across, up = zip(*means)
        (drawn,) = panel.plot(across, up, **_style(number))
        drawn.set(markerfacecolor="white", label=row.title)
        panel.plot(across[:1], up[:1], **_style(number))
    across_title, up_title = (table.columns[name].title(section.scale) for name in table.points[0])
    panel.set_xlabel(across_title)
    panel.set_ylabel(up_title)
    panel.grid(alpha=0.3)


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


NAMES = {"mini": "tables", "real": "tables_real"}
TITLES = {"mini": "The paper's tables in miniature", "real": "The paper's tables"}
COMMANDS = {"mini": "clipself-seg reproduce", "real": "clipself-seg reproduce --real --start"}
ABOUT = {
    "mini": (
        "Every table of the CLIPSelf paper with the numbers that it prints and those of the same comparison in "
        "the mini world: generated scenes of 44 classes and small CLIPs, of which one (mini, of OpenAI's layout) "
        "stands for most of the paper's. What may be compared with the paper is which row is better, and not the "
        "numbers. The second world, mini2, has other classes. Figures of the paper that have numbers follow its "
        "tables, and tables that it does not have stand last."
    ),
    "real": (
        "Every table of the CLIPSelf paper with the numbers that it prints and those measured here. "
        "It is within the run-to-run spread of ours if it lies in the 95 % interval of a further run (Student's t: "
        "5 standard deviations around the mean of three seeds). Tables that the paper does not have stand last."
    ),
}
OTHERS = "Other methods, with the numbers that the paper prints"
VERDICTS = (HOLDS, FAILS, NOISE)
REPEATED = "counted elsewhere"
TOTALS = {
    "text": "all that the paper's text says",
    "numbers": "all that its numbers say, and no sentence",
    "ours": "all that is ours in its tables",
    "": "all beyond the paper",
}
RULE = (
    "Numbers are mean ± standard deviation over seeds; differences are paired by seed, mean ± standard error. A "
    "claim holds if the 95 % interval of the mean difference (Student's t: 4.3 standard errors to each side with "
    "three seeds) lies above zero, does not hold if it lies below zero, and is within noise if zero is in it; "
    "fewer than three seeds give no verdict. Where no seed moves a number, since nothing is trained, the sign "
    "decides. What compares with rows of other methods, of which there are the paper's numbers alone, holds or "
    "does not hold in print. A claim is the paper's text's, in our words, or of its numbers alone, or ours. An "
    "inequality of the same runs counts once, whichever tables make it: for the paper's text if a sentence says "
    "it."
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
    pages = {
        markdown: _markdown(sections, figures, scale),
        parts / "index.html": _html(sections, figures, scale),
    }
    for path, text in pages.items():
        write_text(path, text)
    return markdown


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
    words = (*VERDICTS, FEW_SEEDS, ABSENT.format(scale=scale), PRINTED[True], PRINTED[False])
    return ("inequalities of claims", *words, REPEATED)


def _summary(sections: Sequence[Section], scale: str) -> list[list[str]]:
    """A line for each table, and one for all of a source: how many inequalities of its claims have each verdict.

    One that compares the same as another one counts once: where a sentence of the paper makes it, or where it stands
    first.
    """
    words = _summary_headings(scale)[1:]
    lines = [*(_short(section.table) for section in sections), *TOTALS.values()]
    counts = [dict.fromkeys(words, 0) for _ in lines]
    sources = [*TOTALS]
    every = [(place, *one) for place, section in enumerate(sections) for one in section.judged]
    seen: set[Hashable] = set()
    for place, compared, source, verdict in sorted(every, key=lambda one: sources.index(one[2])):
        verdict = REPEATED if compared in seen else verdict if verdict in words else FEW_SEEDS
        seen.add(compared)
        for line in (place, len(sections) + sources.index(source)):
            counts[line][verdict] += 1
    return [
        [title, *(str(number or "") for number in own.values())]
        for title, own in zip(lines, counts)
        if any(own.values())
    ]


def _short(table: Table) -> str:
    """The number of a table of the paper, and what another one is about."""
    number, _, about = table.title.partition(": ")
    return number if table.of_paper or not about else about


def _markdown(sections: Sequence[Section], figures: set[str], scale: str) -> str:
    blocks = [f"# {TITLES[scale]}", ABOUT[scale], RULE, _cost(sections, scale)]
    titles = {_short(section.table): section.table.title for section in sections}
    linked = [
        [f"[{short}](#{_slug(titles[short])})" if short in titles else short, *counts]
        for short, *counts in _summary(sections, scale)
    ]
    blocks.append(markdown_table(_summary_headings(scale), linked))
    for section in sections:
        table = section.table
        blocks.append(f"## {table.title}")
        blocks.append(table.about)
        blocks.append(markdown_table(section.headings, section.body))
        if section.others:
            blocks.append(_folded(OTHERS, markdown_table(section.others[0], section.others[1:])))
        if table.name in figures:
            blocks.append(f"![{table.title}]({NAMES[scale]}/{table.name}.png)")
        if section.claims:
            claims = markdown_table(CLAIM_HEADINGS, _marked(section.claims, "**{}**"))
            blocks.append(_folded("Claims", claims))
        blocks.append("\n".join(f"* {reason}" for reason in section.reasons))
        if section.commands:
            body = [[row, f"`{command}`", *rest] for row, command, *rest in section.commands]
            protocols = "\n".join(f"* {protocol}" for protocol in section.protocols)
            commands = markdown_table(COMMAND_HEADINGS, body)
            blocks.append(_folded("Commands and protocols", f"{commands}\n\n{protocols}".strip()))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _folded(title: str, block: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{block}\n\n</details>"


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
        others=OTHERS,
        names={_short(section.table): section.table.name for section in sections},
        sections=sections,
        figures=figures,
        sums_up=_sums_up,
        kinds={HOLDS: "right", PRINTED[True]: "right", FAILS: "wrong", PRINTED[False]: "wrong"},
        marks={word: "\N{CHECK MARK} " for word in (HOLDS, PRINTED[True])}
        | {word: "\N{BALLOT X} " for word in (FAILS, PRINTED[False])},
    )


def _write_latex(section: Section, path: Path) -> None:
    style = "latex_booktabs"
    every = {section.table.title: [section.headings, *section.body], OTHERS: section.others}
    texts = {
        title: format_table(rows[0], rows[1:], style, left=len(rows[0]))
        for title, rows in every.items()
        if rows
    }
    write_tables(path, texts, style)


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
