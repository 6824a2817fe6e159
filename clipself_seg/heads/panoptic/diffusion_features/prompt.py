"""The empty prompt, encoded by Stable Diffusion's own text tower (CLIP ViT-L/14's).

Shapes: T tokens, C width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.layers import ResidualBlock
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.diffusion_features.captioner import TOKENS

START, END = 49406, 49407  # the end token also pads
HEAD_WIDTH = 64
MATRICES = ("q_proj", "k_proj", "v_proj")
# Names in a block here -> names in transformers' CLIP.
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@torch.no_grad()
def encode_empty_prompt(tensors: Mapping[str, Tensor]) -> Tensor:
    """The last hidden state (1, T, C) of the empty prompt, after the final norm, in float32.

    Args:
        tensors: of transformers' `CLIPTextModel`, with or without ``text_model.`` before their names.

    Raises:
        InputError: a tensor is missing, or of another shape than its neighbours make it.
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
    words = weights["embeddings.token_embedding.weight"][tokens].float()
    x_1TC = words[None] + weights["embeddings.position_embedding.weight"].float()
    width = x_1TC.shape[-1]
    numbers = {int(name.split(".")[2]) for name in weights if name.startswith("encoder.layers.")}
    for number in range(max(numbers, default=-1) + 1):
        with torch.device("meta"):
            block = ResidualBlock(width=width, heads=max(1, width // HEAD_WIDTH), quick_gelu=True)
        block.load_state_dict(_block(weights, f"encoder.layers.{number}"), assign=True)
        x_1TC = block(x_1TC, causal=True)
    scale, shift = (weights[f"final_layer_norm.{kind}"].float() for kind in ("weight", "bias"))
    return F.layer_norm(x_1TC, (width,), scale, shift)


def _block(weights: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    """The tensors of one block under the names here."""
    found = {}
    for kind in ("weight", "bias"):
        parts = [weights[f"{layer}.self_attn.{name}.{kind}"].float() for name in MATRICES]
        found[f"attn.in_proj_{kind}"] = torch.cat(parts)
        for own, other in BLOCK_NAMES.items():
            found[f"{own}.{kind}"] = weights[f"{layer}.{other}.{kind}"].float()
    return found
