"""Reading images and fitting them into squares: whole ones for the student, crops for the teacher.

Legend: H, W pixels of the image; boxes are XYXY pixels with x to the right and y down. PIL does
every resampling, because the published numbers were made with its antialiased bicubic filter.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import struct
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from clipself_seg.errors import InputError, in_short
from clipself_seg.files import require_regular_file

MAX_PIXELS = 128_000_000
"""Largest number of pixels of an image, if nothing else is said: the default of INPUT.MAX_PIXELS."""

# Formats that are read, in Pillow's words. Its others are of no use here, and some are unsafe: it has
# Ghostscript run what a file of PostScript says. HEIF (.heic) counts where pillow_heif is installed.
# What a folder is searched for; a file that is named itself may end otherwise.
ENDINGS = tuple(".avif .bmp .gif .heic .heif .jp2 .jpeg .jpg .png .tif .tiff .webp".split())
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF", "JPEG2000")
# Held while Pillow's own limit is lifted.
_OPENING = threading.Lock()
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG = 274
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Errors that Pillow raises for a damaged file, depending on the format and on where it is damaged.
DECODING_ERRORS: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, IndexError)
DECODING_ERRORS += (TypeError, EOFError, RuntimeError, struct.error, Image.DecompressionBombError)


@contextlib.contextmanager
def open_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Opens an image of one of `FORMATS` and reads its header; every image of the project is opened here.

    Args:
        path: file, of which the first frame counts; its ending does not.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: no regular file, or more pixels.
        OSError, SyntaxError, ...: as Pillow, see `DECODING_ERRORS`.
    """
    require_regular_file(path)
    # By its content: a file that it opens itself Pillow maps into memory, and one that lies it mixes up then.
    with open(path, "rb") as content, _open(content, path) as image:
        check_pixels(path, *image.size, max_pixels)
        yield image


