"""The picture at the top of README is what this code draws from the weights that come with the project."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from clipself_seg.clip import load_clip
from clipself_seg.mini.concepts import WORLDS
from clipself_seg.mini.writer import scene_of
from clipself_seg.quickstart.heat_maps import ASKED, SHOWN, ask, heat_sheet
from tests.conftest import ROOT


@functools.cache
def questions():
    return ask({title: load_clip("ViT-Mini-8", tag) for title, tag in SHOWN.items()})


def test_the_picture_of_the_readme_is_reproduced():
    drawn = heat_sheet(questions())
    kept = cv2.imread(str(ROOT / "docs" / "pictures" / "heat_maps.jpg"))[..., ::-1].astype(int)
    assert kept.shape == (drawn.height, drawn.width, 3)
    # What JPEG loses, and how processors round.
    assert np.abs(np.asarray(drawn).astype(int) - kept).mean() < 3


def test_words_are_bright_in_their_segments_after_clipself():
    gained = []
    for (number, name), question in zip(ASKED, questions()):
        scene = scene_of(WORLDS["mini"], "val", number, seed=0)
        (segment,) = (s for s in scene.segments if s.concept.names[0] == name)
        height, width = question.image.shape[:2]
        inside = cv2.resize(
            (scene.segment_map == segment.id).astype(np.uint8),
            (width, height),
            interpolation=cv2.INTER_NEAREST,
        )
        # Red of the colours of heat grows with the probability.
        heat = [image[..., 0].astype(float) for image in question.maps.values()]
        contrast = [image[inside == 1].mean() - image[inside == 0].mean() for image in heat]
        gained.append(contrast[1] - contrast[0])
        assert question.name == name
    assert min(gained) > 20
