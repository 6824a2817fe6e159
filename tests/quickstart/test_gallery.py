"""The quickstart's page: names are text in it, whatever they are."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from clipself_seg.errors import InputError
from clipself_seg.evaluation.sem_seg.report import split_table
from clipself_seg.quickstart.gallery import page, plot_losses
from clipself_seg.quickstart.steps import Chapter

NAME = "<script>alert('a & b')</script>"


class Reader(HTMLParser):
    """Tags and text of a page, as a browser sees them."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text.append(data.strip())


def test_names_are_text_in_the_page_and_nothing_else():
    chapter = Chapter({}, {}, lambda style: split_table({NAME: {}}, first=NAME, style=style))
    names = ("semantic", "panoptic, live", "panoptic, shipped", "detection")
    reader = Reader()
    reader.feed(page({NAME: {}}, dict.fromkeys(names, chapter)))
    assert "table" in reader.tags and "script" not in reader.tags
    # A row of the first table; heading and row of the four others.
    assert reader.text.count(NAME) == 9


@pytest.mark.parametrize(
    "line",
    [
        "3",
        "{}",
        f'{{"iteration": 1, "loss_clipself": {10**400}}}',
        '{"iteration": "1", "loss_clipself": 2.0}',
        "{",
    ],
)
def test_metrics_without_losses_are_named(tmp_path, line):
    (tmp_path / "metrics.json").write_text(line)
    with pytest.raises(InputError, match="metrics.json "):
        plot_losses({"run": tmp_path / "metrics.json"}, tmp_path / "loss.png")
