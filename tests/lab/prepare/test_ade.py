"""ADE20K: every pixel by the hand formula on real files, panoptic files by hand and by their properties."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from clipself_seg.data.datasets.records import panoptic_set_records, sem_seg_records
from clipself_seg.data.masks import read_panoptic_ids, read_panoptic_png
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from lab.prepare import panoptic_files
from lab.prepare.ade import prepare_ade150, prepare_ade847, prepare_ade_panoptic, scene_classes
from lab.prepare.common import Options
from tests.archives import check_registered, pixels, save


def test_ade150(copy, tmp_path):
    folder = copy("ADEChallengeData2016")
    (done,) = prepare_ade150(Options(tmp_path))
    assert done[1:4] == (17, 0, 0) and str(done).endswith("17 written, 0 there already")
    for path in (folder / "annotations/validation").iterdir():
        before = pixels(path)
        after = pixels(folder / "annotations_detectron2/validation" / path.name)
        assert after.tolist() == [[v - 1 if v else 255 for v in row] for row in before.tolist()]
    check_registered("ade20k_150_test_sem_seg", 17)


def test_ade847(copy, tmp_path):
    folder = copy("ADE20K_2021_17_01")
    with pytest.raises(InputError, match="images/ADE/validation is missing"):
        prepare_ade847(Options(tmp_path))
    (done,) = prepare_ade847(Options(tmp_path), ["training"])
    assert done[1:4] == (1, 0, 0)
    source = next(folder.rglob("*_seg.png"))
    rgb, stem = pixels(source).astype(int), source.name.removesuffix("_seg.png")
    labels = Image.open(folder / f"annotations_detectron2/training/{stem}.tif")
    image = Image.open(folder / f"images_detectron2/training/{stem}.jpg")
    height, width = rgb.shape[:2]
    assert image.size == labels.size == shrunk(width, height)
    assert labels.mode == "I;16"
    # Pillow's default, as published; OpenCV's would have 210 kB.
    path = Path(image.filename)
    assert 85_000 < path.stat().st_size < 105_000
    index_of = Vocabulary.load("ade20k_847").dataset_id_to_index
    object_ids = rgb[..., 0] // 10 * 256 + rgb[..., 1]
    whole = np.full((height, width), 65535)
    for number in np.unique(object_ids).tolist():
        whole[object_ids == number] = index_of.get(number, 65535)
    after = np.asarray(labels)
    if labels.size == (width, height):
        assert (after == whole).all()
    assert set(np.unique(after)) <= set(np.unique(whole)) and len(np.unique(after)) >= 13


def shrunk(width, height):
    scale = min(1, 512 / min(width, height))
    return round(width * scale), round(height * scale)


def write_ade_image(root, width, height):
    """A validation image whose left half is class 0 (wall), its right half an unknown object."""
    folder = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    folder.mkdir(parents=True)
    rgb = np.zeros((height, width, 3), np.uint8)
    number = Vocabulary.load("ade20k_847").classes[0].dataset_id
    rgb[:, : width // 2] = number // 256 * 10 + 3, number % 256, 77
    Image.fromarray(rgb).save(folder / "ADE_val_00000001_seg.png")
    Image.fromarray(rgb).save(folder / "ADE_val_00000001.jpg", quality=98)


@pytest.mark.parametrize("size, expected", [((600, 1200), (512, 1024)), ((512, 700), (512, 700))])
def test_large_ade_pictures_are_reduced_with_their_labels(size, expected, datasets_root):
    write_ade_image(datasets_root, *size)
    prepare_ade847(Options(datasets_root))
    (record,) = sem_seg_records("ade20k_full_sem_seg_freq_val_all")
    assert Image.open(record["file_name"]).size == expected
    labels = pixels(record["sem_seg_file_name"])
    assert labels.dtype == np.uint16 and labels.shape[::-1] == expected
    assert (labels[:, : expected[0] // 2] == 0).all()
    assert (labels[:, expected[0] // 2 :] == 65535).all()


VOCABULARY = Vocabulary.load("openseg_ade20k_150")
THINGS = [index for index, entry in enumerate(VOCABULARY.classes) if entry.isthing]
WALL, SKY, BED, DOOR = 0, 2, 7, 14  # among the 150 classes


def write_image(folder, stem, semantic, classes, numbers, split="validation"):
    """Of class indices with -1 for "other", and of the things' class indices and numbers."""
    semantic, classes, numbers = (np.asarray(values) for values in (semantic, classes, numbers))
    save(folder / f"images/{split}/{stem}.jpg", np.zeros((*semantic.shape, 3)))
    save(folder / f"annotations/{split}/{stem}.png", semantic + 1)
    red = np.zeros(numbers.shape, int)
    for number in np.unique(numbers[numbers > 0]):
        red[numbers == number] = [THINGS.index(c) + 1 for c in classes[numbers == number]]
    rgb = np.stack([red, numbers, np.zeros_like(red)], axis=-1)
    save(folder / f"annotations_instance/{split}/{stem}.png", rgb)


