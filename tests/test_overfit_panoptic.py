"""A mask generator, from random weights, learns four real images by heart, all through train_net.py."""

from __future__ import annotations

import json
import shutil

import pytest

from clipself_seg.commands import train
from clipself_seg.data.prepare.coco import prepare_coco_panoptic_semseg
from clipself_seg.data.prepare.common import Options
from tests.conftest import ROOT

SMALL = {
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
    words = [str(word) for pair in (SMALL | {"OUTPUT_DIR": output}).items() for word in pair]
    config = str(ROOT / "configs/panoptic/pyramid_vitb16.yaml")
    assert train.main(["--config-file", config, *words]) == 0
    results = json.loads((output / "results.json").read_text())["results"]
    row = results["coco_2017_val_panoptic_with_sem_seg"]["fused"]
    assert row["PQ"] >= 80 and row["mIoU"] >= 80, row
