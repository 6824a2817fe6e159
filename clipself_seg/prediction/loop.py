"""Predicts for image files: a batch is read and one is written while the model works on that between them.

The outputs are written by the results of each kind.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from clipself_seg.data.images import read_image
from clipself_seg.errors import InputError, in_short, out_of_memory
from clipself_seg.files import alone_in, remove_leftovers
from clipself_seg.prediction.files import ImageFile, InputFiles
from clipself_seg.prediction.journal import Entry, InputState, Journal, Json, Written, input_state

logger = logging.getLogger(__name__)

R = TypeVar("R")  # prediction of an image
# Predicts for a video and writes the results, see `video.predict_video`: (source, batch_size=...).
VideoWriter = Callable[..., Written]

# Where results of any task are written, below the output folder.
FOLDERS = ("labels", "overlays", "panoptic", "tracks")


class Index(NamedTuple):
    """The content of an output folder's index file.

    Attributes:
        images: images that are done, in order, each with its entry of the index.
        videos: the same of videos.
        failed: input -> what is wrong with it.
        complete: true if no image is left to do.
        provenance: of the call that began.
    """

    images: Sequence[tuple[ImageFile, Entry]]
    videos: Sequence[tuple[ImageFile, Entry]]
    failed: Mapping[str, str]
    complete: bool
    provenance: Mapping[str, object]

    def outcome(self) -> Json:
        """Videos, if there are any, failures, and "complete", as every index file has them."""
        videos = {source.name: {"file": str(source.path), **entry} for source, entry in self.videos}
        return {
            **({"videos": videos} if videos else {}),
            "failed": self.failed,
            "complete": self.complete,
        }


class FilePredictor(Protocol[R]):
    """Predicts for images of files, and writes what it predicts: of a task (`writers.ResultFiles`), or dense maps.

    Attributes:
        folder: folder below which results are written.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    folder: Path
    max_pixels: int

    @property
    def provenance(self) -> Mapping[str, object]:
        """Origin of the results: settings, weights and versions, as JSON has them."""

    def predict(
        self, images: Sequence[np.ndarray], sources: Sequence[ImageFile] = ()
    ) -> Sequence[R]:
        """The prediction of each image (H, W, 3) uint8 of a batch; `sources` are the files of images."""

    def write(self, source: ImageFile, result: R) -> Written:
        """Writes the prediction of an image."""

    def write_index(self, index: Index) -> None:
        """Writes the file that explains the others."""


class _Pending(NamedTuple):
    """An image that is being read, or whose results are being written.

    Attributes:
        source: its file.
        state: of the file, from before it was read.
        future: its pixels, or its results; or what is wrong with it.
    """

    source: ImageFile
    state: InputState | None
    future: Future[Any]


def predict_files(
    results: FilePredictor[R],
    files: InputFiles,
    journal: Journal | None = None,
    batch_size: int = 1,
    video: VideoWriter | None = None,
) -> dict[str, str]:
    """Predicts for images; one that cannot be read or processed is reported, and the others are done.

    A batch is read, the model works on the one before it, and the one before that is written, at the same time; what
    is done is noted in the order of the images. The index is written before the first image and, interrupted or not,
    after the last. With a journal that resumes it is that of a call that
    nobody interrupted, byte for byte: a batch has the images that it had, so that it is predicted again if one of
    them is not done.

    Args:
        results: predicts and writes; what is there of the same names is replaced.
        files: result of `find_images`.
        journal: keeps which images are done; None: nobody goes on.
        batch_size: images that the model gets at once; at most three times as many are in memory.
        video: predicts for each of the videos; where there are none it is not needed.

    Returns:
        Input -> what is wrong, of those without results.

    Raises:
        InputError: results cannot be written, another process writes below the same folder, or the journal is
            of other settings.
    """
    try:
        with alone_in(results.folder):
            _remove_leftovers(results.folder)
            with contextlib.ExitStack() as opened:
                made_by = results.provenance
                if journal is not None:
                    opened.callback(journal.close)
                    made_by = journal.open(made_by)
                return _Loop(results, files, journal, batch_size, made_by).predict_all(video)
    except OSError as error:
        raise InputError(
            f"results cannot be written below {results.folder}: {error}: make room, or give another folder"
        ) from None


def _remove_leftovers(folder: Path) -> None:
    """Removes the half-written files of a killed run; folders beside its own are somebody else's."""
    remove_leftovers(folder)
    for name in FOLDERS:
        for parent, _, _ in os.walk(folder / name):
            remove_leftovers(parent)


