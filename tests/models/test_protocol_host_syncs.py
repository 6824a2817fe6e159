"""What an image makes Python wait for on a GPU in evaluation: an allowance for each place, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from clipself_seg.clip import load_clip
from clipself_seg.models import RegionReader
from tests.host_syncs import HostSyncs, on_accelerator
from tests.models.cat_seg import test_model_against_plain as cat_seg
from tests.models.fvit import test_model as fvit
from tests.models.panoptic import test_model as panoptic
from tests.models.zero_shot import test_model as zero_shot_segmenter
from tests.tiny import WORDS, tiny_region_sample

READOUTS = ("boxes", "masks", "crops", "attention_boxes", "attention_masks")


def regions():
    torch.manual_seed(0)
    model = RegionReader(clip=load_clip("ViT-Mini-8", None), read=READOUTS, templates="single")
    return model, WORDS, [tiny_region_sample(0), tiny_region_sample(1)], {}


def segmentation(sliding, output, **sizes):
    model = copy.deepcopy(cat_seg.tiny_model(sizes=sizes, sliding=sliding)).float()
    return model, cat_seg.WORDS, cat_seg.two_images()[:1], {"output": output}


def zero_shot():
    model = zero_shot_segmenter.tiny()
    return model, zero_shot_segmenter.WORDS, [zero_shot_segmenter.sample()], {"output": "labels"}


def masks(*opts, **fusions):
    return panoptic.model_of(*opts), None, [panoptic.sample()], fusions


def boxes(with_masks):
    model = fvit.tiny(MASKS=with_masks, RPN_NORM=with_masks).eval()
    return model, fvit.WORDS, [fvit.sample(0)], {}


# Classes that no view keeps are not resized: which they are is asked for once.
CLASSES = {"heads/cat_seg/outputs.py sliding_probabilities": 1}


def merges(count):
    """Queries are chosen on the host, scores and areas go there once; probabilities that are no numbers are refused."""
    merge = "heads/panoptic/panoptic_merge.py"
    return {f"{merge} _with_finite": 3 * count, f"{merge} _contest": count}


def detections(pooled):
    """How many boxes there are follows from numbers: those of a size, above the threshold, and left by suppression;
    pooled ones are sorted by levels, for boxes and for masks.
    """
    heads = "heads/fvit"
    asked = {"rpn.py propose": 1, "boxes.py select_detections": 1, "boxes.py suppress": 2}
    asked["roi_heads.py _by_level"] = pooled
    return {f"{heads}/{place}": times for place, times in asked.items()}


# Task -> model, classes, samples and arguments, and where an image waits how many times: "FILE FUNCTION", below
# clipself_seg.
TASKS = {
    "regions": (regions, {}),
    "CAT-Seg, windows": (lambda: segmentation(True, "labels"), {}),
    "CAT-Seg, best classes": (lambda: segmentation(True, "scores", pad_len=5), CLASSES),
    "CAT-Seg, whole": (lambda: segmentation(False, "labels"), {}),
    "zero-shot": (zero_shot, {}),
    "panoptic": (masks, merges(1)),
    "panoptic, three fusions": (lambda: masks(fusions=panoptic.FUSIONS), merges(3)),
    "panoptic, masked attention": (
        lambda: masks("MODEL.CLIP_BRANCH.KIND", "masked_attention"),
        merges(1),
    ),
    "F-ViT": (lambda: boxes(False), detections(1)),
    "F-ViT, masks": (lambda: boxes(True), detections(2)),
}


@pytest.mark.parametrize("task", TASKS)
def test_an_image_waits_for_the_gpu_where_it_has_to_and_nowhere_else(task):
    make, allowed = TASKS[task]
    model, words, samples, how = make()
    model = on_accelerator(model.eval())
    with HostSyncs(), torch.no_grad():
        if words is not None:
            model.set_vocabulary(words)
        model(samples, **how)  # makes what later images keep, such as texts
    with HostSyncs() as syncs, torch.no_grad():
        model(samples, **how)
    syncs.expect({f"clipself_seg/{place}": times for place, times in allowed.items()})
