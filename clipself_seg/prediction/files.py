"""Segmenting files and folders of pictures, one at a time: overlays, label maps and scores, or any results."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from clipself_seg.data.images import read_image
from clipself_seg.errors import InputError, in_short
from clipself_seg.files import atomic_path, write_json
from clipself_seg.prediction.semantic import Predictor
from clipself_seg.provenance import provenance
from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.overlays import overlay, save_png

logger = logging.getLogger(__name__)

# What a folder is searched for; a file that is named itself may end otherwise.
ENDINGS = tuple(".avif .bmp .gif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())


@dataclasses.dataclass(frozen=True)
class Photo:
    """A picture to segment.

    Attributes:
        path: of the file.
        file_name: its name, of a picture in a folder with the way there.
        name: of what is written for it, without ending.
    """

    path: Path
    file_name: str
    name: str = ""


@dataclasses.dataclass
class Found:
    """What the inputs hold.

    Attributes:
        photos: pictures, each once.
        failed: input -> what is wrong with it.
        others: files in folders that are no pictures by their endings.
    """

    photos: list[Photo]
    failed: dict[str, str]
    others: list[Path]


def find_photos(inputs: Sequence[str | Path], output: str | Path) -> Found:
    """Pictures by name, and all below folders; hidden files and the output folder are left out.

    Two pictures that differ in their endings alone keep them in their names.

    Raises:
        InputError: nothing to segment, or two pictures whose results would have one name.
    """
    found, out = Found([], {}, []), Path(output).resolve()
    for item in map(Path, inputs):
        if item.is_dir():
            if item.resolve() == out:
                raise InputError(f"{output} is input and output: give another folder for results")
            _search(item, out, found)
        elif item.exists():
            found.photos.append(Photo(item, item.name))
        else:
            found.failed[str(item)] = "no such file or folder"
    unique = {photo.path.resolve(): photo for photo in found.photos}
    if not unique:
        named = ", ".join(map(str, inputs))
        missing = all(str(Path(item)) in found.failed for item in inputs)
        reason = "no such file or folder" if missing else "no pictures"
        raise InputError(f"{reason}: {named}; a picture ends in {' '.join(ENDINGS)}")
    found.photos = _name(list(unique.values()))
    return found


def _search(folder: Path, out: Path, found: Found) -> None:
    for path in sorted(folder.rglob("*")):
        way = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in way.parts)
        # Not Path.resolve, which fails at a link to itself.
        if hidden or out in Path(os.path.realpath(path)).parents or path.is_dir():
            continue
        if path.suffix.lower() not in ENDINGS:
            found.others.append(path)
        elif path.is_file():
            found.photos.append(Photo(path, way.as_posix()))
        else:
            found.failed[str(path)] = "a link to nothing" if path.is_symlink() else "no file"


def _name(photos: Sequence[Photo]) -> list[Photo]:
    short = [photo.file_name.removesuffix(photo.path.suffix) for photo in photos]
    counts = Counter(short)
    named = [
        dataclasses.replace(photo, name=stem if counts[stem] == 1 else photo.file_name)
        for photo, stem in zip(photos, short)
    ]
    twice = [name for name, count in Counter(photo.name for photo in named).items() if count > 1]
    if twice:
        paths = [str(photo.path) for photo in named if photo.name == twice[0]]
        raise InputError(
            f"{' and '.join(paths)} would have results of one name: give the folder that holds "
            "both, or another --output for each"
        )
    return named


class Results(Protocol):
    """What is written of pictures."""

    @property
    def folder(self) -> Path:
        """Below which it is written."""

    def write(self, photo: Photo, image: np.ndarray) -> None:
        """Segment a picture (H, W, 3) uint8 and write what was found."""

    def write_index(self, failed: Mapping[str, str], complete: bool) -> None:
        """Write the file that explains the others: what is there, and input -> what is wrong."""


def predict_files(results: Results, found: Found) -> dict[str, str]:
    """Segment pictures; what cannot be read or segmented is told at once, and the others are done.

    The index is written before the first picture and, interrupted or not, after the last.

    Args:
        results: segments and writes; what is there of the same names is replaced.
        found: see `find_photos`.

    Returns:
        Input -> what is wrong, of those without results.

    Raises:
        InputError: results cannot be written.
    """
    failed, complete = dict(found.failed), False
    try:
        results.write_index(failed, complete)
        for path, reason in failed.items():
            _complain(path, reason)
        try:
            for photo in tqdm(found.photos, "pictures", unit="picture"):
                try:
                    results.write(photo, read_image(photo.path))
                except OSError:  # a full disk, and so on: the next picture would fare no better
                    raise
                except Exception as error:  # whatever a library makes of a strange picture
                    reason = _reason(error)
                    failed[str(photo.path)] = reason
                    _complain(str(photo.path), reason)
            complete = True
        finally:
            results.write_index(failed, complete)
    except OSError as error:
        raise InputError(f"results cannot be written below {results.folder}: {error}") from None
    return failed


class SemanticResults:
    """overlays/NAME.png, labels/NAME.png (8 or 16 bits), if asked for scores/NAME.npz, classes.json.

    Scores are "scores" float32 (N, H, W), highest where the labels say, and "names"; the JSON tells
    what labels mean, their shares in every picture, failures, and where it all comes from.
    """

    def __init__(self, *, predictor: Predictor, folder: str | Path, scores: bool = False) -> None:
        """
        Args:
            predictor: with a vocabulary.
            folder: to write below.
            scores: whether to write them.
        """
        self.predictor, self.folder, self.scores = predictor, Path(folder), scores
        self._colours = class_colours(predictor.names)
        self._pictures: dict[str, Any] = {}

    def write(self, photo: Photo, image: np.ndarray) -> None:
        """See `Results`."""
        result, name = self.predictor(image, scores=self.scores), photo.name
        drawn = overlay(image, result.labels, result.names, self._colours)
        save_png(Image.fromarray(result.labels), self.folder / "labels" / f"{name}.png")
        save_png(drawn, self.folder / "overlays" / f"{name}.png")
        if result.scores is not None:
            with atomic_path(self.folder / "scores" / f"{name}.npz") as temporary:
                with open(temporary, "wb") as file:
                    # In half precision close scores would be equal, and some labels not theirs.
                    np.savez_compressed(file, scores=result.scores, names=np.array(result.names))
        self._pictures[name] = {"file": str(photo.path), "shares": result.shares()}

    def write_index(self, failed: Mapping[str, str], complete: bool) -> None:
        """See `Results`."""
        listed = {"pictures": self._pictures, "failed": dict(failed), "complete": complete}
        write_json(self.folder / "classes.json", self._facts | listed)

    @functools.cached_property
    def _facts(self) -> dict[str, Any]:
        names, model = self.predictor.names, self.predictor.model
        return {
            "names": {str(label): name for label, name in enumerate(names)},
            "colours": {str(n): f"#{bytes(rgb).hex()}" for n, rgb in enumerate(self._colours)},
            "prompted": [list(synonyms) for synonyms in model.names],
            "background": self.predictor.background,
            "threshold": self.predictor.threshold,
            "provenance": provenance(weights_hash=model.weights_hash()),
        }


def _reason(error: Exception) -> str:
    """What is wrong with a picture; of an error that nobody foresaw DEBUG logs the whole."""
    if isinstance(error, InputError):
        return str(error)
    logger.debug("a picture cannot be segmented", exc_info=error)
    return f"cannot be segmented ({type(error).__name__}: {in_short(error)})"


def _complain(path: str, reason: str) -> None:
    tqdm.write(f"failed: {reason if path in reason else f'{path}: {reason}'}", file=sys.stderr)
