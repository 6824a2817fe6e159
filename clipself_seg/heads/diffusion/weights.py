"""Loads Stable Diffusion v1 from CompVis's file or diffusers' folder: strictly, as data, offline."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.checkpoints.locate import locate
from clipself_seg.checkpoints.read import fit, read_checkpoint
from clipself_seg.clip.layers import ResidualBlock
from clipself_seg.clip.runtime import without_values
from clipself_seg.clip.weights import NO_WEIGHTS, LoadReport
from clipself_seg.errors import InputError, in_short, of_extra
from clipself_seg.heads.diffusion.stable_diffusion import (
    SMALL,
    TOKENS,
    StableDiffusion,
    StableDiffusionSizes,
    build_unet,
    build_vae,
)

# What diffusers' conversion of names asks of a configuration: levels of both networks, blocks of a level of the U-Net.
TOPOLOGY = {"layers_per_block": 2, "down_block_types": [None] * 4, "up_block_types": [None] * 4}
MOST_TENSORS = 1000  # that are converted, whose time grows with the square; the U-Net has 686
# The autoencoder's attention in folders that diffusers wrote before 0.18.
OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
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
def encode_empty_prompt(tensors: Mapping[str, Tensor], source: str, width: int) -> Tensor:
    """Last hidden state (1, T, C) of the empty prompt after the final norm, in float32.

    Args:
        tensors: tensors of transformers' `CLIPTextModel`, with or without ``text_model.`` before their
            names.
        source: file or folder that they are from.
        width: channels C of a prompt.

    Raises:
        InputError: a tensor is missing, or its shape does not fit the others.
    """
    weights = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    try:
        return _encode(weights).view(1, TOKENS, width)
    except (KeyError, RuntimeError, IndexError) as error:
        reason = f"is not Stable Diffusion v1's, or not whole ({in_short(error)}): {REMEDY}"
        raise InputError(f"{source}: its text_encoder {reason}") from None


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
        x_1TC = block(x_1TC, True)  # causal
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


# Names of random weights, which can be given instead of a path: in full size, and for tests.
RANDOM = {"random": StableDiffusionSizes(), "random-small": SMALL}
COMPVIS = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
COMPVIS["text_encoder"] = "cond_stage_model.transformer."
# What CompVis's files have beside the three networks: averages of the U-Net, and the schedule of the noise
# (CompVis/stable-diffusion, ldm/models/diffusion/ddpm.py: LatentDiffusion's buffers).
NO_NETWORK = re.compile(
    r"model_ema\..*|betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_.*|posterior_.*|lvlb_weights|logvar|scale_factor"
)
REMEDY = (
    "download Stable Diffusion v1-3 (licence CreativeML OpenRAIL-M), as diffusers' folder "
    "CompVis/stable-diffusion-v1-3 or as one .safetensors file of CompVis's names, and give its "
    "path in MODEL.DIFFUSION.WEIGHTS"
)

# Network -> its tensors, under diffusers' and transformers' names.
Parts = dict[str, dict[str, Tensor]]

logger = logging.getLogger(__name__)


def load_stable_diffusion(
    weights: str | os.PathLike[str], *, sizes: StableDiffusionSizes | None = None
) -> StableDiffusion:
    """Loads a frozen Stable Diffusion in float32 on the CPU.

    Its text tower encodes the empty prompt and is then dropped.

    Args:
        weights: CompVis's file (.safetensors, or .ckpt where it holds nothing but tensors) or
            diffusers' folder; "random" (full size) or "random-small" for weights from a fixed seed.
        sizes: sizes of the networks; None for those of Stable Diffusion v1, or of the random weights.

    Raises:
        InputError: the weights are missing or not Stable Diffusion v1's, or diffusers is not installed.
    """
    weights = os.fspath(weights)
    if weights in RANDOM:
        return _random(sizes or RANDOM[weights])
    sizes = sizes or StableDiffusionSizes()
    with without_values():
        unet = build_unet(sizes)
        vae = build_vae(sizes)
    parts = read_stable_diffusion(weights)
    logger.info("%s", _load_strictly(unet, parts["unet"], "U-Net", weights))
    logger.info("%s", _load_strictly(vae, parts["vae"], "autoencoder", weights))
    empty_prompt = encode_empty_prompt(parts["text_encoder"], weights, sizes.text)
    return StableDiffusion(unet=unet, vae=vae, empty_prompt=empty_prompt)


def _random(sizes: StableDiffusionSizes) -> StableDiffusion:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = build_unet(sizes)
        vae = build_vae(sizes)
        empty_prompt = torch.randn(1, TOKENS, sizes.text)
    return StableDiffusion(unet=unet, vae=vae, empty_prompt=empty_prompt)


def read_stable_diffusion(path: str | os.PathLike[str]) -> Parts:
    """Reads the weights of a file or a folder; those of a file that are of `NO_NETWORK` are left out.

    Args:
        path: CompVis's file or diffusers' folder.

    Raises:
        InputError: the file or folder is missing or damaged, holds code, lacks one of the networks, or has others.
    """
    if not os.fspath(path):
        raise InputError(f"no weights for the diffusion features: {REMEDY}")
    given, path = os.fspath(path), locate(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(f"no Stable Diffusion at {given}: {REMEDY}")
    return _read_file(path)


def _read_file(path: Path) -> Parts:
    try:
        tensors = read_checkpoint(path).tensors
    except InputError as error:
        if path.suffix == ".safetensors":
            raise
        raise InputError(
            f"{error}. Stable Diffusion's original .ckpt is such a file: convert it to .safetensors "
            "where you trust it, or take diffusers' folder"
        ) from None
    networks = tuple(COMPVIS.values())
    others = [n for n in tensors if not n.startswith(networks) and not NO_NETWORK.fullmatch(n)]
    if others:
        raise InputError(
            f"{path} has {len(others)} tensors that Stable Diffusion v1 has not, such as {others[0][:100]}: {REMEDY}"
        )
    parts = {}
    for part, prefix in COMPVIS.items():
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        renamed = own if part == "text_encoder" else _under_new_names(path, part, own)
        parts[part] = {
            name.removeprefix(prefix): tensor
            for name, tensor in renamed.items()
            if not NO_WEIGHTS.search(name)
        }
    return parts


def _read_folder(folder: Path) -> Parts:
    parts = {}
    for part in COMPVIS:
        text = part == "text_encoder"
        stems = ["model", "pytorch_model"] if text else ["diffusion_pytorch_model"]
        # Full precision before half precision, safetensors before pickles.
        ends = [v + s for v in ("", ".fp16") for s in (".safetensors", ".bin")]
        files = [folder / part / (stem + end) for end in ends for stem in stems]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise InputError(f"no {files[0]} (nor its .bin): {REMEDY}")
        parts[part] = {
            _new_name(name) if part == "vae" else name: tensor
            for name, tensor in read_checkpoint(file).tensors.items()
            if not NO_WEIGHTS.search(name)
        }
    return parts


def _new_name(name: str) -> str:
    """Name in the autoencoder of a folder, as diffusers has it today."""
    for old, new in OLD_ATTENTION.items():
        name = name.replace(f".attentions.0{old}", f".attentions.0{new}")
    return name


def _under_new_names(path: Path, part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of CompVis's U-Net or autoencoder under diffusers' names; what diffusers leaves out keeps its own.

    Raises:
        InputError: diffusers is not installed, or knows no network of such tensors.
    """
    utils = of_extra("diffusers.loaders.single_file_utils", f"the file {path}", "diffusion")
    convert = {"unet": utils.convert_ldm_unet_checkpoint, "vae": utils.convert_ldm_vae_checkpoint}
    if len(tensors) > MOST_TENSORS:
        return tensors
    # The autoencoder's attention is made of convolutions of 1 x 1.
    plain = {
        name: tensor.flatten(1) if ".attn_1." in name and tensor.shape[2:] == (1, 1) else tensor
        for name, tensor in tensors.items()
    }
    try:
        converted = convert[part](plain, TOPOLOGY)
    except (IndexError, KeyError) as error:
        raise InputError(
            f"{path}: its {part} is not Stable Diffusion v1's, or not whole ({error}): {REMEDY}"
        ) from None
    converted = {name: tensor for name, tensor in converted.items() if tensor is not None}
    kept = {id(tensor) for tensor in converted.values()}
    return converted | {name: tensor for name, tensor in plain.items() if id(tensor) not in kept}


def _load_strictly(network: Any, tensors: dict[str, Tensor], name: str, source: str) -> LoadReport:
    """Replaces the tensors of a network on the meta device, in float32; all names have to match."""
    wanted = network.state_dict()
    remedy = "is it Stable Diffusion v1, and complete?"
    fitted = fit(tensors, wanted, f"{source}: its {name}", remedy=remedy)
    converted = sum(tensors[key].dtype != tensor.dtype for key, tensor in fitted.items())
    network.load_state_dict(fitted, assign=True)
    title = f"Stable Diffusion's {name}"
    return LoadReport(title, Path(source).name, len(wanted), converted)
