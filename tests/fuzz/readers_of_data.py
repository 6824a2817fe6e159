"""Formats that configurations, class names, annotations, images and results of earlier runs have."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.config import load_config
from clipself_seg.data.captions import read_phrases
from clipself_seg.data.given_masks import read_masks
from clipself_seg.data.images import read_image
from clipself_seg.data.instances import category_indices, instance_records
from clipself_seg.data.label_files import read_label_file
from clipself_seg.data.label_maps import read_label_map
from clipself_seg.data.mappers.detection import DetectionTrainMapper
from clipself_seg.data.mappers.distill import DistillMapper
from clipself_seg.data.mappers.panoptic import PanopticTrainMapper
from clipself_seg.data.mappers.region_text import RegionTextMapper
from clipself_seg.data.mappers.regions import RegionMapper
from clipself_seg.data.records import (
    category_labels,
    panoptic_records,
    proposal_records,
    read_coco_json,
)
from clipself_seg.data.region_text import read_region_text
from clipself_seg.data.vocabulary import as_vocabulary, load_vocabulary, read_class_json
from clipself_seg.evaluation.detection.detections import ImageDetections
from clipself_seg.evaluation.detection.ground_truth import read_detection_ground_truth
from clipself_seg.evaluation.detection.numbers import detection_quality
from clipself_seg.evaluation.instances.ground_truth import read_instance_ground_truth
from clipself_seg.evaluation.instances.numbers import (
    ImageInstances,
    encode_masks,
    instance_quality,
)
from clipself_seg.evaluation.panoptic.files import PanopticFolder, evaluate_files
from clipself_seg.mini.writer import WorldSize, make_worlds
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.journal import FILE_NAME, Journal, Written, input_state
from clipself_seg.quickstart.gallery import plot_losses
from clipself_seg.quickstart.steps import Run, read_chapter
from clipself_seg.tables.page import write_page
from clipself_seg.tables.runs import make_run
from clipself_seg.tables.sections import make_section
from clipself_seg.tables.store import Store
from clipself_seg.tables.table import read_table, read_tables
from clipself_seg.training.metrics import drop_metrics_from
from tests.conftest import ROOT
from tests.detection_worlds import WORDS as TOYS
from tests.detection_worlds import annotation, write_objects
from tests.fuzz.readers import Reader
from tests.tables.worlds import TABLE, finish
from tests.tiny import write_tiny_coco

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 57, 3), dtype=np.uint8)
COCO_133 = load_vocabulary("coco_panoptic_133")


MASK = np.indices((40, 57)).sum(axis=0) % 9 < 4


def _make_given(folder: Path) -> Path:
    encoded = encode_masks(MASK[None])[0]
    compressed = {"size": [40, 57], "counts": encoded["counts"].decode()}
    runs = {"size": [40, 57], "counts": [280, 2000]}
    polygon = [[1.5, 2, 30, 2, 30, 20]]
    entries = [{"segmentation": one, "score": 0.5} for one in (compressed, runs, polygon)]
    return _make_text("own.json", entries, folder)


def _make_given_folder(name: str, folder: Path) -> Path:
    (folder / "a").mkdir()
    Image.fromarray(MASK.astype(np.uint8) * 255).save(folder / "a/0.png")
    (folder / "a/metadata.csv").write_text("id,area,predicted_iou\n0,1140,0.9\n")
    return folder / "a" / name


def _read_given(path: Path) -> None:
    read_masks(path if path.suffix == ".json" else path.parent, (40, 57))


# Configurations and class names.


def _make_config(folder: Path) -> Path:
    base = ROOT / "configs/mini"
    shutil.copyfile(base / "base.yaml", folder / "base.yaml")
    shutil.copyfile(base / "base_semseg.yaml", folder / "base_semseg.yaml")
    text = (base / "base_semseg.yaml").read_text()
    (folder / "run.yaml").write_text(f"_BASE_: base_semseg.yaml\n{text}")
    return folder / "run.yaml"


def _make_text(name: str, content: Any, folder: Path) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)
    return folder / name


CLASSES = {
    "name": "own",
    "about": "three",
    "classes": [
        {"index": 0, "dataset_id": 5, "names": ["cat", "kitten"], "isthing": True, "seen": True},
        {"index": 1, "dataset_id": 6, "names": ["dog"], "isthing": True, "frequency": "r"},
        {
            "index": 2,
            "dataset_id": 9,
            "names": ["sky"],
            "isthing": False,
            "catseg_name": "sky, air",
        },
    ],
}


def _use_vocabulary(path: Path) -> None:
    vocabulary = as_vocabulary(str(path))
    _ = vocabulary.names, vocabulary.dataset_id_to_index


# Annotations, each with what reads them on the way to a sample.


def _make_coco(name: str, folder: Path) -> Path:
    write_tiny_coco(folder, images=2)
    return folder / name


def _records_of(path: Path, folder: str) -> tuple[str, str]:
    return str(path), str(path.parents[1] / folder)


def _read_proposals(path: Path) -> None:
    mapper = DistillMapper(source="proposals", student_size=32, crop_size=32, seed=0)
    for record in proposal_records(path, path.parent / "../train2017"):
        mapper(record, 0)


def _read_region_text(path: Path) -> None:
    mapper = RegionTextMapper(student_size=32, seed=0, crop_size=32)
    records = read_region_text(read_coco_json(path), path, path.parent / "../train2017").records
    for record in records:
        mapper(record | {"captions": [*record["captions"], "a cat"]}, 0)


def _read_lvis(path: Path) -> None:
    proposal_records(path, path.parent / "../coco")


def _panoptic_records(path: Path) -> list[dict[str, Any]]:
    coco = path.parents[1]
    return panoptic_records(path, coco / "val2017", coco / "panoptic_val2017")


def _read_panoptic(path: Path) -> None:
    regions = RegionMapper(image_size=32, crop_size=32, stride=8, vocabulary=COCO_133)
    train = PanopticTrainMapper(seed=0, vocabulary=COCO_133, size=32, scales=(0.5, 1.0))
    for record in _panoptic_records(path):
        ids = np.unique([info["category_id"] for info in record["segments_info"]])
        category_labels(ids, COCO_133.dataset_id_to_index, path)  # as `region_records` does
        regions(record)
        train(record, 0)


def _read_panoptic_png(path: Path) -> None:
    _read_panoptic(path.parents[1] / "annotations/panoptic_val2017.json")


def _read_captions(path: Path) -> None:
    phrases = read_phrases(path)
    mapper = PanopticTrainMapper(seed=0, vocabulary=COCO_133, size=32, scales=(0.5, 1.0), words=4)
    for record in _panoptic_records(path.parent / "panoptic_val2017.json"):
        words = mapper(record | {"captions": phrases.get(record["image_id"], [])}, 0)["words"]
        ", ".join(words)


def _make_objects(folder: Path) -> Path:
    """LVIS's format, with the images beside it."""
    objects = [annotation(1, "a", 30, [3, 4, 27, 16]), annotation(2, "b", 7, [0, 0, 9, 50])]
    for image in "ab":
        Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(folder / f"{image}.png")
    lists = {"neg_category_ids": {"a": [9]}, "not_exhaustive_category_ids": {"b": [7]}}
    return write_objects(folder, objects, ["a", "b"], **lists)


