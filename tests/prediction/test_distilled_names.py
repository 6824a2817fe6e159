"""CLIPSelf's own releases by their names, as its authors saved them: ``{"epoch", "name", "state_dict"}`` with both
towers of the student, which say nothing of dense feature and activation. The towers are small, under the real names.
"""

import dataclasses

import pytest
import torch

import clipself_seg
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import eva, find_kind, load_clip, save_clip
from clipself_seg.clip.weights import to_layout
from clipself_seg.config.load import load_config
from clipself_seg.errors import InputError
from tests.tiny import noise

NAMES = [name for name, entry in zoo().items() if entry.distilled]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Architectures of the zoo's distilled CLIPs in small, and an empty folder of weights."""
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    for name in {zoo()[distilled].model for distilled in NAMES}:
        vision = {"image_size": 32, "timm_model_name": f"small_{name}"} if "EVA" in name else VISION
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT}
        monkeypatch.setitem(find_kind._configs(), name, config)
        monkeypatch.setitem(eva.SHAPES, f"small_{name}", (64, 2, 2, 16 if "B-16" in name else 14))
    return tmp_path


def release(name, folder):
    """The file of a name, saved as its authors did."""
    torch.manual_seed(0)
    clip = load_clip(zoo()[name].model, None)
    tensors = to_layout(clip.state_dict(), clip.architecture.kind)
    content = {"epoch": 6, "name": "run", "state_dict": tensors}
    torch.save(content, folder / zoo()[name].file)
    return clip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_predicts_with_the_feature_that_it_was_distilled_for(name, small):
    release(name, small)
    model = clipself_seg.load(name, device="cpu").model
    assert str(model.clip.visual.dense_feature) == "token"
    assert model.clip.quick_gelu == ("openai" in name)  # whose students are models of QuickGELU
    assert clipself_seg.load(name, device="cpu")(noise(64, 64), "a dog, grass").labels.shape == (
        64,
        64,
    )


@pytest.mark.parametrize("name", NAMES)
def test_any_configuration_reads_a_name_as_what_it_was_distilled_for(name):
    typed = ["MODEL.CLIP.NAME", zoo()[name].model, "MODEL.CLIP.WEIGHTS", name]
    assert load_config("zero_shot/base", typed).MODEL.CLIP.DENSE == "token"
    assert load_config("zero_shot/base", typed, trains=True).MODEL.CLIP.DENSE == "value"
    typed += ["MODEL.CLIP.DENSE", "value"]  # by hand: what loads them says that they are of another
    assert load_config("zero_shot/base", typed).MODEL.CLIP.DENSE == "value"


def test_an_original_clip_keeps_the_feature_of_the_configuration():
    for typed in (["MODEL.CLIP.WEIGHTS", "mini"], ["MODEL.CLIP.WEIGHTS", "openai-vitb16"]):
        assert load_config("zero_shot/base", typed).MODEL.CLIP.DENSE == "value"
    typed = ["MODEL.CLIP.WEIGHTS", "mini-clipself"]
    assert load_config("zero_shot/base", typed).MODEL.CLIP.DENSE == "token"


@pytest.mark.parametrize("kind, blocks", [("token", 1), ("multi_value", 2)])
def test_a_file_of_a_run_is_read_as_it_says(kind, blocks, tmp_path):
    clip = load_clip("ViT-Mini-8", None)
    clip.distilled = dataclasses.replace(clip.distilled, kind=kind, blocks=blocks)
    path = tmp_path / "clip_final.safetensors"
    save_clip(clip, path)
    keys = load_config("zero_shot/base", ["MODEL.CLIP.WEIGHTS", str(path)]).MODEL.CLIP
    assert keys.DENSE == kind and keys.DENSE_BLOCKS == (blocks if kind == "multi_value" else 3)
    overridden = ["MODEL.CLIP.WEIGHTS", str(path), "MODEL.CLIP.DENSE_OVERRIDE", "True"]
    assert load_config("zero_shot/base", overridden).MODEL.CLIP.DENSE == "value"


def test_a_silent_file_by_its_path_is_refused_with_the_way_out(small):
    name = "clipself-openai-vitb16-coco-patches"
    release(name, small)
    opts = ["MODEL.CLIP.NAME", "ViT-B-16"]
    with pytest.raises(InputError, match="MODEL.CLIP.DENSE token if it was distilled"):
        path = str(small / zoo()[name].file)
        clipself_seg.load(path, config_file="zero_shot/base", opts=opts, device="cpu")
