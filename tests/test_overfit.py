"""CAT-Seg, from random weights, learns four real images by heart."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from clipself_seg import models  # noqa: F401 (registers CATSeg)
from clipself_seg.clip import load_clip
from clipself_seg.config import load_config
from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.evaluation.sem_seg.numbers import class_numbers, confusion_matrix
from tests.conftest import ROOT

SIDE, STEPS = 64, 500
SMALL = (
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
    opts = [word for pair in SMALL for word in pair]
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
