"""`CLIP`, CLIP with dense features, and how the weights that a name stands for are found and written.

Shapes: B images, K texts, n regions of an image, E width of the embedding, h x w grid of the dense
features.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.checkpoints import zoo
from clipself_seg.checkpoints.dense_feature import ANY, BY_TOKEN, DenseFeature, require_feature
from clipself_seg.checkpoints.locate import is_remote, locate, published_as, published_file
from clipself_seg.checkpoints.needs import fetch_needed
from clipself_seg.checkpoints.read import STORED_METADATA, VARIANT, Checkpoint, read_checkpoint
from clipself_seg.clip import weights as clip_weights
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.clip.layers import packed_matrices
from clipself_seg.clip.openai import TRANSFORMERS_MARK
from clipself_seg.clip.runtime import without_values
from clipself_seg.clip.text import TextEncoder, encode_prompts
from clipself_seg.clip.tokenizers import Tokenizer
from clipself_seg.clip.tower import TowerOptions
from clipself_seg.clip.tower_kind import Architecture
from clipself_seg.clip.vision_language import VisionLanguageBackbone
from clipself_seg.data.images import fit_size, letterbox_image
from clipself_seg.errors import InputError, nearest
from clipself_seg.files import atomic_path

logger = logging.getLogger(__name__)
# Architecture, with QuickGELU or without, that has published weights trained with another mean and standard deviation
# of pixels than OpenAI's -> open_clip's tag of these weights.
OTHER_PIXELS = {"ViT-L-14": "laion2b_s32b_b82k", "ViT-H-14": "dfn5b", "ViT-H-14-378": "dfn5b"}


class CLIP(VisionLanguageBackbone):
    """CLIP whose image tower also has an embedding for every location, box and mask.

    Attributes:
        visual: image tower.
        text: text tower.
        logit_bias: bias of the logits before the sigmoid, of towers that were trained with one; None for others.
        report: report of `load_clip`, None for random weights.
    """

    def __init__(
        self,
        *,
        architecture: Architecture,
        quick_gelu: bool,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resize_mode: str | None = None,
        options: TowerOptions | None = None,
        checkpoint: Checkpoint | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """
        Args:
            architecture: sizes of both towers.
            quick_gelu: True if their MLPs have QuickGELU.
            mean: of RGB pixels in [0, 1]; None for that of the architecture's kind.
            std: as `mean`.
            resize_mode: "squash" or "shortest", as open_clip has it; None for that of the architecture's kind.
            options: of the image tower; None for `TowerOptions`' defaults.
            checkpoint: its weights; None for random ones from torch's current seed.
            notes: of the report, how they were read.

        Raises:
            InputError: as `load_file`.
        """
        super().__init__()
        kind, options = architecture.kind, options or TowerOptions()
        self.architecture = architecture
        self.quick_gelu = quick_gelu
        self.name = architecture.name
        self.embed_dim = architecture.embed_dim
        self.mean = tuple(mean or kind.mean)
        self.std = tuple(std or kind.std)
        self.squash = kind.squash if resize_mode is None else resize_mode == "squash"
        self.filter = kind.filter
        self.largest_scale = kind.largest_scale
        self.report: clip_weights.LoadReport | None = None
        with contextlib.nullcontext() if checkpoint is None else without_values():
            self.visual = kind.build_image(architecture, quick_gelu)
            self.visual.configure(options)
            self.text = kind.build_text(architecture, quick_gelu)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(kind.scale)))
            bias = architecture.logit_bias
            self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        if checkpoint is not None:
            checkpoint, gate_notes = clip_weights.fit_gate(self.visual, checkpoint)
            self.load_file(checkpoint)
            assert self.report is not None
            notes = (*self.report.notes, *notes, *gate_notes)
            notes += clip_weights.dense_notes(options.dense, checkpoint.dense)
            self.report = dataclasses.replace(self.report, notes=notes)
            self.distilled = checkpoint.dense
            logger.info("%s", self.report)

    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        return self.visual.features(images, names)

    def embed_images(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.visual(images)
        return embeddings

    def encode_text(self, texts: str | Sequence[str] | Tensor) -> Tensor:
        """Text embeddings (K, E), unit length, of K strings, one string, or tokens (K, context_length)."""
        tokens = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return F.normalize(self.text(tokens), dim=-1)

    def embed_texts(
        self, texts: Sequence[str], *, checkpointing: bool = False, stable: bool = True
    ) -> Tensor:
        tokens = self.tokenize(texts)
        return encode_prompts(self.text, tokens, checkpointing=checkpointing, stable=stable)

    @property
    def text_weights(self) -> TextEncoder:
        """The text tower."""
        return self.text

    @property
    def text_key(self) -> str | None:
        """Activation and variant; None where a subclass makes texts otherwise, by code that may change."""
        own = type(self).embed_texts is CLIP.embed_texts
        return f"{self.quick_gelu}{self.architecture.variant}" if own else None

    @property
    def text_trains(self) -> bool:
        """True if weights of the text tower train."""
        return any(parameter.requires_grad for parameter in self.text.parameters())

    @property
    def text_blocks(self) -> list[nn.Module]:
        """The blocks of the text tower, in order."""
        return list(self.text.blocks)

    @property
    def context_length(self) -> int:  # type: ignore[override]
        """Number of tokens of a text, start and end included."""
        return self.text.context_length

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Tokens (K, context_length) int64 of K texts; a string is one text.

        Raises:
            InputError: the tower's tokenizer is not there.
        """
        listed = [texts] if isinstance(texts, str) else texts
        return self.tokenizer(listed, self.context_length)

    def token_count(self, text: str) -> int:
        """Number of tokens of a text, start and end included; `tokenize` truncates longer texts."""
        return self.tokenizer.count(text)

    @property
    def tokenizer(self) -> Tokenizer:
        """Makes the tokens of texts."""
        return self.architecture.kind.tokenizer(self.architecture)

    def copy(self) -> CLIP:
        """A copy that shares the text tower."""
        return copy.deepcopy(self, {id(self.text): self.text})

    def file_tensors(
        self, tensors: Mapping[str, Tensor], layout: str = "official"
    ) -> dict[str, Tensor]:
        return clip_weights.to_layout(tensors, self.architecture.kind, layout)

    def file_entries(self) -> dict[str, str]:
        entries = {"activation": "quick_gelu" if self.quick_gelu else "gelu"}
        if self.squash != self.architecture.kind.squash:
            entries["resize_mode"] = "squash" if self.squash else "shortest"
        if self.architecture.variant:
            entries[VARIANT] = self.architecture.variant
        return entries

    def load_file(self, checkpoint: Checkpoint) -> None:
        self.report = clip_weights.load_strictly(self, self.architecture, checkpoint)


