"""Panoptic data sets of blocks on the disk, and a model that spoils their ground truth, for the panoptic evaluation."""

import json

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from clipself_seg.config import add_clipself_seg_config
from clipself_seg.data.masks import encode_masks, read_panoptic_png
from clipself_seg.evaluation.panoptic.panoptic_evaluation import PanopticEvaluation
from clipself_seg.models.model_protocols import Classes
from tests.panoptic_worlds import save_ids

CLASSES = [
    ("cat", 40, True),
    ("sky", 10, False),
    ("dog", 30, True),
    ("sea", 20, False),
    ("cow", 5, True),
]
TRAINED = ["cat", "sky", "horse"]
SIZE = (24, 32)


class Spoiler(nn.Module):
    """The ground truth, without a fraction alpha of the segments of seen classes and beta of others."""

    exponents = (0.2, 0.5)
    void_discount = 0.0

    def __init__(self):
        super().__init__()
        self.classes = Classes((("training's",),), (0,), None)
        self.asked = []

    def set_vocabulary(self, words, seen=None):
        self.words = words
        things = tuple(np.flatnonzero(words.thing).tolist())
        self.classes = Classes(words.first_names, things, seen)

    def evaluation_metadata(self, records):
        return {}

    def forward(self, batch, fusions):
        assert len(batch) == 1 and not self.training
        self.asked.append((batch[0]["image_id"], self.classes.names))
        truth = read_panoptic_png(batch[0]["pan_seg_file_name"])
        return [{"fusions": {name: self.spoil(batch[0], truth, f) for name, f in fusions.items()}}]

    def spoil(self, sample, truth, fusion):
        alpha, beta, tasks, _ = fusion
        names, seen = self.classes.names, self.classes.seen
        kept, labels = [], np.zeros(truth.shape, dtype=np.int64)
        for info in sample["segments_info"]:
            label = self.words.dataset_id_to_index[info["category_id"]]
            lost = info["id"] % 10 < 10 * (alpha if seen is None or seen[label] else beta)
            labels[truth == info["id"]] = (label + lost) % len(names)
            if not lost:
                kept.append({"id": info["id"], "category_id": label})
        ids = np.where(np.isin(truth, [info["id"] for info in kept]), truth, 0)
        outputs = {
            "panoptic": ("panoptic_seg", (torch.from_numpy(ids), kept)),
            "instances": ("instances", self.instances(truth, kept)),
            "semantic": ("sem_seg_labels", torch.from_numpy(labels)),
        }
        return dict(outputs[task] for task in tasks)

    def instances(self, truth, kept):
        kept = [info for info in kept if info["category_id"] in self.classes.things]
        masks = np.array([truth == info["id"] for info in kept]).reshape(-1, *truth.shape)
        instances = Instances(truth.shape)
        instances.pred_masks = torch.from_numpy(masks)
        instances.scores = torch.ones(len(kept))
        instances.pred_classes = torch.tensor([info["category_id"] for info in kept]).long()
        return instances


def write_image(folder, rng, name):
    """An image of eight blocks; returns its entries in both JSONs, and its instances."""
    blocks = np.arange(1, 9).reshape(2, 4) + 10 * rng.integers(1, 9)
    ids = np.kron(blocks, np.ones((12, 8), dtype=np.int64))
    labels = np.full(SIZE, 255, dtype=np.uint8)
    segments, instances = [], []
    for number, position in zip(blocks.ravel().tolist(), rng.permutation(8) % len(CLASSES)):
        _, category, thing = CLASSES[position]
        mask = ids == number
        labels[mask] = position
        info = {"id": number, "category_id": category, "area": 96, "bbox": [0, 0, 8, 12]}
        info["iscrowd"] = 0
        segments.append(info)
        if thing:
            encoded = encode_masks(mask[None])[0]
            encoded["counts"] = encoded["counts"].decode()
            instances.append(info | {"image_id": name, "segmentation": encoded})
    save_ids(folder / "segments" / f"{name}.png", ids)
    Image.new("RGB", SIZE[::-1]).save(folder / "images" / f"{name}.png")
    Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    entry = {"image_id": name, "file_name": f"{name}.png", "segments_info": segments}
    return {"id": name, "file_name": f"{name}.png", "height": 24, "width": 32}, entry, instances


def write_dataset(folder, seed, count):
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    made = [write_image(folder, rng, f"{folder.name}_{index}") for index in range(count)]
    images = [image for image, _, _ in made]
    files = {
        "panoptic": [entry for _, entry, _ in made],
        "instances": [entry for _, _, instances in made for entry in instances],
    }
    for kind, entries in files.items():
        content = {"images": images, "annotations": entries}
        (folder / f"{kind}.json").write_text(json.dumps(content))


def write_datasets(folder):
    classes = [{"names": [n], "dataset_id": i, "isthing": thing} for n, i, thing in CLASSES]
    (folder / "words.json").write_text(json.dumps({"name": "words", "classes": classes}))
    (folder / "trained.json").write_text(json.dumps(TRAINED))
    write_dataset(folder / "one", 0, 5)
    write_dataset(folder / "two", 1, 3)


def register(folder, name, **changes):
    """As a user does it."""
    DatasetCatalog.register(name, lambda: [])
    paths = {
        "image_root": folder / name / "images",
        "panoptic_root": folder / name / "segments",
        "panoptic_json": folder / name / "panoptic.json",
        "sem_seg_root": folder / name / "labels",
        "json_file": folder / name / "instances.json",
        "vocabulary": folder / "words.json",
    }
    MetadataCatalog.get(name).set(**{key: str(path) for key, path in (paths | changes).items()})


def evaluation(folder, *options):
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    cfg.merge_from_list(
        ["DATASETS.TEST", ("one", "two"), "DATASETS.TRAIN", (), "INPUT.MIN_SIZE_TEST", 0]
        + ["INPUT.FORMAT", "RGB", "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(folder / "run")]
        + ["TEST.TRAIN_VOCABULARY", str(folder / "trained.json")]
    )
    cfg.merge_from_list(list(options))
    return PanopticEvaluation(cfg)
