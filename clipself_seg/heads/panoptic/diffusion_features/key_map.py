"""Renames Stable Diffusion v1's weights from CompVis's names to diffusers' names.

Names that no rule covers stay as they are, and the loader refuses them.
"""

from __future__ import annotations

import re

LEVELS = 4  # levels of the autoencoder and of the U-Net
PER_LEVEL = 3  # blocks of a level of the U-Net, including the one that halves the size

# Parts of the names of residual blocks.
RESNET = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}
# Starts of names outside of the numbered blocks.
UNET = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "middle_block.0.": "mid_block.resnets.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
VAE = {
    ".mid.block_1.": ".mid_block.resnets.0.",
    ".mid.block_2.": ".mid_block.resnets.1.",
    ".mid.attn_1.": ".mid_block.attentions.0.",
    ".norm_out.": ".conv_norm_out.",
    ".nin_shortcut.": ".conv_shortcut.",
}
# The autoencoder's attention, in CompVis's files and in folders that diffusers wrote before 0.18.
VAE_ATTENTION = {
    ".attentions.0.norm.": ".attentions.0.group_norm.",
    ".attentions.0.q.": ".attentions.0.to_q.",
    ".attentions.0.k.": ".attentions.0.to_k.",
    ".attentions.0.v.": ".attentions.0.to_v.",
    ".attentions.0.proj_out.": ".attentions.0.to_out.0.",
    ".attentions.0.query.": ".attentions.0.to_q.",
    ".attentions.0.key.": ".attentions.0.to_k.",
    ".attentions.0.value.": ".attentions.0.to_v.",
    ".attentions.0.proj_attn.": ".attentions.0.to_out.0.",
}
UNET_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
VAE_BLOCK = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(block|downsample|upsample)\.(.+)")


def unet_name(name: str) -> str:
    """diffusers' name of a parameter below ``model.diffusion_model.``"""
    for start, new in UNET.items():
        if name.startswith(start):
            return _renamed(new + name.removeprefix(start), RESNET)
    match = UNET_BLOCK.fullmatch(name)
    if match is None:
        return name
    number = int(match[2])
    part = int(match[3])
    rest = match[4]
    # Input block 0 is the first convolution, so that the levels begin with block 1.
    down = match[1] == "input"
    level, place = divmod(number - 1 if down else number, PER_LEVEL)
    blocks = "down_blocks" if down else "up_blocks"
    if rest.startswith("op."):
        return f"{blocks}.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if part and rest.startswith("conv."):
        return f"{blocks}.{level}.upsamplers.0.{rest}"
    if part:
        return f"{blocks}.{level}.attentions.{place}.{rest}"
    return f"{blocks}.{level}.resnets.{place}.{_renamed(rest, RESNET)}"


def vae_name(name: str) -> str:
    """diffusers' name of a parameter below ``first_stage_model.``, or of one under its own old name."""
    name = _renamed(_renamed(name, VAE), VAE_ATTENTION)
    match = VAE_BLOCK.fullmatch(name)
    if match is None:
        return name
    stack, number, part, rest = match.groups()
    # CompVis counts the decoder's levels from fine to coarse.
    level = int(number) if stack == "encoder.down" else LEVELS - 1 - int(number)
    inner = f"resnets.{rest}" if part == "block" else f"{part}rs.0.{rest}"
    return f"{stack}_blocks.{level}.{inner}"


def _renamed(name: str, parts: dict[str, str]) -> str:
    """`name` with the first of `parts` that it contains replaced."""
    for old, new in parts.items():
        if old in name:
            return name.replace(old, new, 1)
    return name
