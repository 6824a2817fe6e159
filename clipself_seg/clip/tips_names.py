"""TIPSv2's files under native names: the published layout, transformers', and timm's with the image tower alone.

Native names are those of `tips.TipsTransformer` below ``visual.``, of `tips_text.TipsTextTower` below ``text.``, and
``logit_scale``. Published files and those of transformers' `save_pretrained` have a ``temperature``, by which cosines
are divided, or none, and a token for masked patches, which is for pretraining. Timm's table of positions has no row
for the class token, whose position is a part of the token.

Shapes: D width, N patches.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from clipself_seg.clip.file_names import stacked

TEMPERATURE = 0.005065968260169029  # that published files, which have none, were trained to
VISION = "vision_model."
TEXT = "text_model."
BLOCK = "transformer.resblocks."
MASK_TOKEN = "vision_model.embeddings.mask_token"
OFFICIAL = "vision_encoder."
OFFICIAL_TEXT = "text_encoder."
OFFICIAL_MASK_TOKEN = "vision_encoder.mask_token"
CLASS_TOKEN = "visual.class_embedding"
REGISTER = "visual.register_embedding"
POSITIONS = "visual.positional_embedding"
# Native name and transformers' name of what keeps its shape.
_VISION = (
    (f"visual.{BLOCK}", f"{VISION}encoder.layer."),
    ("visual.conv1.", f"{VISION}embeddings.patch_embeddings.projection."),
    ("visual.ln_post.", f"{VISION}layernorm."),
    (CLASS_TOKEN, f"{VISION}embeddings.cls_token"),
    (REGISTER, f"{VISION}embeddings.register_tokens"),
    (POSITIONS, f"{VISION}embeddings.position_embeddings"),
)
_VISION_BLOCK = (
    (".ln_", ".norm"),
    (".attn.out_proj.", ".attention.o_proj."),
    (".attn.", ".attention."),
    (".ls_1.gamma", ".layer_scale1.lambda1"),
    (".ls_2.gamma", ".layer_scale2.lambda1"),
)
_TEXT = (
    (f"text.{BLOCK}", f"{TEXT}encoder.layers."),
    ("text.token_embedding.", f"{TEXT}embeddings.token_embedding."),
    ("text.ln_final.", f"{TEXT}final_layer_norm."),
)
_TEXT_BLOCK = ((".ln_", ".layer_norm"), (".attn.", ".self_attn."))
_MLP = ((".mlp.c_fc.", ".mlp.fc1."), (".mlp.c_proj.", ".mlp.fc2."))
_GATED = (".mlp.gate_proj.", ".mlp.up_proj.")
_DOWN = ".mlp.down_proj."
_HEADS = (".q_proj.", ".k_proj.", ".v_proj.")
# Native name and timm's, of blocks and of the rest.
_TIMM = (
    (f"visual.{BLOCK}", "blocks."),
    ("visual.conv1.", "patch_embed.proj."),
    ("visual.ln_post.", "norm."),
    (CLASS_TOKEN, "cls_token"),
    (REGISTER, "reg_token"),
    (POSITIONS, "pos_embed"),
)
_TIMM_BLOCK = (
    (".ln_", ".norm"),
    (".ls_1.", ".ls1."),
    (".ls_2.", ".ls2."),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
)
# The published name of what has another one than in timm.
_OFFICIAL = tuple(
    (native, OFFICIAL + ("register_tokens" if native == REGISTER else timm))
    for native, timm in _TIMM
)
_OFFICIAL_GATED = ((".mlp.c_fc.", ".mlp.w12."), (".mlp.c_proj.", ".mlp.w3."))
_VECTORS = (CLASS_TOKEN, REGISTER)
Tensors = Mapping[str, Tensor]
Pairs = tuple[tuple[str, str], ...]
logger = logging.getLogger(__name__)


def read_official(tensors: Tensors) -> dict[str, Tensor]:
    """Native tensors of a published file; what is neither stays as it is."""
    renamed = {}
    for name, tensor in _with_scale(tensors).items():
        if name.startswith(OFFICIAL_TEXT):
            name = f"text.{name.removeprefix(OFFICIAL_TEXT)}"
        name = _native(name, _OFFICIAL, _TIMM_BLOCK + _MLP + _OFFICIAL_GATED)
        renamed[name] = tensor
    return _flat(renamed)


def write_official(tensors: Tensors) -> dict[str, Tensor]:
    """Native tensors in the layout of published files."""
    written: dict[str, Tensor] = {}
    for native, tensor in tensors.items():
        if native == "logit_scale":
            written["temperature"] = _temperature_of(tensor)
            continue
        name = native
        if native.startswith("text."):
            name = f"{OFFICIAL_TEXT}{native.removeprefix('text.')}"
        gated = _is_gated(native.replace(".c_proj.", ".c_fc."), tensors)
        mlp = _OFFICIAL_GATED if gated else _MLP
        written[_other(name, _OFFICIAL, _TIMM_BLOCK + mlp)] = _with_axes(native, tensor)
    if CLASS_TOKEN in tensors:
        written[OFFICIAL_MASK_TOKEN] = torch.zeros_like(tensors[CLASS_TOKEN])[None]
    return written


def read_transformers(tensors: Tensors) -> dict[str, Tensor]:
    """Native tensors of a file of transformers' `save_pretrained`; what is neither stays as it is."""
    tensors = stacked(_with_scale(tensors), _GATED, ".mlp.fc1.")
    renamed = {}
    for name, tensor in stacked(tensors, _HEADS, ".in_proj_").items():
        name = name.replace(_DOWN, ".mlp.fc2.")
        for top, block in ((_VISION, _VISION_BLOCK), (_TEXT, _TEXT_BLOCK)):
            name = _native(name, top, block + _MLP)
        renamed[name] = tensor
    return _flat(renamed)


