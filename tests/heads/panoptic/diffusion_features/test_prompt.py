"""The encoded empty prompt: equal to transformers' text tower."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.errors import InputError
from clipself_seg.heads.diffusion.weights import encode_empty_prompt
from tests.heads.panoptic.diffusion_features.compvis import small_text_tower


@torch.no_grad()
def test_the_empty_prompt_is_that_of_transformers():
    modeling = pytest.importorskip("transformers.models.clip.modeling_clip")
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="quick_gelu",
    )
    tower = modeling.CLIPTextModel(config).eval()
    for name, parameter in tower.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.1)
    tokens = torch.tensor([[49406] + [49407] * 76])
    expected = tower(tokens).last_hidden_state
    torch.testing.assert_close(encode_empty_prompt(tower.state_dict()), expected)


def test_towers_that_are_not_clips_are_refused():
    tower = small_text_tower()
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    with pytest.raises(InputError, match="lacks encoder.layers.1.mlp.fc1.weight"):
        encode_empty_prompt({key: value for key, value in tower.items() if key != name})
    with pytest.raises(InputError, match="not Stable Diffusion v1's"):
        encode_empty_prompt(tower | {name: torch.zeros(3, 24)})
