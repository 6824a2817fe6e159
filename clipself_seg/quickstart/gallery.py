"""Images that explain the quickstart's table: K-Means maps, recognised regions, loss curves, one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipself_seg.checkpoints.shipped import MINI_CLIP
from clipself_seg.clip import DenseCLIP, TextBank, load_clip
from clipself_seg.clip.whole_image import whole_image_features
from clipself_seg.data.images import letterbox_crops, letterbox_image, read_image
from clipself_seg.data.records import panoptic_records
from clipself_seg.data.regions import enlarge_boxes, relative_boxes
from clipself_seg.data.segments import Segments, read_segments
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.regions.report import region_table
from clipself_seg.files import atomic_path, read_json_lines
from clipself_seg.quickstart.steps import Chapter
from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.dense_maps import (
    colour_segments,
    enlarge_labels,
    kmeans,
    match_labels,
)
from clipself_seg.visualization.fonts import write_text
from clipself_seg.visualization.overlays import save_png
from clipself_seg.visualization.panels import panel, sheet

COLUMNS = {"original CLIP": "mini", "CLIPSelf patches": "mini-clipself"}
COLUMNS |= {"CLIPSelf proposals": "mini-clipself-proposals"}
SCENES = 6
CROPS = 12
TRAINED_SIDE = 160  # pixels, as in configs/mini: answers are best there
MAP_SIDE = 192  # a finer grid shows more of the outlines
# How the page begins, to the end of its style.
HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>clipself_seg quickstart</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 14px; }
td, th { border-bottom: 1px solid #ccc; padding: .3rem .6rem; }
img { max-width: 100%; }
</style>
"""


def write_gallery(
    output: Path,
    world: Path,
    rows: Mapping[str, Mapping[str, float]],
    live: Mapping[str, Path],
    chapters: Mapping[str, Chapter],
) -> None:
    """Write kmeans.png, regions.png, loss.png and index.html.

    Args:
        output: folder for them.
        world: folder of the mini world.
        rows: results by model, for the page's table.
        live: title -> metrics.json of a run, for the loss curves.
        chapters: "semantic", "panoptic, live", "panoptic, shipped" and "detection"; their images are there already.
    """
    annotations = world / "annotations" / "panoptic_val.json"
    records = panoptic_records(str(annotations), str(world / "val"), str(world / "panoptic_val"))
    vocabulary = load_vocabulary("mini")
    clips = {title: load_clip(MINI_CLIP, tag) for title, tag in COLUMNS.items()}
    scenes = [_Scene(record, vocabulary) for record in records[:SCENES]]
    save_png(kmeans_sheet(clips, scenes), output / "kmeans.png")
    save_png(region_sheet(clips, scenes, vocabulary), output / "regions.png")
    plot_losses(live, output / "loss.png")
    with atomic_path(output / "index.html") as temporary:
        temporary.write_text(page(rows, chapters), encoding="utf-8")


def write_panel(
    path: Path,
    vocabulary: Vocabulary,
    images: Sequence[Path],
    columns: Mapping[str, Sequence[np.ndarray]],
) -> None:
    """Images of a world beside label maps, with a legend in each row.

    Args:
        path: of the PNG.
        vocabulary: of the labels.
        images: files.
        columns: title -> label map (H, W) of every image.
    """
    rows: list[tuple[np.ndarray, dict[str, np.ndarray]]] = [
        (read_image(image), {title: maps[i] for title, maps in columns.items()})
        for i, image in enumerate(images)
    ]
    save_png(panel(rows, vocabulary.names, class_colours(vocabulary.names)), path)


