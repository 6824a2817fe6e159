"""Stable Diffusion's weights as CompVis named them, from diffusers' by counting blocks as constructors do."""

from collections.abc import Iterator

import torch
from torch import Tensor

RESNET = [("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj")]
RESNET += [("out_layers.0", "norm2"), ("out_layers.3", "conv2")]
RESNET += [("skip_connection", "conv_shortcut")]
VAE_ATTENTION = [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v")]
VAE_ATTENTION += [("proj_out", "to_out.0")]
Pairs = Iterator[tuple[str, str]]


def _resnet(compvis: str, diffusers: str) -> Pairs:
    for theirs, ours in RESNET:
        yield f"{compvis}.{theirs}.", f"{diffusers}.{ours}."


def unet_pairs() -> Pairs:
    """(CompVis's start of names, diffusers')"""
    yield from [("time_embed.0.", "time_embedding.linear_1."), ("out.0.", "conv_norm_out.")]
    yield from [("time_embed.2.", "time_embedding.linear_2."), ("out.2.", "conv_out.")]
    yield "input_blocks.0.0.", "conv_in."
    number = 1
    for level in range(4):
        for place in range(2):
            block = f"down_blocks.{level}"
            yield from _resnet(f"input_blocks.{number}.0", f"{block}.resnets.{place}")
            yield f"input_blocks.{number}.1.", f"{block}.attentions.{place}."
            number += 1
        yield f"input_blocks.{number}.0.op.", f"down_blocks.{level}.downsamplers.0.conv."
        number += 1
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield "middle_block.1.", "mid_block.attentions.0."
    yield from _resnet("middle_block.2", "mid_block.resnets.1")
    number = 0
    for level in range(4):
        for place in range(3):
            block = f"up_blocks.{level}"
            yield from _resnet(f"output_blocks.{number}.0", f"{block}.resnets.{place}")
            yield f"output_blocks.{number}.1.", f"{block}.attentions.{place}."
            number += 1
        layer = 1 if level == 0 else 2  # the coarsest level has no attention before it
        yield f"output_blocks.{number - 1}.{layer}.conv.", f"{block}.upsamplers.0.conv."


def vae_pairs() -> Pairs:
    """(CompVis's start of names, diffusers')"""
    for side, blocks, count in (("encoder", "down", 2), ("decoder", "up", 3)):
        sampler = "downsample" if blocks == "down" else "upsample"
        for level in range(4):
            ours = f"{side}.{blocks}_blocks.{level}"
            theirs = f"{side}.{blocks}.{level if blocks == 'down' else 3 - level}"
            for place in range(count):
                resnet = f"{theirs}.block.{place}", f"{ours}.resnets.{place}"
                yield f"{resnet[0]}.nin_shortcut.", f"{resnet[1]}.conv_shortcut."
                yield f"{resnet[0]}.", f"{resnet[1]}."
            yield f"{theirs}.{sampler}.", f"{ours}.{sampler}rs.0."
        for place in (0, 1):
            yield f"{side}.mid.block_{place + 1}.", f"{side}.mid_block.resnets.{place}."
        for theirs, ours in VAE_ATTENTION:
            yield f"{side}.mid.attn_1.{theirs}.", f"{side}.mid_block.attentions.0.{ours}."
        yield f"{side}.norm_out.", f"{side}.conv_norm_out."


def compvis_state(
    unet: dict[str, Tensor], vae: dict[str, Tensor], text: dict[str, Tensor]
) -> dict[str, Tensor]:
    """One state dict of three of diffusers' and transformers', with tensors that a loader leaves out."""
    tensors = {"betas": torch.ones(2), "model_ema.decay": torch.ones(())}
    for prefix, state, pairs in (
        ("model.diffusion_model.", unet, list(unet_pairs())),
        ("first_stage_model.", vae, list(vae_pairs())),
        ("cond_stage_model.transformer.", text, []),
    ):
        for name, tensor in state.items():
            for theirs, ours in pairs:
                if name.startswith(ours):
                    name = theirs + name.removeprefix(ours)
                    break
            if "attn_1" in name and tensor.dim() == 2:
                tensor = tensor[:, :, None, None]
            tensors[prefix + name] = tensor.clone()
    return tensors


def small_text_tower(width: int = 24, layers: int = 2) -> dict[str, Tensor]:
    """A text tower of transformers' names with random weights."""
    root = "text_model."
    shapes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
    }
    for layer in (f"encoder.layers.{i}" for i in range(layers)):
        for name, rows, columns in (
            *((f"self_attn.{part}_proj", width, width) for part in ("q", "k", "v", "out")),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
    tensors = {root + name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    return tensors | {f"{root}embeddings.position_ids": torch.arange(77)[None]}
