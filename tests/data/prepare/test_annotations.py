"""Annotation files are written whole, once, and with their counts beside the published ones."""

from __future__ import annotations

import json
import logging

import pytest

from clipself_seg.data.datasets.table import COCO
from clipself_seg.data.prepare import detection
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.detection import Count, Rewriting, rewrite
from clipself_seg.errors import InputError

CONTENT = {
    "info": {"year": 2017, "note": 'a "quoted" ä'},
    "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(7)],
    "annotations": [{"id": n, "bbox": [n, 0.5, 1, 2], "iscrowd": 0} for n in range(25)],
    "licenses": [],
    "version": 3,
}


@pytest.fixture
def job(tmp_path):
    source = tmp_path / "in/source.json"
    source.parent.mkdir()
    source.write_text(json.dumps(CONTENT))

    def change(content, path):
        assert path == source
        content["images"] = content["images"][:5]
        return [Count("images", 5, 5), Count("boxes", 25, 26)]

    return Rewriting(source, tmp_path / "out/target.json", COCO, change)


@pytest.mark.parametrize("at_once", [1, 10, 10_000])
def test_everything_but_the_change_is_as_it_was(job, monkeypatch, at_once, tmp_path):
    monkeypatch.setattr(detection, "AT_ONCE", at_once)
    done = rewrite(job, Options(tmp_path))
    assert json.loads(job.target.read_text()) == CONTENT | {"images": CONTENT["images"][:5]}
    assert done[1:4] == (1, 0, 2)
    assert str(done).splitlines()[1:] == [
        "    images: 5 (published: 5)",
        "    boxes: 25 (published: 26)",
    ]


def test_another_count_than_the_published_one_is_a_warning(job, caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        rewrite(job, Options(tmp_path))
    (record,) = caplog.records
    assert "target.json: another number of boxes than published" in record.getMessage()


def test_what_is_there_is_kept_until_it_is_to_be_overwritten(job, tmp_path):
    job.target.parent.mkdir()
    job.target.write_text("mine")
    assert rewrite(job, Options(tmp_path))[1:] == (0, 1, 0, ()) and job.target.read_text() == "mine"
    (job.target.parent / ".target.json.x.part").write_text("half of one")
    rewrite(job, Options(tmp_path, overwrite=True))
    assert [path.name for path in job.target.parent.iterdir()] == ["target.json"]
    assert json.loads(job.target.read_text())["version"] == 3


def test_a_change_that_fails_leaves_nothing(job, tmp_path):
    def refuse(content, path):
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        rewrite(job._replace(change=refuse), Options(tmp_path))
    assert not list(job.target.parent.iterdir())


def test_a_file_without_images_is_named(job, tmp_path):
    job.source.write_text(json.dumps(CONTENT | {"images": 0.5}))
    with pytest.raises(InputError, match='source.json: no "images" in it'):
        rewrite(job, Options(tmp_path))


def test_a_missing_file_is_named_with_the_advice(job, tmp_path):
    job.source.unlink()
    with pytest.raises(InputError, match="source.json is missing.*\n.*cocodataset.org"):
        rewrite(job, Options(tmp_path))
