"""The names that files of several kinds of CLIP share, as pure functions of tensors by name.

Native names are those of the modules here: ``visual.*``, ``text.*``, ``logit_scale``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from clipself_seg.clip.kind import Layout

# Names of the text tower of files that keep it at their top level.
TEXT_PARTS: tuple[str, ...] = (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_projection",
)
TRUNK = "visual.trunk."  # open_clip's prefix of timm's towers
TIMM_NAMES = (  # EVA's official name and timm's name; the order matters for the reverse direction
    (".attn.inner_attn_ln.", ".attn.norm."),
    (".attn.q_bias", ".attn.q_proj.bias"),
    (".attn.v_bias", ".attn.v_proj.bias"),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
    (".mlp.ffn_ln.", ".mlp.norm."),
)


def common_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Native names of tensors of OpenAI's, open_clip's, EVA-CLIP's and CLIPSelf's files, which do not collide."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(TRUNK):
            name = replace(name.replace(TRUNK, "visual."), TIMM_NAMES, backwards=True)
        elif name.startswith(TEXT_PARTS):
            name = f"text.{name}"
        elif name == "text.logit_scale":
            name = "logit_scale"
        renamed[name] = tensor
    return renamed


def text_at_top(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose text tower is at the top level, as in OpenAI's files."""
    return {name.removeprefix("text."): tensor for name, tensor in tensors.items()}


def with_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`text_at_top` with the counters of batch norms, which open_clip's modules have."""
    official = text_at_top(tensors)
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(0)
        for name in official
        if name.endswith("running_var")
    }
    return official | counters


def replace(name: str, pairs: Iterable[tuple[str, str]], backwards: bool = False) -> str:
    """A name with the first of each pair replaced by the second, in order, or the other way round."""
    for native, other in pairs:
        name = name.replace(other, native) if backwards else name.replace(native, other)
    return name


def stacked(tensors: Mapping[str, Tensor], parts: Sequence[str], whole: str) -> dict[str, Tensor]:
    """Tensors in which those of whose names `parts` are a part are one, in their order, if all are there and alike."""
    joined = dict(tensors)
    for name in tensors:
        if parts[0] not in name:
            continue
        names = [name.replace(parts[0], part) for part in parts]
        alike = {(tensors[n].shape, tensors[n].dtype) if n in tensors else None for n in names}
        if len(alike) == 1 and tensors[name].dim():
            joined[name.replace(parts[0], whole)] = torch.cat([joined.pop(n) for n in names])
    return joined


# OpenAI's, open_clip's and CLIPSelf's names of OpenAI ViTs and ResNets.
TEXT_AT_TOP = {
    "official": Layout(write=text_at_top),
    "open_clip": Layout(write=with_counters),
}