class _Loop(Generic[R]):
    """One call of `predict_files`: what is done so far, and what failed."""

    def __init__(
        self,
        results: FilePredictor[R],
        files: InputFiles,
        journal: Journal | None,
        batch_size: int,
        made_by: Mapping[str, object],
    ) -> None:
        self.results = results
        self.images = files.images
        self.videos = files.videos
        self.journal = journal
        self.batch_size = batch_size
        self.made_by = made_by
        self.failed = dict(files.failed)
        self.done = {} if journal is None else journal.entries([*files.images, *files.videos])
        self.writing = deque[_Pending]()

    def predict_all(self, video: VideoWriter | None) -> dict[str, str]:
        """Predicts for all that is not done; returns what failed."""
        self._write_index(complete=False)
        for path, reason in self.failed.items():
            complain(path, reason)
        waiting, complete = self._waiting(), False
        # For a batch to read and one to write.
        workers = 2 * min(self.batch_size, os.cpu_count() or 1)
        bar = tqdm(desc="images", unit="image", total=len(self.images), disable=not self.images)
        bar.update(len(self.images) - sum(map(len, waiting)))
        try:
            # Warnings stand above the bar.
            with logging_redirect_tqdm(), bar, ThreadPoolExecutor(workers) as threads:
                self._predict_images(waiting, threads, bar)
            for source in self.videos:
                if video is not None and source.name not in self.done:
                    self._predict_video(source, video)
            complete = True
        finally:
            self._write_index(complete)
        return self.failed

    def _predict_images(
        self, waiting: Sequence[Sequence[ImageFile]], threads: ThreadPoolExecutor, bar: tqdm
    ) -> None:
        """Predicts for batches, each of which is read while the model works on the one before it."""
        batch, reading = list[_Pending](), list[_Pending]()
        try:
            for sources in [*waiting, ()]:
                batch, reading = reading, [self._read(source, threads) for source in sources]
                if batch:
                    self._predict_batch(batch, threads)
                    self._note_written(bar, all_but=len(batch))
        finally:  # of an interrupted call as well
            self._note_written(bar)

    def _read(self, source: ImageFile, threads: ThreadPoolExecutor) -> _Pending:
        state, most = input_state(source.path), self.results.max_pixels
        return _Pending(source, state, threads.submit(read_image, source.path, max_pixels=most))

    def _waiting(self) -> list[Sequence[ImageFile]]:
        """The batches in which an image is not done."""
        size = self.batch_size
        batches = [self.images[i : i + size] for i in range(0, len(self.images), size)]
        return [batch for batch in batches if any(image.name not in self.done for image in batch)]

    def _predict_batch(self, batch: list[_Pending], threads: ThreadPoolExecutor) -> None:
        """Predicts for a batch and has the results written; an image that fails does not take the others with it."""
        images = dict[int, np.ndarray]()
        outcomes = dict[int, R | Exception]()
        for place, read in enumerate(batch):
            try:
                images[place] = read.future.result()
            except Exception as error:
                outcomes[place] = error
        predicted = predict_each(self.results, images, [read.source for read in batch])
        outcomes |= predicted
        for place, (source, state, _) in enumerate(batch):
            written = threads.submit(self._write, source, outcomes[place])
            # In place of the pixels, which go before those of a further batch come.
            batch[place] = _Pending(source, state, written)
        self.writing += batch

    def _write(self, source: ImageFile, outcome: R | Exception) -> Written:
        if isinstance(outcome, Exception):
            raise outcome
        return self.results.write(source, outcome)

    def _note_written(self, bar: tqdm, all_but: int = 0) -> None:
        """Waits until images are written, in their order, and notes that they are done, but for the last `all_but`."""
        while len(self.writing) > all_but:
            source, state, written = self.writing.popleft()
            with self._failing_alone(source):
                self._record(source, state, written.result())
            bar.update()

    def _predict_video(self, source: ImageFile, video: VideoWriter) -> None:
        with self._failing_alone(source):
            state = input_state(source.path)
            self._record(source, state, video(source, batch_size=self.batch_size))

    def _record(self, source: ImageFile, state: InputState | None, written: Written) -> None:
        if self.journal is not None:
            self.journal.add(source, state, written)
        self.done[source.name] = written.entry

    @contextlib.contextmanager
    def _failing_alone(self, source: ImageFile) -> Iterator[None]:
        """Notes what goes wrong with an image, whatever a library makes of a strange one."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                raise  # a full disk, and so on: the next image would fare no better
            reason = reason_of(error)
            self.done.pop(source.name, None)
            self.failed[str(source.path)] = reason
            complain(str(source.path), reason)

    def _write_index(self, complete: bool) -> None:
        images, videos = (
            [(source, self.done[source.name]) for source in sources if source.name in self.done]
            for sources in (self.images, self.videos)
        )
        self.results.write_index(Index(images, videos, self.failed, complete, self.made_by))


def predict_each(
    results: FilePredictor[R], images: Mapping[int, np.ndarray], sources: Sequence[ImageFile] = ()
) -> dict[int, R | Exception]:
    """The result of each image of a batch, or its error: where several together fail, each goes alone.

    Args:
        results: predicts.
        images: place in the batch -> pixels (H, W, 3) uint8.
        sources: file of each place of the batch; none for images that are in no files.
    """
    outcomes = dict[int, R | Exception]()
    if len(images) > 1:
        files = [sources[place] for place in images] if sources else []
        try:
            outcomes |= zip(images, results.predict(list(images.values()), files), strict=True)
            return outcomes
        except Exception as error:
            _warn_of_batches(f"{type(error).__name__}: {in_short(error)}")
            logger.debug("a batch fails, its images go one at a time", exc_info=error)
    for place, image in images.items():
        try:
            (outcomes[place],) = results.predict([image], [sources[place]] if sources else [])
        except Exception as error:
            outcomes[place] = error
    return outcomes


@functools.cache
def _warn_of_batches(reason: str) -> None:
    """Says once of each reason that a batch failed."""
    slower = "its images go one at a time, which is slower: a smaller --batch-size may help"
    logger.warning("a batch fails (%s); %s", reason, slower)


def reason_of(error: Exception) -> str:
    """The reason why an image failed; an error that nobody foresaw is logged whole at DEBUG."""
    if isinstance(error, InputError):
        return str(error)
    logger.debug("an image cannot be processed", exc_info=error)
    return (
        out_of_memory(error) or f"cannot be processed ({type(error).__name__}: {in_short(error)})"
    )


def complain(path: str, reason: str) -> None:
    """Says on the terminal what is wrong with an input, above a progress bar if there is one."""
    tqdm.write(f"failed: {reason if path in reason else f'{path}: {reason}'}", file=sys.stderr)
