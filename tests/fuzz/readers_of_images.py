"""Formats that images, label maps and given masks have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipself_seg.data.given_masks import read_masks
from clipself_seg.data.images import read_image
from clipself_seg.data.masks import encode_masks, read_label_map
from tests.fuzz.readers import Reader, make_text, partial

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 57, 3), dtype=np.uint8)
MASK = np.indices((40, 57)).sum(axis=0) % 9 < 4


def _make_given(folder: Path) -> Path:
    encoded = encode_masks(MASK[None])[0]
    compressed = {"size": [40, 57], "counts": encoded["counts"].decode()}
    runs = {"size": [40, 57], "counts": [280, 2000]}
    polygon = [[1.5, 2, 30, 2, 30, 20]]
    entries = [{"segmentation": one, "score": 0.5} for one in (compressed, runs, polygon)]
    return make_text("own.json", entries, folder)


def _make_given_folder(name: str, folder: Path) -> Path:
    (folder / "a").mkdir()
    Image.fromarray(MASK.astype(np.uint8) * 255).save(folder / "a/0.png")
    (folder / "a/metadata.csv").write_text("id,area,predicted_iou\n0,1140,0.9\n")
    return folder / "a" / name


def _read_given(path: Path) -> None:
    read_masks(path if path.suffix == ".json" else path.parent, (40, 57))


def _make_image(name: str, folder: Path, **options: Any) -> Path:
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(NOISE[:31, :37])
    image.save(folder / name, **({"exif": exif} if name.endswith((".jpg", ".png")) else {}))
    return folder / name


def _make_odd_image(mode: str, name: str, folder: Path) -> Path:
    Image.fromarray(NOISE[:31, :37]).convert(mode).save(folder / name)
    return folder / name


def _make_animation(name: str, folder: Path) -> Path:
    first, *others = (Image.fromarray(np.roll(NOISE[:20, :20], i, 0)) for i in range(3))
    first.save(folder / name, save_all=True, append_images=others)
    return folder / name


def _make_labels(name: str, dtype: Any, folder: Path) -> Path:
    Image.fromarray((NOISE[..., 0] % 7).astype(dtype)).save(folder / name)
    return folder / name


def _make_palette(folder: Path) -> Path:
    labels = Image.fromarray(NOISE[..., 0] % 7, "L").convert("P")
    labels.save(folder / "labels.png", transparency=0)
    return folder / "labels.png"


def _read_labels(path: Path) -> None:
    read_label_map(path, num_classes=300, ignore_label=65535, size=(57, 40), image="x.jpg")


def _image_reader(make: Callable[[Path], Path], layout: str = "bytes") -> Reader:
    return Reader(make, read_image, layout)


IMAGE_READERS = {
    "given_masks_json": Reader(_make_given, _read_given, "json"),
    "given_masks_png": Reader(partial(_make_given_folder, "0.png"), _read_given, "png"),
    "given_masks_csv": Reader(partial(_make_given_folder, "metadata.csv"), _read_given),
    "label_map_png": Reader(partial(_make_labels, "a.png", np.uint8), _read_labels, "png"),
    "label_map_16_bit_png": Reader(partial(_make_labels, "a.png", np.uint16), _read_labels, "png"),
    "label_map_palette_png": Reader(_make_palette, _read_labels, "png"),
    "label_map_tiff": Reader(partial(_make_labels, "a.tif", np.uint16), _read_labels),
    "image_jpeg": _image_reader(partial(_make_image, "a.jpg")),
    "image_cmyk_jpeg": _image_reader(partial(_make_odd_image, "CMYK", "a.jpg")),
    "image_png": _image_reader(partial(_make_image, "a.png"), "png"),
    "image_16_bit_png": _image_reader(partial(_make_labels, "a.png", np.uint16), "png"),
    "image_palette_png": _image_reader(partial(_make_odd_image, "P", "a.png"), "png"),
    "image_webp": _image_reader(partial(_make_image, "a.webp")),
    "image_bmp": _image_reader(partial(_make_image, "a.bmp")),
    "image_tiff": _image_reader(partial(_make_image, "a.tif")),
    "image_avif": _image_reader(partial(_make_image, "a.avif")),
    "image_jp2": _image_reader(partial(_make_image, "a.jp2")),
    "image_ppm": _image_reader(partial(_make_image, "a.ppm")),
    "image_gif": _image_reader(partial(_make_animation, "a.gif")),
}
