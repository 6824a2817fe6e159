"""Videos frame by frame: read from local files, and written as overlays at the same size.

A file is opened by its content: a playlist or a script that is named like a video could make FFmpeg read other
files and addresses.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from clipself_seg.data.images import check_pixels
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path, require_regular_file
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.journal import Written
from clipself_seg.prediction.loop import FilePredictor
from clipself_seg.prediction.results import label_image
from clipself_seg.visualization.sheets import save_png

# Formats that a video has.
OF_VIDEOS = ("overlays", "labels")
# Beginnings of MP4 and QuickTime (behind four bytes), AVI, and Matroska and WebM.
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_MATROSKA = b"\x1a\x45\xdf\xa3"
MOST_FRAMES_A_SECOND = 1000
# Frames that a whole video may have less than it states, for some containers estimate their number.
SLACK, SLACK_FRACTION = 2, 0.02


class Video:
    """A video that is read from its beginning.

    Attributes:
        path: file.
        rate: frames a second.
        stated: number of frames that the file states, 0 where it does not.
        position: number of frames so far, those that were left out among them.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        """
        Args:
            path: local file.
            max_pixels: largest number of pixels of a frame that is decoded.

        Raises:
            InputError: no video, one that cannot be decoded, has too large frames or states no rate.
        """
        _require_video(path)
        options = [cv2.CAP_PROP_HW_ACCELERATION, cv2.VIDEO_ACCELERATION_NONE]
        # An absolute path is no address, and has no patterns for this backend.
        self._capture = cv2.VideoCapture(os.path.realpath(path), cv2.CAP_FFMPEG, options)
        if not self._capture.isOpened():
            raise InputError(
                f"video {path} cannot be opened: it is cut off or broken, or its codec is unknown: "
                "give a whole copy, or convert it to MP4 (H.264)"
            )
        self.path = path
        self.rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.stated = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.position = 0
        sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        width, height = (int(self._capture.get(side)) for side in sides)
        check_pixels(path, width, height, max_pixels)
        if not 0 < self.rate <= MOST_FRAMES_A_SECOND:
            raise InputError(
                f"video {path} states {self.rate:g} frames a second: convert it to MP4 with a rate"
            )

    def frames(self, every: int) -> Iterator[tuple[int, np.ndarray]]:
        """Every frame with a number from 0 that `every` divides: the number, and pixels (H, W, 3) uint8 RGB as they
        are meant to be seen.

        Raises:
            InputError: a frame has another size than the first.
        """
        shape = None
        while self._capture.grab():
            number = self.position
            self.position += 1
            if number % every:
                continue
            whole, image = self._capture.retrieve()
            if not whole:
                return
            shape = shape or image.shape
            if image.shape != shape:
                raise InputError(f"video {self.path}: frame {number} has another size: convert it")
            yield number, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def require_whole(self) -> None:
        """Refuses a video that ended before its end.

        Raises:
            InputError: clearly fewer frames were read than it states.
        """
        least = self.stated - max(SLACK, SLACK_FRACTION * self.stated)
        if self.position < max(1, least):
            raise InputError(
                f"video {self.path} ends after {self.position} of {self.stated} frames, what was read is done: "
                "give a whole copy"
            )

    def close(self) -> None:
        """Closes the file."""
        self._capture.release()


def predict_video(
    results: FilePredictor[Any],
    source: ImageFile,
    *,
    save: Sequence[str],
    every: int,
    batch_size: int,
) -> Written:
    """Predicts for the frames of a video, and writes overlays/NAME.mp4 and labels/NAME.mp4/NUMBER.png.

    Args:
        results: predicts, and has the folder.
        source: the video.
        save: formats to write, of `OF_VIDEOS`.
        every: one frame of so many is taken; the overlays take as long as the video.
        batch_size: frames that the model gets at once.

    Raises:
        InputError: the video cannot be read, would be replaced by its overlays, or is cut off; what comes before
            that is written.
        OSError: results cannot be written.
    """
    if "labels" in save:
        _remove_frames(results.folder / f"labels/{source.name}.mp4")
    files, count = [], 0
    with contextlib.ExitStack() as opened:
        video = Video(source.path, results.max_pixels)
        opened.callback(video.close)
        if "overlays" in save:
            files.append(f"overlays/{source.name}.mp4")
            path = results.folder / files[0]
            source.require_other(path)
            add = opened.enter_context(written_frames(path, video.rate / every))
        for number, result in predicted_frames(results, video, every, batch_size):
            count += 1
            if "overlays" in save:
                add(np.asarray(result.overlay(legend=False, enlarge=False)))
            if "labels" in save:
                files.append(f"labels/{source.name}.mp4/{number:06d}.png")
                save_png(label_image(result.labels, result.names), results.folder / files[-1])
    video.require_whole()
    return Written(files, {"frames": count, "every": every, "rate": video.rate})


def predicted_frames(
    results: FilePredictor[Any], video: Video, every: int, batch_size: int
) -> Iterator[tuple[int, Any]]:
    """Every frame with a number from 0 that `every` divides: the number and the prediction.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    frames, count = video.frames(every), 0
    total = -(-video.stated // every) or None
    with tqdm(desc=video.path.name, unit="frame", total=total) as bar:
        while batch := list(itertools.islice(frames, batch_size)):
            numbers, images = zip(*batch)
            yield from zip(numbers, results.predict(images), strict=True)
            bar.update(len(batch))
            count += len(batch)
    if not count:
        video.require_whole()


@contextlib.contextmanager
def written_frames(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields what adds a frame (H, W, 3) uint8 RGB to an MP4, which is there when it is whole."""
    with atomic_path(path) as temporary:
        part = temporary.with_name("part.mp4")  # OpenCV takes the container from the ending
        writer = cv2.VideoWriter()
        count = 0

        def add(image: np.ndarray) -> None:
            nonlocal count
            if not writer.isOpened():
                code = cv2.VideoWriter.fourcc(*"vp09")  # VP9, which browsers play
                writer.open(str(part), cv2.CAP_FFMPEG, code, rate, image.shape[1::-1])
            writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            count += 1

        try:
            yield add
        finally:
            writer.release()
        # OpenCV says nothing about a full disk.
        copy = cv2.VideoCapture(str(part), cv2.CAP_FFMPEG)
        written = int(copy.get(cv2.CAP_PROP_FRAME_COUNT)) if copy.isOpened() else 0
        copy.release()
        if written != count:
            raise OSError(errno.EIO, "the video could not be written whole", str(path))
        os.replace(part, temporary)


def _require_video(path: Path) -> None:
    """Refuses what does not begin as a video does, whatever its name.

    Raises:
        InputError: no regular file, one that may not be read, or none of the containers that are read.
    """
    try:
        require_regular_file(path)
        with open(path, "rb") as file:
            begin = file.read(12)
    except OSError as error:
        raise InputError(
            f"video {path} cannot be read ({error.strerror}): restore it, or leave it out"
        ) from None
    avi = begin[:4] == b"RIFF" and begin[8:] == b"AVI "
    if not (avi or begin[:4] == _MATROSKA or begin[4:8] in _BOXES):
        raise InputError(
            f"video {path} is no MP4, QuickTime, AVI, Matroska or WebM by its content: replace it"
        )


def _remove_frames(folder: Path) -> None:
    """Removes label maps of an earlier call, which may have taken other frames."""
    for path in folder.glob("*.png"):
        if re.fullmatch(r"\d{6,}\.png", path.name) and path.is_file():
            path.unlink()
