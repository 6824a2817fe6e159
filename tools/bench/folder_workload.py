"""Benchmark workload of a folder of photographs: reading, model and writing at once, and one after the other."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path

from bench.case import IMAGE_SIZE, Case
from bench.measure import Run
from bench.shards import encode_jpeg, image_like_pixels
from clipself_seg.data.images import read_image
from clipself_seg.prediction.files import InputFiles, find_images
from clipself_seg.prediction.load import load
from clipself_seg.prediction.loop import predict_files
from clipself_seg.prediction.results import SemanticResults

WORDS = "cat, dog, grass, sky"
TOGETHER = 4  # images per batch
SIDE = 448  # in pixels, the shorter one that the CLIP reads


class FolderWorkload:
    """JPEGs as large as COCO's, whose pixels a CLIP of random weights labels; overlays and label maps are written.

    How long the model waited is said after each call.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        keys = ("MODEL.CLIP.NAME", case.model)
        more = ["MODEL.ZERO_SHOT.TEMPLATES", "single", "MODEL.ZERO_SHOT.WINDOW", "0"]
        more += ["INPUT.MIN_SIZE_TEST", str(min(SIDE, case.size))]
        file = "zero_shot/base"
        self.predictor = load("random", config_file=file, opts=[*keys, *more], device=case.device)
        self.predictor.set_vocabulary(WORDS)
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)

    def runs(self) -> dict[str, Run]:
        """Timed runs by name."""
        return {
            "folder": Run(self._overlapping, setup=self._results),
            "plain folder": Run(self._in_turn, setup=self._results),
        }

    @functools.cached_property
    def files(self) -> InputFiles:
        """The images, written."""
        encoded = [encode_jpeg(pixels) for pixels in image_like_pixels(IMAGE_SIZE)]
        for number, content in zip(range(self.case.batch), itertools.cycle(encoded)):
            path = self.folder / f"in/{number:04d}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return find_images([self.folder / "in"], self.folder / "out")

    def _results(self) -> SemanticResults:
        return SemanticResults(
            predictor=self.predictor, folder=self.folder / "out", images=self.files.images
        )

    def _overlapping(self, results: SemanticResults) -> None:
        files = dataclasses.replace(self.files, failed={})
        predict_files(results, files, batch_size=TOGETHER)

    def _in_turn(self, results: SemanticResults) -> None:
        for image in self.files.images:
            pixels = read_image(image.path, max_pixels=results.max_pixels)
            (result,) = results.predict([pixels], [image])
            results.write(image, result)
