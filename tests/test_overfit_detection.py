"""F-ViT, from random weights, learns the objects of four real images by heart, all through train_net.py."""

from __future__ import annotations

import json
import shutil

import pytest

from clipself_seg.commands import train
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.detection import prepare_ov_coco
from clipself_seg.data.vocabulary import load_vocabulary
from tests.conftest import ROOT

SMALL = {
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
def four_photographs(data_dir, tmp_path, monkeypatch):
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


def test_training_reaches_an_ap50_of_eighty_on_four_photographs(four_photographs, tmp_path):
    prepare_ov_coco(Options(four_photographs.parent))
    output = tmp_path / "run"
    words = [str(word) for pair in (SMALL | {"OUTPUT_DIR": output}).items() for word in pair]
    config = str(ROOT / "configs/detection/ov_coco_eva02_vitb16.yaml")
    assert train.main(["--config-file", config, *words]) == 0
    results = json.loads((output / "results.json").read_text())["results"]
    numbers = results["ov_coco_val"]["bbox"]
    assert numbers["AP50-seen"] >= 80, numbers
