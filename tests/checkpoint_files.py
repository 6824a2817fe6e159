"""Checkpoint files of every kind, and one that would run code."""

from __future__ import annotations

import os

import safetensors.torch
import torch
from torch import nn

KINDS = ("safetensors", "zip", "legacy", "torchscript")


def save_as(kind, tensors, path):
    """A file of one of `KINDS`, whatever its name."""
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif kind == "torchscript":
        save_torchscript(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")


class Node(nn.Module):
    """A module of a TorchScript archive."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_torchscript(tensors, path) -> None:
    """An archive whose module has the tensors as buffers under their dotted names."""
    root = Node()
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, Node())
            node = getattr(node, parent)
        node.register_buffer(leaf, tensor)
    torch.jit.save(torch.jit.script(root), path)


class Bomb:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)
