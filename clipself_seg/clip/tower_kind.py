"""`TowerKind`, the description of an architecture of CLIP: one in each tower's file, registered in `find_kind.py`.

A kind says how a configuration of it is recognised and built, which tensors identify it in a file, under which names
files hold it, and how its images and texts are made. Nothing else in the project asks for a kind by its name. Behind
it stand the names that files of several kinds share, as functions of tensors by name. Native names are those of the
modules here: ``visual.*``, ``text.*``, ``logit_scale``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipself_seg.clip.runtime import without_values
from clipself_seg.clip.text import TextEncoder, TextTower
from clipself_seg.clip.tokenizers import Tokenizer, clip_tokenizer
from clipself_seg.clip.tower import ImageTower
from clipself_seg.clip.vision_language import LARGEST_SCALE

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Keys of open_clip's text configs that `TextTower` implements; a config with any other key is refused.
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}

Config = Mapping[str, Any]
"""A model's JSON in open_clip's form: embed_dim, vision_cfg, text_cfg and whatever else it has."""
Tensors = Mapping[str, Tensor]
Sizes = tuple[int, int, int, int]


class Signature(NamedTuple):
    """Kind and sizes that identify a CLIP image tower.

    Attributes:
        kind: name of the kind.
        width: channels of the residual stream, or of a convolutional tower's first stage.
        layers: number of blocks, of all stages of a convolutional tower together.
        patch_size: stride of the dense features in pixels.
        embed_dim: width E of the embedding.
    """

    kind: str
    width: int
    layers: int
    patch_size: int
    embed_dim: int

    def __str__(self) -> str:
        return (
            f"{self.kind} (width {self.width}, {self.layers} blocks, stride {self.patch_size}, "
            f"embedding {self.embed_dim})"
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names under which files of one origin hold a model.

    Attributes:
        write: native tensors under its names; None for a layout that is read only.
        marks: names that are in each of its files and, together, in no other's. Empty for a layout that needs none,
            because OpenAI's, open_clip's and EVA's names are read without (`weights.to_native`).
        read: its tensors under native names, those of the modules here; asked if it has marks.
        variant: of `TowerKind.variants` the one that its tensors are of, "" for none.
    """

    write: Callable[[Tensors], dict[str, Tensor]] | None = None
    marks: tuple[str, ...] = ()
    read: Callable[[Tensors], dict[str, Tensor]] = dict
    variant: Callable[[Tensors], str] | None = None


@dataclasses.dataclass(frozen=True)
class PositionTable:
    """Settings by which a position table of another grid is resized when a file is loaded.

    Attributes:
        first: rows in front of the patches' that are kept, such as the class token's.
        antialias: True if the table is smoothed before it is made smaller.
        mode: "bicubic" or "bilinear".
    """

    first: int = 1
    antialias: bool = True
    mode: str = "bicubic"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Model config: its name, its kind and the sections of the JSON from which the towers are built.

    Attributes:
        name: open_clip's name, or the project's own.
        kind: the kind of its tower, with all that models of this kind share.
        embed_dim: width E of the embedding.
        vision: ``vision_cfg``.
        text: ``text_cfg``.
        quick_gelu: True if the name says that its MLPs have QuickGELU.
        logit_bias: initial bias of scaled cosines before a sigmoid; None for a model with a softmax.
        variant: of `TowerKind.variants`, "" for the model as its config says.
    """

    name: str
    kind: TowerKind
    embed_dim: int
    vision: dict[str, Any]
    text: dict[str, Any]
    quick_gelu: bool
    logit_bias: float | None = None
    variant: str = ""

    @property
    def signature(self) -> Signature:
        """Signature of the image tower."""
        return self.kind.signature(self.image_tensors())

    def image_tensors(self) -> dict[str, Tensor]:
        """Tensors of the image tower under native names, which is built without values for them."""
        with without_values():
            tower = self.kind.build_image(self, self.quick_gelu)
        return {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}


def clip_text(architecture: Architecture, quick_gelu: bool) -> TextTower:
    """The text tower of OpenAI's CLIP, which most kinds have."""
    return TextTower(embed_dim=architecture.embed_dim, quick_gelu=quick_gelu, **architecture.text)


