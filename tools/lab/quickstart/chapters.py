"""The quickstart's chapters as specifications: which runs, which tables of them, and what images of them show.

`CHAPTERS` is at the end. The runs are those of `reproduce`: named after what decides them, made once, gone on with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipself_seg.data.annotations import Record, read_coco_json
from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.region_report import region_table
from clipself_seg.evaluation.report import FUSION_TITLES, ByDataset, comparison_table
from clipself_seg.files import read_json
from clipself_seg.prediction.load import load
from clipself_seg.visualization.overlays import Row, box_overlay, label_rows
from lab.tables.runs import Run, make_run
from lab.tables.store import Store

# What the chapters show: so many images of each world.
WORLDS, IMAGES = ("mini", "mini2"), 4
# Score that a box needs to be shown.
SHOWN_BOXES = 0.7


@dataclass(frozen=True, eq=False)
class TableRow:
    """A row of a table, and the run whose numbers it shows.

    Attributes:
        title: of the row.
        config: configuration below configs/mini.
        options: key -> value, as on a command line.
        training: whether the run trains (else it evaluates).
        short: further options, unless the quickstart is a full one.
        minutes: core-minutes that the short run takes, about.
    """

    title: str
    config: str
    options: Mapping[str, str] = field(default_factory=dict)
    training: bool = False
    short: Mapping[str, str] = field(default_factory=dict)
    minutes: float = 0.3

    @property
    def file(self) -> str:
        """File of the configuration."""
        return f"configs/mini/{self.config}.yaml"

    def run(self, full: bool) -> Run:
        """The run, on the mini worlds as they are drawn now."""
        options = {**self.options, **({} if full else self.short)}
        return make_run(self.file, options, evaluate=not self.training, minutes=self.minutes)


class Made(NamedTuple):
    """The finished runs of a quickstart.

    Attributes:
        runs: row -> its run.
        store: where they are.
        worlds: folder of the mini worlds.
    """

    runs: Mapping[TableRow, Run]
    store: Store
    worlds: Path

    def file(self, row: TableRow, name: str) -> Path:
        """A file that the run of a row has written."""
        return self.store.folder / self.runs[row].name / name

    def weights(self, row: TableRow) -> Path:
        """Weights that the run of a row has trained."""
        return self.file(row, self.runs[row].result_file)

    def record(self, row: TableRow) -> Mapping[str, Any]:
        """The record of the run of a row, see `Store.record`.

        Raises:
            InputError: nothing whole.
        """
        record = self.store.record(self.runs[row])
        if record is None:
            raise InputError(f"{self.file(row, '')} has no results: remove it, and call again")
        return record


@dataclass(frozen=True)
class Table:
    """A table of a chapter.

    Attributes:
        rows: its rows.
        write: (rows, style=...) -> text, where rows are title -> data set -> numbers.
        prefix: what stands before the titles in "provenance" and "protocol".
        numbers: results of a run -> what its row is written from.
    """

    rows: tuple[TableRow, ...]
    write: Callable[..., str]
    prefix: str = ""
    numbers: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


Images = Mapping[str, Sequence[Row]]  # name of a world -> what is shown of it


@dataclass(frozen=True)
class Chapter:
    """Specification of one chapter.

    Attributes:
        name: of its sheets of images.
        heading: said when its runs begin.
        tables: name in results.json and on the page -> table.
        note: said below the tables on the terminal.
        draw: draws what is shown of its runs.
    """

    name: str
    heading: str
    tables: Mapping[str, Table]
    note: str
    draw: Callable[[Made], Images] = lambda _: {}

    @property
    def rows(self) -> list[TableRow]:
        """Rows of all tables."""
        return [row for table in self.tables.values() for row in table.rows]


@dataclass(frozen=True)
class Results:
    """Results of the runs of a table.

    Attributes:
        table: format of `tabulate` -> the table.
        rows: title of a row -> what it is written from.
        provenances: title of a row -> provenance of its run.
        protocols: title of a row -> data set -> what its numbers were measured with.
        images: what the page shows of the chapter.
    """

    table: Callable[[str], str]
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenances: Mapping[str, object] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Mapping[str, object]]] = field(default_factory=dict)
    images: Images = field(default_factory=dict)


def results_of(table: Table, made: Made, images: Images) -> Results:
    """The records of the finished runs of a table, with the images of their chapter."""
    records = {row.title: made.record(row) for row in table.rows}
    rows = {title: table.numbers(record["results"]) for title, record in records.items()}
    return Results(
        table=lambda style: table.write(rows, style=style),
        rows=rows,
        provenances={table.prefix + title: one["provenance"] for title, one in records.items()},
        protocols={table.prefix + title: one.get("protocol", {}) for title, one in records.items()},
        images=images,
    )


class View(NamedTuple):
    """A model that labels pixels for a column of images.

    Attributes:
        title: of the column.
        row: gives the configuration.
        weights: their name; "" is what the run of the row has trained.
        opts: further keys and values.
    """

    title: str
    row: TableRow
    weights: str = ""
    opts: tuple[str, ...] = ()

    def predictor(self, made: Made | None = None) -> Any:
        """The model; `made` is needed where it was trained just now."""
        weights = self.weights or (made and made.weights(self.row))
        return load(weights or None, config_file=self.row.file, opts=self.opts)


def first_images(worlds: Path, world: str) -> list[Path]:
    """The images of a world that the chapters show."""
    return sorted((worlds / world / "val").glob("*.jpg"))[:IMAGES]


def class_images(views: Sequence[View], made: Made) -> Images:
    """Images of all worlds with the class of every pixel, and what every view says of it."""
    predictors = {view.title: view.predictor(made) for view in views}
    return {world: class_rows(predictors, made.worlds, world) for world in WORLDS}


def class_rows(predictors: Mapping[str, Any], worlds: Path, world: str) -> list[Row]:
    """Images of a world, the class of every pixel, and what models say of it.

    Args:
        predictors: title of a column -> model.
        worlds: folder of the mini worlds.
        world: name of one.
    """
    files, vocabulary = first_images(worlds, world), Vocabulary.load(world)
    images = [read_image(file) for file in files]
    truth = worlds / world / "stuffthingmaps" / "val"
    columns = {"ground truth": [read_indices(truth / f"{file.stem}.png") for file in files]}
    for title, predictor in predictors.items():
        columns[title] = [result.labels for result in predictor(images, vocabulary)]
    return label_rows(vocabulary, images, columns)


def detection_images(made: Made) -> Images:
    """Images with the true boxes, and with the surest of those that every run found in its evaluation."""
    return {world: _detection_rows(made, world) for world in WORLDS}


def _detection_rows(made: Made, world: str) -> list[Row]:
    truth = read_coco_json(made.worlds / world / "annotations" / "instances_val.json")
    words = Vocabulary.load(f"{world}_things")
    seen = words.seen_in(Vocabulary.load("mini_base"))
    entries = zip(words.classes, seen.tolist())
    categories = {c.dataset_id: {"name": c.names[0], "seen": known} for c, known in entries}
    columns = {"ground truth": truth["annotations"]}
    for row in DETECTORS:
        boxes = read_json(made.file(row, f"detections_{world}_val_boxes.json"))
        columns[row.title] = [entry for entry in boxes if entry["score"] >= SHOWN_BOXES]
    return [
        Row(
            {
                title: _drawn(image, truth["images"], boxes, categories)
                for title, boxes in columns.items()
            }
        )
        for image in first_images(made.worlds, world)
    ]


def _drawn(
    path: Path,
    images: Iterable[Record],
    entries: Iterable[Record],
    categories: Mapping[int, Record],
) -> np.ndarray:
    """An image with its boxes out of some in COCO's format, the best first."""
    (number,) = (e["id"] for e in images if Path(e["file_name"]).name == path.name)
    boxes = [e for e in entries if e["image_id"] == number]
    boxes.sort(key=lambda entry: -entry.get("score", 1))
    corners = np.array([entry["bbox"] for entry in boxes], float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    classes = [categories[entry["category_id"]] for entry in boxes]
    names = [entry["name"] for entry in classes]
    seen = np.array([entry["seen"] for entry in classes], dtype=bool)
    scores = np.array([entry["score"] for entry in boxes if "score" in entry])
    image = read_image(path)
    given = scores if len(scores) else None
    return np.asarray(box_overlay(image, corners, given, names, seen, legend=False))


DATASET = "mini_val_panoptic"
SHORT = {"SOLVER.MAX_ITER": "100"}


def _clip(title: str, tag: str) -> TableRow:
    return TableRow(title, "regions", {"MODEL.CLIP.WEIGHTS": tag})


LIVE = (
    TableRow("+ CLIPSelf, patches, live", "patches", training=True, short=SHORT, minutes=1.2),
    TableRow("+ CLIPSelf, proposals, live", "proposals", training=True, short=SHORT, minutes=1.2),
)
REGIONS = Chapter(
    name="regions",
    heading="region recognition: the original CLIP, CLIPs distilled just now, and the shipped ones",
    tables={
        "results": Table(
            (
                _clip("original CLIP", "mini"),
                *LIVE,
                _clip("+ CLIPSelf, patches, shipped", "mini-clipself"),
                _clip("+ CLIPSelf, proposals, shipped", "mini-clipself-proposals"),
            ),
            region_table,
            # Of the one input size of the one data set, and not of several as in other chapters.
            numbers=lambda results: next(iter(results[DATASET].values())),
        )
    },
    note="Top-1/top-5 mean accuracy on mini_val in %.\n"
    "Boxes, Thing Masks, Stuff Masks: averages of the dense features in a region. Image Crops: the image embedding\n"
    "of its crop; the first row is what CLIPSelf distils from.",
)

# Heading -> key of the number of all, of seen and of unseen classes.
SEMANTIC_SPLIT = {"mIoU": "mIoU", "seen": "mIoU-seen", "unseen": "mIoU-unseen"}
PANOPTIC_SPLIT = {"PQ": "PQ", "seen": "PQ_seen", "unseen": "PQ_unseen"}
BOXES_SPLIT = {"novel": "AP50-unseen", "base": "AP50-seen", "all": "AP50"}


def split_table(
    rows: Mapping[str, ByDataset],
    columns: Mapping[str, str],
    first: str = "model",
    style: str = "simple",
) -> str:
    """One row a title: a number of all, of seen and of unseen classes of each data set.

    Args:
        rows: title -> data set -> numbers.
        columns: heading -> key of the number.
        first: heading of the first column.
        style: see `evaluation.report.format_table`.
    """
    return comparison_table({(title,): own for title, own in rows.items()}, columns, [first], style)


def panoptic_table(
    models: Mapping[str, Mapping[str, ByDataset]], first: str, style: str = "simple"
) -> str:
    """CLIPs that classify the masks of one generator, whose own scores do not depend on CLIP and are one row."""
    rows: dict[str, ByDataset] = {}
    for fusion, title in FUSION_TITLES.items():
        for model, results in models.items():
            name = title if fusion == "generator" else f"{model}, {title}"
            rows.setdefault(name, {data: own[fusion] for data, own in results.items()})
    return split_table(rows, PANOPTIC_SPLIT, first, style)


FEW_IMAGES = {"SOLVER.IMS_PER_BATCH": "2", "SOLVER.MAX_ITER": "100"}
CAT_SEG = (
    TableRow("CAT-Seg, original CLIP", "semseg_original", {}, True, FEW_IMAGES, 2),
    TableRow("CAT-Seg, CLIPSelf", "semseg", {}, True, FEW_IMAGES, 2),
)
# The CLIPs of both, as they are.
ZERO_SHOT = (
    TableRow("no training, original CLIP", "zero_shot"),
    TableRow(
        "no training, original CLIP, values of three blocks",
        "zero_shot",
        {"MODEL.CLIP.DENSE": "multi_value"},
    ),
    TableRow(
        "no training, CLIPSelf", "zero_shot", {"MODEL.CLIP.WEIGHTS": "mini-clipself-proposals"}
    ),
)
SEMANTIC = Chapter(
    name="semantic",
    heading="semantic segmentation: CAT-Seg, trained on the original CLIP and on CLIPSelf, and both CLIPs alone",
    tables={
        "semantic": Table(
            (*ZERO_SHOT, *CAT_SEG), functools.partial(split_table, columns=SEMANTIC_SPLIT)
        )
    },
    note="Mean IoU in %. No training: each pixel gets the class whose text embedding is closest. CAT-Seg was trained "
    "just now\non the seen classes of mini. mini2 is a second world, with other layouts, textures and words.",
    draw=functools.partial(
        class_images, (View("original CLIP", CAT_SEG[0]), View("CLIPSelf", CAT_SEG[1]))
    ),
)

GENERATOR = "mini-open-panoptic"
# The table has no other numbers.
QUALITY = {"TEST.PANOPTIC.TASKS": "('panoptic',)"}
LIVE_GENERATOR = TableRow(
    "CLIPSelf",
    "panoptic",
    {**QUALITY, "SOLVER.MAX_ITER": "400"},
    training=True,
    short={"SOLVER.MAX_ITER": "160"},
    minutes=2,
)
SHIPPED = {**QUALITY, "MODEL.WEIGHTS": GENERATOR}
ORIGINAL = TableRow("original CLIP", "panoptic_original", SHIPPED)
CLIPSELF = TableRow("CLIPSelf", "panoptic", SHIPPED)
# Both CLIPs alone, and the second one fused with the generator; titles as in the tables.
PANOPTIC_VIEWS = (
    View("original CLIP, CLIP only", ORIGINAL, GENERATOR, ("MODEL.FUSION.MODE", "clip")),
    View("CLIPSelf, CLIP only", CLIPSELF, GENERATOR, ("MODEL.FUSION.MODE", "clip")),
    View("CLIPSelf, fused", CLIPSELF, GENERATOR, ("MODEL.FUSION.MODE", "fused")),
)
PANOPTIC = Chapter(
    name="panoptic",
    heading="panoptic segmentation: masks of two generators, classified by CLIP, by the generator, or by both",
    tables={
        f"panoptic, {name}": Table(
            rows,
            functools.partial(panoptic_table, first=f"generator, {name}"),
            f"panoptic {name}, ",
        )
        for name, rows in (("live", (LIVE_GENERATOR,)), ("shipped", (ORIGINAL, CLIPSELF)))
    },
    note="Panoptic quality in %. Both generators were trained on the seen classes of mini: one just now, the shipped "
    "one longer.\nThe class of a mask comes from CLIP only, from the generator only, or from both (fused).",
    draw=functools.partial(class_images, PANOPTIC_VIEWS),
)

STEPS = {"SOLVER.MAX_ITER": "240"}
FEW_STEPS = {"SOLVER.IMS_PER_BATCH": "2", "SOLVER.MAX_ITER": "150"}
DETECTORS = (
    TableRow("F-ViT, original CLIP, live", "detection_original", STEPS, True, FEW_STEPS, 1.5),
    TableRow("F-ViT, CLIPSelf, live", "detection", STEPS, True, FEW_STEPS, 1.5),
    TableRow("F-ViT, CLIPSelf, shipped", "detection", {"MODEL.WEIGHTS": "mini-fvit"}),
)
DETECTION = Chapter(
    name="detection",
    heading="detection: F-ViT, trained on the original CLIP and on CLIPSelf, and a shipped one that trained longer",
    tables={
        "detection": Table(
            DETECTORS,
            functools.partial(split_table, columns=BOXES_SPLIT, first="AP50 of boxes"),
            numbers=lambda results: {name: own["bbox"] for name, own in results.items()},
        )
    },
    note="AP50 of boxes in %. F-ViT was trained on boxes of the seen (base) classes of mini; novel classes were never "
    "named\nin training.",
    draw=detection_images,
)

CHAPTERS = (REGIONS, SEMANTIC, PANOPTIC, DETECTION)
