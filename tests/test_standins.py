"""Every name of the zoo by a stand-in of its file: the tensors that are needed and the rest of it are known by name.

The quick ones compare names and shapes without numbers, one of each family; under the mark `heavy` stand all names,
and files as large as the real ones, which predict and are evaluated.
"""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipself_seg.checkpoints import locate
from clipself_seg.checkpoints.read import Checkpoint, unwrap
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import load_clip
from clipself_seg.clip import model as clip_model
from clipself_seg.commands import predict
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.heads.diffusion.weights import load_stable_diffusion
from clipself_seg.models import model_base
from clipself_seg.models.cat_seg.cat_seg_config import build_backbone
from clipself_seg.models.fvit import fvit_checkpoint
from tests import standins
from tests.conftest import PARITY, ROOT

FAMILIES = ["openai-rn50", "openai-vitb16", "tipsv2-g14", "ViT-B-16-SigLIP2:webli"]
FAMILIES += ["PE-Core-T-16-384:meta", "EVA02-B-16:merged2b_s8b_b131k", "eva02-vitb16"]
FAMILIES += ["convnext_large_d_320:laion2b_s29b_b131k_ft_soup"]
FAMILIES += ["clipself-eva02-vitb16-coco-patches", "clipself-openai-vitb16-coco-patches"]
FAMILIES += ["catseg-base", "catseg-v1-base", "catseg-v1-large", "odise-label", "odise-caption"]
FAMILIES += ["fcclip-convnext-large", "fcclip-r50", "resnet101", "swin-base"]
FAMILIES += [name for name in zoo() if name.startswith("fvit-")]  # the eight of N1
IN_PARTS = "stable-diffusion-v1-3"  # a folder of three files, read whole below
MASKS = "MODEL.MASK_GENERATOR.OUTPUTS"  # of models of transformers': tests/models/panoptic/test_mask_models.py
NAMES = [name for name, entry in zoo().items() if name != IN_PARTS and entry.key != MASKS]
NAMES = [n if n in FAMILIES else pytest.param(n, marks=pytest.mark.heavy) for n in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_the_official_file_has_what_is_needed_and_nothing_unknown(name, monkeypatch):
    """A tensor beside those that are left out by name is refused."""
    entry = zoo()[name]

    def load(tensors):
        checkpoint = Checkpoint(Path(path), tensors, "state dict")
        for module in (clip_model, model_base):
            monkeypatch.setattr(module, "read_checkpoint", lambda _: checkpoint)
            monkeypatch.setattr(module, "locate", Path)
        if entry.key == "MODEL.CLIP.WEIGHTS":
            load_clip(entry.model, path)
        elif entry.key == "MODEL.WEIGHTS":
            model.load_checkpoint(tensors, path)
        else:
            with torch.device("meta"):
                build_backbone(load_config(entry.configs[0], [entry.key, path]))

    with standins.without_numbers():
        ((path, content),) = standins.contents(entry).items()
        model = standins.model_of(entry) if entry.key == "MODEL.WEIGHTS" else None
        load(tensors := unwrap(content, Path(path)))
        if name.startswith("fcclip-r"):  # nobody has seen whether it has its CLIP
            load({n: t for n, t in tensors.items() if not n.startswith(standins.CLIP)})
        with pytest.raises(InputError, match="ema.weight"):
            load(tensors | {"ema.weight": standins.number(1)})


def test_the_page_says_of_every_name_what_its_file_has_besides():
    section = (ROOT / "docs/models.md").read_text().partition("| names | left out |")[2]
    rows = [row.split("|")[1] for row in section.partition("\n\n")[0].splitlines()[2:]]
    patterns = [pattern for row in rows for pattern in re.findall("`([^`]+)`", row)]
    for name in zoo():
        assert len([p for p in patterns if fnmatchcase(name, p)]) == 1, name


# Name -> the parity case whose list of names and shapes the official code wrote.
LISTS = {
    "catseg-base": "catseg_b",
    "fvit-eva02-vitb16-coco-patches": "fvit_coco_b16",
    "fvit-eva02-vitb16-lvis-patches": "fvit_lvis_b16",
    "fcclip-r50": "fcclip_rn50",
    "eva02-vitb16": "clipself_eva02_b16",
    "openai-vitb16": "clipself_openai_b16",
    "openai-rn50x4": "clipself_openai_rn50x4",
    "PE-Core-T-16-384:meta": "towers_pe_core_t",
}


@pytest.mark.parametrize("name, case", LISTS.items())
def test_names_and_shapes_are_those_that_the_official_code_wrote(name, case):
    with standins.without_numbers():
        (content,) = standins.contents(zoo()[name]).values()
    tensors = unwrap(content, Path(name))
    listed = json.loads((PARITY / f"{case}.shapes.json").read_text())
    # A layer of classes that nothing uses, of which a parity case has others.
    listed = {n: shape for n, shape in listed.items() if not n.startswith(fvit_checkpoint.IGNORED)}
    assert len(listed) > 100
    assert {n: [*tensors[n].shape] for n in listed if n in tensors} == listed


@pytest.fixture
def fetched(tmp_path):
    """What is fetched is a stand-in."""
    with standins.fetched(tmp_path / "weights"):
        yield


@pytest.mark.usefixtures("fetched")
def test_what_is_fetched_is_the_stand_in():
    assert locate.fetch(zoo()["eva02-vitb16"]).stat().st_size > 2**29


PREDICTING = [
    n for n, entry in zoo().items() if entry.key in ("MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS")
]


@pytest.mark.heavy
@pytest.mark.usefixtures("fetched")
@pytest.mark.parametrize("name", PREDICTING)
def test_a_file_as_large_as_the_official_one_predicts(name, data_dir, tmp_path):
    photo = Image.open(min((data_dir / "coco/val2017").glob("*.jpg")))
    photo.thumbnail((160, 160))
    photo.save(path := tmp_path / "photo.png")
    words = [str(path), "--model", name, "--words", "cat, grass", "--output", str(tmp_path / "out")]
    if name.startswith("odise"):  # the U-Net reads each crop in minutes
        words += ["--opts", "INPUT.MIN_SIZE_TEST", "64", "MODEL.DIFFUSION.CROP", "64"]
    assert predict.main(words) == 0
    assert (tmp_path / "out/overlays/photo.png").is_file()


@pytest.mark.heavy
@pytest.mark.usefixtures("fetched")
def test_files_of_parts_as_large_as_the_official_ones_load():
    assert load_stable_diffusion(IN_PARTS).empty_prompt.isfinite().all()
    for name in ("resnet101", "swin-base"):
        entry = zoo()[name]
        assert build_backbone(load_config(entry.configs[0], [entry.key, name]))
