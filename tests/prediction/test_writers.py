"""Files of results: formats of other programs, by hand, and read back by the libraries that they are for."""

import contextlib
import io
import json
import types

import numpy as np
from pycocotools.coco import COCO

from clipself_seg.files import read_json
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.loop import Index
from clipself_seg.prediction.results import PanopticSegment, PanopticSegmentation
from clipself_seg.prediction.writers import ResultFiles

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 9, "name": "sea/lion", "seen": True}]
# Of an image of 10 x 20 pixels: a rectangle of stuff, and two that are one object.
IDS = np.zeros((10, 20), np.int64)
IDS[2:6, 4:9] = 1
IDS[0:3, 12:16] = IDS[6:9, 12:20] = 2
SEGMENTS = (
    PanopticSegment(1, 1, "sea/lion", False, 20, (4, 2, 5, 4), 0.5),
    PanopticSegment(2, 0, "dog", True, 36, (12, 0, 8, 9), 0.5),
)


def result_of(segments):
    image, ids = np.zeros((10, 20, 3), np.uint8), np.where(IDS <= len(segments), IDS, 0)
    names = ("dog", "sea/lion")
    return PanopticSegmentation(ids, segments, names=names, category_ids=(7, 9), image=image)


def results(folder, save):
    """Results of an image whose file is sub/a.jpg, or a.jpg."""
    predictor = types.SimpleNamespace(
        task="panoptic",
        mapper=types.SimpleNamespace(max_pixels=1),
        absent=None,
        about=dict,
        categories=lambda: CATEGORIES,
    )
    sources = [ImageFile(folder / "5.jpg", "sub/a.jpg", "sub/a")]
    return ResultFiles(predictor=predictor, folder=folder, images=sources, save=save)


def write(made, segments, name="sub/a"):
    result = result_of(segments)
    return made.write(ImageFile(made.folder / "5.jpg", "sub/a.jpg", name), result)


def test_pycocotools_reads_the_regions(tmp_path):
    made = results(tmp_path, ["coco"])
    files, entry = write(made, SEGMENTS)
    source = ImageFile(tmp_path / "5.jpg", "sub/a.jpg", "sub/a")
    made.write_index(Index([(source, entry)], [], {}, True, {"about": "it"}))
    assert not files
    content = json.loads((tmp_path / "coco.json").read_text())
    assert content["categories"] == CATEGORIES and content["info"] == {
        "provenance": {"about": "it"}
    }
    image = {"id": 5, "file_name": "sub/a.jpg", "width": 20, "height": 10}
    assert content["images"] == [image]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "coco.json")
    first, second = coco.loadAnns([1, 2])
    assert (first["category_id"], first["bbox"], first["area"]) == (9, [4, 2, 5, 4], 20)
    assert (second["category_id"], second["bbox"], second["area"]) == (7, [12, 0, 8, 9], 36)
    assert second["image_id"] == 5 and second["iscrowd"] == 0
    assert first["score"] == second["score"] == 0.5
    for annotation, number in ((first, 1), (second, 2)):
        assert (coco.annToMask(annotation) == (IDS == number)).all()


def test_what_is_not_asked_for_is_not_written(tmp_path):
    made = results(tmp_path, [])
    files, entry = write(made, SEGMENTS)
    assert not files and entry.keys() == {"annotations", "size"}
    made.write_index(Index([], [], {"b.jpg": "broken"}, False, {"seed": 0}))
    (path,) = tmp_path.iterdir()
    info = {"provenance": {"seed": 0}, "failed": {"b.jpg": "broken"}, "complete": False}
    assert read_json(path) == {
        "info": info,
        "images": [],
        "annotations": [],
        "categories": CATEGORIES,
    }
