"""Images of the quickstart: K-Means in one shape, answers with marks, and losses."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from clipself_seg.clip import load_clip
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.quickstart.page import (
    Answers,
    kmeans_rows,
    kmeans_sheet,
    plot_losses,
    region_answers,
    region_sheet,
)


@functools.cache
def clips():
    return {"CLIPSelf proposals": load_clip("ViT-Mini-8", "mini-clipself-proposals")}


class Scene:
    """A labelled image of two halves, both of them things."""

    def __init__(self, width, height):
        self.image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        self.size = width, height
        self.labels = np.array([0, 1])
        self.things = np.array([0, 1])
        self.segments = self
        self.ids = np.where(np.arange(width) < width // 2, 7, 300)[None].repeat(height, 0)
        self.segment_ids = np.array([7, 300])
        self.boxes = np.array([[0, 0, width // 2, height], [width // 2, 0, width, height]], float)

    def student_input(self, clip, side):
        from clipself_seg.quickstart.page import LabelledImage

        return LabelledImage.student_input(self, clip, side)


def test_kmeans_shows_scenes_of_one_orientation_enlarged():
    scenes = [Scene(48, 64), Scene(64, 48), Scene(72, 48), Scene(80, 48)]
    rows = kmeans_rows(clips(), scenes, 2)
    assert [row.tiles["image"].shape for row in rows] == [(96, 128, 3), (96, 144, 3)]
    assert list(rows[0].tiles) == ["image", "ground truth", "CLIPSelf proposals"]
    assert {tile.shape for tile in rows[0].tiles.values()} == {(96, 128, 3)}
    assert kmeans_sheet(rows).width > 3 * 144


def test_every_thing_has_an_answer_of_every_model():
    vocabulary = load_vocabulary("mini")
    answers = region_answers(clips(), [Scene(64, 48)], vocabulary, 5)
    assert [name for _, name, _ in answers] == list(vocabulary.names[:2])
    assert all(set(given) == set(clips()) for _, _, given in answers)
    assert set(answers[0].given.values()) <= set(vocabulary.names)
    assert region_answers(clips(), [Scene(64, 48)], vocabulary, 1)[0].name == answers[0].name


def test_right_and_wrong_answers_differ_in_shape_not_only_in_colour():
    crop = np.full((96, 96, 3), 255, np.uint8)
    sheets = [
        np.asarray(region_sheet([Answers(crop, name, {"a": "x"})]).convert("L")).astype(int)
        for name in ("x", "y")
    ]
    mark = np.s_[:, 112:126]  # of the line of the answer; the name above it differs as well
    lines = [sheet[33:60][mark] for sheet in sheets]
    assert ((lines[0] < 160) != (lines[1] < 160)).sum() > 10


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
