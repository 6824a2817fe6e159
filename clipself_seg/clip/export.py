"""Exports a CLIP's two towers as ONNX, for images of any size, and checks them against torch by onnxruntime.

Shapes: B images, K texts, T tokens of a text, E width of the embedding, h x w grid of the dense
features.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.linear import stock_linear
from clipself_seg.clip.model import DenseCLIP
from clipself_seg.clip.training_free import NONE
from clipself_seg.errors import InputError, of_extra
from clipself_seg.files import atomic_folder, write_json
from clipself_seg.provenance import provenance

# The exporter's own, of which torch brings none, and what checks the result.
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest absolute feature
DENSE_FILE = "dense.onnx"
TEXT_FILE = "text.onnx"
METADATA_FILE = "export.json"
# Grid of the traced images: of no square, so that no position table has it.
TRACED_GRID = (5, 7)
TEXTS = ("grass", "a photo of a red star.", "a photo of " + "a very " * 80 + "long text")


class DenseGraph(nn.Module):
    """Normalised images (B, 3, H, W) in, dense features (B, E, h, w) of unit length out."""

    def __init__(self, clip: DenseCLIP) -> None:
        super().__init__()
        self.visual = clip.visual

    def forward(self, images: Tensor) -> Tensor:
        """As `DenseCLIP.encode_dense`."""
        return F.normalize(self.visual.dense(images), dim=1)


class TextGraph(nn.Module):
    """Token ids (K, T) in, text embeddings (K, E) of unit length out."""

    def __init__(self, clip: DenseCLIP) -> None:
        super().__init__()
        self.text = clip.text

    def forward(self, tokens: Tensor) -> Tensor:
        """As `DenseCLIP.encode_text`, but all tokens are computed (`TextEncoder.whole`)."""
        return F.normalize(self.text.whole(tokens), dim=-1)


def export_onnx(clip: DenseCLIP, folder: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Writes ``dense.onnx``, ``text.onnx`` and ``export.json``, if what they compute is what torch does.

    Weights of more than onnx keeps in one file (2 GB) go to a ``.data`` file beside it.

    Args:
        clip: in evaluation mode and float32, on the CPU.
        folder: for the files; made, and not there yet or empty.

    Returns:
        Differences of onnxruntime from torch, as fractions of the largest absolute feature: for each
        file by the shape of the input.

    Raises:
        InputError: a package is missing, the folder has something in it, the dense features are made by an attention
            without training, or a difference is larger than `TOLERANCE`; nothing is written then.
    """
    if clip.visual.attention != NONE:
        raise InputError(
            f"MODEL.CLIP.ATTENTION {clip.visual.attention} is not exported, only what MODEL.CLIP.DENSE names: "
            f"leave it {NONE}"
        )
    _require_packages()
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there already: give another folder, or remove it")
    with atomic_folder(folder) as temporary:
        differences = {
            DENSE_FILE: _export_dense(clip, temporary / DENSE_FILE),
            TEXT_FILE: _export_text(clip, temporary / TEXT_FILE),
        }
        write_json(temporary / METADATA_FILE, _metadata(clip, differences))
    return differences


def _require_packages() -> None:
    for name in PACKAGES:
        of_extra(name, "ONNX", "export")


def _export_dense(clip: DenseCLIP, path: Path) -> dict[str, float]:
    patch = clip.patch_size
    rows, columns = TRACED_GRID
    images = torch.zeros(2, 3, patch * rows, patch * columns)
    sides = {axis: patch * torch.export.Dim(name) for axis, name in ((2, "rows"), (3, "columns"))}
    graph = DenseGraph(clip)
    _export(graph, images, path, ("images", "features"), {0: torch.export.Dim("images"), **sides})
    return _differences(graph, path, _image_batches(clip))


def _export_text(clip: DenseCLIP, path: Path) -> dict[str, float]:
    tokens = clip.tokenize(TEXTS)
    graph = TextGraph(clip)
    _export(graph, tokens, path, ("tokens", "embeddings"), {0: torch.export.Dim("texts")})
    return _differences(graph, path, iter((tokens[:1], tokens[:2], tokens)))


def _export(
    graph: nn.Module, example: Tensor, path: Path, names: tuple[str, str], sizes: dict[int, Any]
) -> None:
    """Writes one graph, with names for its input and output and symbols for sizes of the input."""
    with plain(graph), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own parts for one another
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=(sizes,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


@contextlib.contextmanager
def plain(graph: nn.Module) -> Iterator[None]:
    """Lets a graph compute by the plain formulations, which are what is exported.

    Convolutions in place of products, results that overwrite inputs and what is computed again for
    gradients are made for torch's kernels.
    """
    learning = [parameter for parameter in graph.parameters() if parameter.requires_grad]
    try:
        graph.requires_grad_(False)
        with stock_linear(), torch.enable_grad():  # with gradients on nothing is overwritten
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _image_batches(clip: DenseCLIP) -> Iterator[Tensor]:
    """Yields images of noise, of the position table's own grid, wide, tall, and of a single cell."""
    side = clip.image_size // clip.patch_size
    generator = torch.Generator().manual_seed(0)
    for count, rows, columns in (
        (1, side, side),
        (3, 2, 9),
        (2, side + 3, side // 2 + 1),
        (1, 1, 1),
    ):
        size = (count, 3, rows * clip.patch_size, columns * clip.patch_size)
        yield torch.randn(size, generator=generator)


@torch.no_grad()
def _differences(graph: nn.Module, path: Path, inputs: Iterator[Tensor]) -> dict[str, float]:
    """Largest difference of the file's outputs from torch's for each input, by its shape."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = {}
    for given in inputs:
        wanted = graph(given).numpy()
        (computed,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        shape = "x".join(map(str, given.shape))
        if computed.shape != wanted.shape:
            raise InputError(f"{path.name} gives {computed.shape} for {shape}, not {wanted.shape}")
        difference = float(np.abs(computed - wanted).max() / np.abs(wanted).max())
        if not difference <= TOLERANCE:
            raise InputError(
                f"{path.name} differs from torch by {difference:.1e} of the largest feature for an input "
                f"of {shape}, and {TOLERANCE:.0e} is allowed: nothing is written; try another torch or "
                "onnxruntime"
            )
        differences[shape] = difference
    return differences


def _metadata(clip: DenseCLIP, differences: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Metadata for somebody who has nothing but the two files."""
    return {
        "clip": clip.name,
        "tower": type(clip.visual).__name__,
        "mean": list(clip.mean),
        "std": list(clip.std),
        "patch_size": clip.patch_size,
        "context_length": clip.context_length,
        "embed_dim": clip.embed_dim,
        "logit_scale": clip.logit_scale.exp().item(),
        "logit_bias": None if clip.logit_bias is None else clip.logit_bias.item(),
        "class_residual": clip.visual.class_residual,
        **clip.visual.dense_feature.entries(),
        "files": {
            DENSE_FILE: {
                "images": "float32 (B, 3, H, W), RGB in [0, 1], less mean, by std; H and W multiples of patch_size",
                "features": "float32 (B, embed_dim, H / patch_size, W / patch_size), of unit length per cell",
            },
            TEXT_FILE: {
                "tokens": "int64 (K, context_length), of the tokenizer of this CLIP",
                "embeddings": "float32 (K, embed_dim), of unit length",
            },
        },
        "differences": differences,
        "provenance": provenance(weights_hash=clip.weights_hash()),
    }
