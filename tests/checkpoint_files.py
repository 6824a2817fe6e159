"""Checkpoint files of every kind, and one that would run code."""

import os

import safetensors.torch
import torch

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