def has_clip_text(config: Config) -> bool:
    """True if `clip_text` builds the text tower of a config."""
    return not set(config["text_cfg"]) - TEXT_KEYS and "multimodal_cfg" not in config


def count_blocks(tensors: Tensors, stack: str) -> int:
    """Number of blocks of a stack of the image tower, such as ``blocks`` or ``layer1``, by native names."""
    pattern = re.compile(rf"visual\.{re.escape(stack)}\.(\d+)\.")
    return len({match.group(1) for name in tensors if (match := pattern.match(name))})


def vit_sizes(kernel: str, stack: str, embedding: str, tensors: Tensors, axis: int = 0) -> Sizes:
    """Sizes of a ViT by tensors under native names, see `TowerKind.read_sizes`.

    Args:
        kernel: name of the patch convolution's weight, whose rows are the width.
        stack: of the blocks, as in `count_blocks`.
        embedding: name of the tensor that is E long on an axis.
        tensors: of a file or a module.
        axis: that axis.
    """
    shape = tensors[kernel].shape
    return shape[0], count_blocks(tensors, stack), shape[-1], tensors[embedding].shape[axis]


def _clip_tokenizer(architecture: Architecture) -> Tokenizer:
    return clip_tokenizer()


@dataclasses.dataclass(frozen=True)
class TowerKind:
    """All that is special to one kind of CLIP.

    Attributes:
        name: as in messages.
        supports: function of a model's config; True if it is of this kind, and all of its keys are implemented.
        build_image: its image tower with random weights; the second argument is whether MLPs have QuickGELU.
        key_tensors: tensors by which a file is recognised, under native names, with their numbers of dimensions;
            no file of a kind behind it in `find_kind.KINDS` has all of them.
        read_sizes: width, blocks, patch size and E of `Signature` by tensors under native names, in which `key_tensors`
            are.
        build_text: its text tower with random weights.
        layouts: forms of its files by name; "official" and "open_clip" are those that `save_clip` writes.
        positions: tables of positions under native names.
        mean: of RGB pixels in [0, 1], subtracted from an image.
        std: of RGB pixels in [0, 1], by which an image is divided.
        squash: True if its authors squash whole images into a square, in place of cutting out the middle.
        filter: interpolation by which they resize images, "bicubic" or "bilinear".
        tokenizer: builds the tokenizer, which gives token ids of texts.
        templates: name in `templates.TEMPLATES` of the sentences that its authors compare images with, as a user who
            has no other reason should take them.
        scale: factor of cosines before training.
        largest_scale: upper bound of the factor in training, for those who compare masks with words as ODISE and
            FC-CLIP do, which clamp it again; infinite where a file's own factor is what it was trained to.
        image_files: True if there are files of its image tower alone, which load without a text tower.
        quick_gelu: True if there are models of equal shapes with QuickGELU and with exact GELU.
        variants: other builds of its models, with the same tensors, that a file may be of; what each changes.
    """

    name: str
    supports: Callable[[Config], bool]
    build_image: Callable[[Architecture, bool], ImageTower]
    key_tensors: Mapping[str, int]
    read_sizes: Callable[[Tensors], Sizes]
    layouts: Mapping[str, Layout]
    positions: Mapping[str, PositionTable]
    build_text: Callable[[Architecture, bool], TextEncoder] = clip_text
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    squash: bool = False
    filter: str = "bicubic"
    tokenizer: Callable[[Architecture], Tokenizer] = _clip_tokenizer
    templates: str = "vild63"
    scale: float = 1 / 0.07
    largest_scale: float = LARGEST_SCALE
    image_files: bool = False
    quick_gelu: bool = False
    variants: Mapping[str, Callable[[Architecture], Architecture]] = dataclasses.field(
        default_factory=dict
    )

    def signature(self, tensors: Tensors) -> Signature:
        """Signature of the image tower that tensors under native names are of, in which `key_tensors` are."""
        return Signature(self.name, *self.read_sizes(tensors))


