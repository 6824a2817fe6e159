"""Each model learns a few photographs by heart."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from safetensors.torch import save_file

from clipself_seg import models  # noqa: F401 (registers CATSeg)
from clipself_seg.clip import load_clip
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_indices
from clipself_seg.data.prepare.coco import prepare_coco_panoptic_semseg
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.detection import prepare_ov_coco
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.evaluation.sem_seg.numbers import class_numbers, confusion_matrix
from tests.conftest import ROOT

SIDE, STEPS = 64, 500
SEM_SEG_KEYS = (
    ("MODEL.SEM_SEG_HEAD.CLIP_FINETUNE", "full"),
    ("MODEL.SEM_SEG_HEAD.NUM_LAYERS", "1"),
    ("MODEL.SEM_SEG_HEAD.POOLING_SIZES", "[1]"),
    ("MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION", "[8, 8]"),
    ("MODEL.SEM_SEG_HEAD.WINDOW_SIZES", "4"),
)


def photographs(data_dir):
    """The four images whose smallest class is largest, as squares; labels from 0 on."""
    folder = data_dir / "coco-stuff"
    maps = sorted((folder / "annotations/val2017").glob("*.png"), key=_smallest_class)[-4:]
    images = [read_image(folder / "images/val2017" / f"{path.stem}.jpg") for path in maps]
    pixels = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() for image in images]
    squares = torch.cat([F.interpolate(p, (SIDE, SIDE), mode="area") for p in pixels])
    values = [torch.from_numpy(read_indices(path).astype(np.int64))[None, None] for path in maps]
    labels = torch.cat([F.interpolate(v.float(), (SIDE, SIDE)) for v in values])[:, 0].long()
    present = labels.unique()
    present = present[present != 255]
    return squares, torch.searchsorted(present, labels).where(labels != 255, 255), len(present)


def _smallest_class(path):
    labels = read_indices(path)
    shares = np.bincount(labels[labels != 255].ravel()) / labels.size
    return shares[shares > 0].min()


def test_training_reaches_ninety_percent_on_four_photographs(data_dir):
    images, labels, count = photographs(data_dir)
    assert count >= 6
    torch.manual_seed(0)
    opts = [word for pair in SEM_SEG_KEYS for word in pair]
    model = build_model(load_config(ROOT / "configs/mini/base_semseg.yaml", opts)).train()
    model.clip.load_state_dict(load_clip("ViT-Mini-8", None).state_dict())  # knows nothing
    model.set_vocabulary(load_vocabulary("mini").names[-count:])
    samples = [{"image": i, "sem_seg": s} for i, s in zip(images, labels)]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(samples)["loss_sem_seg"].backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        logits = F.interpolate(model.window_logits(images), (SIDE, SIDE), mode="bilinear")
    matrix = confusion_matrix(logits.argmax(1).numpy(), labels.numpy(), count, 255)
    mean = 100 * np.nanmean(class_numbers(matrix).iou)
    assert mean >= 90, f"mean IoU of the training photographs: {mean:.1f}"


DETECTION_KEYS = {
    "MODEL.CLIP.NAME": "ViT-Mini-8",
    "MODEL.CLIP.WEIGHTS": "mini",
    "MODEL.FVIT.BLOCKS": "(0, 1, 2, 3)",
    "MODEL.FVIT.CHANNELS": 32,
    "MODEL.FVIT.ROIS_PER_IMAGE": 64,
    "MODEL.FVIT.PROPOSALS_BEFORE": 200,
    "MODEL.FVIT.PROPOSALS_AFTER": 100,
    "MODEL.FUSION.ALPHA": 0.0,
    "INPUT.DETECTION.SIDE": 128,
    "INPUT.DETECTION.MIN_SCALE": 1.0,
    "INPUT.DETECTION.MAX_SCALE": 1.0,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 150,
    "SOLVER.SCHEDULE": "cosine",
    "SOLVER.WARMUP_ITERS": 20,
    "SOLVER.BASE_LR": 2e-3,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "SOLVER.AMP.ENABLED": False,
}


@pytest.fixture
def four_photographs_of_objects(data_dir, tmp_path, monkeypatch):
    """COCO with four images of base classes alone, whose smallest object is largest, as train and val."""
    base = {c.dataset_id for c in load_vocabulary("ov_coco_65").classes if c.seen}
    whole = json.loads((data_dir / "coco/annotations/instances_val2017.json").read_text())
    sizes = {image["id"]: image["width"] * image["height"] for image in whole["images"]}
    smallest: dict[int, float] = {}
    for entry in whole["annotations"]:
        image = entry["image_id"]
        counts = entry["category_id"] in base and not entry["iscrowd"]
        share = entry["area"] / sizes[image] if counts else 0
        smallest[image] = min(share, smallest.get(image, 1))
    ids = set(sorted(smallest, key=smallest.__getitem__)[-4:])
    root = tmp_path / "datasets/coco"
    kept = {
        "images": [image for image in whole["images"] if image["id"] in ids],
        "annotations": [a for a in whole["annotations"] if a["image_id"] in ids],
        "categories": whole["categories"],
    }
    for split in ("train2017", "val2017"):
        for folder in (split, "annotations"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(kept))
        for image in kept["images"]:
            shutil.copy(data_dir / "coco/val2017" / image["file_name"], root / split)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    return root


def test_training_reaches_an_ap50_of_eighty_on_four_photographs(
    four_photographs_of_objects, tmp_path
):
    prepare_ov_coco(Options(four_photographs_of_objects.parent))
    output = tmp_path / "run"
    words = [
        str(word) for pair in (DETECTION_KEYS | {"OUTPUT_DIR": output}).items() for word in pair
    ]
    config = str(ROOT / "configs/detection/ov_coco_eva02_vitb16.yaml")
    assert train.main(["--config-file", config, *words]) == 0
    results = json.loads((output / "results.json").read_text())["results"]
    numbers = results["ov_coco_val"]["bbox"]
    assert numbers["AP50-seen"] >= 80, numbers


PYRAMID_KEYS = {
    "MODEL.CLIP.NAME": "ViT-Mini-8",
    "MODEL.CLIP.WEIGHTS": "mini",
    "MODEL.PYRAMID.CHANNELS": 64,
    "MODEL.MASK_GENERATOR.ENCODER_LAYERS": 1,
    "MODEL.MASK_GENERATOR.ENCODER_HIDDEN": 128,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 64,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 128,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 20,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 1024,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 128,
    "MODEL.CLIP_BRANCH.INPUT_SIZE": 128,
    "MODEL.FUSION.ALPHA": 0.0,
    "INPUT.IMAGE_SIZE": 128,
    "INPUT.MIN_SCALE": 1.0,
    "INPUT.MAX_SCALE": 1.0,
    "INPUT.MIN_SIZE_TEST": 128,
    "INPUT.MAX_SIZE_TEST": 128,
    "DATASETS.TEST": "('coco_2017_val_panoptic_with_sem_seg',)",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 250,
    "SOLVER.SCHEDULE": "cosine",
    "SOLVER.WARMUP_ITERS": 20,
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    "SOLVER.AMP.ENABLED": False,
    "TEST.PANOPTIC.ROWS": "('generator', 'fused')",
}


@pytest.fixture
def four_photographs(data_dir, tmp_path, monkeypatch):
    """COCO with the four images whose smallest segment is largest, as train and as val."""
    whole = json.loads((data_dir / "coco/annotations/panoptic_val2017.json").read_text())
    chosen = sorted(whole["annotations"], key=_smallest_share)[-4:]
    ids = {annotation["image_id"] for annotation in chosen}
    objects = json.loads((data_dir / "coco/annotations/instances_val2017.json").read_text())
    root = tmp_path / "datasets/coco"
    for split in ("train2017", "val2017"):
        for folder in (split, f"panoptic_{split}", "annotations"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name, content in (("panoptic", whole), ("instances", objects)):
            kept = {
                "images": [image for image in content["images"] if image["id"] in ids],
                "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
                "categories": content["categories"],
            }
            (root / f"annotations/{name}_{split}.json").write_text(json.dumps(kept))
        for annotation in chosen:
            png = annotation["file_name"]
            shutil.copy(data_dir / "coco/panoptic_val2017" / png, root / f"panoptic_{split}" / png)
            jpg = png.replace(".png", ".jpg")
            shutil.copy(data_dir / "coco/val2017" / jpg, root / split / jpg)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    return root


def _smallest_share(annotation):
    areas = [s["area"] for s in annotation["segments_info"] if not s["iscrowd"]]
    return min(areas) / sum(areas) if len(areas) >= 3 else 0


def test_training_reaches_a_panoptic_quality_of_eighty_on_four_photographs(
    four_photographs, tmp_path
):
    prepare_coco_panoptic_semseg(Options(four_photographs.parent))
    output = tmp_path / "run"
    words = [str(word) for pair in (PYRAMID_KEYS | {"OUTPUT_DIR": output}).items() for word in pair]
    config = str(ROOT / "configs/panoptic/pyramid_vitb16.yaml")
    assert train.main(["--config-file", config, *words]) == 0
    results = json.loads((output / "results.json").read_text())["results"]
    row = results["coco_2017_val_panoptic_with_sem_seg"]["fused"]
    assert row["PQ"] >= 80 and row["mIoU"] >= 80, row


OTHER = ("MODEL.PYRAMID.CHANNELS", "MODEL.CLIP_BRANCH.INPUT_SIZE")
FCCLIP_KEYS = {key: value for key, value in PYRAMID_KEYS.items() if key not in OTHER} | {
    "MODEL.CLIP.NAME": "ConvNeXt-Mini-32",
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 512,
    "INPUT.IMAGE_SIZE": 96,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 96,
    "SOLVER.MAX_ITER": 60,
    "SOLVER.WARMUP_ITERS": 5,
    "SOLVER.BASE_LR": 3e-3,
    "TEST.EVAL_PERIOD": 60,
    "TEST.PANOPTIC.ROWS": "('fused',)",
    "TEST.PANOPTIC.TASKS": "('panoptic',)",
}


@pytest.fixture
def random_clip(tmp_path):
    torch.manual_seed(0)
    clip = load_clip("ConvNeXt-Mini-32", None)
    path = tmp_path / "random.safetensors"
    save_file({name: t.contiguous() for name, t in clip.state_dict().items()}, path)
    return path


def test_losses_fall_and_panoptic_quality_rises_on_four_photographs(
    four_photographs, random_clip, tmp_path
):
    prepare_coco_panoptic_semseg(Options(four_photographs.parent))
    output = tmp_path / "run"
    keys = FCCLIP_KEYS | {"OUTPUT_DIR": output, "MODEL.CLIP.WEIGHTS": random_clip}
    words = [str(word) for pair in keys.items() for word in pair]
    config = str(ROOT / "configs/panoptic/fcclip_convnext_large.yaml")
    assert train.main(["--config-file", config, *words]) == 0
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [line for line in lines if "loss_class" in line]
    for name in ("loss_class", "loss_mask", "loss_dice"):
        assert losses[-1][name] < 0.7 * losses[0][name], name
    numbers = json.loads((output / "results.json").read_text())["results"]
    key = "coco_2017_val_panoptic_with_sem_seg"
    begun = next(line[f"{key}/fused/PQ"] for line in lines if f"{key}/fused/PQ" in line)
    assert begun < 5 and numbers[key]["fused"]["PQ"] > 20
    _expect_trained(output / "model_final.pth", random_clip)


def _expect_trained(path, random_clip):
    """Void learnt; of CLIP there is nothing in what training writes but its hash."""
    tensors = torch.load(path, weights_only=True)["model"]
    assert not {name for name in tensors if name.split(".")[0] in ("clip", "backbone")}
    assert tensors["void_embedding.weight"].shape == (1, 128)
    clip = load_clip("ConvNeXt-Mini-32", str(random_clip))
    assert bytes(tensors["clip_hash"].tolist()).decode() == clip.weights_hash()
