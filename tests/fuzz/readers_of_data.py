"""Formats of data: configurations, class names and annotations; images, label maps and given masks; archives of data
sets, as the preparations read them, and shards."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.commands.panoptic_quality import read_classes, read_entries
from clipself_seg.config import load_config
from clipself_seg.data.annotations import (
    category_indices,
    category_labels,
    instance_records,
    panoptic_records,
    proposal_records,
    read_coco_json,
    read_phrases,
    read_region_text,
)
from clipself_seg.data.datasets.own import check_data, register_data
from clipself_seg.data.given_masks import read_masks
from clipself_seg.data.images import read_image
from clipself_seg.data.mappers.detection import DetectionTrainMapper
from clipself_seg.data.mappers.distill import DistillMapper, RegionTextMapper
from clipself_seg.data.mappers.panoptic import PanopticTrainMapper
from clipself_seg.data.mappers.regions import RegionMapper
from clipself_seg.data.masks import encode_masks, read_label_map
from clipself_seg.data.shards import ShardStream
from clipself_seg.data.vocabulary import Vocabulary, read_label_file
from clipself_seg.evaluation.coco_ap import object_quality
from clipself_seg.evaluation.coco_objects import (
    ImageDetections,
    read_true_instances,
    read_true_objects,
)
from lab.prepare.ade import prepare_ade150, prepare_ade847, prepare_ade_panoptic
from lab.prepare.coco import prepare_coco_stuff
from lab.prepare.common import Options
from lab.prepare.pascal import prepare_pascal_context_59, prepare_pascal_context_459, prepare_voc20
from lab.prepare.streets import prepare_cityscapes, prepare_vistas
from tests.archives import save, write_city_image, write_vistas_image
from tests.conftest import ROOT
from tests.detection_worlds import WORDS as TOYS
from tests.detection_worlds import annotation, write_objects
from tests.fuzz.readers import Make, Reader, file, text, tree
from tests.shards import samples, write_shard
from tests.tiny import noise, write_tiny_coco

COCO_133 = Vocabulary.load("coco_panoptic_133")


def _write_configs(folder: Path) -> None:
    content = (ROOT / "configs/mini/semseg_original.yaml").read_text()
    # A key of distillation, which is refused in a file that does not come with the package.
    content = content.replace("  REGIONS:\n    STUDENT_SIZE: 128\n", "")
    (folder / "semseg_original.yaml").write_text(content)
    (folder / "run.yaml").write_text(f"_BASE_: semseg_original.yaml\n{content}")


def _write_own_data(folder: Path) -> None:
    """Two images with a box and a polygon of YOLO's each."""
    for name in "ab":
        save(folder / f"images/{name}.png", np.zeros((40, 60, 3)))
        _write(folder / f"labels/{name}.txt", "1 0.5 0.5 0.5 0.5\n0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    content = "path: .\ntrain: images\nval: {images: images, labels: labels}\nnames: [dog, grass]\n"
    _write(folder / "own.yaml", content + "ignore: 255\nheld_out: [dog]\n")


def _read_own_data(path: Path) -> None:
    earlier = {*DatasetCatalog.list()}
    try:
        data = register_data(path.parent / "own.yaml", "detection")
        check_data([name for name in (data.train, *data.test) if name])
    finally:
        for name in {*DatasetCatalog.list()} - earlier:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)


CAT = {"dataset_id": 5, "names": ["cat", "kitten"], "isthing": True, "seen": True}
DOG = {"dataset_id": 6, "names": ["dog"], "isthing": True, "frequency": "r"}
SKY = {"dataset_id": 9, "names": ["sky"], "isthing": False, "catseg_name": "sky, air"}


def _use_vocabulary(path: Path) -> None:
    vocabulary = Vocabulary.of(str(path))
    _ = vocabulary.first_names, vocabulary.dataset_id_to_index


# Annotations, each with what reads them on the way to a sample.

PREDICTED = "annotations/panoptic_val2017.json"


def _coco(name: str, read: Callable[[Path], object], layout: str = "json") -> Reader:
    return Reader(tree(name, functools.partial(write_tiny_coco, images=2)), read, layout)


def _read_proposals(path: Path) -> None:
    mapper = DistillMapper(source="proposals", student_size=32, crop_size=32, seed=0)
    for record in proposal_records(path, path.parent / "../train2017"):
        mapper(record, 0)


def _read_region_text(path: Path) -> None:
    mapper = RegionTextMapper(student_size=32, seed=0, crop_size=32)
    records = read_region_text(path, path.parent / "../train2017").records
    for record in records:
        mapper(record | {"captions": [*record["captions"], "a cat"]}, 0)


