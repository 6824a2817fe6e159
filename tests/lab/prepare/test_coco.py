"""COCO's preparations: every pixel and caption by its rule, on real files."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.annotations import read_phrases
from clipself_seg.data.datasets.records import panoptic_set_records
from clipself_seg.errors import InputError
from lab.prepare import nouns
from lab.prepare.coco import prepare_coco_captions, prepare_coco_panoptic_semseg, prepare_coco_stuff
from lab.prepare.common import Options
from tests.archives import check_registered, pixels, write_small_coco

# The 171 official ids without the 11 that no class has; index by counting.
COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def test_coco_stuff(copy, tmp_path):
    folder = copy("coco-stuff")
    train, val = prepare_coco_stuff(Options(tmp_path, processes=2))
    assert train[1:4] == (60, 0, 0) and val[1:4] == (20, 0, 0)
    used = [number for number in range(1, 183) if number not in COCO_UNUSED]
    assert len(used) == 171
    for path in sorted((folder / "annotations").rglob("*.png")):
        before = pixels(path)
        after = pixels(folder / "annotations_detectron2" / path.parent.name / path.name)
        assert after.dtype == np.uint8
        for value in np.unique(before).tolist():
            expected = used.index(value + 1) if value + 1 in used else 255
            assert (after[before == value] == expected).all()
    check_registered("coco_2017_train_stuff_all_sem_seg", 60)
    check_registered("coco_2017_test_stuff_all_sem_seg", 20)


VAL = "coco/annotations/panoptic_val2017.json"
COUNT = 6


@pytest.fixture
def root(data_dir, datasets_root):
    """The first images of the real validation split."""
    write_small_coco(data_dir, datasets_root, COUNT)
    return datasets_root


def prepare(root, **options):
    (done,) = prepare_coco_panoptic_semseg(Options(root, **options), ["val2017"])
    return done


def test_every_pixel_has_the_position_of_its_segments_category(root):
    assert prepare(root)[1:4] == (COUNT, 0, 0)
    content = json.loads((root / VAL).read_text())
    numbers = [category["id"] for category in content["categories"]]
    assert len(numbers) == 133 and numbers == sorted(numbers)
    seen_void = False
    for entry in content["annotations"]:
        rgb = np.asarray(Image.open(root / "coco/panoptic_val2017" / entry["file_name"])).astype(
            int
        )
        ids, expected = rgb @ [1, 256, 65536], np.full(rgb.shape[:2], 255)
        for info in entry["segments_info"]:
            expected[ids == info["id"]] = numbers.index(info["category_id"])
        labels = np.asarray(Image.open(root / "coco/panoptic_semseg_val2017" / entry["file_name"]))
        assert labels.dtype == np.uint8 and (labels == expected).all()
        seen_void |= bool((expected == 255).any())
    assert seen_void
    name = "coco_2017_val_panoptic_with_sem_seg"
    for record in panoptic_set_records(name, ["semantic"]):
        assert Image.open(record["sem_seg_file_name"]).mode == "L"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda infos: infos.pop(), "panoptic PNG .*val2017/.*image .* in .*val2017.json disagree"),
        (lambda infos: infos[0].update(category_id=12), r"panoptic_val2017.*category ids \[12\]"),
    ],
)
def test_png_and_json_that_do_not_fit_are_named(root, change, message):
    content = json.loads((root / VAL).read_text())
    change(content["annotations"][1]["segments_info"])
    (root / VAL).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        prepare(root)


NOUNS = {"bathroom", "toilet", "sink", "wall", "room", "tub", "floor", "window"}
IMAGE = 6818  # the one real image with captions


def tag(caption):
    """Knows a few nouns only."""
    words = caption.lower().replace(".", " .").split()
    return [(word, "NN" if word in NOUNS else "FW") for word in words]


@pytest.fixture
def captioned(data_dir, monkeypatch, datasets_root):
    monkeypatch.setattr(nouns, "nltk_tagger", lambda: tag)
    monkeypatch.setattr(nouns, "CAPTIONS_AT_ONCE", 2)
    folder = datasets_root / "coco/annotations"
    folder.mkdir(parents=True)
    shutil.copyfile(
        data_dir / "coco/annotations/captions_val2017.json", folder / "captions_val2017.json"
    )
    return datasets_root


def prepared_captions(captioned, **options):
    (done,) = prepare_coco_captions(Options(captioned, **options), ["val2017"])
    return done


def test_every_caption_keeps_its_place_and_gets_its_phrases(captioned):
    done = prepared_captions(captioned)
    assert done[1:4] == (5, 0, 0)
    source = json.loads((captioned / "coco/annotations/captions_val2017.json").read_text())
    written = json.loads(done.folder.read_text())["annotations"]
    for before, after in zip(source["annotations"], written, strict=True):
        words = [word for word, kind in tag(before["caption"]) if kind == "NN"]
        phrases = after.pop("phrases")
        assert after == before and set(" ".join(phrases).split()) == set(words)
    found = read_phrases(done.folder)
    assert found.keys() == {IMAGE} and len(found[IMAGE]) == 5
    assert any(found[IMAGE])


def test_records_have_the_phrases_of_their_captions(captioned, data_dir):
    path = prepared_captions(captioned).folder
    shutil.rmtree(captioned / "coco")
    write_small_coco(data_dir, captioned, 5)
    name = "coco_2017_val_panoptic_with_sem_seg"
    with pytest.raises(InputError, match="caption_val2017.json is missing; run `python tools"):
        panoptic_set_records(name, ["captions"])
    ids = [record["image_id"] for record in panoptic_set_records(name)]
    entries = [{"image_id": ids[1], "phrases": words} for words in (["toilet"], [])]
    path.write_text(json.dumps({"annotations": entries}))
    records = panoptic_set_records(name, ["captions"])
    assert [record["captions"] for record in records] == [[], [["toilet"], []], [], [], []]
