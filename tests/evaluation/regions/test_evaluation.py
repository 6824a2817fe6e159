"""Regions at several input sizes: the numbers of each size alone, and crops that are encoded once."""

from __future__ import annotations

import json

import pytest
import torch

from clipself_seg.clip import load_clip
from clipself_seg.evaluation.regions.evaluation import RegionEvaluation
from clipself_seg.models import RegionReader
from tests.tiny import write_tiny_coco

NAME = "coco_2017_train_panoptic"
READ = ("boxes", "crops", "attention_boxes")


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    write_tiny_coco(tmp_path / "datasets", images=3)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


def evaluation(sizes, folder):
    return RegionEvaluation(
        datasets=[NAME],
        sizes=sizes,
        read=READ,
        mask_resize="reference",
        workers=0,
        output_dir=folder,
    )


def test_crops_are_encoded_once_for_all_sizes(tmp_path, datasets, monkeypatch):
    torch.manual_seed(0)
    model = RegionReader(clip=load_clip("ViT-Mini-8", None), read=READ).eval()
    model.text_KE = torch.nn.functional.normalize(torch.randn(133, model.clip.embed_dim), dim=-1)
    monkeypatch.setattr(model, "set_vocabulary", lambda words: None)
    visual, encoded = model.clip.visual, []
    visual.register_forward_hook(lambda module, images, rows: encoded.append(len(rows)))
    alone = {}
    for size in (48, 64):
        encoded.clear()
        alone |= evaluation((size,), tmp_path / str(size))(model)[NAME]
        regions = sum(encoded)
    encoded.clear()
    together = evaluation((48, 64), tmp_path / "both")(model)[NAME]
    assert regions == 6 and sum(encoded) == regions
    assert together == alone and list(together[64]) == list(alone[64])
    for size in (48, 64):
        tables = [
            json.loads((folder / f"region_accuracy_{NAME}.json").read_text())
            for folder in (tmp_path / str(size), tmp_path / "both" / f"size_{size}")
        ]
        assert tables[0] == tables[1] and "crops.top5" in tables[0]["classes"][0]


def test_tables_have_a_row_a_data_set_or_of_several_sizes_a_row_a_size(tmp_path):
    numbers = {48: {"boxes.thing.top1": 12.5}, 64: {"boxes.thing.top1": 25.0}}
    (one,) = evaluation((64,), tmp_path).tables({NAME: {64: numbers[64]}}, "csv").values()
    assert one.splitlines()[1].startswith(f"{NAME},25.0,-,")
    ((title, both),) = evaluation((48, 64), tmp_path).tables({NAME: numbers}, "csv").items()
    assert NAME in title and [line[:8] for line in both.splitlines()[1:]] == [
        "48,12.5,",
        "64,25.0,",
    ]
