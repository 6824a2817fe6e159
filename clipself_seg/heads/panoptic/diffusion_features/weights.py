"""Loads Stable Diffusion v1 from CompVis's file or diffusers' folder: strictly, as data, offline."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipself_seg.checkpoints.locate import locate
from clipself_seg.checkpoints.names import name_problem
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.clip.initialisation import without_values
from clipself_seg.clip.weights import NO_WEIGHTS, LoadReport
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.diffusion_features.captioner import TOKENS
from clipself_seg.heads.panoptic.diffusion_features.key_map import unet_name, vae_name
from clipself_seg.heads.panoptic.diffusion_features.networks import (
    SMALL,
    StableDiffusionSizes,
    build_unet,
    build_vae,
)
from clipself_seg.heads.panoptic.diffusion_features.prompt import encode_empty_prompt
from clipself_seg.heads.panoptic.diffusion_features.stable_diffusion import StableDiffusion

# Names of random weights, which can be given instead of a path: in full size, and for tests.
RANDOM = {"random": StableDiffusionSizes(), "random-small": SMALL}
COMPVIS = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
COMPVIS["text_encoder"] = "cond_stage_model.transformer."
REMEDY = (
    "download Stable Diffusion v1-3 (licence CreativeML OpenRAIL-M), as diffusers' folder "
    "CompVis/stable-diffusion-v1-3 or as one .safetensors file of CompVis's names, and give its "
    "path in MODEL.DIFFUSION.WEIGHTS"
)

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """Tensors of the three networks under diffusers' and transformers' names."""

    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    text_encoder: dict[str, Tensor]


def load_stable_diffusion(
    weights: str | os.PathLike[str],
    *,
    noise_seed: int = 42,
    sizes: StableDiffusionSizes | None = None,
) -> StableDiffusion:
    """Loads a frozen Stable Diffusion in float32 on the CPU.

    Its text tower encodes the empty prompt and is then dropped.

    Args:
        weights: CompVis's file (.safetensors, or .ckpt where it holds nothing but tensors) or
            diffusers' folder; "random" (full size) or "random-small" for weights from a fixed seed.
        noise_seed: seed of the noise that all crops get.
        sizes: sizes of the networks; None for those of Stable Diffusion v1, or of the random weights.

    Raises:
        InputError: the weights are missing or not Stable Diffusion v1's, or diffusers is not installed.
    """
    weights = os.fspath(weights)
    if weights in RANDOM:
        return _random(sizes or RANDOM[weights], noise_seed)
    sizes = sizes or StableDiffusionSizes()
    with without_values():
        unet = build_unet(sizes)
        vae = build_vae(sizes)
    parts = read_stable_diffusion(weights)
    for network, tensors, name in ((unet, parts.unet, "U-Net"), (vae, parts.vae, "autoencoder")):
        logger.info("%s", _load_strictly(network, tensors, name, weights))
    try:
        empty_prompt = encode_empty_prompt(parts.text_encoder)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None
    if empty_prompt.shape != (1, TOKENS, sizes.text):
        raise InputError(
            f"{weights}: its prompts are {tuple(empty_prompt.shape)[1:]}, Stable Diffusion v1's "
            f"are {(TOKENS, sizes.text)}"
        )
    return StableDiffusion(unet=unet, vae=vae, empty_prompt=empty_prompt, noise_seed=noise_seed)


def _random(sizes: StableDiffusionSizes, noise_seed: int) -> StableDiffusion:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = build_unet(sizes)
        vae = build_vae(sizes)
        empty_prompt = torch.randn(1, TOKENS, sizes.text)
    return StableDiffusion(unet=unet, vae=vae, empty_prompt=empty_prompt, noise_seed=noise_seed)


def read_stable_diffusion(path: str | os.PathLike[str]) -> Parts:
    """Reads the weights of a file or a folder; other tensors (averages, schedules) are left out.

    Args:
        path: CompVis's file or diffusers' folder.

    Raises:
        InputError: the file or folder is missing or damaged, holds code, or lacks one of the networks.
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
    parts = {}
    for part, prefix in COMPVIS.items():
        parts[part] = {
            n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
        }
        if not parts[part]:
            raise InputError(
                f"{path} holds no {part} (no tensor starts with {prefix}, the first is "
                f"{next(iter(tensors))}): {REMEDY}"
            )
    return _under_new_names(**parts)


def _read_folder(folder: Path) -> Parts:
    parts = {}
    for part in Parts._fields:
        text = part == "text_encoder"
        stems = ["model", "pytorch_model"] if text else ["diffusion_pytorch_model"]
        # Full precision before half precision, safetensors before pickles.
        ends = [v + s for v in ("", ".fp16") for s in (".safetensors", ".bin")]
        files = [folder / part / (stem + end) for end in ends for stem in stems]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise InputError(f"no {files[0]} (nor its .bin): {REMEDY}")
        parts[part] = read_checkpoint(file).tensors
    return _under_new_names(**parts)


def _under_new_names(
    unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], text_encoder: Mapping[str, Tensor]
) -> Parts:
    """The parts under diffusers' present names, without entries that are no weights."""

    def renamed(tensors: Mapping[str, Tensor], rule: Callable[[str], str]) -> dict[str, Tensor]:
        return {rule(n): tensor for n, tensor in tensors.items() if not NO_WEIGHTS.search(n)}

    return Parts(renamed(unet, unet_name), renamed(vae, vae_name), renamed(text_encoder, str))


def _load_strictly(network: Any, tensors: dict[str, Tensor], name: str, source: str) -> LoadReport:
    """Replaces the tensors of a network on the meta device, in float32; all names have to match."""
    wanted = network.state_dict()
    if problem := name_problem(wanted, tensors):
        raise InputError(
            f"{source}: its {name} {problem.what} ({problem.names}); is it Stable Diffusion v1, and "
            "complete?"
        )
    converted = sum(tensor.dtype != torch.float32 for tensor in tensors.values())
    for key, target in wanted.items():
        tensor = tensors[key]
        # Older files have the autoencoder's attention as convolutions of 1 x 1.
        if tensor.shape == (*target.shape, 1, 1):
            tensor = tensor.flatten(1)
        if tensor.shape != target.shape or not tensor.is_floating_point():
            raise InputError(
                f"{source}: {key} of its {name} is {str(tensor.dtype)[6:]} {tuple(tensor.shape)}, "
                f"Stable Diffusion v1 needs floats {tuple(target.shape)}"
            )
        tensors[key] = tensor.float()
    network.load_state_dict(tensors, assign=True)
    title = f"Stable Diffusion's {name}"
    return LoadReport(title, Path(source).name, len(wanted), converted, 0, 0)