def _panoptic_records(coco: Path) -> list[dict[str, Any]]:
    return panoptic_records(coco / PREDICTED, coco / "val2017", coco / "panoptic_val2017")


def _read_panoptic(path: Path) -> None:
    regions = RegionMapper(image_size=32, crop_size=32, stride=8, vocabulary=COCO_133)
    train = PanopticTrainMapper(seed=0, vocabulary=COCO_133, size=32, scales=(0.5, 1.0))
    for record in _panoptic_records(path.parents[1]):
        ids = np.unique([info["category_id"] for info in record["segments_info"]])
        category_labels(ids, COCO_133.dataset_id_to_index, path)  # as `region_records` does
        regions(record)
        train(record, 0)


def _read_captions(path: Path) -> None:
    phrases = read_phrases(path)
    mapper = PanopticTrainMapper(seed=0, vocabulary=COCO_133, size=32, scales=(0.5, 1.0), words=4)
    for record in _panoptic_records(path.parents[1]):
        words = mapper(record | {"captions": phrases.get(record["image_id"], [])}, 0)["words"]
        ", ".join(words)


def _read_panoptic_quality(path: Path) -> None:
    read_classes(path)
    read_entries(path)


def _make_objects(folder: Path) -> Path:
    """LVIS's format, with the images beside it."""
    objects = [annotation(1, "a", 30, [3, 4, 27, 16]), annotation(2, "b", 7, [0, 0, 9, 50])]
    for image in "ab":
        save(folder / f"{image}.png", np.zeros((60, 90, 3)))
    lists = {"neg_category_ids": {"a": [9]}, "not_exhaustive_category_ids": {"b": [7]}}
    return write_objects(folder, objects, ["a", "b"], **lists)


def _read_objects(path: Path) -> None:
    truth = read_true_objects(path, TOYS, masks=True, federated=True)
    boxes = np.array([[3.0, 4.0, 27.0, 16.0]])
    detections = ImageDetections(boxes, np.array([0.5]), np.array([0]), None)
    predicted = dict.fromkeys(truth.image_ids, detections)
    object_quality(truth, predicted, "bbox", "detectron2")
    content = read_coco_json(path)
    index_of = category_indices(content, TOYS, path)
    mapper = DetectionTrainMapper(seed=0, side=32, masks=True)
    for record in instance_records(content, path, path.parent, index_of, masks=True):
        mapper(record, 0)


def _instances() -> dict[str, object]:
    """Masks in all codes."""
    masks = np.zeros((2, 40, 57), bool)
    masks[0, 3:20, 5:30] = True
    masks[1, 10:40, 20:57] = True
    coded = [{**mask, "counts": mask["counts"].decode()} for mask in encode_masks(masks)]
    runs = {"size": [4, 3], "counts": [2, 5, 5]}
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 57} for n in (1, "a")]
    images.append({"id": 3, "file_name": "3.jpg", "height": 4, "width": 3})
    segmentations = [coded[0], coded[1], [[3.0, 4.0, 30.0, 4.0, 30.0, 20.0]], runs]
    annotations = [
        {"id": n, "image_id": image, "category_id": 17 + n % 2, "segmentation": segmentation}
        | {"area": 400.0, "bbox": [3, 4, 27, 16], "iscrowd": int(isinstance(segmentation, dict))}
        for n, (image, segmentation) in enumerate(zip((1, "a", 1, 3), segmentations))
    ]
    return {"images": images, "annotations": annotations, "categories": []}


def _read_instances(path: Path) -> None:
    truth = read_true_instances(path, COCO_133)
    boxes, scores, labels = np.zeros((1, 0)), np.array([0.5]), np.array([0])
    predicted = {
        image_id: ImageDetections(boxes, scores, labels, _box_masks(*size))
        for image_id, size in zip(truth.image_ids, truth.sizes)
    }
    object_quality(truth, predicted, "segm", (1, 10, 100))


def _box_masks(height: int, width: int) -> list[dict[str, Any]]:
    """A small mask in images of the sizes that the file states; models give masks of real sizes."""
    if max(height, width) >= 100:
        height, width = 40, 57
    mask = np.zeros((max(1, int(height)), max(1, int(width))), np.uint8, order="F")
    mask[:3, :3] = 1
    return [rle.encode(mask)]