# Wall above, sky in the middle row, "other" in a corner. A bed covers the sky and a piece of wall,
# a door lies on the wall; the map calls one of the door's pixels "other".
SEMANTIC = [[0, 0, 0, 0], [0, 0, 0, -1], [2, 2, -1, -1]]
NUMBERS = [[0, 0, 9, 9], [4, 0, 0, 0], [4, 4, 0, 0]]
CLASSES = [[0, 0, DOOR, DOOR], [BED, 0, 0, 0], [BED, BED, 0, 0]]


@pytest.fixture
def folder(datasets_root):
    place = datasets_root / "ADEChallengeData2016"
    write_image(place, "ADE_val_00000001", SEMANTIC, CLASSES, NUMBERS)
    return place


def prepare(folder, **options):
    (done,) = prepare_ade_panoptic(Options(folder.parent, **options), ["validation"])
    return done


def read(folder, name):
    return json.loads((folder / f"ade20k_{name}_val.json").read_text())


def test_the_published_rule_by_hand(folder):
    assert prepare(folder)[1:4] == (1, 0, 0)
    content = read(folder, "panoptic")
    stem = "ADE_val_00000001"
    image = {"id": stem, "file_name": f"{stem}.jpg", "width": 4, "height": 3}
    assert content["images"] == [image]
    assert [category["id"] for category in content["categories"]] == list(range(150))
    assert [c["id"] for c in content["categories"] if c["isthing"] == 1] == THINGS
    assert len({tuple(category["color"]) for category in content["categories"]}) == 150
    (entry,) = content["annotations"]
    assert entry["image_id"] == stem and entry["file_name"] == f"{stem}.png"
    # Stuff by class with the area before pasting, then things by number.
    expected = [
        (WALL, 7, [0, 0, 4, 2]),
        (SKY, 2, [0, 2, 2, 1]),
        (BED, 3, [0, 1, 2, 2]),
        (DOOR, 2, [2, 0, 2, 1]),
    ]
    infos = entry["segments_info"]
    assert [(i["category_id"], i["area"], i["bbox"]) for i in infos] == expected
    assert all(info["iscrowd"] == 0 for info in infos)
    wall, sky, bed, door = (info["id"] for info in infos)
    ids = read_panoptic_png(folder / f"ade20k_panoptic_val/{stem}.png")
    assert ids.tolist() == [[wall, wall, door, door], [bed, wall, wall, 0], [bed, bed, 0, 0]]
    assert sky not in ids and len({wall, sky, bed, door, 0}) == 5
    assert not list(folder.rglob("ade20k_panoptic_val/.*"))


def test_instances_are_the_things_with_their_masks(folder):
    prepare(folder)
    api = COCO(str(folder / "ade20k_instance_val.json"))
    assert sorted(api.cats) == THINGS and api.cats[BED]["name"] == VOCABULARY.first_names[BED]
    found = api.loadAnns(api.getAnnIds(imgIds=["ADE_val_00000001"]))
    assert [(a["category_id"], a["area"], a["id"]) for a in found] == [(BED, 3, 1), (DOOR, 2, 2)]
    for annotation, number in zip(found, (4, 9)):
        mask = rle.decode({**annotation["segmentation"]}).astype(bool)
        assert (mask == (np.array(NUMBERS) == number)).all()


