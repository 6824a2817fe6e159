"""Real COCO images: the whole pipeline runs on them, and each model learns two or three of them by heart."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from clipself_seg import models  # noqa: F401 (registers CATSeg)
from clipself_seg.clip import load_clip
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.evaluation.mean_iou import class_numbers, confusion_matrix
from lab.prepare.coco import prepare_coco_panoptic_semseg
from lab.prepare.common import Options
from lab.prepare.detection import prepare_ov_coco
from tests.conftest import ROOT


def trained(folder, keys, *words):
    """Content of results.json of `train_net.py`, if it writes one."""
    keys = {"DATALOADER.NUM_WORKERS": 0, "OUTPUT_DIR": folder} | keys
    assert train.main([*words, *(str(word) for pair in keys.items() for word in pair)]) == 0
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


DISTILL = {
    "MODEL.CLIP.WEIGHTS": "",
    "DATASETS.TRAIN": "('coco_2017_train',)",
    "INPUT.REGIONS.STUDENT_SIZE": 128,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "TEST.REGIONS.TEMPLATES": "single",
}


def test_regions_of_real_images_are_recognised(real_datasets, tmp_path):
    keys = DISTILL | {"DATASETS.TEST": "('coco_2017_val_panoptic',)"}
    content = trained(tmp_path, keys, "--eval-only")
    numbers = content["results"]["coco_2017_val_panoptic"]["128"]
    assert numbers["images"] == 50 and numbers["thing.regions"] + numbers["stuff.regions"] == 537
    # Random weights recognise next to nothing among 133 classes.
    assert 0 <= numbers["boxes.thing.top1"] <= numbers["boxes.thing.top5"] < 30
    assert content["provenance"]["weights_hash"] and content["provenance"]["seed"] == 0


SIDE, STEPS = 64, 150
SEM_SEG_KEYS = {
    "MODEL.SEM_SEG_HEAD.CLIP_FINETUNE": "full",
    "MODEL.SEM_SEG_HEAD.POOLING_SIZES": "[1]",
    "MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION": "[8, 8]",
    "MODEL.SEM_SEG_HEAD.WINDOW_SIZES": "4",
}


def labelled_squares(data_dir):
    """The two images whose smallest class is largest, as squares; labels from 0 on, and their number."""

    def smallest_class(path):
        labels = read_indices(path)
        fractions = np.bincount(labels[labels != 255].ravel()) / labels.size
        return fractions[fractions > 0].min()

    folder = data_dir / "coco-stuff"
    maps = sorted((folder / "annotations/val2017").glob("*.png"), key=smallest_class)[-2:]
    images = [read_image(folder / "images/val2017" / f"{path.stem}.jpg") for path in maps]
    pixels = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() for image in images]
    squares = torch.cat([F.interpolate(p, (SIDE, SIDE), mode="area") for p in pixels])
    values = [torch.from_numpy(read_indices(path).astype(np.int64))[None, None] for path in maps]
    labels = torch.cat([F.interpolate(v.float(), (SIDE, SIDE)) for v in values])[:, 0].long()
    present = labels.unique()
    present = present[present != 255]
    return squares, torch.searchsorted(present, labels).where(labels != 255, 255), len(present)


def test_cat_seg_reaches_a_mean_iou_of_ninety(data_dir):
    images, labels, count = labelled_squares(data_dir)
    assert count >= 4
    torch.manual_seed(0)
    opts = [word for pair in SEM_SEG_KEYS.items() for word in pair]
    model = build_model(load_config(ROOT / "configs/mini/semseg_original.yaml", opts)).train()
    model.clip.load_state_dict(load_clip("ViT-Mini-8", None).state_dict())  # knows nothing
    model.set_vocabulary(Vocabulary.load("mini").first_names[-count:])
    samples = [{"image": i, "sem_seg": s} for i, s in zip(images, labels)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(samples)["loss_sem_seg"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        logits = F.interpolate(model.window_logits(images), (SIDE, SIDE), mode="bilinear")
    matrix = confusion_matrix(logits.argmax(1).numpy(), labels.numpy(), count, 255)
    mean = 100 * np.nanmean(class_numbers(matrix).iou)
    assert mean >= 90, f"mean IoU of the training images: {mean:.1f}"


def smallest_object(annotations, images):
    """Of each image with objects, the fraction of its smallest one; none of an image with other than base classes."""
    base = {c.dataset_id for c in Vocabulary.load("ov_coco_65").classes if c.seen}
    sizes = {image["id"]: image["width"] * image["height"] for image in images}
    smallest: dict[int, float] = {}
    for entry in annotations:
        image = entry["image_id"]
        counts = entry["category_id"] in base and not entry["iscrowd"]
        fraction = entry["area"] / sizes[image] if counts else 0
        smallest[image] = min(fraction, smallest.get(image, 1))
    return smallest


def smallest_segment(annotations, images):
    """Of each image with three segments or more, the fraction of the smallest one."""
    areas = {
        entry["image_id"]: [s["area"] for s in entry["segments_info"] if not s["iscrowd"]]
        for entry in annotations
    }
    return {image: min(a) / sum(a) if len(a) >= 3 else 0 for image, a in areas.items()}


@pytest.fixture
def few_images(data_dir, tmp_path, monkeypatch):
    """Writes COCO with a few images, those of the largest fractions, as train and as val."""
    root = tmp_path / "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    source = data_dir / "coco"
    files = {
        kind: json.loads((source / f"annotations/{kind}_val2017.json").read_text())
        for kind in ("instances", "panoptic")
    }

    def write(kind, fractions, count=2):
        of_image = fractions(files[kind]["annotations"], files[kind]["images"])
        ids = set(sorted(of_image, key=of_image.__getitem__)[-count:])
        for split in ("train2017", "val2017"):
            for folder in (split, f"panoptic_{split}", "annotations"):
                (root / "coco" / folder).mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                kept = {
                    "images": [image for image in content["images"] if image["id"] in ids],
                    "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
                    "categories": content["categories"],
                }
                (root / f"coco/annotations/{name}_{split}.json").write_text(json.dumps(kept))
            for image in ids:
                shutil.copy(source / f"val2017/{image:012d}.jpg", root / "coco" / split)
                png = source / f"panoptic_val2017/{image:012d}.png"
                shutil.copy(png, root / f"coco/panoptic_{split}")
        return Options(root)

    return write


COMMON_KEYS = {
    "MODEL.CLIP.NAME": "ViT-Mini-8",
    "MODEL.CLIP.WEIGHTS": "mini",
    "MODEL.FUSION.ALPHA": 0.0,
    "SOLVER.SCHEDULE": "cosine",
    "SOLVER.WARMUP_ITERS": 20,
    "SOLVER.AMP.ENABLED": False,
}
DETECTION_KEYS = COMMON_KEYS | {
    "SOLVER.IMS_PER_BATCH": 3,
    "MODEL.FVIT.BLOCKS": "(0, 1, 2, 3)",
    "MODEL.FVIT.CHANNELS": 32,
    "MODEL.FVIT.ROIS_PER_IMAGE": 32,
    "MODEL.FVIT.PROPOSALS_BEFORE": 100,
    "MODEL.FVIT.PROPOSALS_AFTER": 50,
    "INPUT.DETECTION.SIDE": 96,
    "INPUT.DETECTION.MIN_SCALE": 1.0,
    "INPUT.DETECTION.MAX_SCALE": 1.0,
    "SOLVER.MAX_ITER": 90,
    "SOLVER.WARMUP_ITERS": 10,
    "SOLVER.BASE_LR": 3e-3,
    "SOLVER.WEIGHT_DECAY": 0.0,
}


def test_a_detector_reaches_an_ap50_of_eighty(few_images, tmp_path):
    prepare_ov_coco(few_images("instances", smallest_object, count=3))
    config = str(ROOT / "configs/detection/ov_coco+eva02_vitb16.yaml")
    content = trained(tmp_path / "run", DETECTION_KEYS, "--config-file", config)
    numbers = content["results"]["ov_coco_val"]["bbox"]
    assert numbers["AP50-seen"] >= 80, numbers


PANOPTIC_SET = "coco_2017_val_panoptic_with_sem_seg"
PANOPTIC_KEYS = COMMON_KEYS | {
    "SOLVER.IMS_PER_BATCH": 2,
    "MODEL.MASK_GENERATOR.ENCODER_LAYERS": 1,
    "MODEL.MASK_GENERATOR.ENCODER_HIDDEN": 128,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 64,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 128,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 20,
    "INPUT.MIN_SCALE": 1.0,
    "INPUT.MAX_SCALE": 1.0,
    "DATASETS.TEST": f"('{PANOPTIC_SET}',)",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
}
PYRAMID_KEYS = PANOPTIC_KEYS | {
    "MODEL.PYRAMID.CHANNELS": 64,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 512,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 96,
    "MODEL.CLIP_BRANCH.INPUT_SIZE": 96,
    "INPUT.IMAGE_SIZE": 96,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 96,
    "SOLVER.MAX_ITER": 36,
    "SOLVER.WARMUP_ITERS": 10,
    "SOLVER.BASE_LR": 1e-3,
    "TEST.PANOPTIC.ROWS": "('generator', 'fused')",
}


def test_a_pyramid_reaches_a_panoptic_quality_of_eighty(few_images, tmp_path):
    prepare_coco_panoptic_semseg(few_images("panoptic", smallest_segment))
    config = str(ROOT / "configs/panoptic/pyramid+openai_vitb16.yaml")
    content = trained(tmp_path / "run", PYRAMID_KEYS, "--config-file", config)
    numbers = content["results"][PANOPTIC_SET]["fused"]
    assert numbers["PQ"] >= 80 and numbers["mIoU"] >= 80, numbers
