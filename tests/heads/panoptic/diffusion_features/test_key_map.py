"""CompVis's names: every one of them has its place, the same that diffusers' own conversion gives it."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.heads.diffusion.networks import (
    SMALL,
    StableDiffusionSizes,
    build_unet,
    build_vae,
)
from clipself_seg.heads.diffusion.weights import unet_name, vae_name
from tests.heads.panoptic.diffusion_features.compvis import compvis_state

pytest.importorskip("diffusers", reason="needs diffusers (the extra [diffusion])")
UNET, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.mark.parametrize(
    "compvis, diffusers",
    [
        ("input_blocks.0.0.weight", "conv_in.weight"),
        ("input_blocks.3.0.op.bias", "down_blocks.0.downsamplers.0.conv.bias"),
        ("input_blocks.4.0.skip_connection.bias", "down_blocks.1.resnets.0.conv_shortcut.bias"),
        ("middle_block.2.emb_layers.1.weight", "mid_block.resnets.1.time_emb_proj.weight"),
        ("output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
        ("output_blocks.5.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
        (
            "output_blocks.11.1.transformer_blocks.0.attn1.to_out.0.bias",
            "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0.bias",
        ),
        ("out.0.weight", "conv_norm_out.weight"),
        ("out.7.weight", "out.7.weight"),
    ],
)
def test_names_of_the_unet(compvis, diffusers):
    assert unet_name(compvis) == diffusers


@pytest.mark.parametrize(
    "compvis, diffusers",
    [
        (
            "encoder.down.2.block.0.nin_shortcut.bias",
            "encoder.down_blocks.2.resnets.0.conv_shortcut.bias",
        ),
        ("encoder.down.0.downsample.conv.bias", "encoder.down_blocks.0.downsamplers.0.conv.bias"),
        ("decoder.up.3.block.2.norm1.bias", "decoder.up_blocks.0.resnets.2.norm1.bias"),
        ("decoder.up.1.upsample.conv.bias", "decoder.up_blocks.2.upsamplers.0.conv.bias"),
        ("decoder.mid.attn_1.proj_out.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
        ("encoder.norm_out.bias", "encoder.conv_norm_out.bias"),
        ("post_quant_conv.bias", "post_quant_conv.bias"),
        ("encoder.mid_block.attentions.0.query.bias", "encoder.mid_block.attentions.0.to_q.bias"),
    ],
)
def test_names_of_the_autoencoder(compvis, diffusers):
    assert vae_name(compvis) == diffusers


def test_every_name_of_the_full_model_has_its_place():
    with torch.device("meta"):
        unet, vae = build_unet(StableDiffusionSizes()), build_vae(StableDiffusionSizes())
    state = compvis_state(unet.state_dict(), vae.state_dict(), {})
    for prefix, rule, network, count in ((UNET, unet_name, unet, 686), (VAE, vae_name, vae, 248)):
        names = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
        assert len(names) == count and {rule(name) for name in names} == set(network.state_dict())


def test_names_and_tensors_are_those_of_diffusers_own_conversion():
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    unet, vae = build_unet(SMALL), build_vae(SMALL)
    state = compvis_state(unet.state_dict(), vae.state_dict(), {})
    for prefix, rule, convert, network in (
        (UNET, unet_name, utils.convert_ldm_unet_checkpoint, unet),
        (VAE, vae_name, utils.convert_ldm_vae_checkpoint, vae),
    ):
        part = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        theirs = convert(dict(part), dict(network.config))
        ours = {rule(name.removeprefix(prefix)): tensor for name, tensor in part.items()}
        assert set(ours) == set(theirs) == set(network.state_dict())
        for name, tensor in ours.items():
            assert torch.equal(tensor.flatten(), theirs[name].flatten()), name
