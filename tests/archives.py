"""Small trees in the layout of data sets' archives, COCO's, Cityscapes' and Mapillary Vistas', and what is asked of
label maps that were prepared of them."""

import json
import shutil

import numpy as np
from PIL import Image

from clipself_seg.data.datasets.records import find_dataset, sem_seg_records
from clipself_seg.data.datasets.table import SemSegSet
from clipself_seg.data.masks import read_label_map

ROAD, POLE, PERSON, RIDER, CAR = 7, 17, 24, 25, 26  # label ids of Cityscapes
STATIC, CARAVAN = 4, 29  # which no evaluation counts: static, caravan
SIZE = (16, 24)


def save(path, values, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)


def grown(values):
    """Eight pixels a side for each value, so that images are as large as a data set needs."""
    return np.kron(np.asarray(values), np.ones((8, 8), int))


# A road with a group of cars in it, two persons, of which one is in two parts, a pole and a rider.
CITY = [
    [PERSON * 1000, POLE, CAR, RIDER * 1000 + 3, PERSON * 1000 + 1],
    [ROAD, STATIC, PERSON * 1000, CARAVAN * 1000, ROAD],
]


def write_city_image(root, stem="aachen_000000_000019", split="val", values=None):
    """The archive's files of one image, and of its map of instance ids."""
    values = grown(CITY if values is None else values)
    city = stem.split("_")[0]
    truth = root / "cityscapes/gtFine" / split / city
    save(truth / f"{stem}_gtFine_instanceIds.png", values, np.uint16)
    labels = np.where(values < 1000, values, values // 1000)
    save(truth / f"{stem}_gtFine_labelIds.png", labels)
    image = root / "cityscapes/leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    save(image, np.zeros((*values.shape, 3)))
    return truth


# Labels of Vistas: two birds, a fence, whose number says nothing, a car, unlabelled pixels.
BIRD, FENCE, VCAR, VROAD, UNLABELLED = 0, 3, 55, 13, 65
VISTAS = [
    [BIRD * 256, BIRD * 256 + 1, FENCE * 256, FENCE * 256 + 4],
    [VCAR * 256 + 2, VROAD * 256, UNLABELLED * 256, BIRD * 256],
]


def write_vistas_image(root, stem="a-B_1", split="validation", values=None):
    """The archive's files of one image, without the panoptic ones."""
    values = grown(VISTAS if values is None else values)
    folder = root / "mapillary_vistas" / split
    save(folder / f"instances/{stem}.png", values, np.uint16)
    labels = Image.fromarray((values // 256).astype(np.uint8), "P")
    labels.putpalette([255 - index // 3 for index in range(768)])
    (folder / "labels").mkdir(exist_ok=True)
    labels.save(folder / f"labels/{stem}.png")
    save(folder / f"images/{stem}.jpg", np.zeros((*values.shape, 3)))
    return folder


def write_small_coco(data_dir, root, count):
    """The first images of the real COCO validation split and their annotations below `root`; gives its coco folder."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True)
    for kind in ("instances", "panoptic"):
        name = f"annotations/{kind}_val2017.json"
        content = json.loads((data_dir / "coco" / name).read_text())
        content["images"] = sorted(content["images"], key=lambda image: image["id"])[:count]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [e for e in content["annotations"] if e["image_id"] in ids]
        (folder / name).write_text(json.dumps(content))
    for entry in content["annotations"]:
        stem = entry["file_name"].removesuffix(".png")
        for name in (f"val2017/{stem}.jpg", f"panoptic_val2017/{stem}.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(data_dir / "coco" / name, folder / name)
    return folder


def pixels(path):
    """Values of an image file."""
    return np.asarray(Image.open(path))


def check_registered(name, count):
    """The data set has so many records, and each label map is of its image and its classes."""
    files = find_dataset(name, SemSegSet)
    records = sem_seg_records(name)
    assert len(records) == count
    for record in records:
        read_label_map(
            record["sem_seg_file_name"],
            num_classes=len(files.metadata()["stuff_classes"]),
            ignore_label=files.ignore_label,
            size=Image.open(record["file_name"]).size,
        )
