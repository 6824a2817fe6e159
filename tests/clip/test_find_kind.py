"""Names of models, and the kinds that configs and state dicts are of."""

import pytest
import torch

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.clip import load_clip, save_clip
from clipself_seg.clip.find_kind import KINDS, find_architecture, signature_of
from clipself_seg.errors import InputError


@pytest.mark.parametrize(
    "name, hint",
    [("ViT-B16", "ViT-B-16"), ("EVA02-B16", "EVA02-B-16"), ("coca_ViT-B-32", "neither")]
    + [("my_model/clip.safetensors", "is a file: give the name of its model")]
    + [("ViT-B/17", '"ViT-B/17" is no CLIP model that is known here; did you mean "ViT-B-1')],
)
def test_unknown_or_unsupported_model_name_gets_the_nearest_one(name, hint):
    with pytest.raises(InputError, match=hint):
        load_clip(name, None)


def test_names_of_the_hub_are_repeated_as_they_were_given():
    name = "hf-hub:timm/vit_base_patch16_clip_224.openai"
    with pytest.raises(InputError, match=f'"{name}" is a model of the Hugging Face hub: give the'):
        load_clip(name, None)
    with pytest.raises(InputError, match=f"no checkpoint at {name}; .*Hugging Face hub is fetched"):
        read_checkpoint(name)
    for weights in ("hf-hub:openai", f"{name}//main/"):
        with pytest.raises(InputError, match=f"{weights} names nothing on the Hugging Face hub"):
            load_clip("ViT-Mini-8", weights)


def test_weights_of_the_hub_are_fetched_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    clip = load_clip("ViT-Mini-8", "mini")
    save_clip(clip, tmp_path / "hub" / "org--name" / "v1" / "model.safetensors")
    fetched = load_clip("ViT-Mini-8", "hf-hub:org/name@v1")
    assert fetched.weights_hash() == clip.weights_hash()


def test_a_resnet_without_the_tensor_of_its_width_is_no_image_tower():
    with torch.device("meta"):  # shapes are all that counts
        whole = load_clip("RN50", None).state_dict()
    assert signature_of(whole)
    for name in KINDS["ResNet"].key_tensors:
        without = {key: tensor for key, tensor in whole.items() if key != name}
        for given in (without, without | {name: torch.ones(())}):
            assert signature_of(given) is None


def test_the_tensors_of_every_model_are_of_its_signature():
    sizes = {
        "ViT-B-32": ("OpenAI ViT", 768, 12, 32, 512),
        "EVA02-B-16": ("EVA ViT", 768, 12, 16, 512),
        "RN50": ("ResNet", 64, 16, 32, 1024),
        "ViT-Mini-8": ("OpenAI ViT", 128, 4, 8, 128),
    }
    for name, signature in sizes.items():
        with torch.device("meta"):
            tensors = load_clip(name, None).state_dict()
        assert signature_of(tensors) == find_architecture(name).signature == signature