def write_transformers(tensors: Tensors) -> dict[str, Tensor]:
    """Native tensors in transformers' layout."""
    written: dict[str, Tensor] = {}
    for native, tensor in tensors.items():
        name = _other(native, _VISION, _VISION_BLOCK + _MLP)
        name = _other(name, _TEXT, _TEXT_BLOCK + _MLP)
        if native == "logit_scale":
            written["temperature"] = _temperature_of(tensor)
        elif ".in_proj_" in native:
            stem, _, leaf = name.rpartition(".in_proj_")
            for head, part in zip(_HEADS, tensor.chunk(3)):
                written[f"{stem}{head}{leaf}"] = part.contiguous()
        elif _is_gated(native, tensors):
            stem, _, leaf = name.rpartition(".mlp.fc1.")
            for gate, part in zip(_GATED, tensor.chunk(2)):
                written[f"{stem}{gate}{leaf}"] = part.contiguous()
        else:
            gated = _is_gated(native.replace(".c_proj.", ".c_fc."), tensors)
            name = name.replace(".mlp.fc2.", _DOWN) if gated else name
            written[name] = _with_axes(native, tensor)
    if CLASS_TOKEN in tensors:
        written[MASK_TOKEN] = torch.zeros_like(tensors[CLASS_TOKEN])[None]
    return written


def read_timm(tensors: Tensors) -> dict[str, Tensor]:
    """Native tensors of an image tower in timm's layout; of other models with registers, unchanged."""
    register = tensors["reg_token"]
    if register.dim() != 3 or register.shape[1] != 1:
        return dict(tensors)
    renamed = {_native(name, _TIMM, _TIMM_BLOCK + _MLP): t for name, t in tensors.items()}
    native = _flat(renamed)
    rows_ND = native[POSITIONS]
    if rows_ND.dim() == 2:  # what is of other dimensions the loader refuses
        native[POSITIONS] = torch.cat([torch.zeros_like(rows_ND[:1]), rows_ND])
    native["logit_scale"] = _scale_of(torch.tensor(TEMPERATURE))
    return native


def write_timm(tensors: Tensors) -> dict[str, Tensor]:
    """The image tower of native tensors in timm's layout."""
    image = {name: t for name, t in tensors.items() if name.startswith("visual.")}
    positions_LD = image[POSITIONS]
    image[CLASS_TOKEN] = image[CLASS_TOKEN] + positions_LD[0]
    image[POSITIONS] = positions_LD[1:].contiguous()
    return {_other(n, _TIMM, _TIMM_BLOCK + _MLP): _with_axes(n, t) for n, t in image.items()}


def _with_scale(tensors: Tensors) -> dict[str, Tensor]:
    """Tensors without a token for masked patches, and with the logarithm of a scale in the temperature's place."""
    kept = {n: t for n, t in tensors.items() if n not in (MASK_TOKEN, OFFICIAL_MASK_TOKEN)}
    temperature = kept.pop("temperature", torch.tensor(TEMPERATURE))
    return {"logit_scale": _scale_of(temperature)} | kept


def _temperature_of(scale: Tensor) -> Tensor:
    return torch.exp(-scale.double()).to(scale.dtype)


def _scale_of(temperature: Tensor) -> Tensor:
    """Logarithm of the factor of cosines, float32, of what they are divided by."""
    if temperature.numel() != 1 or not temperature.is_floating_point():
        return temperature  # which the loader refuses
    temperature = temperature.double()
    if not bool((temperature > 0).all()):
        logger.warning(
            "the temperature of this file is %g, which cosines cannot be divided by; the published one, %g, is taken",
            temperature,
            TEMPERATURE,
        )
        temperature = torch.full_like(temperature, TEMPERATURE)
    return -temperature.log().float()


def _is_gated(name: str, tensors: Tensors) -> bool:
    """Whether a tensor is of the first layer of a gated MLP, by its number of rows."""
    match = re.fullmatch(r"(visual\..*\.mlp\.)c_fc\.(weight|bias)", name)
    if match is None:
        return False
    second = tensors[f"{match.group(1)}c_proj.weight"]
    return tensors[name].shape[0] == 2 * second.shape[1]


def _native(name: str, top: Pairs, block: Pairs) -> str:
    return _renamed(name, [(o, n) for n, o in top], [(o, n) for n, o in block])


def _other(name: str, top: Pairs, block: Pairs) -> str:
    return _renamed(name, list(top), list(block))


def _renamed(name: str, top: list[tuple[str, str]], block: list[tuple[str, str]]) -> str:
    """A name that begins with the first of a pair of `top`, with its second; pairs of `block` are for what follows."""
    for old, new in top:
        if name.startswith(old):
            rest = name.removeprefix(old)
            if not old.endswith((".resblocks.", ".layer.", ".layers.", "blocks.")):
                return new + rest
            for part, other in block:
                if part in rest:
                    rest = rest.replace(part, other, 1)
                    break
            return new + rest
    return name


def _flat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tokens as (D), positions as (L, D), without the axes of 1 that files have before them."""
    for name in (*_VECTORS, POSITIONS):
        rank = 2 if name == POSITIONS else 1
        while name in tensors and tensors[name].dim() > rank and tensors[name].shape[0] == 1:
            tensors[name] = tensors[name][0]
    return tensors


def _with_axes(name: str, tensor: Tensor) -> Tensor:
    """The reverse of `_flat`."""
    if name in _VECTORS:
        return tensor[None, None]
    return tensor[None] if name == POSITIONS else tensor