def _read_objects(path: Path) -> None:
    truth = read_detection_ground_truth(path, TOYS, masks=True, federated=True)
    boxes = np.array([[3.0, 4.0, 27.0, 16.0]])
    detections = ImageDetections(boxes, np.array([0.5]), np.array([0]), None)
    predicted = dict.fromkeys(truth.image_ids, detections)
    detection_quality(truth, predicted, "bbox", "detectron2")
    content = read_coco_json(path)
    index_of = category_indices(content, TOYS, path)
    mapper = DetectionTrainMapper(seed=0, side=32, masks=True)
    for record in instance_records(content, path, path.parent, index_of, masks=True):
        mapper(record, 0)


def _make_instances(folder: Path) -> Path:
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
    content = {"images": images, "annotations": annotations, "categories": []}
    return _make_text("instances.json", content, folder)


def _read_instances(path: Path) -> None:
    truth = read_instance_ground_truth(path, COCO_133)
    predicted = {
        image_id: ImageInstances(_box_masks(image), [0.5], [0])
        for image_id, image in zip(truth.image_ids, truth.images)
    }
    instance_quality(truth, predicted, COCO_133)


def _box_masks(image: dict[str, Any]) -> list[dict[str, Any]]:
    """A small mask in images of the sizes that the file states; models give masks of real sizes."""
    small = max(image["height"], image["width"]) < 100
    height, width = (image["height"], image["width"]) if small else (40, 57)
    mask = np.zeros((max(1, int(height)), max(1, int(width))), np.uint8, order="F")
    mask[:3, :3] = 1
    return [rle.encode(mask)]


def _read_prediction(path: Path) -> None:
    coco = path.parents[1]
    truth = PanopticFolder(
        coco / "annotations/panoptic_train2017.json", coco / "panoptic_train2017"
    )
    evaluate_files(truth, PanopticFolder(path, coco / "panoptic_val2017"))