def load_clip(
    name: str,
    weights: str | os.PathLike[str] | None = "",
    *,
    dense: DenseFeature | None = None,
    override: bool = False,
) -> CLIP:
    """Loads a CLIP in evaluation mode, in float32 on the CPU.

    Args:
        name: name of weights in the zoo, such as ``eva02-vitb16``, or of shipped ones (``mini``, ``mini-clipself``,
            ``mini-clipself-proposals``, ``mini-eva``). With `weights` it is open_clip's model name, or ``ViT-Mini-8``.
        weights: path of a checkpoint in any published layout; an open_clip tag, a name of the zoo or an
            address, or ``hf-hub:org/name`` (downloaded); a tag of the shipped weights; or None for random weights
            from torch's current seed. Left out, those that `name` names.
        dense: the kind of dense features; None for the kind that the weights were distilled for, or "token" for a
            CLIP that was not distilled.
        override: read weights that were distilled for another dense feature all the same.

    Raises:
        InputError: the name or tag is unknown, or the file is missing, damaged, unsafe, of another
            model or dense feature, or has numbers that are not finite.
    """
    options = None if dense is None else TowerOptions(dense)
    return CLIP(**find_clip(name, weights, options, override)).eval()


def find_clip(
    name: str,
    weights: str | os.PathLike[str] | None,
    options: TowerOptions | None = None,
    override: bool = False,
) -> dict[str, Any]:
    """The arguments of `CLIP` with a name and weights, see `load_clip`; of random weights without pixels.

    Args:
        name: as for `load_clip`.
        weights: as for `load_clip`.
        options: of the image tower; None for the dense features that the weights were distilled for, and token for a
            CLIP that was not distilled.
        override: read weights that were distilled for another dense feature all the same.
    """
    if weights == "":
        name, weights = _named(name)
    architecture = find_architecture(name)
    if weights is None:
        own = {"architecture": architecture, "quick_gelu": architecture.quick_gelu}
        return {**own, "options": options or TowerOptions()}
    if not (given := os.fspath(weights)):
        raise InputError(
            f"{name} names no weights: give a file or a tag with it, None for random ones, or a name of weights, "
            "such as eva02-vitb16, alone"
        )
    checkpoint, published = _locate(architecture, given)
    if options is None:
        options = TowerOptions(BY_TOKEN if checkpoint.dense == ANY else checkpoint.dense)
    require_feature(options.dense, checkpoint.dense, checkpoint.path, override)
    architecture = clip_weights.as_written(architecture, checkpoint)
    quick_gelu, notes = clip_weights.choose_activation(architecture, checkpoint, published)
    return {
        "architecture": architecture,
        "quick_gelu": quick_gelu,
        "mean": checkpoint.mean or published.get("mean"),
        "std": checkpoint.std or published.get("std"),
        "resize_mode": checkpoint.resize_mode or published.get("resize_mode"),
        "options": options,
        "checkpoint": checkpoint,
        "notes": notes,
    }


