"""Runs the server's models on an image and words; each method is for one thread at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import nn

from clipself_seg.checkpoints.hashes import invalidate
from clipself_seg.clip import DenseCLIP
from clipself_seg.errors import InputError
from clipself_seg.explore.asked import Asked
from clipself_seg.explore.content import Content, jpeg_address
from clipself_seg.explore.panoptic_view import PanopticView
from clipself_seg.prediction.detection import DetectionPredictor
from clipself_seg.prediction.panoptic import PanopticPredictor, panoptic_words
from clipself_seg.prediction.semantic import Predictor

OVERLAY_SIDE = 1024  # longest side in pixels of an overlay on the page
LEAST_SIDE = 640  # pixels of the longest side that an overlay should have
MOST_TEXTS = 50  # vocabularies whose embeddings a model keeps
MOST_LISTED = 100  # lines of a list


class Answers:
    """The models of a server."""

    def __init__(
        self,
        *,
        clips: Mapping[str, DenseCLIP],
        side: int | None = None,
        semantic: Predictor | None = None,
        panoptic: PanopticPredictor | None = None,
        boxes: DetectionPredictor | None = None,
        texts: Path | None = None,
    ) -> None:
        """
        Args:
            clips: models of the heat maps by title.
            side: see `Content`.
            semantic: names every pixel; None: not asked for.
            panoptic: finds segments; None: not asked for.
            boxes: finds boxes; None: not asked for.
            texts: folder of this server alone in which text embeddings are kept, emptied from time to time.
        """
        self.clips = clips
        self.side = side
        self.predictors: dict[str, Any] = {
            name: predictor
            for name, predictor in (
                ("semantic", semantic),
                ("panoptic", panoptic),
                ("boxes", boxes),
            )
            if predictor is not None
        }
        self.texts = texts
        self._asked = dict.fromkeys(("maps", *self.predictors), 0)

    def answer(self, task: str, asked: Asked) -> dict[str, Any]:
        """What one of the models says, JSON.

        Args:
            task: "maps", "view" (what the page needs to fuse and merge by itself), or a key of `predictors`.
            asked: image and words.

        Raises:
            InputError: the words do not fit the model.
        """
        self._forget("panoptic" if task == "view" else task)
        answers = {
            "maps": self._maps,
            "view": self._view,
            "semantic": self._semantic,
            "panoptic": self._panoptic,
            "boxes": self._boxes,
        }
        return answers[task](asked)

    def _maps(self, asked: Asked) -> dict[str, Any]:
        content = Content(clips=self.clips, words=asked.words, side=self.side)
        return {"models": content.models(), "image": content.image(asked.image, "")}

    def _view(self, asked: Asked) -> dict[str, Any]:
        view = PanopticView(self._with_stuff(asked))
        return {"model": view.model(), "image": view.image(asked.image)}

    def _semantic(self, asked: Asked) -> dict[str, Any]:
        predictor: Predictor = self.predictors["semantic"]
        predictor.set_vocabulary(asked.words)
        result = predictor(asked.image)
        scores = dict(zip(result.names, result.class_scores))
        rows = [
            [name, f"{100 * fraction:.1f} %", f"{scores[name]:.2f}"]
            for name, fraction in result.fractions().items()
        ]
        return _answer(result, ("word", "area", "score"), rows)

    def _panoptic(self, asked: Asked) -> dict[str, Any]:
        predictor = self._with_stuff(asked)
        result = predictor(asked.image)
        rows = []
        for segment in result.segments:
            kind = "thing" if segment.isthing else "stuff"
            kind += "" if predictor.seen[segment.label] else ", unseen"
            area = f"{100 * segment.area / result.ids.size:.1f} %"
            rows.append([segment.name, area, f"{segment.score:.2f}", kind])
        return _answer(result, ("segment", "area", "score", "kind"), rows)

    def _boxes(self, asked: Asked) -> dict[str, Any]:
        predictor: DetectionPredictor = self.predictors["boxes"]
        predictor.set_vocabulary(asked.words)
        result = predictor(asked.image)
        rows = [
            [
                result.names[label],
                f"{score:.2f}",
                "seen" if result.seen[label] else "unseen",
                "{:.0f}, {:.0f} to {:.0f}, {:.0f}".format(*box),
            ]
            for box, score, label in zip(result.boxes, result.scores, result.labels)
        ]
        return _answer(result, ("word", "score", "class", "box in pixels"), rows)

    def _with_stuff(self, asked: Asked) -> PanopticPredictor:
        predictor: PanopticPredictor = self.predictors["panoptic"]
        if asked.stuff is None and asked.words.classes[0].isthing is not None:
            predictor.set_vocabulary(asked.words)
        else:
            stuff = "" if asked.stuff is None else asked.stuff
            predictor.set_vocabulary(panoptic_words(asked.words, stuff))
        return predictor

    def _forget(self, task: str) -> None:
        """Let go of the texts of earlier words, which would grow without end; those here come again."""
        if task not in self._asked:
            raise InputError(f"this server has no model for {task}")
        self._asked[task] += 1
        if self._asked[task] % MOST_TEXTS:
            return
        models = list(self.clips.values()) if task == "maps" else [self.predictors[task].model]
        for model in models:
            _invalidate_texts(model)
        if self.texts is not None:
            for path in self.texts.glob("text/*.safetensors"):
                path.unlink(missing_ok=True)


def _invalidate_texts(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, DenseCLIP):
            invalidate(module.text)


def _answer(result: Any, columns: Sequence[str], rows: list[list[str]]) -> dict[str, Any]:
    drawn: np.ndarray = _enlarged(result).overlay(sheet=False)
    return {
        "overlay": jpeg_address(drawn, OVERLAY_SIDE),
        "columns": columns,
        "rows": rows[:MOST_LISTED],
        "more": max(0, len(rows) - MOST_LISTED),
    }


def _enlarged(result: Any) -> Any:
    """A result of a small image as one of a larger image, so that there is room for names."""
    height, width = result.image.shape[:2]
    factor = LEAST_SIDE // max(height, width)
    if factor < 2:
        return result
    size = (factor * width, factor * height)
    changed: dict[str, Any] = {
        "image": cv2.resize(result.image, size, interpolation=cv2.INTER_CUBIC)
    }
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if field.name == "boxes":
            changed["boxes"] = factor * value
        elif isinstance(value, np.ndarray) and value.shape[-2:] == (height, width):
            changed[field.name] = value.repeat(factor, axis=-2).repeat(factor, axis=-1)
    return dataclasses.replace(result, **changed)