class _Scene:
    """A validation image with its segments."""

    def __init__(self, record: dict[str, Any], vocabulary: Vocabulary) -> None:
        things = frozenset(c.dataset_id for c in vocabulary.classes if c.isthing)
        self.image = read_image(record["file_name"])
        self.segments: Segments = read_segments(record, things)
        index_of = vocabulary.dataset_id_to_index
        self.labels = np.array([index_of[c] for c in self.segments.category_ids.tolist()])
        self.things = np.flatnonzero(vocabulary.thing[self.labels])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]

    def student_input(self, clip: DenseCLIP, side: int) -> Tensor:
        """Normalised padded square (1, 3, side, side)."""
        square = letterbox_image(self.image, side).transpose(2, 0, 1).copy()
        return clip.preprocess(torch.from_numpy(square)[None])


def kmeans_sheet(clips: Mapping[str, DenseCLIP], scenes: Sequence[_Scene]) -> Image.Image:
    """Image, ground truth, and K-Means of each model's dense features with k = number of segments."""
    rows = []
    for scene in scenes:
        ids = np.searchsorted(np.unique(scene.segments.ids), scene.segments.ids)
        row = [scene.image, colour_segments(ids)]
        for clip in clips.values():
            features = whole_image_features(clip, scene.image, MAP_SIDE)
            labels = kmeans(features, clusters=len(scene.segments.segment_ids))
            width, height = scene.size
            row.append(colour_segments(match_labels(enlarge_labels(labels, height, width), ids)))
        rows.append(row)
    return sheet(rows, ["image", "ground truth", *clips], scale=1)


def region_sheet(
    clips: Mapping[str, DenseCLIP], scenes: Sequence[_Scene], vocabulary: Vocabulary
) -> Image.Image:
    """Crops of things, and below each what the models take the box for."""
    crops, truths, answers = [], [], []
    for scene in scenes:
        boxes = scene.segments.boxes[scene.things]
        crops += list(letterbox_crops(scene.image, enlarge_boxes(boxes, 1.5, *scene.size), 96))
        truths += [vocabulary.names[label] for label in scene.labels[scene.things]]
        answers += list(zip(*_answers(clips, scene, vocabulary)))
    return _answer_sheet(crops[:CROPS], truths, answers, list(clips))


def _answers(
    clips: Mapping[str, DenseCLIP], scene: _Scene, vocabulary: Vocabulary
) -> Iterator[list[str]]:
    boxes = relative_boxes(scene.segments.boxes[scene.things], *scene.size)
    for clip in clips.values():
        text = TextBank(clip).embed(vocabulary)
        with torch.no_grad():
            images = scene.student_input(clip, TRAINED_SIDE)
            read = clip.encode_boxes(images, [torch.from_numpy(boxes).float()])
        yield [vocabulary.names[i] for i in (read @ text.T).argmax(1).tolist()]


def _answer_sheet(
    crops: Sequence[np.ndarray],
    truths: Sequence[str],
    answers: Sequence[tuple[str, ...]],
    titles: Sequence[str],
) -> Image.Image:
    """Four things a row; a blank tile beside each holds the lines of text."""
    from PIL import ImageDraw

    tiles = []
    for crop, truth, said in zip(crops, truths, answers):
        tile = Image.new("RGB", (196, 96), "white")
        draw = ImageDraw.Draw(tile)
        write_text(draw, (4, 2), truth, 12, (0, 0, 0), "la")
        for line, (title, answer) in enumerate(zip(titles, said)):
            colour = (0, 130, 0) if answer == truth else (190, 0, 0)
            place = (4, 24 + 23 * line)
            write_text(draw, place, f"{title.split()[-1]}: {answer}", 12, colour, "la")
        tiles += [crop, np.asarray(tile)]
    return sheet([tiles[i : i + 6] for i in range(0, len(tiles), 6)], [])


