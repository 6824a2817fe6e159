"""The whole pipeline on real COCO images: distil two steps, then recognise regions."""

from __future__ import annotations

import json

import pytest

from clipself_seg.clip import load_clip
from clipself_seg.commands import train


def options(data_dir, folder, **changes) -> list[str]:
    keys = {
        "MODEL.CLIP.WEIGHTS": "",
        "DATASETS.TRAIN": "('coco_2017_train',)",
        "INPUT.REGIONS.STUDENT_SIZE": "128",
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.MAX_ITER": "2",
        "TEST.REGIONS.TEMPLATES": "single",
        "DATALOADER.NUM_WORKERS": "0",
        "OUTPUT_DIR": str(folder),
    }
    return [word for pair in (keys | changes).items() for word in pair]


@pytest.mark.parametrize("source", ["grid", "proposals"])
def test_real_pictures_are_distilled(data_dir, tmp_path, monkeypatch, source):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    assert train.main(options(data_dir, tmp_path, **{"INPUT.REGIONS.SOURCE": source})) == 0
    assert load_clip("ViT-Mini-8", tmp_path / "clip_final.safetensors").image_size == 64


def test_regions_of_real_pictures_are_recognised(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    words = options(data_dir, tmp_path, **{"DATASETS.TEST": "('coco_2017_val_panoptic',)"})
    assert train.main(["--eval-only", *words]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    numbers = content["results"]["coco_2017_val_panoptic"]["128"]
    assert numbers["images"] == 50 and numbers["thing.regions"] + numbers["stuff.regions"] == 537
    # Random weights recognise next to nothing among 133 classes.
    assert 0 <= numbers["boxes.thing.top1"] <= numbers["boxes.thing.top5"] < 30
    assert content["provenance"]["weights_hash"] and content["provenance"]["seed"] == 0
