"""What predictors of all tasks do alike."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from clipself_seg.errors import InputError
from clipself_seg.prediction.predictor import ImagePredictor


class Mapper:
    max_pixels = 100


class Watch:
    """In the place of a `WorldCheck`."""

    def __init__(self):
        self.images, self.classes = [], []

    def look_at_images(self, images):
        self.images += [image.shape for image in images]

    def look_at_classes(self, entries):
        self.classes += entries


class Sizes(ImagePredictor):
    def set_vocabulary(self, words):
        self._look_at_classes(words)
        self.words = words

    def __call__(self, image, batch_size=1):
        words = self._asked_for(getattr(self, "words", None))
        return self._results(image, lambda ones: [(words, one.shape) for one in ones], batch_size)


def blank(height, width):
    return np.zeros((height, width, 3), np.uint8)


def test_every_image_is_looked_at_in_batches_and_belongs_to_an_evaluated_model():
    watch, model = Watch(), nn.Dropout().train()
    predictor = Sizes(model=model, mapper=Mapper(), world_check=watch)
    assert not model.training and predictor.config is None
    with pytest.raises(RuntimeError, match="call set_vocabulary before the predictor"):
        predictor(blank(2, 3))
    predictor.set_vocabulary(["cat"])
    assert predictor(blank(2, 3)) == (["cat"], (2, 3, 3))
    assert len(predictor([blank(1, 1), blank(2, 2), blank(3, 3)], batch_size=2)) == 3
    assert watch.classes == ["cat"] and watch.images == [(2, 3, 3), *((i, i, 3) for i in (1, 2, 3))]
    with pytest.raises(InputError, match="batch_size is 0"):
        predictor([blank(1, 1)], batch_size=0)


def test_without_a_check_nothing_is_looked_at():
    predictor = Sizes(model=nn.Identity(), mapper=Mapper())
    predictor.set_vocabulary(["cat"])
    assert predictor(blank(5, 5)) == (["cat"], (5, 5, 3))
