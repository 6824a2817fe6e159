"""State dicts and configs tell the same image tower."""

from __future__ import annotations

import torch

from clipself_seg.clip import load_clip
from clipself_seg.clip.kinds import KINDS, find_architecture, reason_of_no_tower, signature_of


def test_a_resnet_without_the_tensor_of_its_width_is_no_image_tower():
    with torch.device("meta"):  # shapes are all that counts
        whole = load_clip("RN50", None).state_dict()
    assert signature_of(whole)
    for name, rank in KINDS["ResNet"].key_tensors.items():
        without = {key: tensor for key, tensor in whole.items() if key != name}
        for given in (without, without | {name: torch.ones(())}):
            assert signature_of(given) is None
            assert f"ResNet has {name} of {rank} dimensions" in reason_of_no_tower(given)


def test_every_config_and_its_state_dict_agree_on_the_signature():
    for name in ("ViT-B-32", "EVA02-B-16", "RN50", "ViT-Mini-8"):
        with torch.device("meta"):
            tensors = load_clip(name, None).state_dict()
        assert signature_of(tensors) == find_architecture(name).signature
