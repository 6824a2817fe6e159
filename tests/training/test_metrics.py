"""Metrics of a run: a disk that is full is told with the name of the file."""

from __future__ import annotations

import errno

import pytest
from detectron2.utils import events
from detectron2.utils.events import EventStorage

from clipself_seg.training.metrics import METRICS_FILE, metric_writers, write_all


@pytest.mark.parametrize(
    ("writer", "name"), [("JSONWriter", METRICS_FILE), ("TensorboardXWriter", "")]
)
@pytest.mark.parametrize("when", ["write", "close"])
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch, writer, name, when):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(getattr(events, writer), when, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        with EventStorage(0), metric_writers(tmp_path, 0, 9) as writers:
            write_all(writers)
    assert caught.value.filename == str(tmp_path / name)
