"""COCO's captions come out as they went in, with their phrases."""

from __future__ import annotations

import json
import shutil

import pytest

from clipself_seg.data.captions import read_phrases
from clipself_seg.data.datasets.records import panoptic_set_records
from clipself_seg.data.prepare import coco
from clipself_seg.data.prepare.coco import prepare_coco_captions
from clipself_seg.data.prepare.common import Options
from clipself_seg.errors import InputError
from tests.small_coco import write_small_coco

NOUNS = {"bathroom", "toilet", "sink", "wall", "room", "tub", "floor", "window"}
IMAGE = 6818  # the one real image with captions


def tag(caption):
    """Knows a few nouns only."""
    words = caption.lower().replace(".", " .").split()
    return [(word, "NN" if word in NOUNS else "FW") for word in words]


@pytest.fixture
def root(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(coco, "nltk_tagger", lambda: tag)
    monkeypatch.setattr(coco, "CAPTIONS_AT_ONCE", 2)
    folder = tmp_path / "coco/annotations"
    folder.mkdir(parents=True)
    shutil.copyfile(
        data_dir / "coco/annotations/captions_val2017.json", folder / "captions_val2017.json"
    )
    return tmp_path


def prepare(root, **options):
    (done,) = prepare_coco_captions(Options(root, **options), ["val2017"])
    return done


def test_every_caption_keeps_its_place_and_gets_its_phrases(root):
    done = prepare(root)
    assert done[1:4] == (5, 0, 0)
    source = json.loads((root / "coco/annotations/captions_val2017.json").read_text())
    written = json.loads(done.folder.read_text())["annotations"]
    for before, after in zip(source["annotations"], written, strict=True):
        words = [word for word, kind in tag(before["caption"]) if kind == "NN"]
        phrases = after.pop("phrases")
        assert after == before and set(" ".join(phrases).split()) == set(words)
    found = read_phrases(done.folder)
    assert found.keys() == {IMAGE} and len(found[IMAGE]) == 5
    assert any(found[IMAGE])


def test_what_is_there_is_kept_until_it_is_to_be_overwritten(root):
    path = prepare(root).folder
    before = path.read_bytes()
    path.write_bytes(b"mine")
    assert prepare(root)[1:4] == (0, 5, 0) and path.read_bytes() == b"mine"
    assert prepare(root, overwrite=True)[1:4] == (5, 0, 0) and path.read_bytes() == before


def test_records_have_the_phrases_of_their_captions(root, data_dir):
    path = prepare(root).folder
    shutil.rmtree(root / "coco")
    write_small_coco(data_dir, root, 5)
    name = "coco_2017_val_panoptic_with_sem_seg"
    with pytest.raises(
        InputError, match="panoptic_caption_val2017.json is missing; run `clipself-seg data"
    ):
        panoptic_set_records(name, ["captions"])
    ids = [record["image_id"] for record in panoptic_set_records(name)]
    entries = [{"image_id": ids[1], "phrases": words} for words in (["toilet"], [])]
    path.write_text(json.dumps({"annotations": entries}))
    records = panoptic_set_records(name, ["captions"])
    assert [record["captions"] for record in records] == [[], [["toilet"], []], [], [], []]


def test_a_file_that_is_not_captions_is_named(root):
    path = root / "coco/annotations/captions_val2017.json"
    path.write_text(json.dumps({"annotations": [{"image_id": 1, "bbox": []}]}))
    with pytest.raises(
        InputError, match='captions_val2017.json: a caption needs "image_id", a number'
    ):
        prepare(root)
    path.unlink()
    with pytest.raises(InputError, match="captions_val2017.json is missing.*\n.*cocodataset.org"):
        prepare(root)
