"""Evaluation waits for the GPU where it has to and nowhere else; samples are copied without waiting."""

import copy
from unittest.mock import Mock

import pytest
import torch

from bench.accelerator import ACCELERATOR, on_host
from clipself_seg.clip import load_clip
from clipself_seg.clip.runtime import on_device, send
from clipself_seg.models import RegionReader
from tests.host_syncs import HostSyncs, on_accelerator
from tests.models import test_zero_shot as zero_shot_segmenter
from tests.models.cat_seg import test_model_against_plain as cat_seg
from tests.models.fvit import test_model as fvit
from tests.models.panoptic import test_model as panoptic
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
CLASSES = {"heads/cat_seg/cost_aggregator.py kept_classes": 1}


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


def test_tensors_of_samples_are_copied_one_by_one_without_waiting():
    samples = [{"image": torch.full((2, 3), float(i))} for i in range(3)]
    with HostSyncs() as syncs:
        copies = on_device(samples, "image", ACCELERATOR)
    assert not syncs.syncs and all(copy.device == ACCELERATOR for copy in copies)
    assert [copy.mean().item() for copy in on_host(copies)] == [0, 1, 2]


def test_what_was_made_on_the_cpu_is_pinned_for_a_gpu_alone():
    made = torch.zeros(2)
    assert send(made, made.device) is made
    memory, gpu = Mock(), torch.device("cuda")
    assert send(memory, gpu) is memory.pin_memory().to.return_value
    memory.pin_memory().to.assert_called_once_with(gpu, non_blocking=True)