def _named(name: str) -> tuple[str, str]:
    """Model and weights of a name that stands for both; no weights for any other."""
    if name in zoo.SHIPPED_TAGS:
        return zoo.shipped_model(name), name
    entry = zoo.zoo().get(name)
    if entry is None:
        return name, ""
    if not entry.model:
        raise InputError(f"{name} is no CLIP alone: load it by clipself_seg.load")
    return entry.model, name


def _locate(architecture: Architecture, weights: str) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint of a path, name, address or tag, and open_clip's settings of it if it is its tag."""
    if weights in zoo.SHIPPED_TAGS:
        return _shipped(weights), {}
    entry = zoo.zoo().get(weights)
    if entry and ":" in weights.removeprefix(f"{architecture.name}:"):
        raise InputError(
            f'weights "{weights}" are of {entry.model}, not {architecture.name}: load that'
        )
    fetch_needed({"MODEL.CLIP.NAME": architecture.name, "MODEL.CLIP.WEIGHTS": weights}, texts=False)
    path = None
    # No tag, for which open_clip would be imported.
    if os.sep in weights or Path(weights).suffix or is_remote(weights):
        path = locate(weights)
        known = published_as(path, architecture.name)
        if known is None:
            return _of_file(architecture, path), {}
        weights = known.name
    weights = weights.removeprefix(f"{architecture.name}:")  # the zoo's names of open_clip's tags
    import open_clip

    if published := open_clip.get_pretrained_cfg(architecture.name, weights):
        path = path or published_file(published["hf_hub"])
        return _original(read_checkpoint(path)), published
    if entry := zoo.zoo().get(weights):
        checkpoint = read_checkpoint(path or locate(weights))
        activation = checkpoint.activation or entry.activation or None
        checkpoint = dataclasses.replace(checkpoint, activation=activation)
        return (checkpoint if entry.distilled else _original(checkpoint)), {}
    if Path(weights).exists():
        return _of_file(architecture, Path(weights)), {}
    tags = open_clip.list_pretrained_tags_by_model(architecture.name)
    shipped = [tag for tag in zoo.shipped_tags() if zoo.shipped_model(tag) == architecture.name]
    names = [entry.name for entry in zoo.zoo().values() if entry.model == architecture.name]
    raise InputError(
        f'no weights "{weights}" for {architecture.name}: neither a file nor a tag; '
        f"{nearest(weights, [*tags, *shipped, *names])}"
    )