DATA = {
    "config_yaml": Reader(tree("run.yaml", _write_configs), lambda path: load_config(path), "yaml"),
    "own_data_yaml": Reader(tree("own.yaml", _write_own_data), _read_own_data, "yaml"),
    "yolo_txt": Reader(
        tree("labels/a.txt", _write_own_data), lambda path: _read_own_data(path.parent), "lines"
    ),
    "vocabulary_txt": Reader(
        text("own.txt", "# mine\ncat|kitten\ndog, sky\ngrass|lawn,\n"), _use_vocabulary, "lines"
    ),
    "label_file_txt": Reader(
        text("own.txt", "0:invalid_class_id\n1:cat,kitten\n2:sky\n"),
        lambda path: read_label_file(path, Vocabulary.of(["cat", "sky"])),
        "lines",
    ),
    "vocabulary_json": Reader(
        text("own.json", {"name": "own", "about": "three", "classes": [CAT, DOG, SKY]}),
        _use_vocabulary,
        "json",
    ),
    "class_list_json": Reader(
        text("own.json", ["cat, kitten", "dog", "sky"]), _use_vocabulary, "json"
    ),
    "coco_region_text_json": _coco("coco/annotations/coco_pseudo_4764.json", _read_region_text),
    "coco_proposals_json": _coco("coco/annotations/coco_proposals.json", _read_proposals),
    "lvis_json": _coco(
        "lvis/lvis_v1_train.json", lambda path: proposal_records(path, path.parent / "../coco")
    ),
    "coco_panoptic_json": _coco(f"coco/{PREDICTED}", _read_panoptic),
    "coco_captions_json": _coco("coco/annotations/panoptic_caption_train2017.json", _read_captions),
    "detection_json": Reader(_make_objects, _read_objects, "json"),
    "coco_instances_json": Reader(text("instances.json", _instances()), _read_instances, "json"),
    "panoptic_quality_json": _coco(f"coco/{PREDICTED}", _read_panoptic_quality),
    "panoptic_png": _coco("coco/panoptic_val2017/000000000001.png", _read_panoptic, "png"),
}


# Images, label maps, given masks.

NOISE = noise(40, 57)
SMALL = NOISE[:31, :37]
LABELS = NOISE[..., 0] % 7
MASK = np.indices((40, 57)).sum(axis=0) % 9 < 4


def _given() -> list[dict[str, object]]:
    encoded = encode_masks(MASK[None])[0]
    compressed = {"size": [40, 57], "counts": encoded["counts"].decode()}
    runs = {"size": [40, 57], "counts": [280, 2000]}
    polygon = [[1.5, 2, 30, 2, 30, 20]]
    return [{"segmentation": one, "score": 0.5} for one in (compressed, runs, polygon)]


def _read_given(path: Path) -> None:
    read_masks(path, (40, 57))


def _image(name: str, mode: str = "RGB", **how: Any) -> Make:
    image = Image.fromarray(SMALL).convert(mode)
    return file(name, lambda path: image.save(path, **how))


def _labels(name: str, dtype: Any) -> Make:
    return file(name, lambda path: Image.fromarray(LABELS.astype(dtype)).save(path))


def _write_palette(path: Path) -> None:
    Image.fromarray(LABELS, "L").convert("P").save(path, transparency=0)


def _write_animation(path: Path) -> None:
    first, *others = (Image.fromarray(np.roll(NOISE[:20, :20], i, 0)) for i in range(3))
    first.save(path, save_all=True, append_images=others)


def _read_labels(path: Path) -> None:
    read_label_map(path, num_classes=300, ignore_label=65535, size=(57, 40), image="x.jpg")


TURNED = Image.Exif()
TURNED[274] = 6

IMAGES = {
    "given_masks_json": Reader(text("own.json", _given()), _read_given, "json"),
    "given_masks_png": Reader(
        file("a.png", lambda path: save(path, MASK * 255)), _read_given, "png"
    ),
    "label_map_png": Reader(_labels("a.png", np.uint8), _read_labels, "png"),
    "label_map_16_bit_png": Reader(_labels("a.png", np.uint16), _read_labels, "png"),
    "label_map_palette_png": Reader(file("labels.png", _write_palette), _read_labels, "png"),
    "label_map_tiff": Reader(_labels("a.tif", np.uint16), _read_labels),
    "image_jpeg": Reader(_image("a.jpg", exif=TURNED), read_image),
    "image_cmyk_jpeg": Reader(_image("a.jpg", "CMYK"), read_image),
    "image_png": Reader(_image("a.png", exif=TURNED), read_image, "png"),
    "image_16_bit_png": Reader(_labels("a.png", np.uint16), read_image, "png"),
    "image_palette_png": Reader(_image("a.png", "P"), read_image, "png"),
    "image_webp": Reader(_image("a.webp"), read_image),
    "image_bmp": Reader(_image("a.bmp"), read_image),
    "image_tiff": Reader(_image("a.tif"), read_image),
    "image_avif": Reader(_image("a.avif"), read_image),
    "image_jp2": Reader(_image("a.jp2"), read_image),
    "image_gif": Reader(file("a.gif", _write_animation), read_image),
}


