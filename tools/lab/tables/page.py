"""The page: an index in Markdown, a page for each table, and figures of those that are curves."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from clipself_seg.files import atomic_path, write_text
from lab.tables.claims import ABSENT, FAILS, FEW_SEEDS, HOLDS, NOISE, NOT_RUN, PRINTED, UNMEASURED
from lab.tables.sections import CLAIM_HEADINGS, COMMAND_HEADINGS, JudgedClaim, Section
from lab.tables.table import Table

# Okabe and Ito's colours, which differ for colour-blind readers too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":")


def write_figure(section: Section, folder: Path) -> bool:
    """Draw the means of a table into NAME.png, a line for each row; whether there was anything to draw.

    A "curve" goes over the columns; lines in a "plane" go through pairs of columns, from the first one, whose marker is
    filled, to the last.

    Args:
        section: a table with its numbers.
        folder: for the picture.
    """
    if not section.table.figure or not section.cells:
        return False
    from matplotlib.figure import Figure

    table, scale = section.table, section.scale
    titles = {name: column.title(scale) for name, column in table.columns.items()}
    figure = Figure(figsize=(7, 5))
    panel = figure.subplots()
    panel.grid(alpha=0.3)
    for number, (name, row) in enumerate(table.own.items()):
        means = {
            column: statistics.fmean(values.values())
            for (row_name, column), values in section.cells.items()
            if row_name == name
        }
        if table.figure == "curve":
            points: list[tuple[Any, float]] = [
                (titles[column], means[column]) for column in titles if column in means
            ]
        else:
            points = [(means[x], means[y]) for x, y in table.points if {x, y} <= means.keys()]
        if points:
            (line,) = panel.plot(*zip(*points), **_style(number), label=row.title)
            if table.figure == "plane":
                line.set_markerfacecolor("white")
                panel.plot(*zip(*points[:1]), **_style(number))
    if table.figure == "curve":
        panel.set_ylim(0)
    else:
        across, up = table.points[0]
        panel.set(xlabel=titles[across], ylabel=titles[up])
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize="small")
    with atomic_path(folder / f"{table.name}.png") as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
    return True


def _style(number: int) -> dict[str, Any]:
    """Colour, line and marker of a line: no two of the first 24 have all three alike."""
    rounds = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[rounds % len(LINES)],
        "marker": MARKERS[(number + rounds) % len(MARKERS)],
    }


INDEX = "index.md"
NAMES = {"mini": "tables", "real": "tables_real"}
TITLES = {"mini": "The paper's tables in miniature", "real": "The paper's tables"}
OWN_TITLES = {"mini": "Tables in miniature", "real": "Tables"}  # where none is the paper's
COMMANDS = {"mini": "python tools/reproduce.py", "real": "python tools/reproduce.py --real --start"}
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
FAILING = "These do not hold; the page of each says why, or that no reason is known:"
RULE = (
    "Numbers are mean ± standard deviation over seeds; differences are paired by seed, mean ± standard error. A "
    "claim holds if the 95 % interval of the mean difference (Student's t: 4.3 standard errors to each side with "
    "three seeds) lies above zero, does not hold if it lies below zero, and is within noise if zero is in it; "
    "fewer than three seeds give no verdict. Where no seed moves a number, since nothing is trained, the sign "
    "decides. Of other methods there are printed numbers alone: a claim about them holds or does not hold in print. "
    "A claim comes from a sentence of the paper (in our words), from its numbers alone, or from us; of several "
    "inequalities the worst one decides. An inequality that several tables make counts once, for the paper's "
    "text if a sentence says it, and a repeated claim counts once, too."
)


def write_page(sections: Sequence[Section], folder: Path, scale: str) -> Path:
    """Write the pages; returns the index.

    `{folder}/tables/` has `index.md`, and for each table NAME.md and, if it has one, the figure NAME.png. Those of real
    data are in `tables_real`, beside it.

    Args:
        sections: tables.
        folder: such as docs.
        scale: "mini" or "real".
    """
    parts = folder / NAMES[scale]
    parts.mkdir(parents=True, exist_ok=True)
    for section in sections:
        has_figure = write_figure(section, parts)
        write_text(parts / f"{section.table.name}.md", _table_page(section, has_figure))
    write_text(parts / INDEX, _index(sections, scale))
    return parts / INDEX


def _cost(sections: Sequence[Section], scale: str) -> str:
    minutes: dict[str, float] = {}
    for section in sections:
        minutes |= section.minutes
    return (
        f"{len(minutes)} runs, {sum(minutes.values()):.0f} core-minutes. "
        f"Written by `{COMMANDS[scale]}`."
    )


def _summary_headings(scale: str) -> tuple[str, ...]:
    words = (*VERDICTS, FEW_SEEDS, ABSENT.format(scale=scale), PRINTED[True], PRINTED[False])
    return ("inequalities of claims", *words, REPEATED)


def _summary(sections: Sequence[Section], scale: str) -> list[list[str]]:
    """A line for each table, with a link, and one for all of a source: how many inequalities have each verdict.

    One that compares the same as another one counts once: where a sentence of the paper makes it, or where it stands
    first.
    """
    words = _summary_headings(scale)[1:]
    tables = [section.table for section in sections]
    lines = [*(f"[{_short(table)}]({table.name}.md)" for table in tables), *TOTALS.values()]
    counts = [dict.fromkeys(words, 0) for _ in lines]
    sources = [*TOTALS]
    every = [
        (place, compared, claim.source, verdict)
        for place, section in enumerate(sections)
        for claim in section.judged
        for compared, verdict in claim.compared
    ]
    seen: set[Hashable] = set()
    for place, compared, source, verdict in sorted(every, key=lambda one: sources.index(one[2])):
        verdict = REPEATED if compared in seen else verdict if verdict in words else FEW_SEEDS
        seen.add(compared)
        for line in (place, len(sections) + sources.index(source)):
            counts[line][verdict] += 1
    return [
        [title, *(str(number or "") for number in own.values())]
        for place, (title, own) in enumerate(zip(lines, counts))
        if place < len(tables) or any(own.values())
    ]


def _text_claims(sections: Sequence[Section]) -> list[tuple[Table, JudgedClaim]]:
    """The claims of the paper's text with their tables; one whose every comparison others make is left out."""
    claims: list[tuple[Table, JudgedClaim]] = []
    seen: set[Hashable] = set()
    for section in sections:
        for claim in section.judged:
            compared = {of for of, _ in claim.compared}
            if claim.source == "text" and not (compared and compared <= seen):
                claims.append((section.table, claim))
                seen |= compared
    return claims


