"""Every file below configs/ names things that exist, and takes a step or reads a picture."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from clipself_seg.clip.build import find_architecture
from clipself_seg.clip.model import SHIPPED_TAGS
from clipself_seg.config import load_config
from clipself_seg.data.builtin import DATASETS
from clipself_seg.engine import run
from tests.conftest import ROOT
from tests.tiny import write_tiny_coco

FOLDERS = ("distill", "regions", "mini")
CONFIGS = sorted(
    path.relative_to(ROOT / "configs")
    for folder in FOLDERS
    for path in (ROOT / "configs" / folder).rglob("*.yaml")
)
each_config = pytest.mark.parametrize("name", CONFIGS, ids=str)


@pytest.fixture(scope="module")
def tiny_coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_tiny_coco(root, images=2)
    return root


def in_small(name: Path, folder: Path):
    """The configuration with a random mini CLIP, 64 pixels, two images and one step."""
    cfg = load_config(ROOT / "configs" / name)
    train = {
        "grid": "lvis_v1_train" if "lvis" in str(cfg.DATASETS.TRAIN) else "coco_2017_train",
        "proposals": "coco_2017_train_proposals",
    }[cfg.INPUT.REGIONS.SOURCE]
    trains = cfg.MODEL.META_ARCHITECTURE == "CLIPSelf"
    small = {
        "MODEL.CLIP.NAME": "ViT-Mini-8",
        "MODEL.CLIP.WEIGHTS": "",
        "MODEL.CLIP.TRAINABLE_BLOCKS": min(cfg.MODEL.CLIP.TRAINABLE_BLOCKS, 3),
        "INPUT.REGIONS.STUDENT_SIZE": 64,
        "INPUT.REGIONS.MULTISCALE": "(64, 128)" if cfg.INPUT.REGIONS.MULTISCALE else "()",
        "DATASETS.TRAIN": f"('{train}',)",
        # Reading regions takes longer than a step and is the other files' job.
        "DATASETS.TEST": "()" if trains else "('coco_2017_val_panoptic',)",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 1,
        "TEST.REGIONS.SIZES": "()",
        "TEST.REGIONS.TEMPLATES": "single",
        "OUTPUT_DIR": folder,
    }
    opts = [str(part) for pair in small.items() for part in pair]
    return load_config(ROOT / "configs" / name, opts)


@each_config
def test_config_takes_a_step_or_reads_a_picture(name, tmp_path, tiny_coco, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_coco))
    monkeypatch.setenv("CLIPSELF_SEG_CACHE", str(tiny_coco))
    cfg = in_small(name, tmp_path)
    run.prepare(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "CLIPSelf":
        run.train(cfg, resume=False)
        assert (tmp_path / "clip_final.safetensors").exists()
    else:
        run.evaluate(cfg, resume=False)
        assert (tmp_path / run.RESULTS_FILE).exists()


@each_config
def test_config_names_weights_blocks_sizes_and_data_that_exist(name):
    cfg = load_config(ROOT / "configs" / name)
    clip = find_architecture(cfg.MODEL.CLIP.NAME)
    tags = open_clip.list_pretrained_tags_by_model(clip.name)
    assert cfg.MODEL.CLIP.WEIGHTS in [*tags, *SHIPPED_TAGS, ""]
    tower = clip.signature
    assert cfg.MODEL.CLIP.TRAINABLE_BLOCKS <= tower.layers
    assert cfg.INPUT.REGIONS.STUDENT_SIZE % tower.patch_size == 0
    assert set(cfg.DATASETS.TRAIN + cfg.DATASETS.TEST) <= set(DATASETS)


def test_configs_are_small_and_have_an_output_folder_of_their_own():
    runs = [name for name in CONFIGS if name.name != "base.yaml"]
    outputs = [load_config(ROOT / "configs" / name).OUTPUT_DIR for name in runs]
    assert len(set(outputs)) == len(outputs) and "./output" not in outputs
    for name in CONFIGS:
        assert len((ROOT / "configs" / name).read_text().splitlines()) <= 25, name