# Archives of data sets.

ADE = "ADEChallengeData2016"
ADE_FULL = "ADE20K_2021_17_01/images/ADE/validation"
VOC_2010, VOC_2012 = "VOCdevkit/VOC2010", "VOCdevkit/VOC2012"
INDICES = np.arange(12, dtype=np.uint8).reshape(3, 4)
THINGS = np.zeros((3, 4, 3), np.uint8)
THINGS[0, :2] = (1, 1, 0)


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def _write_archives(root: Path) -> None:
    """One image of every archive."""
    save(root / ADE / "images/validation/a.jpg", THINGS)
    save(root / ADE / "annotations/validation/a.png", INDICES)
    save(root / ADE / "annotations_instance/validation/a.png", THINGS)
    save(root / ADE_FULL / "ADE_val_1.jpg", THINGS)
    save(root / ADE_FULL / "ADE_val_1_seg.png", THINGS)
    write_city_image(root)
    write_vistas_image(root, "a")
    save(root / "coco-stuff/annotations/val2017/1.png", INDICES)
    _write(root / VOC_2012 / "ImageSets/Segmentation/val.txt", "2007_1\n2007_2\n")
    for stem in ("2007_1", "2007_2"):
        save(root / VOC_2012 / f"SegmentationClassAug/{stem}.png", INDICES)
    _write(root / VOC_2010 / "pascalcontext_val.txt", "a\n")
    (root / VOC_2010 / "trainval").mkdir()
    scipy.io.savemat(root / VOC_2010 / "trainval/a.mat", {"LabelMap": INDICES.astype(float) + 1})
    coded = rle.encode(np.asfortranarray(INDICES > 3, dtype=np.uint8))
    coded["counts"] = coded["counts"].decode()
    image = {"file_name": "a.jpg", "image_id": 1, "phase": "val", "height": 3, "width": 4}
    entries = [
        {"image_id": 1, "category_id": category, "segmentation": segmentation}
        for category, segmentation in ((2, coded), (9, {"size": [3, 4], "counts": [4, 5, 3]}))
    ]
    content = {"images": [image], "annos_segmentation": entries}
    _write(root / VOC_2010 / "trainval_merged.json", json.dumps(content))


def _archive(name: str, prepare: Callable[..., object], layout: str, *splits: str) -> Reader:
    """A reader that prepares the whole archive of a file."""
    depth = name.count("/")

    def read(path: Path) -> None:
        options = Options(path.parents[depth], overwrite=True)
        prepare(options, splits) if splits else prepare(options)

    return Reader(tree(name, _write_archives), read, layout)


def _read_shard(path: Path) -> None:
    """What a training reads of it: nothing but the images."""
    mapper = DistillMapper(source="grid", student_size=32, crop_size=16, seed=0)
    stream = ShardStream([str(path)], batch_size=1, seed=0)
    list(stream.batches(mapper, range(4), rank=0, processes=1, workers=0))


CITY = "cityscapes/gtFine/val/aachen/aachen_000000_000019_gtFine_instanceIds.png"
VISTAS = "mapillary_vistas/validation/instances/a.png"
ADE_THINGS = f"{ADE}/annotations_instance/validation/a.png"
VOC_LIST = f"{VOC_2012}/ImageSets/Segmentation/val.txt"

ARCHIVES = {
    "ade150_png": _archive(f"{ADE}/annotations/validation/a.png", prepare_ade150, "png"),
    "ade_instances_png": _archive(ADE_THINGS, prepare_ade_panoptic, "png", "validation"),
    "ade847_png": _archive(f"{ADE_FULL}/ADE_val_1_seg.png", prepare_ade847, "png"),
    "cityscapes_png": _archive(CITY, prepare_cityscapes, "png", "val"),
    "vistas_png": _archive(VISTAS, prepare_vistas, "png", "validation"),
    "coco_stuff_png": _archive(
        "coco-stuff/annotations/val2017/1.png", prepare_coco_stuff, "png", "val2017"
    ),
    "voc_list_txt": _archive(VOC_LIST, prepare_voc20, "lines"),
    "voc_png": _archive(f"{VOC_2012}/SegmentationClassAug/2007_1.png", prepare_voc20, "png"),
    "pascal_context_json": _archive(
        f"{VOC_2010}/trainval_merged.json", prepare_pascal_context_59, "json"
    ),
    "pascal_context_mat": _archive(
        f"{VOC_2010}/trainval/a.mat", prepare_pascal_context_459, "bytes"
    ),
    "shard_tar": Reader(
        file("0.tar", lambda path: write_shard(path, samples(range(3)))), _read_shard, "tar"
    ),
}
