"""Sets up the logs of a run: the terminal for the first process, and a file for each process."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

from clipself_seg.files import naming_path

LOGGERS = ("clipself_seg", "detectron2")
# Detectron2 logs at every loader how it packs its records.
QUIET = "detectron2.data.common"


class _Terminal(logging.StreamHandler):
    """Writes to whatever ``sys.stdout`` is at that time, so that it may be redirected."""

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


class _File(logging.FileHandler):
    """A file of log lines; if it cannot be written, the run ends with its name, not with a traceback a line."""

    def handleError(self, record: logging.LogRecord) -> None:
        with naming_path(self.baseFilename):
            if isinstance(sys.exc_info()[1], OSError):
                raise
        super().handleError(record)


def setup_logging(folder: Path, rank: int) -> None:
    """Send what the project and Detectron2 have to say to the terminal and to a file in `folder`.

    Calling it again moves the lines to the new folder.

    Args:
        folder: gets ``log.txt``, or ``log.rank1.txt`` and so on from other processes.
        rank: number of this process; only the first one writes to the terminal.

    Raises:
        OSError: the file cannot be opened; a line that cannot be written, on a full disk, raises it
            where it is logged.
    """
    name = f"log.rank{rank}.txt" if rank else "log.txt"
    handlers: list[logging.Handler] = [_File(folder / name)]
    handlers += [] if rank else [_Terminal()]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%m/%d %H:%M:%S"))
    for logger in map(logging.getLogger, LOGGERS):
        logger.setLevel(logging.INFO)
        for old in list(logger.handlers):
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            logger.addHandler(handler)
    logging.getLogger(QUIET).setLevel(logging.WARNING)
