"""Every name of the zoo by a stand-in of its file: the tensors that are needed and the rest of it are known by name.

The quick ones compare names and shapes without numbers, one of each family; under the mark `heavy` stand all names,
and files as large as the real ones, which predict and are evaluated.
"""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipself_seg.checkpoints.mask_models import MASK_MODELS, mask_model_folder
from clipself_seg.checkpoints.read import Checkpoint, unwrap
from clipself_seg.checkpoints.zoo import Entry, entry_of, zoo
from clipself_seg.clip import load_clip
from clipself_seg.clip import model as clip_model
from clipself_seg.commands import predict, train
from clipself_seg.config import load_config
from clipself_seg.heads.diffusion.weights import load_stable_diffusion
from clipself_seg.models import model_base
from clipself_seg.models.cat_seg.cat_seg_config import build_backbone
from clipself_seg.models.fvit import fvit_checkpoint
from clipself_seg.models.panoptic.mask_models import load_mask_model
from tests import standins
from tests.conftest import PARITY
from tests.mask_models import save_mask_model
from tests.tiny import small_worlds

FAMILIES = ["openai-rn50", "openai-vitb16", "tipsv2-g14", "ViT-B-16-SigLIP2:webli"]
FAMILIES += ["PE-Core-T-16-384:meta", "EVA02-B-16:merged2b_s8b_b131k", "eva02-vitb16"]
FAMILIES += ["convnext_large_d_320:laion2b_s29b_b131k_ft_soup"]
FAMILIES += ["clipself-eva02-vitb16-coco-patches", "clipself-openai-vitb16-coco-patches"]
FAMILIES += ["catseg-base", "catseg-v1-base", "catseg-v1-large", "odise-label", "odise-caption"]
FAMILIES += ["fcclip-convnext-large", "fcclip-r50", "resnet101", "swin-base"]
FAMILIES += [name for name in zoo() if name.startswith("fvit-")]  # the eight of N1
IN_PARTS = "stable-diffusion-v1-3"  # a folder of three files, read whole below
MASKS = [n for n, entry in zoo().items() if entry.key == "MODEL.MASK_GENERATOR.OUTPUTS"]
NAMES = [name for name in zoo() if name not in (IN_PARTS, *MASKS)]
NAMES = [n if n in FAMILIES else pytest.param(n, marks=pytest.mark.heavy) for n in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_the_official_file_has_what_is_needed_and_nothing_unknown(name, monkeypatch):
    entry = zoo()[name]
    with standins.without_numbers():
        ((path, content),) = standins.contents(entry).items()
        tensors = unwrap(content, Path(path))
        checkpoint = Checkpoint(Path(path), tensors, "state dict")
        for module in (clip_model, model_base):
            monkeypatch.setattr(module, "read_checkpoint", lambda _: checkpoint)
            monkeypatch.setattr(module, "locate", Path)
        if entry.key == "MODEL.CLIP.WEIGHTS":
            load_clip(entry.model, path)
        elif entry.key == "MODEL.WEIGHTS":
            standins.model_of(entry).load_checkpoint(tensors, path)
        else:
            with torch.device("meta"):
                build_backbone(load_config(entry.configs[0], [entry.key, path]))


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


def parts_of(entry: Entry) -> list[Entry]:
    """Entries whose files are needed to predict with one."""
    if entry.key != "MODEL.WEIGHTS":
        return [entry]
    cfg = load_config(entry.configs[0])
    parts = [entry, zoo()[IN_PARTS]] if entry.name.startswith("odise") else [entry]
    if tag := cfg.MODEL.CLIP.WEIGHTS:
        clip = cfg.MODEL.CLIP.NAME
        of_tag = Entry(name=f"{clip}:{tag}", file=f"{clip}-{tag}.safetensors", model=clip)
        parts.append(entry_of(tag, clip) or of_tag)
    return parts


@pytest.fixture
def files(tmp_path):
    """Put the files of entries where they are looked for, until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda entries: [
            stack.enter_context(standins.in_place_of_official(entry, tmp_path / "weights"))
            for entry in entries
        ]


PREDICTING = [
    n for n, entry in zoo().items() if entry.key in ("MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS")
]


@pytest.mark.heavy
@pytest.mark.parametrize("name", PREDICTING)
def test_a_file_as_large_as_the_official_one_predicts(name, files, data_dir, tmp_path):
    files(parts_of(zoo()[name]))
    photo = Image.open(min((data_dir / "coco/val2017").glob("*.jpg")))
    photo.thumbnail((160, 160))
    photo.save(path := tmp_path / "photo.png")
    words = [str(path), "--model", name, "--words", "cat, grass", "--output", str(tmp_path / "out")]
    if name.startswith("odise"):  # the U-Net reads each crop in minutes
        words += ["--opts", "INPUT.MIN_SIZE_TEST", "64", "MODEL.DIFFUSION.CROP", "64"]
    assert predict.main(words) == 0
    assert (tmp_path / "out/overlays/photo.png").is_file()


@pytest.mark.heavy
def test_files_of_parts_as_large_as_the_official_ones_load(files):
    for name in ("resnet101", "swin-base", IN_PARTS):
        files([entry := zoo()[name]])
        if name == IN_PARTS:
            assert load_stable_diffusion(name).empty_prompt.isfinite().all()
        else:
            assert build_backbone(load_config(entry.configs[0], [entry.key, name]))


SETS = {"semseg": "sem_seg", "panoptic": "panoptic_with_sem_seg", "detection": "boxes"}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", ["catseg-base", "fcclip-r50", "odise-caption", "fvit-eva02-vitb16-coco-patches"]
)
def test_a_file_as_large_as_the_official_one_is_evaluated(name, files, tmp_path):
    entry = zoo()[name]
    files(parts_of(entry))
    with small_worlds(tmp_path / "worlds", 1, 1, 1):
        test = f"('mini_val_{SETS[entry.configs[0].partition('/')[0]]}',)"
        words = ["--eval-only", "--model", name, "DATASETS.TEST", test, "OUTPUT_DIR", str(tmp_path)]
        assert train.main(words) == 0
    assert json.loads((tmp_path / "results.json").read_text())["results"]


@pytest.mark.parametrize("name", MASKS)
def test_a_model_that_finds_masks_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    place = tmp_path / "hub" / MASK_MODELS[name].repository.replace("/", "--") / "main"
    save_mask_model(name, place)
    assert mask_model_folder(name) == place
    assert len(load_mask_model(place)(torch.zeros(3, 32, 48, dtype=torch.uint8)).scores)