# Names of the text tower of files that keep it at their top level.
TEXT_PARTS: tuple[str, ...] = (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_projection",
)
TRUNK = "visual.trunk."  # open_clip's prefix of timm's towers
# Pairs of a native name and another layout's, of beginnings and of what stands in a block, see `renamed`.
IN_TRUNK = (("visual.blocks.", f"{TRUNK}blocks."), ("visual.", TRUNK))
EVA_IN_TIMM = (
    (".attn.inner_attn_ln.", ".attn.norm."),
    (".attn.q_bias", ".attn.q_proj.bias"),
    (".attn.v_bias", ".attn.v_proj.bias"),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
    (".mlp.ffn_ln.", ".mlp.norm."),
)
MLP_NAMES = ((".mlp.c_fc.", ".mlp.fc1."), (".mlp.c_proj.", ".mlp.fc2."))
TIMM_BLOCK = (
    (".ln_", ".norm"),
    (".ls_1.", ".ls1."),
    (".ls_2.", ".ls2."),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
    *MLP_NAMES,
)
TRANSFORMERS_BLOCK = ((".ln_", ".layer_norm"), (".attn.", ".self_attn."), *MLP_NAMES)
TRANSFORMERS_TEXT = (
    ("text.transformer.resblocks.", "text_model.encoder.layers."),
    ("text.token_embedding.", "text_model.embeddings.token_embedding."),
    ("text.positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("text.ln_final.", "text_model.final_layer_norm."),
)
TRANSFORMERS_HEADS = (".q_proj.", ".k_proj.", ".v_proj.")  # which are packed in ".in_proj_"


def common_names(tensors: Tensors) -> dict[str, Tensor]:
    """Native names of tensors of OpenAI's, open_clip's, EVA-CLIP's and CLIPSelf's files, which do not collide."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(TRUNK):
            name = native_name(name, IN_TRUNK, EVA_IN_TIMM)
        elif name.startswith(TEXT_PARTS):
            name = f"text.{name}"
        elif name == "text.logit_scale":
            name = "logit_scale"
        renamed[name] = tensor
    return renamed


def text_at_top(tensors: Tensors) -> dict[str, Tensor]:
    """Tensors whose text tower is at the top level, as in OpenAI's files."""
    return {name.removeprefix("text."): tensor for name, tensor in tensors.items()}


def renamed(name: str, top: Iterable[tuple[str, str]], block: Iterable[tuple[str, str]]) -> str:
    """A name that begins with the first of a pair of `top`, with its second; pairs of `block` are for what follows."""
    for old, new in top:
        if name.startswith(old):
            rest = name.removeprefix(old)
            if old.endswith((".resblocks.", ".layer.", ".layers.", "blocks.")):
                for part, other in block:
                    if part in rest:
                        return new + rest.replace(part, other, 1)
            return new + rest
    return name


def native_name(name: str, top: Iterable[tuple[str, str]], block: Iterable[tuple[str, str]]) -> str:
    """The native name of what another layout calls so, by pairs of native and other names, see `renamed`."""
    return renamed(name, [(o, n) for n, o in top], [(o, n) for n, o in block])


def of_transformers(tensors: Tensors, parts: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Native names of transformers' tensors, whose queries, keys and values are packed; what is none stays as it is.

    Args:
        tensors: of a file; heads that lack one of the three, or are not alike, stay apart.
        parts: pairs of native and their beginnings.
    """
    joined = dict(tensors)
    for name in tensors:
        if TRANSFORMERS_HEADS[0] not in name:
            continue
        names = [name.replace(TRANSFORMERS_HEADS[0], head) for head in TRANSFORMERS_HEADS]
        alike = {(tensors[n].shape, tensors[n].dtype) if n in tensors else None for n in names}
        if len(alike) == 1 and tensors[name].dim():
            packed = torch.cat([joined.pop(n) for n in names])
            joined[name.replace(TRANSFORMERS_HEADS[0], ".in_proj_")] = packed
    return {native_name(name, parts, TRANSFORMERS_BLOCK): t for name, t in joined.items()}


# OpenAI's, open_clip's and CLIPSelf's names of OpenAI ViTs and ResNets.
TEXT_AT_TOP = dict.fromkeys(("official", "open_clip"), Layout(write=text_at_top))
