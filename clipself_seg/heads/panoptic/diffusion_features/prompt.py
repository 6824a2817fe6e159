"""Encodes the empty prompt with Stable Diffusion's own text tower, that of CLIP ViT-L/14.

Shapes: T tokens and C width of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.initialisation import without_values
from clipself_seg.clip.layers import ResidualBlock
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.diffusion_features.captioner import TOKENS

START = 49406
END = 49407  # also the padding
HEAD_WIDTH = 64
MATRICES = ("q_proj", "k_proj", "v_proj")
# Names in a `ResidualBlock` and the names in transformers' CLIP.
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@torch.no_grad()
def encode_empty_prompt(tensors: Mapping[str, Tensor]) -> Tensor:
    """Last hidden state (1, T, C) of the empty prompt after the final norm, in float32.

    Args:
        tensors: tensors of transformers' `CLIPTextModel`, with or without ``text_model.`` before their
            names.

    Raises:
        InputError: a tensor is missing, or its shape does not fit the others.
    """
    weights = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    try:
        return _encode(weights)
    except KeyError as error:
        raise InputError(f"the text tower lacks {error.args[0]}") from None
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the text tower is not Stable Diffusion v1's ({reason})") from None


def _encode(weights: Mapping[str, Tensor]) -> Tensor:
    tokens = torch.tensor([START] + [END] * (TOKENS - 1))
    embeddings = weights["embeddings.token_embedding.weight"][tokens].float()
    x_1TC = embeddings[None] + weights["embeddings.position_embedding.weight"].float()
    width = x_1TC.shape[-1]
    numbers = {int(name.split(".")[2]) for name in weights if name.startswith("encoder.layers.")}
    for number in range(max(numbers, default=-1) + 1):
        with without_values():
            block = ResidualBlock(width=width, heads=max(1, width // HEAD_WIDTH), quick_gelu=True)
        block.load_state_dict(_block(weights, f"encoder.layers.{number}"), assign=True)
        x_1TC = block(x_1TC, causal=True)
    scale, shift = (weights[f"final_layer_norm.{kind}"].float() for kind in ("weight", "bias"))
    return F.layer_norm(x_1TC, (width,), scale, shift)


def _block(weights: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    """Tensors of one layer under the names of a `ResidualBlock`."""
    block = {}
    for kind in ("weight", "bias"):
        parts = [weights[f"{layer}.self_attn.{name}.{kind}"].float() for name in MATRICES]
        block[f"attn.in_proj_{kind}"] = torch.cat(parts)
        for own, other in BLOCK_NAMES.items():
            block[f"{own}.{kind}"] = weights[f"{layer}.{other}.{kind}"].float()
    return block