def test_the_registered_set_reads_them_covered_stuff_included(folder):
    larger = (np.kron(values, np.ones((4, 4), int)) for values in (SEMANTIC, CLASSES, NUMBERS))
    write_image(folder, "ADE_val_00000001", *larger)
    prepare(folder)
    prepare_ade150(Options(folder.parent))
    (record,) = panoptic_set_records("ade20k_panoptic_val", ["panoptic", "instances", "semantic"])
    assert record["covered_stuff"] and len(record["segments_info"]) == 4
    assert read_panoptic_ids(record).shape == (12, 16)
    assert record["image_id"] == "ADE_val_00000001" and record["width"] == 16


def test_an_interrupted_run_is_completed_and_a_whole_one_is_kept(folder, monkeypatch):
    write_image(folder, "ADE_val_00000002", SEMANTIC, CLASSES, NUMBERS)
    write, calls = panoptic_files.atomic_path, []

    def dying(path):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(path)

    monkeypatch.setattr(panoptic_files, "atomic_path", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder)
    assert not (folder / "ade20k_panoptic_val.json").exists()
    monkeypatch.setattr(panoptic_files, "atomic_path", write)
    assert prepare(folder)[1:4] == (1, 1, 0)
    assert len(read(folder, "panoptic")["annotations"]) == 2
    before = (folder / "ade20k_panoptic_val.json").stat()
    assert prepare(folder)[1:4] == (0, 2, 0)
    assert (folder / "ade20k_panoptic_val.json").stat() == before
    assert prepare(folder, overwrite=True)[1:4] == (2, 0, 0)
    write_image(folder, "ADE_val_00000003", SEMANTIC, CLASSES, NUMBERS)  # the archive was not whole
    assert prepare(folder)[1:4] == (3, 0, 0)
    assert len(read(folder, "panoptic")["annotations"]) == 3


def test_the_mapping_is_the_challenges(shared_dir):
    reference = shared_dir / "reference/vocabularies/ade20k_instance_100.json"
    rows = json.loads(reference.read_text())["rows"]
    assert rows == [[number, index + 1] for number, index in enumerate(scene_classes(), 1)]
    assert scene_classes().tolist() == THINGS


def test_files_that_are_missing_or_do_not_belong_together_are_named(folder):
    things = folder / "annotations_instance/validation/ADE_val_00000001.png"
    rgb = np.array(Image.open(things))
    rgb[0, 2] = 101, 9, 0
    save(things, rgb)
    with pytest.raises(InputError, match="thing 9 has the class 101, where a thing has one of 1 "):
        prepare(folder)
    save(things, np.zeros((3, 5, 3)))
    with pytest.raises(InputError, match="_instance/.* is 5 x 3, its image .* is 4 x 3"):
        prepare(folder)
    save(things, np.zeros((3, 4)))
    with pytest.raises(InputError, match="has pixels of type L, not RGB"):
        prepare(folder)
    things.unlink()
    with pytest.raises(InputError, match="00000001.png is missing.*\n.*annotations_instance.tar"):
        prepare(folder)
    shutil.rmtree(folder / "annotations_instance")
    with pytest.raises(InputError, match="validation is missing.*\n.*annotations_instance.tar"):
        prepare(folder)
    save(folder / "annotations_instance/validation/x.png", [[0]])
    save(folder / "annotations/validation/ADE_val_00000001.png", np.full((3, 4), 151))
    with pytest.raises(InputError, match="is not one of the challenge's maps"):
        prepare(folder)


def test_a_picture_of_other_alone_has_no_segments(folder):
    nothing = np.full((3, 4), -1), np.zeros((3, 4), int), np.zeros((3, 4), int)
    write_image(folder, "ADE_val_00000001", *nothing)
    prepare(folder)
    assert read(folder, "panoptic")["annotations"][0]["segments_info"] == []
    assert read(folder, "instance")["annotations"] == []