def _open(content: BinaryIO, name: str | os.PathLike[str]) -> Image.Image:
    """The image of what a file contains; the name is for messages."""
    check_content(content)
    _register_decoders()
    formats = [name for name in FORMATS if name in Image.OPEN]
    # Pillow's own limit, which no key moves, does not say how large the image is.
    with _OPENING:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(content, formats=formats)
        except UnidentifiedImageError:
            raise UnidentifiedImageError(f"cannot identify image file '{name}'") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def _register_decoders() -> None:
    Image.preinit()  # BMP, GIF, JPEG and PNG; Image.init adds thirty formats that nobody reads here
    for plugin in ("Avif", "Jpeg2K", "Tiff", "WebP"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def check_content(content: BinaryIO) -> None:
    """Refuses a PNG with a chunk that states more bytes than the file has, for which decoders make room.

    Args:
        content: file, at its beginning; one of another format passes.

    Raises:
        SyntaxError: as Pillow does about a broken file.
    """
    if content.read(len(_PNG)) != _PNG:
        return
    size = content.seek(0, os.SEEK_END)
    place, kind = len(_PNG), b""
    while place < size and kind != b"IEND":  # what some programs leave behind it is no chunk
        content.seek(place)
        length, kind = int.from_bytes(content.read(4), "big"), content.read(4)
        if length > size:
            raise SyntaxError(f"broken PNG file: a chunk of {length} bytes, the file has {size}")
        place += 12 + length  # with length, name and checksum


def check_pixels(path: str | os.PathLike[str], width: int, height: int, max_pixels: int) -> None:
    """Refuses an image of more pixels than the memory is meant for.

    Raises:
        InputError: width x height, in pixels, is more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise InputError(
            f"image {path} is {width} x {height}, which is more than the {max_pixels} pixels of "
            "INPUT.MAX_PIXELS: make it smaller, or raise that"
        )


def require_size(
    what: str, size: Sequence[int], of_what: str, wanted: Sequence[int], advice: str
) -> None:
    """Refuses an image, or masks of one, that has another size than it should.

    Args:
        what: the file, for the message.
        size: its width and height in pixels.
        of_what: name of the thing that it has to agree with.
        wanted: width and height of that.
        advice: the way out for the user.

    Raises:
        InputError: the sizes differ.
    """
    if tuple(size) != tuple(wanted):
        given, right = (" x ".join(map(str, pixels)) for pixels in (size, wanted))
        raise InputError(f"{what} is {given}, {of_what} is {right}: {advice}")


def require_mode(what: str, mode: str, modes: Collection[str], advice: str) -> None:
    """Refuses an image with pixels of another type.

    Args:
        what: the file, for the message.
        mode: type of its pixels, as Pillow names it.
        modes: the types that are read.
        advice: values that the user can give.

    Raises:
        InputError: the type is none of these.
    """
    if mode not in modes:
        raise InputError(f"{what} has pixels of type {mode}: {advice}")


def truth_pixels(image: Mapping[str, Any]) -> int:
    """Limit for the ground truth of an image that was read: its own size, if it is above `MAX_PIXELS`.

    Args:
        image: sample; if known, with "height" and "width" in pixels.
    """
    return max(MAX_PIXELS, int(image.get("height", 0)) * int(image.get("width", 0)))


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels by the header, as `read_image` reads the image: upright.

    Raises:
        InputError: the file is missing, or its header cannot be read.
    """
    with _naming(path), open_image(path, sys.maxsize) as file:
        # What Pillow says of a TIFF is upright already.
        lying = file.format != "TIFF" and _orientation(file) in (5, 6, 7, 8)
        return file.size[::-1] if lying else file.size


def read_image(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Reads an image as uint8 RGB, (H, W, 3).

    The EXIF orientation is applied, as Detectron2's loaders do: COCO's sizes and annotations refer
    to the image as it is displayed. Grey, palette and CMYK become RGB, an alpha channel is dropped,
    16-bit grey keeps its high byte.

    Args:
        path: file of one of `FORMATS`; the first frame of an animation is read.
        size: (width, height) that the annotations state, if boxes or masks will be used.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: the file is missing, cannot be decoded, has more pixels, or another size than
            stated.
    """
    with _naming(path), open_image(path, max_pixels) as file:
        image = _loaded_rgb(file)
    if size is not None:
        whose = "as it is shown (after EXIF rotation); by its annotation it"
        advice = "correct the annotation or the file, or remove its EXIF tag if the annotation is without it"
        require_size(f"image {path}", image.size, whose, size, advice)
    return np.asarray(image)


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image in memory as `read_image` reads a file, uint8 RGB (H, W, 3).

    Args:
        content: bytes of a file of one of `FORMATS`.
        name: where it is from, for messages.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: it cannot be decoded, or has more pixels.
    """
    with _naming(name):
        with _open(io.BytesIO(content), name) as file:
            return pil_pixels(file, name, max_pixels)


def pil_pixels(image: Image.Image, name: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of a PIL image as `read_image` gives those of its file, uint8 RGB (H, W, 3).

    Args:
        image: of any mode, decoded or not yet; an EXIF orientation that it still has is applied.
        name: where it is from, for messages; by default the file that PIL knows.
        max_pixels: largest number of pixels.

    Raises:
        InputError: it cannot be decoded, has more pixels, or was closed before they were read.
    """
    name = name or str(getattr(image, "filename", "") or "of PIL, without a file,")
    if getattr(image, "tile", None) and getattr(image, "fp", None) is None:
        raise InputError(
            f"image {name} was closed before its pixels were read: pass it inside its with block, or call load() there"
        )
    with _naming(name):
        check_pixels(name, *image.size, max_pixels)
        return np.asarray(_loaded_rgb(image))


@contextlib.contextmanager
def _naming(name: str | os.PathLike[str]) -> Iterator[None]:
    """`decoding_errors` of an image, and a sentence about a file that is none."""
    away = "leave it out"
    with decoding_errors(
        f"image {name}", f"restore it, or {away}", f"replace it by a whole copy, or {away}"
    ):
        try:
            yield
        except UnidentifiedImageError:
            known = ", ".join(form for form in FORMATS if form in Image.OPEN)
            kinds = f"{known} (HEIC needs the package pillow-heif)"
            raise InputError(f"image {name} is not an image of {kinds}: replace it") from None


@contextlib.contextmanager
def decoding_errors(what: str, missing: str, damaged: str) -> Iterator[None]:
    """Lets whatever Pillow raises become an `InputError` that names a file and the way out.

    Args:
        what: the file, for the message.
        missing: the way out where it is missing.
        damaged: the way out where it cannot be decoded.
    """
    what = what if len(what) < 1000 else f"{what[:1000]}..."  # a file names images as it likes
    try:
        yield
    except FileNotFoundError:
        reason = f"is missing: {missing}"
    except InputError:
        raise
    except DECODING_ERRORS as error:
        reason = f"cannot be decoded ({in_short(error)}): {damaged}"
    else:
        return
    raise InputError(f"{what} {reason}")


def _loaded_rgb(image: Image.Image) -> Image.Image:
    image.load()
    method = _ORIENTATIONS.get(_orientation(image))
    return _to_rgb(image if method is None else image.transpose(method))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 0, which is none, of a damaged EXIF block."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except DECODING_ERRORS:
        return 0
    return orientation if isinstance(orientation, int) else 0


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips at 255 and would give a white image.
        high_byte = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError(
            "floating-point pixels have no defined range; save it with 8 bits a channel"
        )
    return image.convert("RGB")


def fit_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Size (width, height) with the longest side equal to `side`, the aspect kept, both at least 1.

    Python's `round` (halves to even) decides, as in the reference.
    """
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def letterbox_image(image: np.ndarray, side: int) -> np.ndarray:
    """Student input: longest side = `side`, bicubic, black padding at the right and bottom.

    Args:
        image: whole image, uint8 (H, W, 3).
        side: side S of the square, in pixels.

    Returns:
        uint8 (S, S, 3). A point (x, y) of the image lies at (x, y) / max(W, H) of the square, so
        relative boxes do not depend on S (`regions.relative_boxes`).
    """
    whole = Image.fromarray(image)
    resized = whole.resize(fit_size(*whole.size, side), Image.Resampling.BICUBIC)
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[: resized.height, : resized.width] = np.asarray(resized)
    return square


def letterbox_crops(image: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """Teacher inputs: each box cut out, longest side = `side`, black padding on both sides.

    The padding is even; an odd pixel goes to the right or bottom. Corners are rounded as PIL's
    crop does (see `pixel_corners`).

    Args:
        image: whole image, uint8 (H, W, 3).
        boxes: boxes to cut out, (n, 4) XYXY pixels, fractions allowed.
        side: side S0 of the squares, in pixels.

    Returns:
        uint8 (n, S0, S0, 3).
    """
    whole = Image.fromarray(image)
    crops = np.zeros((len(boxes), side, side, 3), dtype=np.uint8)
    for crop, corners in zip(crops, pixel_corners(boxes, *whole.size)):
        cut = whole.crop(tuple(corners.tolist()))
        cut = cut.resize(fit_size(*cut.size, side), Image.Resampling.BICUBIC)
        left = (side - cut.width) // 2
        top = (side - cut.height) // 2
        crop[top : top + cut.height, left : left + cut.width] = np.asarray(cut)
    return crops


def pixel_corners(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Rounds boxes to pixels that can be cut out, (n, 4) int64 with 0 <= x0 < x1 <= width.

    Corners go to the nearest integer (halves to even, as PIL rounds) and are clipped to the
    image. A box that would have no pixel left, because it is thinner than one or lies outside,
    gets the one pixel column or row nearest to it.

    Args:
        boxes: (n, 4) XYXY pixels.
        width: width of the image in pixels.
        height: height of the image in pixels.
    """
    limit = np.array([width, height])
    corners = np.rint(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)).astype(np.int64)
    low = corners[:, :2].clip(0, limit - 1)
    return np.concatenate([low, np.maximum(corners[:, 2:], low + 1).clip(None, limit)], axis=1)
