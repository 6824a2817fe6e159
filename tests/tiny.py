"""Small stand-ins for tests: a random CLIP, images and samples of noise, mini worlds, and a COCO of a few images."""

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_seg.clip import CLIP, load_clip
from clipself_seg.heads.panoptic.clip_branches import ClipBranch
from clipself_seg.heads.text_scores import class_logits
from clipself_seg.models import CLIPSelf
from clipself_seg.models.clipself import DistillationTraining
from clipself_seg.models.optimizer_groups import matrices_and_vectors
from clipself_seg.training.optimizer import build_adamw
from lab.mini.writer import WorldSize, make_worlds

SIDE = 64  # of student inputs and of crops alike
WORDS = ("cat", "dog", "grass")


def random_clip(name: str = "ViT-Mini-8", seed: int = 0, **how: Any) -> CLIP:
    """A CLIP with random weights, the same at every call, as is what torch draws next."""
    clip, drawn = _drawn_clip(name, seed, *how.items())
    torch.set_rng_state(drawn)
    return copy.deepcopy(clip)


@functools.cache
def _drawn_clip(name: str, seed: int, *how: tuple[str, Any]) -> tuple[CLIP, torch.Tensor]:
    """It takes six times as long to draw a CLIP as to copy it."""
    torch.manual_seed(seed)
    return load_clip(name, None, **dict(how)), torch.get_rng_state()


def tiny_clipself(name: str = "ViT-Mini-8", **how: Any) -> CLIPSelf:
    """A CLIPSelf with random weights, the same at every call; `how` may have fields of `DistillationTraining`."""
    settings = {field.name for field in dataclasses.fields(DistillationTraining)}
    training = DistillationTraining(**{name: how.pop(name) for name in settings & how.keys()})
    return CLIPSelf(clip=random_clip(name), training=training, **how)