def _of_file(architecture: Architecture, path: Path) -> Checkpoint:
    """The checkpoint of a file; warns where it may be of published weights that were trained with other pixels."""
    checkpoint = read_checkpoint(path)
    if TRANSFORMERS_MARK in checkpoint.tensors:  # no distillation writes this layout
        checkpoint = _original(checkpoint)
    tag = OTHER_PIXELS.get(architecture.name.removesuffix("-quickgelu"))
    if tag and checkpoint.mean is None:
        logger.warning(
            "%s does not say with which pixels it was trained: those of OpenAI's CLIP are taken (mean, standard "
            "deviation, the middle of an image). If it is open_clip's %s, load it by that tag in place of the path",
            path,
            tag,
        )
    return checkpoint


def _shipped(tag: str) -> Checkpoint:
    """The checkpoint of a shipped tag, whose image tower may lie in a file of its own over another CLIP's."""
    layers = [read_checkpoint(path) for path in zoo.shipped_files(tag)]
    first, last = layers[0], layers[-1]
    rest = {k: v for k, v in first.tensors.items() if not k.startswith("visual.")}
    tensors = rest | last.tensors
    whole = dataclasses.replace(first, path=last.path, tensors=tensors, dense=last.dense)
    return _original(whole) if tag in zoo.MINI_CLIPS else whole


def _original(checkpoint: Checkpoint) -> Checkpoint:
    """A published CLIP, which was distilled for no dense feature."""
    return dataclasses.replace(checkpoint, dense=ANY)


def save_clip(
    clip: VisionLanguageBackbone,
    path: str | os.PathLike[str],
    layout: str = "official",
    dtype: torch.dtype = torch.float32,
    part: str = "",
) -> None:
    """Writes a checkpoint that `load_clip` reads, atomically.

    Args:
        clip: model to write.
        path: path of the file: ``.safetensors``, or ``.pt`` for the wrapped form of CLIPSelf's code.
        layout: ``official`` (OpenAI's, EVA's and CLIPSelf's names) or ``open_clip``.
        dtype: precision of the stored weights.
        part: ``visual.`` for the image tower alone, as the files are that are laid over `mini`.

    Raises:
        InputError: the layout or the suffix is unknown.
    """
    path = Path(path)
    native = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in packed_matrices(clip.state_dict()).items()
        if name.startswith(part)
    }
    tensors = clip.file_tensors(native, layout)
    metadata = {
        "name": clip.name,
        "pixel_mean": json.dumps(clip.mean),
        "pixel_std": json.dumps(clip.std),
        **clip.distilled.entries(),
        **clip.file_entries(),
    }
    if path.suffix == ".safetensors":
        import safetensors.torch

        with atomic_path(path) as temporary:
            # One key: safetensors writes several in random order, and equal models give equal files.
            text = json.dumps(metadata, sort_keys=True)
            safetensors.torch.save_file(tensors, temporary, metadata={STORED_METADATA: text})
    elif path.suffix in {".pt", ".pth"}:
        # A file, not its path: torch would write the random temporary name into the archive.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save({"epoch": 0, "state_dict": tensors, **metadata}, file)
    else:
        raise InputError(f"cannot write {path}: name it .safetensors or .pt")


def whole_image_features(clip: VisionLanguageBackbone, image: np.ndarray, side: int) -> np.ndarray:
    """Unit-length dense features of an image without the padding, (E, h, w).

    Args:
        clip: model; the features are computed on its device.
        image: (H, W, 3) uint8 RGB.
        side: longest side in pixels that the image is resized to, a multiple of `clip.patch_size`. The
            last row or column of cells may be partly padding.
    """
    square = letterbox_image(image, side).transpose(2, 0, 1).copy()
    images = clip.preprocess(torch.from_numpy(square)[None].to(clip.device))
    with torch.no_grad():
        dense: np.ndarray = clip.encode_dense(images)[0].cpu().numpy()
    fitted = fit_size(image.shape[1], image.shape[0], side)
    width, height = (-(-pixels // clip.patch_size) for pixels in fitted)
    return dense[:, :height, :width]
