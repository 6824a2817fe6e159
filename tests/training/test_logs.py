"""Log files: a line that cannot be written ends the run with the name of the file."""

from __future__ import annotations

import logging

import pytest

from clipself_seg.training.run import setup_logging


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_is_told_with_the_name_of_the_log(tmp_path, capsys, rank):
    path = tmp_path / ("log.rank1.txt" if rank else "log.txt")
    path.symlink_to("/dev/full")
    setup_logging(tmp_path, rank)
    with pytest.raises(OSError, match="No space left on device: .*log") as caught:
        logging.getLogger("clipself_seg").info("a line")
    assert caught.value.filename == str(path) and "Traceback" not in capsys.readouterr().err