def one_step(model: CLIPSelf, samples: Any = None, lr: float = 1e-2, decay: float = 0.1) -> None:
    """A step of AdamW with weight decay, as the trainer takes it."""
    groups = matrices_and_vectors(model.parameters(), decay)
    optimizer = build_adamw(groups, betas=(0.9, 0.999), eps=1e-8)
    for group in optimizer.param_groups:
        group["lr"] = lr
    sum(model(samples or tiny_samples(2)).values()).backward()
    optimizer.step()
    model.after_optimizer_step()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An RGB image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_noise(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """A file of it, in a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed)).save(path)
    return path


@contextlib.contextmanager
def small_worlds(folder: Path, train: int, val: int, base: int, seed: int = 0) -> Iterator[Path]:
    """Mini worlds of so many scenes in a folder, which CLIPSELF_SEG_MINI names inside of the context."""
    make_worlds(folder, WorldSize(train=train, val=val, base=base, seed=seed), processes=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPSELF_SEG_MINI", str(folder))
        yield folder


def tiny_record(index: int) -> dict[str, Any]:
    """A record that `tiny_mapper` understands."""
    return {"file_name": f"{index}.jpg", "image_id": index}


def tiny_mapper(record: dict[str, Any], draw: int) -> dict[str, Any]:
    """A distillation sample of noise with one to four boxes, the same for the same arguments."""
    generator = torch.Generator().manual_seed(1000 * draw + record["image_id"])
    count = 1 + draw % 4
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    return {
        **record,
        "image": torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
        "boxes": corners.flatten(1),
        "crops": torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
        "whole": torch.tensor([[0.0, 0.0, 1.0, 1.0]], device="cpu"),
    }


def tiny_samples(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Distillation samples of the draws from `first` on."""
    return [
        tiny_mapper(tiny_record(draw), draw) | {"iteration": 0}
        for draw in range(first, first + count)
    ]


def tiny_region_sample(image_id: int = 0, regions: int = 3) -> dict[str, Any]:
    """A sample for region recognition, with all that any readout needs."""
    sample = tiny_mapper(tiny_record(image_id), draw=regions - 1 + 4 * image_id)
    masks = torch.zeros(regions, SIDE // 8, SIDE // 8, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[index : index + 2, 1:5] = True
    return sample | {"masks": masks, "labels": torch.zeros(regions).long()}


def write_tiny_coco(root: Path, images: int = 5) -> None:
    """COCO's, LVIS's and COCO-Stuff's files below `root`: noise, each with a cat (a box) on grass."""
    rng = np.random.default_rng(0)
    records, instances, segments = [], [], []
    for folder in ("train2017", "val2017", "panoptic_train2017", "panoptic_val2017", "annotations"):
        (root / "coco" / folder).mkdir(parents=True, exist_ok=True)
    (root / "lvis").mkdir(exist_ok=True)
    stuff = root / "coco-stuff"
    for folder in ("images/train2017", "annotations_detectron2/train2017"):
        (stuff / folder).mkdir(parents=True, exist_ok=True)
    for index in range(1, images + 1):
        name, (width, height) = f"{index:012d}", (56 + index, 40)
        records.append({"id": index, "file_name": f"{name}.jpg", "width": width, "height": height})
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for split in ("train2017", "val2017"):
            Image.fromarray(noise).save(root / "coco" / split / f"{name}.jpg")
        ids = np.full((height, width), 2)
        ids[5:25, 10:40] = 1
        Image.fromarray(noise).save(stuff / "images" / "train2017" / f"{name}.jpg")
        labels = np.where(ids == 1, 15, 100).astype(np.uint8)
        Image.fromarray(labels).save(stuff / "annotations_detectron2/train2017" / f"{name}.png")
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        for split in ("train2017", "val2017"):
            Image.fromarray(rgb).save(root / "coco" / f"panoptic_{split}" / f"{name}.png")
        box = {"id": index, "image_id": index, "bbox": [10, 5, 30, 20], "area": 600, "iscrowd": 0}
        instances.append(box | {"category_id": 17})
        parts = [
            {"id": 1, "category_id": 17, "bbox": [10, 5, 30, 20], "area": 600, "iscrowd": 0},
            {"id": 2, "category_id": 193, "bbox": [0, 0, width, height], "iscrowd": 0}
            | {"area": width * height - 600},
        ]
        segments.append({"image_id": index, "file_name": f"{name}.png", "segments_info": parts})
    caption = {"caption": "a cat on grass", "phrases": ["cat", "grass"]}
    captions = [{"id": r["id"], "image_id": r["id"]} | caption for r in records]
    categories = [
        {"id": 17, "name": "cat", "isthing": 1},
        {"id": 193, "name": "grass-merged", "isthing": 0},
    ]
    annotations = {
        "instances_train2017": instances,
        "coco_proposals": instances,
        "coco_pseudo_4764": instances,
        "panoptic_val2017": segments,
        "panoptic_train2017": segments,
        "panoptic_caption_train2017": captions,
        "captions_train2017": captions,
    }
    for name, entries in annotations.items():
        content = {"images": records, "annotations": entries, "categories": categories}
        (root / f"coco/annotations/{name}.json").write_text(json.dumps(content))
    for record in records:
        record["coco_url"] = f"http://coco/train2017/{record.pop('file_name')}"
    for name in ("lvis_v1_train", "lvis_v1_train_proposals"):
        content = {"images": records, "annotations": instances, "categories": categories}
        (root / f"lvis/{name}.json").write_text(json.dumps(content))


def equal_results(one: Any, other: Any) -> bool:
    """True if two predictions have the same regions, bit for bit."""
    return all(map(np.array_equal, one.regions(), other.regions()))


@torch.no_grad()
def clip_logits(branch: ClipBranch, image, masks, texts, synonyms, canvas=None):
    """CLIP's class logits (Q, K) of masks, and (Q,) bool, True for masks that it can see."""
    regions, visible = branch.embed(image, masks, canvas)
    return class_logits(regions, texts, synonyms, branch.clip.similarity_scale), visible