def plot_losses(runs: Mapping[str, Path], path: Path) -> None:
    """Loss over the steps of the live runs, from their metrics.json."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for title, metrics in runs.items():
        axes.plot(*zip(*_losses(metrics)), label=title)
    axes.set(xlabel="step", ylabel="1 - cosine to the crop", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _losses(path: Path) -> list[tuple[float, float]]:
    """Step, counted from 1, and loss of each line of a metrics.json that has a loss."""
    lines = read_json_lines(path, "file of metrics")
    keys = ("iteration", "loss_clipself")
    read = [[line.get(key) for key in keys] for line in lines if isinstance(line, dict)]
    points: list[tuple[float, float]] = [
        (step + 1, loss)
        for step, loss in read
        if isinstance(step, int) and isinstance(loss, int | float)
        if abs(step) < 2**53 and not abs(loss) > 1e300
    ]
    if not points:
        raise InputError(f"{path} has no line with a step and a loss: remove it, and train again")
    return points


def page(rows: Mapping[str, Mapping[str, float]], chapters: Mapping[str, Chapter]) -> str:
    """The HTML page around tables, whose cells are escaped, and images."""
    table = region_table(rows, style="html")
    tables = {name: chapter.table("html") for name, chapter in chapters.items()}
    return f"""{HEAD}<h1>CLIPSelf on the mini world</h1>
<p>A small CLIP, trained on images and captions of this world, recognises a thing when it is shown a crop
of it (<em>Image Crops</em>, first row). Asked for the same thing in the dense features of the whole image
(<em>Boxes</em>, <em>Thing Masks</em>) it fails. CLIPSelf pulls the dense features of each region towards the
model's own embedding of the crop: no labels, no text. Top-1 and top-5 mean class accuracy in percent, among
all 44 classes.</p>
{table}
<p><em>live</em> was distilled just now, in a minute or two; <em>shipped</em> comes with the project and was
distilled by the same command for longer (clipself_seg/mini/CARD.md).</p>
<h2>What the dense features see</h2>
<p>K-Means of the dense features of one image, as many clusters as segments (paper, Fig. 4).</p>
<img src="kmeans.png" alt="K-Means maps of the original and the distilled dense features">
<h2>What a box is taken for</h2>
<img src="regions.png" alt="Crops of things with the answers of each model">
<h2>Loss of the live runs</h2>
<img src="loss.png" alt="Loss curves">
<h2>Open-vocabulary segmentation</h2>
<p>CAT-Seg refines the cosines between dense features and class names. Both models below were trained just now
on the seen classes of the mini world, one on the features of the original CLIP, one on CLIPSelf's. Mean IoU in
percent. <em>mini2</em> is another world, with its own layouts, textures and words.</p>
{tables["semantic"]}
<h3>mini</h3>
<img src="semantic_mini.png" alt="Images of the mini world with ground truth and predictions">
<h3>mini2</h3>
<img src="semantic_mini2.png" alt="Images of the second world with ground truth and predictions">
<h2>Panoptic segmentation</h2>
<p>A mask generator, trained on images that show the seen classes of the mini world only, finds segments. What
they are called is decided by CLIP's dense features inside of each mask (<em>CLIP only</em>), by the generator's own
scores, or by both (<em>fused</em>). Panoptic quality in percent. The first generator was trained just now and knows
masks, but hardly classes; the second one comes with the project, and found the segments in the images.</p>
{tables["panoptic, live"]}
<p></p>
{tables["panoptic, shipped"]}
<h3>mini</h3>
<img src="panoptic_mini.png" alt="Images of the mini world with true and predicted segments">
<h3>mini2</h3>
<img src="panoptic_mini2.png" alt="Images of the second world with true and predicted segments">
<h2>Open-vocabulary detection</h2>
<p>F-ViT finds boxes on CLIP's frozen features. Two were trained just now on boxes of the seen (base) things of the
mini world, on the features of the original CLIP and on CLIPSelf's; the third one comes with the project and was
trained for longer. AP50 of boxes in percent; no training named a novel class. Boxes of seen classes are blue and
solid, those of unseen ones red and dashed, with an asterisk behind the name.</p>
{tables["detection"]}
<h3>mini</h3>
<img src="detection_mini.png" alt="Images of the mini world with true boxes and those of three detectors">
<h3>mini2</h3>
<img src="detection_mini2.png" alt="Images of the second world with true boxes and those of three detectors">
</html>
"""
