"""Small panoptic data sets on the disk, true and predicted, and panopticapi's word on them."""

import contextlib
import io
import json

import numpy as np
from panopticapi.evaluation import pq_compute_single_core
from PIL import Image

from clipself_seg.commands.panoptic_quality import Side
from clipself_seg.data.masks import read_panoptic_png
from clipself_seg.evaluation.panoptic.quality import match_segments, panoptic_map, panoptic_quality

CATEGORIES = [
    {"id": 7 * i + 2, "name": f"class{i}", "isthing": int(i < 3), "color": [0, 0, 0]}
    for i in range(6)
]


def save_ids(path, ids):
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def write_side(folder, images):
    """Of [(image id, ids, segments)]."""
    annotations = []
    for image_id, ids, segments in images:
        save_ids(folder / "png" / f"{image_id}.png", ids)
        entry = {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}
        annotations.append(entry)
    content = {"annotations": annotations, "categories": CATEGORIES}
    (folder / "side.json").write_text(json.dumps(content))
    return Side(folder / "side.json", folder / "png")


def random_image(rng, crowds=0.3, size=(24, 31)):
    """A true and a predicted image: blocks, moved ones, with void, crowds and wrong classes."""
    blocks = rng.integers(0, 9, (6, 8)) * rng.integers(1, 4)
    true = np.kron(blocks, np.ones((4, 4), dtype=np.int64))[: size[0], : size[1]] * 7001
    predicted = np.roll(true, rng.integers(0, 3, 2), (0, 1)) // 7001 * 300
    truth = segments_of(rng, true, crowds)
    class_of = {info["id"] // 7001 * 300: info["category_id"] for info in truth}
    listed = segments_of(rng, predicted, 0)
    for info in listed:
        if rng.random() < 0.7:
            info["category_id"] = class_of.get(info["id"], info["category_id"])
    return true, truth, predicted, listed


def segments_of(rng, ids, crowds):
    """Things and stuff; stuff of one class is one segment, as in COCO, or several."""
    segments = []
    for number in rng.permutation(np.unique(ids)).tolist():
        if number == 0:
            continue
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        painted = int((ids == number).sum())
        segments.append(
            {
                "id": number,
                "category_id": category["id"],
                "iscrowd": int(category["isthing"] and rng.random() < crowds),
                # As in ADE20K, where areas of stuff may be stated too large.
                "area": (painted if category["isthing"] else painted + int(rng.integers(0, 9))),
            }
        )
    return segments


def random_sides(folder, seed, images=12):
    rng = np.random.default_rng(seed)
    made = [(f"image_{index}", random_image(rng)) for index in range(images)]
    truth = write_side(folder / "truth", [(name, *image[:2]) for name, image in made])
    predicted = write_side(folder / "predicted", [(name, *image[2:]) for name, image in made])
    return truth, predicted


def annotated_pairs(truth, predicted):
    """Content of the ground truth, and the entries of each of its images on both sides."""
    content = json.loads(truth.json.read_text())
    given = {
        entry["image_id"]: entry for entry in json.loads(predicted.json.read_text())["annotations"]
    }
    return content, [(entry, given[entry["image_id"]]) for entry in content["annotations"]]


def own_quality(truth, predicted):
    """The project's numbers."""
    content, pairs = annotated_pairs(truth, predicted)
    index_of = {entry["id"]: index for index, entry in enumerate(content["categories"])}

    def side_map(side, entry):
        png = side.folder / entry["file_name"]
        return panoptic_map(read_panoptic_png(png), entry["segments_info"], index_of, str(png))

    matches = [
        match_segments(side_map(truth, true), side_map(predicted, given)) for true, given in pairs
    ]
    return panoptic_quality(matches, len(index_of))


def panopticapi_quality(truth, predicted):
    """(PQStat, {group: numbers}) of panopticapi, in one process."""
    content, pairs = annotated_pairs(truth, predicted)
    categories = {entry["id"]: entry for entry in content["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        stat = pq_compute_single_core(0, pairs, truth.folder, predicted.folder, categories)
    groups = {"": None, "_th": True, "_st": False}
    return stat, {suffix: stat.pq_average(categories, is_)[0] for suffix, is_ in groups.items()}
