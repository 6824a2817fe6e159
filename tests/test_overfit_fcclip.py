"""FC-CLIP on a small random ConvNeXt CLIP, which stays frozen, learns four real images, all through train_net.py."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from clipself_seg.clip import load_clip
from clipself_seg.commands import train
from clipself_seg.data.prepare.coco import prepare_coco_panoptic_semseg
from clipself_seg.data.prepare.common import Options
from tests.conftest import ROOT
from tests.test_overfit_panoptic import SMALL as PYRAMID
from tests.test_overfit_panoptic import four_photographs

__all__ = ["four_photographs"]  # a fixture

OTHER = ("MODEL.PYRAMID.CHANNELS", "MODEL.CLIP_BRANCH.INPUT_SIZE")
SMALL = {key: value for key, value in PYRAMID.items() if key not in OTHER} | {
    "MODEL.CLIP.NAME": "ConvNeXt-Mini-32",
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 512,
    "INPUT.IMAGE_SIZE": 96,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 96,
    "SOLVER.MAX_ITER": 60,
    "SOLVER.WARMUP_ITERS": 5,
    "SOLVER.BASE_LR": 3e-3,
    "TEST.EVAL_PERIOD": 60,
    "TEST.PANOPTIC.ROWS": "('fused',)",
    "TEST.PANOPTIC.TASKS": "('panoptic',)",
}


@pytest.fixture
def random_clip(tmp_path):
    torch.manual_seed(0)
    clip = load_clip("ConvNeXt-Mini-32", None)
    path = tmp_path / "random.safetensors"
    save_file({name: t.contiguous() for name, t in clip.state_dict().items()}, path)
    return path


def test_losses_fall_and_panoptic_quality_rises_on_four_photographs(
    four_photographs, random_clip, tmp_path
):
    prepare_coco_panoptic_semseg(Options(four_photographs.parent))
    output = tmp_path / "run"
    keys = SMALL | {"OUTPUT_DIR": output, "MODEL.CLIP.WEIGHTS": random_clip}
    words = [str(word) for pair in keys.items() for word in pair]
    config = str(ROOT / "configs/panoptic/fcclip_convnext_large.yaml")
    assert train.main(["--config-file", config, *words]) == 0
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [line for line in lines if "loss_class" in line]
    for name in ("loss_class", "loss_mask", "loss_dice"):
        assert losses[-1][name] < 0.7 * losses[0][name], name
    numbers = json.loads((output / "results.json").read_text())["results"]
    key = "coco_2017_val_panoptic_with_sem_seg"
    begun = next(line[f"{key}/fused/PQ"] for line in lines if f"{key}/fused/PQ" in line)
    assert begun < 5 and numbers[key]["fused"]["PQ"] > 20
    _expect_trained(output / "model_final.pth", random_clip)


def _expect_trained(path, random_clip):
    """Void learnt; of CLIP there is nothing in what training writes but its hash."""
    tensors = torch.load(path, weights_only=True)["model"]
    assert not {name for name in tensors if name.split(".")[0] in ("clip", "backbone")}
    assert tensors["void_embedding.weight"].shape == (1, 128)
    clip = load_clip("ConvNeXt-Mini-32", str(random_clip))
    assert bytes(tensors["clip_hash"].tolist()).decode() == clip.weights_hash()
