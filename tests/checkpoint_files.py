"""Checkpoint files of every kind, one that would run code, and TIPSv2 in the layout that is read and not written."""

import os
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from clipself_seg.clip import CLIP, save_clip, tips, tower_kind

KINDS = ("safetensors", "zip", "legacy")


def save_as(kind, tensors, path):
    """A file of one of `KINDS`, whatever its name."""
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")


class Bomb:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


# TIPSv2 in the layout of transformers: the reverse of what reads it.


def write_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Native tensors in transformers' layout."""
    written: dict[str, Tensor] = {}
    for native, tensor in tensors.items():
        name = tower_kind.renamed(native, tips._VISION, tips._VISION_BLOCK)
        name = tower_kind.renamed(name, tower_kind.TRANSFORMERS_TEXT, tower_kind.TRANSFORMERS_BLOCK)
        if native == "logit_scale":
            written["temperature"] = tips._temperature_of(tensor)
        elif ".in_proj_" in native:
            stem, _, leaf = name.rpartition(".in_proj_")
            for head, part in zip(tower_kind.TRANSFORMERS_HEADS, tensor.chunk(3)):
                written[f"{stem}{head}{leaf}"] = part.contiguous()
        elif tips._is_gated(native, tensors):
            stem, _, leaf = name.rpartition(".mlp.fc1.")
            for gate, part in zip(tips._GATED, tensor.chunk(2)):
                written[f"{stem}{gate}{leaf}"] = part.contiguous()
        else:
            gated = tips._is_gated(native.replace(".c_proj.", ".c_fc."), tensors)
            name = name.replace(".mlp.fc2.", tips._DOWN) if gated else name
            written[name] = tips._with_axes(native, tensor)
    if tips.CLASS_TOKEN in tensors:
        written[tips.MASK_TOKEN] = torch.zeros_like(tensors[tips.CLASS_TOKEN])[None]
    return written


WRITERS = {"official": tips.write_official, "transformers": write_transformers}


def in_layout(clip: CLIP, layout: str) -> dict[str, Tensor]:
    """Tensors of a model under the names of any layout that `load_clip` reads."""
    native = {name: tensor.detach().contiguous() for name, tensor in clip.state_dict().items()}
    return WRITERS[layout](native)


def save_tips(clip: CLIP, path: Path, layout: str) -> None:
    """`save_clip` in any of these layouts."""
    if layout == "official":
        save_clip(clip, path)
    elif path.suffix == ".pt":
        torch.save({"epoch": 0, "state_dict": in_layout(clip, layout)}, path)
    else:
        safetensors.torch.save_file(in_layout(clip, layout), path)
