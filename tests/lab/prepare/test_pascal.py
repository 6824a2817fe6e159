"""PASCAL VOC and Context: every pixel by the hand formula, on files in the official formats."""

import json
import struct
import zlib

import numpy as np
import pytest
import scipy.io
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.data.datasets.records import sem_seg_records
from clipself_seg.errors import InputError
from lab.prepare import pascal
from lab.prepare.common import Options
from lab.prepare.pascal import (
    _read_mat,
    prepare_pascal_context_59,
    prepare_pascal_context_459,
    prepare_voc20,
)
from tests.archives import check_registered, pixels

CHOSEN = [
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113),
    *(115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324),
    *(326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
]
HEIGHT, WIDTH = 24, 36


@pytest.fixture
def folder(datasets_root):
    """VOC2010 with four images."""
    folder = datasets_root / "VOCdevkit/VOC2010"
    (folder / "JPEGImages").mkdir(parents=True)
    for number in range(1, 5):
        image = Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        image.save(folder / f"JPEGImages/2008_{number:06d}.jpg")
    return folder


def segment(mask, compressed=True):
    if compressed:
        coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": coded["size"], "counts": coded["counts"].decode()}
    flat = [False, *mask.flatten(order="F"), None]  # the first run is of zeros
    ends = [index for index, value in enumerate(flat[1:]) if value != flat[index]]
    return {"size": list(mask.shape), "counts": np.diff([0, *ends]).tolist()}


def write_json(folder, phases=("val", "train", "val", "val")):
    """Random rectangles, some of the 59 and some not; what they should become."""
    rng = np.random.default_rng(0)
    images, entries, expected = [], [], {}
    for number, phase in enumerate(phases, 1):
        name, image_id = f"2008_{number:06d}", 2008000000 + number
        facts = {"file_name": f"{name}.jpg", "image_id": image_id, "phase": phase}
        images.append(facts | {"height": HEIGHT, "width": WIDTH})
        expected[name] = np.full((HEIGHT, WIDTH), 255)
        for i in range(8 if number < 4 else 0):
            category = int(rng.choice([*CHOSEN, 1, 3, 397, 459]))
            y, x = rng.integers(0, HEIGHT - 4), rng.integers(0, WIDTH - 4)
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[y : y + 12, x : x + 14] = True
            coded = segment(mask, compressed=i % 2 == 0)
            entries.append({"image_id": image_id, "category_id": category, "segmentation": coded})
            expected[name][mask] = CHOSEN.index(category) if category in CHOSEN else 255
    # The file's order over the images is not that of the list of images.
    order = [entry for start in (2, 0, 1) for entry in entries[start * 8 : start * 8 + 8]]
    content = {"images": images, "annos_segmentation": order}
    (folder / "trainval_merged.json").write_text(json.dumps(content))
    return expected


def test_the_59_classes_are_painted_in_order_for_the_validation_pictures(folder, tmp_path):
    expected = write_json(folder)
    (done,) = prepare_pascal_context_59(Options(tmp_path))
    assert done[1:4] == (3, 0, 0)
    target = folder / "annotations_detectron2/pc59_val"
    assert {path.stem for path in target.iterdir()} == expected.keys() - {"2008_000002"}
    for path in target.iterdir():
        labels = np.asarray(Image.open(path))
        assert labels.dtype == np.uint8 and (labels == expected[path.stem]).all()
    assert len(sem_seg_records("context_59_test_sem_seg")) == 3


def test_a_json_that_is_another_file_says_where_the_right_one_is(folder, tmp_path):
    path = folder / "trainval_merged.json"
    with pytest.raises(InputError, match="trainval_merged.json is missing.*\n.*PASCAL in Detail"):
        prepare_pascal_context_59(Options(tmp_path))
    for content in ("{", "[]", '{"images": []}', '{"images": [{"id": 1}]}'):
        path.write_text(content)
        with pytest.raises(InputError, match="not the file it should be.*\n.*PASCAL in Detail"):
            prepare_pascal_context_59(Options(tmp_path))
    write_json(folder)
    whole = json.loads(path.read_text())
    for part, change in (
        ("images", {"width": 10**9}),
        ("annos_segmentation", {"category_id": 10**6}),
    ):
        path.write_text(json.dumps(whole | {part: [whole[part][0] | change]}))
        with pytest.raises(InputError, match="not the file it should be"):
            prepare_pascal_context_59(Options(tmp_path))
    write_json(folder, phases=("train",))
    with pytest.raises(InputError, match='no image of phase "val"'):
        prepare_pascal_context_59(Options(tmp_path))


@pytest.mark.parametrize(
    "spoilt, words",
    [(7, "is no mask"), ({"size": [3, 3], "counts": [9]}, "is no mask of an image of .* its size")],
)
def test_segments_that_do_not_fit_are_named(folder, tmp_path, spoilt, words):
    write_json(folder)
    path = folder / "trainval_merged.json"
    content = json.loads(path.read_text())
    content["annos_segmentation"][-1]["segmentation"] = spoilt
    content["annos_segmentation"][-1]["image_id"] = 2008000004
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"a segment of 2008_000004 {words}"):
        prepare_pascal_context_59(Options(tmp_path))


def write_mats(folder, values):
    (folder / "trainval").mkdir(exist_ok=True)
    for stem, labels in values.items():
        scipy.io.savemat(folder / f"trainval/{stem}.mat", {"LabelMap": labels})


