"""The base of predictors of all tasks: a model, the mapper of its images, and what a mini model warns of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from detectron2.config import CfgNode
from torch import nn

from clipself_seg.data.vocabulary import VocabularyClass
from clipself_seg.prediction.common import GivenImage, predict_images
from clipself_seg.prediction.pretrained import Pretrained
from clipself_seg.prediction.world_check import WorldCheck

R = TypeVar("R")
T = TypeVar("T")


class ImagePredictor(Pretrained):
    """The base of predictors, whose classes are given by `set_vocabulary` of a subclass.

    Attributes:
        model: in evaluation mode; it belongs to the predictor.
        mapper: that of the task, which resizes images as in evaluation and has `max_pixels`.
        world_check: warns of class names and images that the mini models do not know; None is silent.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        mapper: Any,
        world_check: WorldCheck | None = None,
        config: CfgNode | None = None,
    ) -> None:
        """
        Args:
            model: it is put into evaluation mode.
            mapper: see the attribute.
            world_check: see the attribute.
            config: configuration of model and mapper, which `save_pretrained` needs.
        """
        self.model = model.eval()
        self.mapper = mapper
        self.world_check = world_check
        self.config = config

    def _look_at_classes(self, entries: Sequence[VocabularyClass]) -> None:
        if self.world_check is not None:
            self.world_check.look_at_classes(entries)

    def _asked_for(self, given: T | None) -> T:
        """Returns what `set_vocabulary` has set, which is not None.

        Raises:
            RuntimeError: it was not called.
        """
        if given is None:
            raise RuntimeError("call set_vocabulary before the predictor")
        return given

    def _results(
        self,
        image: GivenImage | list[Any] | tuple[Any, ...],
        predict: Callable[[list[np.ndarray]], list[R]],
        batch_size: int,
    ) -> R | list[R]:
        """The result of an image, or of each of a list; see `predict_images`."""

        def predict_looked_at(images: list[np.ndarray]) -> list[R]:
            if self.world_check is not None:
                self.world_check.look_at_images(images)
            return predict(images)

        return predict_images(image, predict_looked_at, self.mapper.max_pixels, batch_size)
