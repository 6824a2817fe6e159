"""The quickstart's page: tables and images in one file, in which names are text, whatever they are."""

import functools
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from clipself_seg.clip import load_clip
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.region_report import region_table
from clipself_seg.explore.demo import SHOWN, Question, ask
from clipself_seg.pages import render
from clipself_seg.visualization.overlays import Entry, Row
from lab.mini.concepts import WORLDS
from lab.mini.scenes import Scene, Segment
from lab.quickstart.chapters import SEMANTIC_SPLIT, Results, split_table
from lab.quickstart.page import (
    TEMPLATE,
    Answers,
    heat_sheet,
    kmeans_rows,
    plot_losses,
    region_answers,
)
from tests.conftest import ROOT

NAME = "<script>alert('a & b')</script>"
IMAGE = np.zeros((4, 6, 3), np.uint8)
RESULTS = {"mIoU": 1.0, "mIoU-seen": 2.0, "mIoU-unseen": 3.0}


class Reader(HTMLParser):
    """Tags, attributes and text of a page, as a browser sees them."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.sources, self.bold, self.sizes = [], [], [], [], []
        self.folds = self.open_images = 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "srcset")]
        if tag == "img":
            self.sizes.append((dict(attrs).get("width"), dict(attrs).get("height")))
            self.open_images += not self.folds
        self.folds += tag == "details"

    def handle_endtag(self, tag):
        self.folds -= tag == "details"

    def handle_data(self, data):
        self.text.append(data.strip())
        if self.tags[-1:] == ["b"]:
            self.bold.append(data)


def read_page(scenes=1):
    """The page of chapters whose every name is a script."""
    rows = {NAME: {"mini": RESULTS}, "other": {"mini": dict.fromkeys(RESULTS, 0.5)}}
    row = Row({NAME: IMAGE}, [Entry(NAME, (1, 2, 3))])

    def table(style):
        return split_table(rows, SEMANTIC_SPLIT, NAME, style)

    chapter = Results(table, images={NAME: scenes * [row]})
    names = ("semantic", "panoptic, live", "panoptic, shipped", "detection")
    answers = [Answers(IMAGE, NAME, {"right": NAME, "wrong": "other"})]
    questions = [Question(NAME, IMAGE, {NAME: IMAGE})]
    reader = Reader()
    regions = Results(lambda style: region_table({NAME: {}}, style=style))
    results = {"results": regions} | dict.fromkeys(names, chapter)
    html = render(
        TEMPLATE,
        tables={name: chapter.table("html") for name, chapter in results.items()},
        images={name: chapter.images for name, chapter in results.items()},
        questions=questions,
        clusters=scenes * [row],
        answers=answers,
        losses=IMAGE,
        explore="explore.html",
    )
    reader.feed(html)
    return reader


def test_names_are_text_in_the_page_and_all_images_are_in_it():
    reader = read_page()
    assert "table" in reader.tags and "script" not in reader.tags
    # Rows of five tables and headings of four; titles and legends of the rows of images, headings of worlds.
    assert reader.text.count(NAME) >= 9 + 2 * 4 + 3
    # The page does not move while its images are decoded.
    assert set(reader.sizes) == {("6", "4")}
    assert len(reader.sources) == reader.tags.count("img") >= 8
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert not {"link", "script", "iframe"} & set(reader.tags)
    # The best of a column is bold, and answers are marked beside their colour.
    assert [text for text in reader.bold if text[0].isdigit()] == 4 * ["1.0", "2.0", "3.0"]
    text = " ".join(reader.text)
    assert f"✓ right: {NAME}" in text and "✗ wrong: other" in text


def test_more_scenes_are_folded_and_make_the_page_no_longer():
    few, many = read_page(2), read_page(5)
    assert len(many.sources) > len(few.sources) and many.open_images == few.open_images
    assert few.folds == many.folds == 0


@functools.cache
def clips():
    return {"CLIPSelf proposals": load_clip("ViT-Mini-8", "mini-clipself-proposals")}


def halves_of(width, height):
    """A scene of two halves, both of them things."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    middle = width // 2
    segment_map = np.where(np.arange(width) < middle, 1, 2)[None].repeat(height, 0)
    boxes = (0, 0, middle, height), (middle, 0, width, height)
    things = enumerate(zip(WORLDS["mini"].things, boxes), 1)
    segments = [Segment(n, thing, box, middle * height) for n, (thing, box) in things]
    return Scene(image, segment_map.astype(np.uint8), tuple(segments))


def test_kmeans_shows_scenes_of_one_orientation_enlarged():
    scenes = [halves_of(*size) for size in ((48, 64), (64, 48), (72, 48), (80, 48))]
    rows = kmeans_rows(clips(), scenes, 2)
    assert [row.tiles["image"].shape for row in rows] == [(96, 128, 3), (96, 144, 3)]
    assert list(rows[0].tiles) == ["image", "ground truth", "CLIPSelf proposals"]
    assert {tile.shape for tile in rows[0].tiles.values()} == {(96, 128, 3)}


def test_every_thing_has_an_answer_of_every_model():
    vocabulary = Vocabulary.load("mini")
    answers = region_answers(clips(), [halves_of(64, 48)], vocabulary, 5)
    assert [name for _, name, _ in answers] == list(vocabulary.first_names[:2])
    assert all(set(given) == set(clips()) for _, _, given in answers)
    assert set(answers[0].given.values()) <= set(vocabulary.first_names)
    assert region_answers(clips(), [halves_of(64, 48)], vocabulary, 1)[0].name == answers[0].name


@pytest.mark.parametrize(
    "line", ["{", "3", '{"loss_clipself": 1}', '{"iteration": 1, "loss_clipself": []}']
)
def test_a_broken_line_of_metrics_is_named(tmp_path, line):
    (tmp_path / "metrics.json").write_text(line)
    with pytest.raises(InputError, match="line 1 of .*metrics.json"):
        plot_losses({"run": tmp_path / "metrics.json"}, tmp_path / "loss.png")


@functools.cache
def questions():
    return ask({title: load_clip("ViT-Mini-8", tag) for title, tag in SHOWN.items()})


def test_the_picture_of_the_readme_is_reproduced():
    drawn = heat_sheet(questions())
    kept = cv2.imread(str(ROOT / "docs" / "pictures" / "heat_maps.jpg"))[..., ::-1].astype(int)
    assert kept.shape == (drawn.height, drawn.width, 3)
    # What JPEG loses, and how processors round.
    assert np.abs(np.asarray(drawn).astype(int) - kept).mean() < 3
