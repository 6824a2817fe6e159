"""Writes the metrics of a training: log lines with the time left, metrics.json and TensorBoard."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from torch import Tensor

from clipself_seg.clip.runtime import QUEUES
from clipself_seg.files import naming_path, write_text

METRICS_FILE = "metrics.json"


class HostCopy:
    """Numbers of a device on their way to the CPU, while Python goes on."""

    def __init__(self, values: Tensor) -> None:
        """
        Args:
            values: (n,) on any device.
        """
        self._values = values.to("cpu", non_blocking=QUEUES)
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:  # perhaps of another GPU than the current one
            self._copied = torch.cuda.current_stream(values.device).record_event()

    def numbers(self) -> list[float]:
        """The numbers; waits for what the device was given before the copy, not for what came after it."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers


@contextlib.contextmanager
def metric_writers(folder: Path, start: int, iterations: int) -> Iterator[list[EventWriter]]:
    """Detectron2's writers, open as long as the context; none but in the first process.

    Args:
        folder: folder of the run, for all files of metrics.
        start: first step; what a killed run wrote about it and later ones is removed.
        iterations: steps of the run.
    """
    if not comm.is_main_process():
        yield []
        return
    folder.mkdir(parents=True, exist_ok=True)
    drop_metrics_from(folder / METRICS_FILE, start)
    writers: list[EventWriter] = [
        CommonMetricPrinter(iterations),
        JSONWriter(str(folder / METRICS_FILE)),
        TensorboardXWriter(str(folder), purge_step=start),
    ]
    try:
        yield writers
    finally:
        with naming_path(folder):
            for writer in writers:
                writer.close()


def write_all(writers: Sequence[EventWriter], folder: Path) -> None:
    """Lets every writer take the numbers that are new in the current event storage; errors name the folder."""
    with naming_path(folder):
        for writer in writers:
            writer.write()


def drop_metrics_from(path: Path, start: int) -> None:
    """Removes the lines of steps that a resumed run takes again, and whatever is no line of metrics."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            if json.loads(line)["iteration"] < start:
                kept.append(line + "\n")
    write_text(path, "".join(kept))


def flatten_numbers(results: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested results, each under the keys that lead to it, such as "set/fusion/PQ"."""
    for key, value in results.items():
        if isinstance(value, Mapping):
            yield from flatten_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
