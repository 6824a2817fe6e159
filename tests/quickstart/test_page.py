"""The quickstart's page: one file, in which names are text, whatever they are."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from clipself_seg.evaluation.sem_seg.report import split_table
from clipself_seg.quickstart.heat_maps import Question
from clipself_seg.quickstart.page import Answers, page
from clipself_seg.quickstart.steps import Chapter
from clipself_seg.quickstart.tiles import Row
from clipself_seg.visualization.overlays import Entry

NAME = "<script>alert('a & b')</script>"
IMAGE = np.zeros((4, 6, 3), np.uint8)
RESULTS = {"mIoU": 1.0, "mIoU-seen": 2.0, "mIoU-unseen": 3.0}


class Reader(HTMLParser):
    """Tags, attributes and text of a page, as a browser sees them."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.sources, self.bold = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "srcset")]

    def handle_data(self, data):
        self.text.append(data.strip())
        if self.tags[-1:] == ["b"]:
            self.bold.append(data)


def read():
    """The page of chapters whose every name is a script."""
    rows = {NAME: {"mini": RESULTS}, "other": {"mini": dict.fromkeys(RESULTS, 0.5)}}
    row = Row({NAME: IMAGE}, [Entry(NAME, (1, 2, 3))])

    def table(style):
        return split_table(rows, first=NAME, style=style)

    chapter = Chapter({}, {}, table, {NAME: [row]})
    names = ("semantic", "panoptic, live", "panoptic, shipped", "detection")
    answers = [Answers(IMAGE, NAME, {"right": NAME, "wrong": "other"})]
    questions = [Question(NAME, IMAGE, {NAME: IMAGE})]
    reader = Reader()
    reader.feed(page({NAME: {}}, dict.fromkeys(names, chapter), questions, [row], answers, IMAGE))
    return reader


def test_names_are_text_in_the_page_and_nothing_else():
    reader = read()
    assert "table" in reader.tags and "script" not in reader.tags
    # Rows of five tables and headings of four; titles and legends of the rows of images, headings of worlds.
    assert reader.text.count(NAME) >= 9 + 2 * 4 + 3


def test_all_images_are_in_the_page():
    reader = read()
    assert len(reader.sources) == reader.tags.count("img") >= 8
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert not {"link", "script", "iframe"} & set(reader.tags)


def test_the_best_of_a_column_is_bold_and_answers_are_marked_beside_their_colour():
    reader = read()
    assert [text for text in reader.bold if text[0].isdigit()] == 4 * ["1.0", "2.0", "3.0"]
    text = " ".join(reader.text)
    assert f"✓ right: {NAME}" in text and "✗ wrong: other" in text