def _read_truth(path: Path) -> None:
    coco = path.parents[1]
    given = PanopticFolder(coco / "annotations/panoptic_val2017.json", coco / "panoptic_val2017")
    evaluate_files(PanopticFolder(path, coco / "panoptic_train2017"), given)


# Images and label maps.


def _make_image(name: str, folder: Path, **options: Any) -> Path:
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(NOISE[:31, :37])
    image.save(folder / name, **({"exif": exif} if name.endswith((".jpg", ".png")) else {}))
    return folder / name


def _make_odd_image(mode: str, name: str, folder: Path) -> Path:
    Image.fromarray(NOISE[:31, :37]).convert(mode).save(folder / name)
    return folder / name


def _make_animation(name: str, folder: Path) -> Path:
    first, *others = (Image.fromarray(np.roll(NOISE[:20, :20], i, 0)) for i in range(3))
    first.save(folder / name, save_all=True, append_images=others)
    return folder / name


def _make_labels(name: str, dtype: Any, folder: Path) -> Path:
    Image.fromarray((NOISE[..., 0] % 7).astype(dtype)).save(folder / name)
    return folder / name


def _make_palette(folder: Path) -> Path:
    labels = Image.fromarray(NOISE[..., 0] % 7, "L").convert("P")
    labels.save(folder / "labels.png", transparency=0)
    return folder / "labels.png"


def _read_labels(path: Path) -> None:
    read_label_map(path, num_classes=300, ignore_label=65535, size=(57, 40), image="x.jpg")


def _image_reader(make: Callable[[Path], Path], layout: str = "bytes") -> Reader:
    return Reader(make, read_image, layout)


# What earlier runs have left.

RESULTS = {"results": {"mini_val": {"boxes": {"top1": 1.5, "top5": 2}}}, "provenance": {"seed": 1}}
LINES = "".join(
    json.dumps({"iteration": i, "loss_clipself": 0.5, "lr": 0.1, "time": 1.0}) + "\n"
    for i in range(4)
)


def _repeated() -> Any:
    return make_run("configs/mini/patches.yaml", {}, seed=0)


def _make_results(folder: Path) -> Path:
    finish(Store(folder), _repeated(), RESULTS["results"])
    return folder / _repeated().name / "results.json"


def _make_kept_record(folder: Path) -> Path:
    finish(Store(folder / "runs", folder / "kept"), _repeated(), RESULTS["results"])
    return folder / "kept" / f"{_repeated().name}.json"


def _read_results(path: Path) -> None:
    output = path.parents[1]
    Store(output).record(_repeated())
    run = Run("a", path.parent.name, "a.yaml")
    read_chapter([run], output, lambda rows, style: str(rows)).table("html")


def _read_kept_record(path: Path) -> None:
    (table,) = read_tables(["2"])
    runs = {name: [_repeated()] for name in table.shown_runs("mini")}
    write_page(
        [make_section(table, "mini", runs, Store(path.parent, path.parent))], path.parent, "mini"
    )


def _journal(folder: Path, resume: bool) -> tuple[Journal, list[ImageFile]]:
    journal = Journal(folder, {"words": ["cat", "sky"], "threshold": 0.5}, resume)
    return journal, [ImageFile(folder / name, name, name) for name in ("a", "b")]


def _make_journal(folder: Path) -> Path:
    journal, images = _journal(folder, resume=False)
    journal.open({"date": "today"})
    for image in images:
        image.path.write_text("image")
        journal.add(image, input_state(image.path), Written([image.name], {"shares": {"cat": 1.0}}))
    journal.close()
    return folder / FILE_NAME


def _read_journal(path: Path) -> None:
    journal, images = _journal(path.parent, resume=True)
    try:
        journal.open({"date": "today"})
        journal.entries(images)
    finally:
        journal.close()


def _read_metrics(path: Path) -> None:
    plot_losses({"a": path}, path.parent / "loss.png")
    drop_metrics_from(path, 3)


WORLD = WorldSize(train=1, val=1, base=1)


def _make_manifest(folder: Path) -> Path:
    make_worlds(folder, WORLD, processes=1)
    return folder / "mini/manifest.json"


def _read_manifest(path: Path) -> None:
    make_worlds(path.parents[1], WORLD, processes=1)


def partial(make: Callable[..., Path], *arguments: Any) -> Callable[[Path], Path]:
    """`functools.partial` with the folder last."""
    return functools.partial(make, *arguments)


