"""`load_clip`'s models against open_clip's own, saved and loaded back, and input that does not fit them."""

import copy
import functools

import open_clip
import pytest
import timm
import torch

from clipself_seg.clip import CLIP, eva, find_kind, load_clip, save_clip
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.clip.layers import split_attention
from clipself_seg.errors import InputError
from tests.weight_server import serving

MINI = "ViT-Mini-8"
NAMES = ["ViT-B-32-quickgelu", "EVA02-B-16", "RN50"]


@pytest.fixture
def shallow(monkeypatch):
    """Gives an open_clip model's name to one with two blocks in each tower and few channels of texts."""

    def changed(name):
        config = copy.deepcopy(open_clip.get_model_config(name))
        vision = config["vision_cfg"]
        config["text_cfg"] |= {"layers": 2, "width": 64, "heads": 2}
        if eva_name := vision.get("timm_model_name"):
            width, _, *rest = eva.SHAPES[eva_name]
            monkeypatch.setitem(eva.SHAPES, eva_name, (width, 2, *rest))
            monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, depth=2))
        else:
            vision["layers"] = [1, 2, 1, 1] if isinstance(vision["layers"], list) else 2
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, f"shallow-{name}", config)
        monkeypatch.setitem(find_kind._configs(), f"shallow-{name}", config)
        return f"shallow-{name}"

    return changed


@pytest.mark.parametrize("name", NAMES)
def test_image_and_text_embeddings_equal_open_clip(name, shallow, tmp_path):
    name = shallow(name)
    torch.manual_seed(0)
    theirs = open_clip.create_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path / "open_clip.pt")
    ours = load_clip(name, tmp_path / "open_clip.pt")
    images = torch.randn(2, 3, ours.image_size, ours.image_size)
    tokens = ours.tokenize(["a dog", "two cats on a very long and patterned red sofa"])
    with torch.no_grad():
        actual, expected = ours.encode_image(images), theirs.encode_image(images, normalize=True)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
        actual, expected = ours.encode_text(tokens), theirs.encode_text(
            tokens.to(ours.device), True
        )
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    save_clip(ours, tmp_path / "back.pt", layout="open_clip")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    theirs.load_state_dict(back)  # strict: both directions of the converter


def test_bad_input_is_named(mini):
    with pytest.raises(InputError, match="60x64 is not a multiple of 8"):
        mini.encode_dense(torch.zeros(1, 3, 60, 64))
    image = torch.zeros(1, 3, 64, 64)
    for masked in (False, True):
        with pytest.raises(InputError, match=r"masks .*tensor \(n, 8, 8\) .*got \[\(1, 4, 4\)"):
            mini.encode_masks(image, [torch.ones(1, 4, 4)], masked)
        with pytest.raises(InputError, match=r"boxes .*tensor \(n, 4\) .*got \[\(4,\)"):
            mini.encode_boxes(image, [torch.rand(4)], masked)
        with pytest.raises(InputError, match="boxes of 1 images must be a list"):
            mini.encode_boxes(image, [torch.rand(1, 4)] * 2, masked)
        with pytest.raises(InputError, match="masks of 1 images must be a list"):
            mini.encode_masks(image, [], masked)
    with pytest.raises(InputError, match='no feature "block99".*"block'):
        mini.visual.features(torch.zeros(1, 3, 64, 64), ["block99"])
    with torch.device("meta"):  # refused before anything is computed
        resnet = load_clip("RN50", None)
    with pytest.raises(InputError, match="no class token"):
        resnet.encode_boxes(image, [torch.rand(1, 4)], masked_attention=True)
    with pytest.raises(InputError, match="embeds images of 224x224"):
        resnet.encode_image(torch.zeros(1, 3, 256, 256))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_equal_models_give_equal_bytes(mini, tmp_path, suffix):
    paths = [tmp_path / f"{number}" / f"clip.{suffix}" for number in range(6)]
    for path in paths:
        save_clip(mini, path)
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_normalisation_of_pixels_is_saved_with_the_weights(tmp_path, suffix):
    half = (0.5, 0.5, 0.5)
    clip = CLIP(architecture=find_architecture(MINI), quick_gelu=False, mean=half, std=half)
    save_clip(clip, tmp_path / f"half.{suffix}")
    loaded = load_clip(MINI, tmp_path / f"half.{suffix}")
    assert (loaded.mean, loaded.std) == (half, half)


def test_unknown_tag_gets_the_nearest_one():
    with pytest.raises(InputError, match='neither a file nor a tag; did you mean "openai"'):
        load_clip("ViT-B-16", "opnai")
    with pytest.raises(InputError, match="for ViT-Mini-8: .* choose from: mini, mini-clipself, "):
        load_clip(MINI, "nowhere")


def test_names_of_the_zoo_and_addresses_load(tmp_path, monkeypatch, stand_ins):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    clip = load_clip(MINI, "mini")
    save_clip(clip, tmp_path / "EVA02_CLIP_B_psz16_s8B.pt")
    assert load_clip(MINI, "eva02-vitb16").weights_hash() == clip.weights_hash()
    with serving(a_pt=(tmp_path / "EVA02_CLIP_B_psz16_s8B.pt").read_bytes()) as server:
        assert load_clip(MINI, f"{server.address}/a.pt").weights_hash() == clip.weights_hash()


def test_a_tag_offline_is_said_at_once_with_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for tag in ("laion2b_s34b_b88k", "ViT-B-16:laion2b_s34b_b88k"):
        with pytest.raises(InputError, match="fetch it from .*/ViT-B-16-laion2b_s34b_b88k"):
            load_clip("ViT-B-16", tag)
    with pytest.raises(InputError, match="are of ViT-B-16, not ViT-B-32"):
        load_clip("ViT-B-32", "ViT-B-16:laion2b_s34b_b88k")


def test_a_clip_whose_attention_is_split_is_saved_under_the_names_of_files(tmp_path):
    clip = load_clip("ViT-Mini-8", "mini")
    before = clip.weights_hash()
    split_attention(clip)
    save_clip(clip, tmp_path / "clip.safetensors")
    assert load_clip("ViT-Mini-8", tmp_path / "clip.safetensors").weights_hash() == before


def test_a_name_of_weights_alone_is_enough_and_that_of_an_architecture_is_not():
    by_name, by_both = load_clip("mini-clipself"), load_clip("ViT-Mini-8", "mini-clipself")
    assert by_name.weights_hash() == by_both.weights_hash()
    for name, says in [
        ("ViT-B-16", "ViT-B-16 names no weights: .* None for random"),
        ("catseg-base", "no CLIP alone: load it by clipself_seg.load"),
    ]:
        with pytest.raises(InputError, match=says):
            load_clip(name)
