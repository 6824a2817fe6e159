"""Small cases of the benchmark: they say what large ones do, only sooner."""

import pytest

from bench import cat_seg_workload, detection_workload, measure, panoptic_workload
from bench.case import Case
from bench.workloads import build_runs
from clipself_seg.clip.eva import EvaTransformer
from clipself_seg.heads.cat_seg.cost_aggregator import AggregatorSizes
from clipself_seg.heads.fvit.rpn import ProposalRule
from clipself_seg.heads.panoptic import clip_branches
from clipself_seg.heads.panoptic.generator import GeneratorSizes
from tests.small_towers import small_towers

SMALL = AggregatorSizes(
    hidden=32,
    grid=(8, 8),
    window=4,
    pad_len=12,
    decoder_dims=(32, 16),
    decoder_guidance_projected=(8, 4),
)


@pytest.fixture(scope="module")
def known_towers(tmp_path_factory):
    with small_towers(tmp_path_factory.mktemp("weights")):
        yield


@pytest.fixture
def quick_peak(monkeypatch):
    """A small matrix product for the peak."""
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))


@pytest.fixture
def small_cat_seg(monkeypatch):
    """CAT-Seg's cases have an aggregator of few channels."""
    monkeypatch.setattr(cat_seg_workload, "SIZES", SMALL)


@pytest.fixture
def small_panoptic(monkeypatch):
    """Panoptic cases have a small image and a generator of few channels."""
    sizes = GeneratorSizes(
        width=32, heads=4, encoder_layers=1, encoder_hidden=32, decoder_layers=4, decoder_hidden=32
    )
    small = {"IMAGE": (120, 156), "CANVAS": (128, 192), "SIZES": sizes, "CHANNELS": 32, "CELLS": 8}
    small |= {"QUERIES": 12, "MERGED": 12}
    for name, value in small.items():
        monkeypatch.setattr(panoptic_workload, name, value)
    monkeypatch.setattr(clip_branches, "CELLS", 8)


@pytest.fixture
def small_detection(monkeypatch):
    """The detector has few channels, proposals and detections."""
    rule = detection_workload.RULE._replace(most=20)
    monkeypatch.setattr(detection_workload, "RULE", rule)
    monkeypatch.setattr(detection_workload, "PROPOSALS", ProposalRule(60, 30, 0.7))
    monkeypatch.setattr(detection_workload, "CHANNELS", 8)


def tiny_runs(task, **more):
    return build_runs(Case(task=task, model="ViT-Mini-8", size=64, batch=2, **more))


def semseg_case(**more):
    return Case(task="semseg", **{"model": "ViT-Mini-8", "classes": 9, "batch": 1, **more})


def detection_case(**more):
    return Case(**{"task": "detection", "model": "ViT-Mini-8", "size": 64, "classes": 9, **more})


def panoptic_runs():
    return build_runs(Case("panoptic", "ViT-Mini-8", classes=9))


def result(runs, name):
    return runs[name].call(runs[name].setup())


def tiny_eva(embed_dim=32):
    shape = {"width": 48, "layers": 3, "heads": 3, "hidden": 128, "embed_dim": embed_dim}
    return EvaTransformer(image_size=32, patch_size=8, **shape)
