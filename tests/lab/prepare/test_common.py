"""A preparation that dies leaves whole files only, and the next run completes it."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clipself_seg.errors import InputError
from clipself_seg.files import alone_in
from lab.prepare import common
from lab.prepare.ade import prepare_ade150
from lab.prepare.common import Options
from tests.conftest import ROOT

COUNT = 6


# When the first map is written, the signal reaches all processes.
CTRL_C = """
import os, signal, sys
from pathlib import Path
from lab import parallel
from lab.prepare.ade import prepare_ade150
from lab.prepare.common import Options
from clipself_seg.errors import report_input_errors

def bar(results, *_, **__):
    for result in results:
        yield result
        os.killpg(0, signal.SIGINT)

@report_input_errors
def main():
    parallel.tqdm = bar
    prepare_ade150(Options(Path("data"), processes=int(sys.argv[1])))

if __name__ == "__main__":
    # Tests that a shell started in the background inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
"""


@pytest.fixture
def archive(tmp_path):
    """Six maps of random labels."""
    folder = tmp_path / "data/ADEChallengeData2016/annotations/validation"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        labels = rng.integers(1, 151, (40, 60), dtype=np.uint8)
        Image.fromarray(labels).save(folder / f"ADE_val_{number}.png")
    return folder


def targets(archive):
    return archive.parent.parent / "annotations_detectron2/validation"


def check_whole(archive, paths):
    for path in paths:
        before = np.asarray(Image.open(archive / path.name))
        assert (np.asarray(Image.open(path)) == before - 1).all()


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_is_a_line_and_what_is_done_stays(archive, tmp_path, processes):
    """Sent to all processes, as a terminal does; the preparation sends it when a map is there."""
    words = [sys.executable, "-c", CTRL_C, str(processes)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, start_new_session=True
    )
    assert done.returncode == 130
    assert "interrupted; what is complete stays" in done.stderr and "Traceback" not in done.stderr
    assert not list(targets(archive).glob(".*.part"))
    (prepared,) = prepare_ade150(Options(tmp_path / "data"))
    assert prepared.kept >= 1 and prepared.written + prepared.kept == COUNT
    check_whole(archive, targets(archive).iterdir())


def test_two_preparations_of_one_folder_do_not_meet(archive, tmp_path):
    with alone_in(targets(archive)):
        with pytest.raises(InputError, match="annotations_detectron2/validation: another process"):
            prepare_ade150(Options(tmp_path / "data"))
    (prepared,) = prepare_ade150(Options(tmp_path / "data"))
    assert prepared.written == COUNT
    path = next(targets(archive).glob("*.png"))
    path.write_bytes(b"mine")
    (prepared,) = prepare_ade150(Options(tmp_path / "data"))
    assert prepared[1:4] == (0, COUNT, 0) and path.read_bytes() == b"mine"
    (prepared,) = prepare_ade150(Options(tmp_path / "data", overwrite=True))
    assert prepared[1:4] == (COUNT, 0, 0)
    check_whole(archive, targets(archive).iterdir())


def test_an_error_in_a_worker_arrives_as_it_is(archive, tmp_path):
    (archive / "ADE_val_2.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="ADE_val_2.png cannot be decoded"):
        prepare_ade150(Options(tmp_path / "data", processes=2))


def test_a_list_with_a_name_that_no_file_can_have_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "val.txt").write_text("2007_1\n" + "x" * 10_000)
    with pytest.raises(InputError, match="val.txt names x{40}.*too long") as refused:
        common.read_stems(tmp_path / "val.txt")
    assert len(str(refused.value)) < 300 + len(str(tmp_path))
