"""What segmentation refuses before it trains."""

from __future__ import annotations

import types

import pytest

from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.training.tasks import PanopticTask, SemSegTask
from tests.conftest import ROOT
from tests.tiny import write_tiny_coco

TRAIN = ("DATASETS.TRAIN", "('coco_2017_train_stuff_all_sem_seg',)")
PRESETS = ROOT / "configs/semseg"


def prepare(preset, *opts):
    model = types.SimpleNamespace(set_vocabulary=lambda words: None, ignore_label=255)
    return SemSegTask(load_config(PRESETS / preset, [*TRAIN, *opts])).prepare(model)


def test_training_with_a_random_guidance_backbone_has_to_be_meant(tmp_path, monkeypatch):
    write_tiny_coco(tmp_path, images=2)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    preset, key = "catseg_v1_r101_vitb16.yaml", "MODEL.CAT_SEG.BACKBONE_WEIGHTS"
    with pytest.raises(InputError, match=f"build_resnet_backbone would be random: give {key}"):
        prepare(preset)
    for opts in ((key, "random"), (key, "R-101.pkl"), ("MODEL.WEIGHTS", "catseg.pth")):
        assert prepare(preset, *opts).records


def test_training_needs_more_padding_than_classes_or_none(tmp_path, monkeypatch):
    write_tiny_coco(tmp_path, images=2)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    key = "MODEL.CAT_SEG.PAD_LEN"
    for length in ("1", "171"):
        with pytest.raises(InputError, match=f"{key} is {length}, .* has 171 classes: raise"):
            prepare("catseg_cvpr_vitb16.yaml", key, length)
    for length in ("0", "172"):
        assert prepare("catseg_cvpr_vitb16.yaml", key, length).records


def test_words_of_another_data_set_are_refused(tmp_path, monkeypatch):
    write_tiny_coco(tmp_path, images=2)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    key = "MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON"
    with pytest.raises(InputError, match=f"{key} datasets/ade847.json has 847 names.* 171"):
        prepare("catseg_cvpr_vitb16.yaml", key, "datasets/ade847.json")


def test_a_caption_model_whose_words_would_not_train_is_refused():
    opts = ("MODEL.MASK_GENERATOR.GROUNDING_WEIGHT", "0.0")
    cfg = load_config(ROOT / "configs/panoptic/odise_caption.yaml", opts)
    model = types.SimpleNamespace(set_vocabulary=lambda words: None, generator=object())
    with pytest.raises(InputError, match="GROUNDING_WEIGHT 0 leaves .* or train .*VARIANT label"):
        PanopticTask(cfg).prepare(model)
