"""Files of data sets' archives, as the preparations read them."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.data.mappers.distill import DistillMapper
from clipself_seg.data.prepare.ade import prepare_ade150, prepare_ade847
from clipself_seg.data.prepare.ade_panoptic import prepare_ade_panoptic, scene_classes
from clipself_seg.data.prepare.cityscapes import prepare_cityscapes
from clipself_seg.data.prepare.coco import prepare_coco_stuff
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.pascal import (
    prepare_pascal_context_59,
    prepare_pascal_context_459,
    prepare_voc20,
)
from clipself_seg.data.prepare.vistas import prepare_vistas
from clipself_seg.data.shards import Bytes, DamagedTar, ShardStream, members
from tests.archives import write_city_image, write_vistas_image
from tests.fuzz.readers import Reader
from tests.shards import samples, write_shard

ADE = "ADEChallengeData2016"
ADE_FULL = "ADE20K_2021_17_01/images/ADE/validation"
VOC_2010 = "VOCdevkit/VOC2010"
VOC_2012 = "VOCdevkit/VOC2012"
LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4)
THINGS = np.zeros((3, 4, 3), np.uint8)
THINGS[0, :2] = (1, 1, 0)
MAPPING = f"{ADE}/categoryMapping.txt"


def _save(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def _write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _make_archives(name: str, root: Path) -> Path:
    """One image of every archive; returns the file of a name."""
    _save(root / ADE / "images/validation/a.jpg", THINGS)
    _save(root / ADE / "annotations/validation/a.png", LABELS)
    _save(root / ADE / "annotations_instance/validation/a.png", THINGS)
    scenes = scene_classes(root / ADE)
    rows = [f"{number}\t{scene + 1}\tx" for number, scene in enumerate(scenes.tolist(), 1)]
    _write(root / MAPPING, "\n".join(["instance\tscene\tname", *rows]))
    _save(root / ADE_FULL / "ADE_val_1.jpg", THINGS)
    _save(root / ADE_FULL / "ADE_val_1_seg.png", THINGS)
    write_city_image(root)
    write_vistas_image(root, "a")
    _save(root / "coco-stuff/annotations/val2017/1.png", LABELS)
    _write(root / VOC_2012 / "ImageSets/Segmentation/val.txt", "2007_1\n2007_2\n")
    for stem in ("2007_1", "2007_2"):
        _save(root / VOC_2012 / f"SegmentationClassAug/{stem}.png", LABELS)
    _write(root / VOC_2010 / "pascalcontext_val.txt", "a\n")
    (root / VOC_2010 / "trainval").mkdir()
    scipy.io.savemat(root / VOC_2010 / "trainval/a.mat", {"LabelMap": LABELS.astype(float) + 1})
    coded = rle.encode(np.asfortranarray(LABELS > 3, dtype=np.uint8))
    coded["counts"] = coded["counts"].decode()
    image = {"file_name": "a.jpg", "image_id": 1, "phase": "val", "height": 3, "width": 4}
    entries = [
        {"image_id": 1, "category_id": category, "segmentation": segmentation}
        for category, segmentation in ((2, coded), (9, {"size": [3, 4], "counts": [4, 5, 3]}))
    ]
    content = {"images": [image], "annos_segmentation": entries}
    _write(root / VOC_2010 / "trainval_merged.json", json.dumps(content))
    return root / name


def _reader(name: str, prepare: Callable[..., Any], layout: str, *arguments: Any) -> Reader:
    """A reader that prepares the whole archive of a file."""
    depth = len(Path(name).parts) - 1

    def read(path: Path) -> None:
        prepare(Options(path.parents[depth], overwrite=True), *arguments)

    return Reader(functools.partial(_make_archives, name), read, layout)


def _read_mapping(path: Path) -> None:
    scene_classes(path.parent)


VALIDATION = ("validation",)


def _make_shard(folder: Path) -> Path:
    return Path(write_shard(folder / "0.tar", samples(range(3))))


def _read_shard(path: Path) -> None:
    """What a training reads of it: nothing but the images, and from a pipe too."""
    mapper = DistillMapper(source="grid", student_size=32, crop_size=16, seed=0)
    stream = ShardStream([str(path)], batch_size=1, seed=0)
    with contextlib.suppress(DamagedTar):
        list(members(Bytes(_Pipe(path.read_bytes()))))
    list(stream.batches(mapper, range(4), rank=0, processes=1, workers=0))


class _Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


ARCHIVE_READERS = {
    "ade150_png": _reader(f"{ADE}/annotations/validation/a.png", prepare_ade150, "png"),
    "ade_instances_png": _reader(
        f"{ADE}/annotations_instance/validation/a.png", prepare_ade_panoptic, "png", VALIDATION
    ),
    "ade_mapping_txt": Reader(functools.partial(_make_archives, MAPPING), _read_mapping, "lines"),
    "ade847_png": _reader(f"{ADE_FULL}/ADE_val_1_seg.png", prepare_ade847, "png"),
    "cityscapes_png": _reader(
        "cityscapes/gtFine/val/aachen/aachen_000000_000019_gtFine_instanceIds.png",
        prepare_cityscapes,
        "png",
        ("val",),
    ),
    "vistas_png": _reader(
        "mapillary_vistas/validation/instances/a.png", prepare_vistas, "png", VALIDATION
    ),
    "coco_stuff_png": _reader(
        "coco-stuff/annotations/val2017/1.png", prepare_coco_stuff, "png", ("val2017",)
    ),
    "voc_list_txt": _reader(f"{VOC_2012}/ImageSets/Segmentation/val.txt", prepare_voc20, "lines"),
    "voc_png": _reader(f"{VOC_2012}/SegmentationClassAug/2007_1.png", prepare_voc20, "png"),
    "pascal_context_json": _reader(
        f"{VOC_2010}/trainval_merged.json", prepare_pascal_context_59, "json"
    ),
    "pascal_context_mat": _reader(
        f"{VOC_2010}/trainval/a.mat", prepare_pascal_context_459, "bytes"
    ),
    "shard_tar": Reader(_make_shard, _read_shard, "tar"),
}