DATA_READERS = {
    "config_yaml": Reader(_make_config, lambda path: load_config(path), "yaml"),
    "vocabulary_txt": Reader(
        partial(_make_text, "own.txt", "# mine\ncat|kitten\ndog, sky\ngrass|lawn,\n"),
        _use_vocabulary,
        "lines",
    ),
    "label_file_txt": Reader(
        partial(_make_text, "own.txt", "0:invalid_class_id\n1:cat,kitten\n2:sky\n"),
        lambda path: read_label_file(path, as_vocabulary(["cat", "sky"])),
        "lines",
    ),
    "vocabulary_json": Reader(partial(_make_text, "own.json", CLASSES), _use_vocabulary, "json"),
    "class_list_json": Reader(
        partial(_make_text, "own.json", ["cat, kitten", "dog", "sky"]),
        lambda path: (_use_vocabulary(path), read_class_json(path)),
        "json",
    ),
    "coco_region_text_json": Reader(
        partial(_make_coco, "coco/annotations/coco_pseudo_4764.json"), _read_region_text, "json"
    ),
    "coco_proposals_json": Reader(
        partial(_make_coco, "coco/annotations/coco_proposals.json"), _read_proposals, "json"
    ),
    "lvis_json": Reader(partial(_make_coco, "lvis/lvis_v1_train.json"), _read_lvis, "json"),
    "coco_panoptic_json": Reader(
        partial(_make_coco, "coco/annotations/panoptic_val2017.json"), _read_panoptic, "json"
    ),
    "coco_captions_json": Reader(
        partial(_make_coco, "coco/annotations/panoptic_caption_train2017.json"),
        _read_captions,
        "json",
    ),
    "detection_json": Reader(_make_objects, _read_objects, "json"),
    "coco_instances_json": Reader(_make_instances, _read_instances, "json"),
    "panoptic_prediction_json": Reader(
        partial(_make_coco, "coco/annotations/panoptic_val2017.json"), _read_prediction, "json"
    ),
    "panoptic_truth_json": Reader(
        partial(_make_coco, "coco/annotations/panoptic_train2017.json"), _read_truth, "json"
    ),
    "given_masks_json": Reader(_make_given, _read_given, "json"),
    "given_masks_png": Reader(partial(_make_given_folder, "0.png"), _read_given, "png"),
    "given_masks_csv": Reader(partial(_make_given_folder, "metadata.csv"), _read_given),
    "panoptic_png": Reader(
        partial(_make_coco, "coco/panoptic_val2017/000000000001.png"), _read_panoptic_png, "png"
    ),
    "label_map_png": Reader(partial(_make_labels, "a.png", np.uint8), _read_labels, "png"),
    "label_map_16_bit_png": Reader(partial(_make_labels, "a.png", np.uint16), _read_labels, "png"),
    "label_map_palette_png": Reader(_make_palette, _read_labels, "png"),
    "label_map_tiff": Reader(partial(_make_labels, "a.tif", np.uint16), _read_labels),
    "image_jpeg": _image_reader(partial(_make_image, "a.jpg")),
    "image_cmyk_jpeg": _image_reader(partial(_make_odd_image, "CMYK", "a.jpg")),
    "image_png": _image_reader(partial(_make_image, "a.png"), "png"),
    "image_16_bit_png": _image_reader(partial(_make_labels, "a.png", np.uint16), "png"),
    "image_palette_png": _image_reader(partial(_make_odd_image, "P", "a.png"), "png"),
    "image_webp": _image_reader(partial(_make_image, "a.webp")),
    "image_bmp": _image_reader(partial(_make_image, "a.bmp")),
    "image_tiff": _image_reader(partial(_make_image, "a.tif")),
    "image_avif": _image_reader(partial(_make_image, "a.avif")),
    "image_jp2": _image_reader(partial(_make_image, "a.jp2")),
    "image_ppm": _image_reader(partial(_make_image, "a.ppm")),
    "image_gif": _image_reader(partial(_make_animation, "a.gif")),
    "results_json": Reader(_make_results, _read_results, "json"),
    "kept_record_json": Reader(_make_kept_record, _read_kept_record, "json", weight=0.03),
    "prediction_journal": Reader(_make_journal, _read_journal, "json lines", weight=0.5),
    "table_yaml": Reader(partial(_make_text, "9.yaml", TABLE), read_table, "yaml"),
    "metrics_json": Reader(
        partial(_make_text, "metrics.json", LINES), _read_metrics, "json lines", weight=0.5
    ),
    "mini_world_manifest": Reader(_make_manifest, _read_manifest, "json", weight=0.03),
}