def _claims_first(claims: Sequence[tuple[Table, JudgedClaim]]) -> str:
    """How many claims have each verdict, and those that do not hold by name."""
    counts = Counter(claim.verdict for _, claim in claims)
    words = (HOLDS, FAILS, NOISE, *PRINTED.values(), FEW_SEEDS, NOT_RUN, UNMEASURED)
    counted = ", ".join(f"{word} {counts[word]}" for word in words if counts[word])
    failing = [
        f"* [{_short(table)}]({table.name}.md), claim {claim.number}: {claim.says}"
        + (" (In print.)" if claim.verdict == PRINTED[False] else "")
        for table, claim in claims
        if claim.verdict in (FAILS, PRINTED[False])
    ]
    return "\n".join(
        [
            f"{len(claims)} claims of the paper's text: {counted}.",
            *(["", FAILING, ""] if failing else []),
        ]
        + failing
    )


def _short(table: Table) -> str:
    """The number of a table of the paper, and what another one is about."""
    number, _, about = table.title.partition(": ")
    return number if table.of_paper or not about else about


def _index(sections: Sequence[Section], scale: str) -> str:
    summary = markdown_table(_summary_headings(scale), _summary(sections, scale))
    title, about = TITLES[scale], ABOUT[scale]
    if not any(section.table.of_paper for section in sections):
        title, about = OWN_TITLES[scale], ""
    claims = _text_claims(sections)
    first = _claims_first(claims) if claims else ""
    return _page([f"# {title}", first, about, RULE, _cost(sections, scale), summary])


def _table_page(section: Section, has_figure: bool) -> str:
    table = section.table
    blocks = [f"# {table.title}", table.about, markdown_table(section.headings, section.body)]
    if section.others:
        blocks.append(_folded(OTHERS, markdown_table(section.others[0], section.others[1:])))
    if has_figure:
        blocks.append(f"![{table.title}]({table.name}.png)")
    if section.claims:
        blocks.append(_folded("Claims", markdown_table(CLAIM_HEADINGS, _marked(section.claims))))
    blocks.append("\n".join(f"* {reason}" for reason in section.reasons))
    if section.commands:
        body = [[row, f"`{command}`", *rest] for row, command, *rest in section.commands]
        protocols = "\n".join(f"* {protocol}" for protocol in section.protocols)
        commands = markdown_table(COMMAND_HEADINGS, body)
        blocks.append(_folded("Commands and protocols", f"{commands}\n\n{protocols}".strip()))
    blocks.append(f"[All tables, and what the verdicts mean]({INDEX})")
    return _page(blocks)


def _page(blocks: Sequence[str]) -> str:
    return "\n\n".join(filter(None, blocks)) + "\n"


def _folded(title: str, block: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{block}\n\n</details>"


def _marked(claims: Sequence[Sequence[str]]) -> list[list[str]]:
    """Claims with the lines that sum up in bold: a claim's own, above those of its inequalities."""
    return [
        [f"**{cell}**" if cell and row[0].partition(".")[0].isdigit() else cell for cell in row]
        for row in claims
    ]


def markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown without blanks that align columns, which would change with every number."""
    rows = [headings, ["---"] * len(headings), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
