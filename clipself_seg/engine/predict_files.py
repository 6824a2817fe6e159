"""Segmenting files and folders of pictures: overlays, label maps and scores, one picture at a time."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from clipself_seg.data.images import read_image
from clipself_seg.engine.predictor import Predictor, Segmentation
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path, write_json
from clipself_seg.provenance import provenance
from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.overlays import overlay
from clipself_seg.visualization.segments import save_png

# What a folder is searched for; a file that is named itself may end otherwise.
ENDINGS = tuple(".avif .bmp .gif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())


@dataclasses.dataclass(frozen=True)
class Photo:
    """A picture to segment.

    Attributes:
        path: of the file.
        name: of what is written for it, without ending; of a picture in a folder with the way there.
    """

    path: Path
    name: str


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
        reason = "no such file or folder" if len(found.failed) == len(inputs) else "no pictures"
        raise InputError(f"{reason}: {named}; a picture ends in {' '.join(ENDINGS)}")
    found.photos = _name(list(unique.values()))
    return found


def _search(folder: Path, out: Path, found: Found) -> None:
    for path in sorted(folder.rglob("*")):
        way = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in way.parts)
        if hidden or out in path.resolve().parents or not path.is_file():
            continue
        if path.suffix.lower() in ENDINGS:
            found.photos.append(Photo(path, way.as_posix()))
        else:
            found.others.append(path)


def _name(photos: Sequence[Photo]) -> list[Photo]:
    short = [photo.name.removesuffix(photo.path.suffix) for photo in photos]
    counts = Counter(short)
    named = [
        dataclasses.replace(photo, name=stem if counts[stem] == 1 else photo.name)
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


def predict_files(
    predictor: Predictor, found: Found, output: str | Path, scores: bool = False
) -> dict[str, str]:
    """Segment pictures; what cannot be read is told at once, and the others are done.

    Writes below `output` for each picture overlays/NAME.png, labels/NAME.png (8 or 16 bits) and, if
    asked for, scores/NAME.npz ("scores" float16 (N, H, W), "names"), and classes.json: what labels
    mean, shares of every picture, failures, and where it all comes from.

    Args:
        predictor: with a vocabulary.
        found: see `find_photos`.
        output: folder; results of the same names are replaced.
        scores: whether to write them.

    Returns:
        Input -> what is wrong, of those without results.

    Raises:
        InputError: results cannot be written.
    """
    out, failed = Path(output), dict(found.failed)
    colours = class_colours(predictor.names)
    facts = _facts(predictor, colours)
    pictures: dict[str, Any] = {}
    try:
        # Label maps of an interrupted run can be read too.
        write_json(out / "classes.json", facts | {"complete": False})
        for path, reason in failed.items():
            _complain(path, reason)
        for photo in tqdm(found.photos, "pictures", unit="picture"):
            try:
                image = read_image(photo.path)
            except InputError as error:
                failed[str(photo.path)] = str(error)
                _complain(str(photo.path), str(error))
                continue
            result = predictor(image, scores=scores)
            _write(out, photo.name, image, result, colours)
            pictures[photo.name] = {"file": str(photo.path), "shares": result.shares()}
        listed = {"pictures": pictures, "failed": failed}
        write_json(out / "classes.json", facts | listed | {"complete": True})
    except OSError as error:
        raise InputError(f"results cannot be written below {output}: {error}") from None
    return failed


def _facts(predictor: Predictor, colours: np.ndarray) -> dict[str, Any]:
    names = predictor.names
    return {
        "names": {str(label): name for label, name in enumerate(names)},
        "colours": {str(n): f"#{bytes(rgb).hex()}" for n, rgb in enumerate(colours)},
        "prompted": [list(synonyms) for synonyms in predictor.model.names],
        "background": predictor.background,
        "threshold": predictor.threshold,
        "provenance": provenance(weights_hash=predictor.model.weights_hash()),
    }


def _write(
    out: Path, name: str, image: np.ndarray, result: Segmentation, colours: np.ndarray
) -> None:
    save_png(Image.fromarray(result.labels), out / "labels" / f"{name}.png")
    drawn = overlay(image, result.labels, result.names, colours)
    save_png(drawn, out / "overlays" / f"{name}.png")
    if result.scores is not None:
        with atomic_path(out / "scores" / f"{name}.npz") as temporary:
            with open(temporary, "wb") as file:
                np.savez_compressed(
                    file, scores=result.scores.astype(np.float16), names=np.array(result.names)
                )


def _complain(path: str, reason: str) -> None:
    tqdm.write(f"failed: {reason if path in reason else f'{path}: {reason}'}", file=sys.stderr)
