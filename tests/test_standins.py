"""Every name of the zoo by a stand-in of its file: the tensors that are needed and the rest of it are known by name.

The quick ones compare names and shapes without numbers, one of each family; under the mark `heavy` stand all names,
and files as large as the real ones, which predict and are evaluated.
"""

from pathlib import Path

import pytest
import torch

from clipself_seg.checkpoints.read import Checkpoint, unwrap
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import load_clip
from clipself_seg.clip import model as clip_model
from clipself_seg.config import load_config
from clipself_seg.models import base
from clipself_seg.models.cat_seg.cat_seg_config import build_backbone
from tests import standins

FAMILIES = ["openai-rn50", "openai-vitb16", "tipsv2-g14", "ViT-B-16-SigLIP2:webli"]
FAMILIES += ["PE-Core-T-16-384:meta", "EVA02-B-16:merged2b_s8b_b131k", "eva02-vitb16"]
FAMILIES += ["convnext_large_d_320:laion2b_s29b_b131k_ft_soup"]
FAMILIES += ["clipself-eva02-vitb16-coco-patches", "clipself-openai-vitb16-coco-patches"]
FAMILIES += ["catseg-base", "catseg-v1-base", "catseg-v1-large", "odise-label", "odise-caption"]
FAMILIES += ["fcclip-convnext-large", "fcclip-r50", "resnet101", "swin-base"]
FAMILIES += [name for name in zoo() if name.startswith("fvit-")]  # the eight of N1
IN_PARTS = "stable-diffusion-v1-3"  # a folder of three files, read whole below
NAMES = [name for name in zoo() if name != IN_PARTS]
NAMES = [n if n in FAMILIES else pytest.param(n, marks=pytest.mark.heavy) for n in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_the_official_file_has_what_is_needed_and_nothing_unknown(name, monkeypatch):
    entry = zoo()[name]
    with standins.without_numbers():
        ((path, content),) = standins.contents(entry).items()
        tensors = unwrap(content, Path(path))
        checkpoint = Checkpoint(Path(path), tensors, "state dict")
        for module in (clip_model, base):
            monkeypatch.setattr(module, "read_checkpoint", lambda _: checkpoint)
            monkeypatch.setattr(module, "locate", Path)
        if entry.key == "MODEL.CLIP.WEIGHTS":
            load_clip(entry.model, path)
        elif entry.key == "MODEL.WEIGHTS":
            standins.model_of(entry).load_checkpoint(tensors, path)
        else:
            with torch.device("meta"):
                build_backbone(load_config(entry.configs[0], [entry.key, path]))
