"""Benchmark workload of panoptic quality, in memory during a run, beside panopticapi's.

Legend: H W rows and columns of an image.
"""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bench.case import IMAGE_SIZE, Case
from bench.measure import Run
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.evaluation.panoptic.evaluator import PanopticQualityEvaluator

WORDS = "openseg_coco_panoptic_133"
# At most so many segments, and cells of the noise that places them and of that which frays them: with
# this weight a PNG is about as large, and changes from pixel to pixel as often, as COCO's.
SEGMENTS, PLACES, FRAYS, WEIGHT = 12, (3, 4), (30, 40), 0.05


class Side(NamedTuple):
    """An image's segments: ids (H, W) int64, 0 is void, and their list in COCO's format."""

    ids: np.ndarray
    segments: list[dict[str, Any]]


class PQWorkload:
    """Images as large as COCO's with as many segments, in a folder that goes when this does."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.device = torch.device(case.device)
        self.words: Vocabulary = load_vocabulary(WORDS)
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)

    def runs(self) -> dict[str, Run]:
        """Timed runs by name, which give the panoptic quality of the same images, in percent.

        "PQ in memory" starts from predictions as a model gives them, and the PNGs of the truth;
        panopticapi's needs PNGs of the predictions as well, which Detectron2 writes.
        """
        return {
            "PQ in memory": Run(self._in_memory, setup=lambda: self.predicted),
            "plain PQ in memory": Run(self._plain_in_memory, setup=lambda: self.predicted),
        }

    @functools.cached_property
    def pairs(self) -> list[tuple[Side, Side]]:
        """Truth and prediction of each image, both with category ids."""
        return [random_pair(seed, self.words) for seed in range(self.case.batch)]

    @functools.cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The truth as a mapper gives it; its PNGs are on the disk."""
        folder = self.truth
        return [
            {
                "image_id": number,
                "file_name": f"{number}.jpg",
                "pan_seg_file_name": str(folder / f"{number}.png"),
                "segments_info": truth.segments,
            }
            for number, (truth, _) in enumerate(self.pairs)
        ]

    @functools.cached_property
    def predicted(self) -> list[dict[str, Any]]:
        """Predictions in the form in which a model returns them."""
        assert self.samples
        index_of = self.words.dataset_id_to_index
        return [
            {
                "panoptic_seg": (
                    torch.from_numpy(side.ids).to(self.device),
                    [s | {"category_id": index_of[s["category_id"]]} for s in side.segments],
                )
            }
            for _, side in self.pairs
        ]

    @functools.cached_property
    def truth(self) -> Path:
        """Folder of the PNGs of the truth, written."""
        folder = self.folder / "truth"
        folder.mkdir()
        for number, (side, _) in enumerate(self.pairs):
            _save_png(folder / f"{number}.png", side.ids)
        return folder

    @functools.cached_property
    def _categories(self) -> list[dict[str, Any]]:
        return [
            {"id": entry.dataset_id, "name": entry.names[0], "isthing": int(bool(entry.isthing))}
            for entry in self.words.classes
        ]

    def _in_memory(self, predicted: list[dict[str, Any]]) -> float:
        evaluator = PanopticQualityEvaluator(dataset_name="benchmark", vocabulary=self.words)
        for sample, output in zip(self.samples, predicted):
            evaluator.process([sample], [output])
        return evaluator.results()["PQ"]

    def _plain_in_memory(self, predicted: list[dict[str, Any]]) -> float:
        folder = self.folder / "plain"
        folder.mkdir(exist_ok=True)
        entries = []
        for number, output in enumerate(predicted):
            ids, segments = output["panoptic_seg"]
            _save_png(folder / f"{number}.png", ids.cpu().numpy())
            ids_of = [self.words.classes[s["category_id"]].dataset_id for s in segments]
            own = [s | {"category_id": category} for s, category in zip(segments, ids_of)]
            entries.append(_entry(number, own))
        truth = [_entry(sample["image_id"], sample["segments_info"]) for sample in self.samples]
        return self._panopticapi(truth, self.truth, entries, folder)

    def _panopticapi(
        self, truth: list[Any], truth_folder: Path, predicted: list[Any], folder: Path
    ) -> float:
        from panopticapi.evaluation import pq_compute_single_core

        categories = {entry["id"]: entry for entry in self._categories}
        pairs = list(zip(truth, predicted, strict=True))
        with contextlib.redirect_stdout(io.StringIO()):
            quality = pq_compute_single_core(0, pairs, truth_folder, folder, categories)
        return 100 * float(quality.pq_average(categories, isthing=None)[0]["pq"])


def random_pair(seed: int, words: Vocabulary) -> tuple[Side, Side]:
    """An image of `SEGMENTS` frayed segments or fewer, and a prediction that is right about most.

    Args:
        seed: of the image.
        words: their categories.
    """
    rng = np.random.default_rng(seed)
    places, frays = (
        F.interpolate(torch.from_numpy(rng.normal(size=size)).float(), IMAGE_SIZE, mode="bilinear")
        for size in ((1, SEGMENTS, *PLACES), (2, SEGMENTS, *FRAYS))
    )
    labels = (places + WEIGHT * frays).argmax(dim=1).numpy()
    numbers = rng.choice(2**24 - 1, SEGMENTS, replace=False) + 1
    categories = rng.choice([entry.dataset_id for entry in words.classes], SEGMENTS)
    wrong = rng.random(SEGMENTS) < 0.3
    theirs = np.where(wrong, np.roll(categories, 1), categories)
    return _side(labels[0], numbers, categories), _side(labels[1], np.arange(SEGMENTS) + 1, theirs)


def _side(labels: np.ndarray, numbers: np.ndarray, categories: np.ndarray) -> Side:
    areas = np.bincount(labels.ravel(), minlength=SEGMENTS).tolist()
    listed = zip(numbers.tolist(), categories.tolist(), areas)
    segments = [
        {"id": number, "category_id": category, "area": area, "iscrowd": 0}
        for number, category, area in listed
        if area
    ]
    return Side(numbers[labels], segments)


def _entry(number: int, segments: list[dict[str, Any]]) -> dict[str, Any]:
    return {"image_id": number, "file_name": f"{number}.png", "segments_info": segments}


def _save_png(path: Path, ids: np.ndarray) -> None:
    """Writes the PNG as Detectron2's evaluator writes it."""
    from panopticapi.utils import id2rgb

    Image.fromarray(id2rgb(ids)).save(path, format="PNG")