def test_the_459_classes_are_the_label_map_less_one(folder, tmp_path):
    rng = np.random.default_rng(0)
    stems = [f"2008_{number:06d}" for number in (1, 2, 3)]
    maps = {stem: rng.integers(1, 460, (HEIGHT, WIDTH)).astype(np.uint16) for stem in stems}
    maps["2008_000001"][0, :2] = 1, 459
    # One more than listed, and one listed that has no .mat.
    write_mats(folder, maps | {"2008_000004": np.ones((2, 2))})
    (folder / "pascalcontext_val.txt").write_text("\n".join([*stems, "2008_000009", ""]))
    (done,) = prepare_pascal_context_459(Options(tmp_path, processes=2))
    assert done[1:4] == (3, 0, 1)
    records = sem_seg_records("context_459_test_sem_seg")
    assert [record["image_id"] for record in records] == stems
    for record in records:
        labels = Image.open(record["sem_seg_file_name"])
        assert labels.mode == "I;16"
        assert (np.asarray(labels) == maps[record["image_id"]].astype(int) - 1).all()


def test_what_is_missing_or_broken_is_named(folder, tmp_path):
    options = Options(tmp_path)
    with pytest.raises(
        InputError, match="pascalcontext_val.txt is missing.*\n.*CAT-Seg.*in its place"
    ):
        prepare_pascal_context_459(options)
    (folder / "pascalcontext_val.txt").write_text("\n")
    with pytest.raises(InputError, match="names no image"):
        prepare_pascal_context_459(options)
    (folder / "pascalcontext_val.txt").write_text("2008_000001\n")
    with pytest.raises(InputError, match="trainval is missing.*\n.*459 classes"):
        prepare_pascal_context_459(options)
    (folder / "trainval").mkdir()
    with pytest.raises(InputError, match="has no .mat file of an image"):
        prepare_pascal_context_459(options)
    for wrong in (np.array([[0, 5.0]]), np.array([[5, 460.0]])):
        write_mats(folder, {"2008_000001": wrong})
        with pytest.raises(InputError, match="2008_000001.mat: LabelMap .* where 1 to 459"):
            prepare_pascal_context_459(options)
    write_mats(folder, {"2008_000001": np.array(["text"])})
    with pytest.raises(InputError, match="LabelMap .it has none of numbers"):
        prepare_pascal_context_459(options)
    path = folder / "trainval/2008_000001.mat"
    for wrong in (b"MATLAB 5.0 but cut", path.read_bytes()[:150], b""):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match="2008_000001.mat cannot be read as a .mat file"):
            prepare_pascal_context_459(options)


def mat_element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def mat_file(path, sides, kind, values, compressed):
    parts = [(6, bytes((6,)) + bytes(7)), (5, struct.pack(f"<{len(sides)}i", *sides))]
    parts += [(1, b"LabelMap"), (kind, values)]
    content = mat_element(14, b"".join(mat_element(*part) for part in parts))
    if compressed:
        packed = zlib.compress(content)
        content = struct.pack("<II", 15, len(packed)) + packed
    path.write_bytes(bytes(128) + content)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_a_mat_that_says_what_it_has_not_is_refused(tmp_path, compressed):
    path, values = tmp_path / "a.mat", bytes(range(1, 7))
    mat_file(path, (2, 3), 2, values, compressed)
    assert _read_mat(path).tolist() == [[1, 3, 5], [2, 4, 6]]
    for sides, kind in [
        ((1 << 15, 1 << 15), 2),
        ((-2, -3), 2),
        ((2, 3), 3),
        ((2, 3, 1), 2),
        ((2, 3), 77),
    ]:
        mat_file(path, sides, kind, values, compressed)
        with pytest.raises(
            InputError, match="a.mat cannot be read as a .mat file .*unpack it again"
        ):
            _read_mat(path)


def test_a_mat_is_unpacked_as_far_as_an_image_can_be_large(tmp_path, monkeypatch):
    values = bytes([1]) * 100_000
    path = mat_file(tmp_path / "a.mat", (1000, 100), 2, values, compressed=True)
    assert path.stat().st_size < 1000 and _read_mat(path).shape == (1000, 100)
    monkeypatch.setattr(pascal, "MAT_BYTES", 50_000)
    with pytest.raises(InputError, match="a.mat cannot be read .*it is cut off"):
        _read_mat(path)


def test_voc_without_and_with_background(copy, tmp_path):
    folder = copy("VOCdevkit/VOC2012")
    # An image of background only: VOC-20 has no map of it.
    empty = folder / "SegmentationClassAug/2011_000099.png"
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(empty)
    with open(folder / "ImageSets/Segmentation/val.txt", "a") as file:
        file.write("2011_000099\n")
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(folder / "JPEGImages/2011_000099.jpg")
    without, with_background = prepare_voc20(Options(tmp_path))
    assert without[1:4] == (3, 0, 1) and with_background[1:4] == (4, 0, 0)
    assert "1 without ground truth left out" in str(without)
    for path in (folder / "SegmentationClassAug").iterdir():
        before = pixels(path)
        for name, background in (
            ("annotations_detectron2", 255),
            ("annotations_detectron2_bg", 20),
        ):
            target = folder / name / "val" / path.name
            expected = np.where(before == 0, background, before.astype(int) - 1)
            expected[before == 255] = 255
            if target.exists():
                assert (pixels(target) == expected).all()
            else:
                assert (expected == 255).all() and path == empty
    check_registered("voc_2012_test_sem_seg", 3)
    check_registered("voc_2012_test_background_sem_seg", 4)


def test_maps_that_are_not_the_archives_are_refused(copy, tmp_path):
    folder = copy("VOCdevkit/VOC2012")
    Image.fromarray(np.full((2, 2), 21, np.uint8)).save(
        folder / "SegmentationClassAug/2011_000003.png"
    )
    with pytest.raises(InputError, match="2011_000003.png is not a map of VOC.*found \\[21\\]"):
        prepare_voc20(Options(tmp_path))
