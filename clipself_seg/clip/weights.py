"""Loads CLIP weights of every published layout into the towers, strictly and with a report.

Native names are those of the modules here: ``visual.*``, ``text.*``, ``logit_scale``. The layouts that
are read and written:

- official: OpenAI's, open_clip's and CLIPSelf's names for OpenAI ViTs and ResNets (text tower at the
  top level); EVA-CLIP's and CLIPSelf's names for EVA-02 (text tower under ``text.``);
- open_clip: the same for OpenAI ViTs and ResNets; timm's names under ``visual.trunk.`` for EVA-02.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipself_seg.checkpoints.dense_feature import ANY, DenseFeature
from clipself_seg.checkpoints.names import name_problem
from clipself_seg.checkpoints.read import Checkpoint
from clipself_seg.clip.build import Architecture, find_architecture, list_architectures
from clipself_seg.clip.positions import resample_positions
from clipself_seg.clip.signatures import first_gap, signature_of
from clipself_seg.clip.tower import ImageTower
from clipself_seg.errors import InputError

logger = logging.getLogger(__name__)
# Entries of published files that are no weights: recomputed (rotary tables, masks) or constants.
NO_WEIGHTS = re.compile(
    r"(^|\.)(freqs_cos|freqs_sin|num_batches_tracked|attn_mask|input_resolution|context_length"
    r"|vocab_size|position_ids)$"
)
TEXT_PARTS: tuple[str, ...] = (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
)
TEXT_PARTS += ("text_projection",)
TIMM_NAMES = (  # EVA's official name and timm's name; the order matters for the reverse direction
    (".attn.inner_attn_ln.", ".attn.norm."),
    (".attn.q_bias", ".attn.q_proj.bias"),
    (".attn.v_bias", ".attn.v_proj.bias"),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
    (".mlp.ffn_ln.", ".mlp.norm."),
)
GATE_MODULE = "dense_gate"  # module of an image tower
POSITIONS: tuple[str, ...] = ("visual.positional_embedding", "visual.pos_embed")
POSITIONS += ("visual.attnpool.positional_embedding",)


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Report of a loaded checkpoint; its string is the line in the log.

    Attributes:
        model: name of the model.
        source: name of the checkpoint.
        loaded: number of tensors that were loaded.
        converted: number of tensors whose precision was changed.
        missing: number of tensors that the checkpoint lacks.
        unexpected: number of tensors that the model lacks.
        notes: further remarks, such as resized positions.
    """

    model: str
    source: str
    loaded: int
    converted: int
    missing: int
    unexpected: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"{self.model} <- {self.source}: {self.loaded} loaded, {self.converted} converted, "
            f"{self.missing} missing, {self.unexpected} unexpected{notes}"
        )


def to_native(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any supported layout under native names, without entries that are no weights."""
    renamed = {}
    for name, tensor in tensors.items():
        if NO_WEIGHTS.search(name):
            continue
        if name.startswith("visual.trunk."):
            name = _replace(name.replace("visual.trunk.", "visual."), TIMM_NAMES, backwards=True)
        elif name.startswith(TEXT_PARTS):
            name = f"text.{name}"
        elif name == "text.logit_scale":
            name = "logit_scale"
        renamed[name] = tensor
    return renamed


def to_official(tensors: Mapping[str, Tensor], separate_text: bool) -> dict[str, Tensor]:
    """Tensors with native names under the names of OpenAI's, EVA's and CLIPSelf's files.

    Args:
        tensors: tensors under native names.
        separate_text: whether the text tower stays under ``text.``, as in EVA's files.
    """
    if separate_text:
        return dict(tensors)
    return {name.removeprefix("text."): tensor for name, tensor in tensors.items()}


def to_open_clip(tensors: Mapping[str, Tensor], separate_text: bool) -> dict[str, Tensor]:
    """Tensors with native names under open_clip's names, with the counters of batch norms.

    Args:
        tensors: tensors under native names.
        separate_text: whether the model is EVA's, whose image tower has timm's names in open_clip.
    """
    if not separate_text:
        official = to_official(tensors, separate_text)
        counters = {
            name.replace("running_var", "num_batches_tracked"): torch.tensor(0)
            for name in official
            if name.endswith("running_var")
        }
        return official | counters
    return {
        _replace(name.replace("visual.", "visual.trunk.", 1), TIMM_NAMES): tensor
        for name, tensor in tensors.items()
    }


def _replace(name: str, pairs: tuple[tuple[str, str], ...], backwards: bool = False) -> str:
    for official, timm in pairs:
        name = name.replace(timm, official) if backwards else name.replace(official, timm)
    return name


LAYOUTS: dict[str, Callable[[Mapping[str, Tensor], bool], dict[str, Tensor]]] = {
    "official": to_official,
    "open_clip": to_open_clip,
}


def load_strictly(
    module: nn.Module, architecture: Architecture, checkpoint: Checkpoint
) -> LoadReport:
    """Loads a checkpoint into a module; all names and shapes have to match.

    Tensors of any floating-point precision become float32, and a position table of another square grid
    is resized.

    Args:
        module: module with ``visual``, ``text`` and ``logit_scale``; its tensors may be on "meta".
        architecture: architecture of the module.
        checkpoint: checkpoint in any supported layout.

    Raises:
        InputError: the checkpoint is of another architecture, has missing, unexpected or misshapen
            tensors, or weights that are integers, sparse, without values, NaN or infinite.
    """
    tensors = to_native(checkpoint.tensors)
    _check_architecture(tensors, architecture, checkpoint)
    wanted = module.state_dict()
    _check_names(tensors, wanted, checkpoint)
    notes = []
    converted = 0
    for name, target in wanted.items():
        tensor = tensors[name]
        if not tensor.is_floating_point():
            raise InputError(
                f"{checkpoint.path}: {name} is {str(tensor.dtype)[6:]}, not floating point; "
                "quantised weights cannot be used, take the original checkpoint"
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            what = "has no values" if tensor.is_meta else "is sparse"
            raise InputError(
                f"{checkpoint.path}: {name} {what}; save the weights as dense tensors of the CPU"
            )
        if name in POSITIONS and tensor.shape != target.shape:
            tensor = _resize_positions(name, tensor, target, checkpoint.path)
            notes.append(f"positions resized to {tuple(target.shape)}")
        converted += tensor.dtype != target.dtype
        single = tensor.numel() == target.numel() == 1
        tensors[name] = (tensor.reshape(target.shape) if single else tensor).to(target.dtype)
        if not tensors[name].isfinite().all():
            raise InputError(
                f"{checkpoint.path}: {name} has NaN or infinite numbers; take a checkpoint from before "
                "its training failed, or fetch it again"
            )
    _check_shapes(tensors, wanted, checkpoint)
    module.load_state_dict(tensors, assign=True)
    if converted:
        notes.append("converted to float32")
    source = f"{checkpoint.path.name} ({checkpoint.format})"
    return LoadReport(architecture.name, source, len(wanted), converted, 0, 0, tuple(notes))


def fit_gate(tower: ImageTower, checkpoint: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint with a gate if the tower has one and without if not, and notes about it for the report.

    Args:
        tower: an image tower whose dense feature is chosen.
        checkpoint: of weights that may have been distilled for another one.
    """
    if checkpoint.dense.gated == tower.dense_feature.gated:
        return checkpoint, ()
    tensors = {name: t for name, t in checkpoint.tensors.items() if f".{GATE_MODULE}." not in name}
    if not tower.dense_feature.gated:
        return dataclasses.replace(checkpoint, tensors=tensors), ("gate left out",)
    gate: Any = tower.get_submodule(GATE_MODULE)
    start = {f"visual.{GATE_MODULE}.{n}": torch.zeros(p.shape) for n, p in gate.named_parameters()}
    return dataclasses.replace(checkpoint, tensors=tensors | start), ("gate at its start",)


def dense_notes(dense: DenseFeature, stated: DenseFeature) -> tuple[str, ...]:
    """Notes for the report about what weights were distilled for and what they are read as, if that is not `token`."""
    if stated not in (dense, ANY):
        return (f"distilled for the dense feature {stated}, read as {dense}",)
    return () if dense == DenseFeature() else (f"dense feature {dense}",)


def choose_activation(
    architecture: Architecture, checkpoint: Checkpoint, published: Mapping[str, Any]
) -> tuple[bool, tuple[str, ...]]:
    """Whether the towers use QuickGELU, and the notes about it for the report.

    Args:
        architecture: architecture of the model.
        checkpoint: checkpoint, which may record its activation.
        published: open_clip's settings of downloaded weights, empty for other weights.

    Raises:
        InputError: the weights were trained with exact GELU, and the model has QuickGELU.
    """
    if architecture.separate_text:
        return False, ()
    recorded = checkpoint.activation
    if recorded is None and published.get("quick_gelu"):
        recorded = "quick_gelu"
    if recorded == "gelu" and architecture.quick_gelu:
        plain = architecture.name.removesuffix("-quickgelu")
        raise InputError(
            f"{checkpoint.path} was trained with exact GELU, {architecture.name} has QuickGELU; "
            f'load it as "{plain}"'
        )
    if recorded == "quick_gelu" or architecture.quick_gelu:
        return True, ("QuickGELU",)
    if recorded == "gelu" or published:
        return False, ("GELU",)
    twin = f"{architecture.name}-quickgelu"
    if twin in list_architectures():
        # Shapes and names of the two models are the same, so the checkpoint cannot decide.
        logger.warning(
            "%s does not say with which activation it was trained; %s gives it exact GELU. "
            "Weights trained with QuickGELU (OpenAI's and their descendants) are only right as %s",
            checkpoint.path,
            architecture.name,
            twin,
        )
    return False, ("GELU",)


def _resize_positions(name: str, tensor: Tensor, target: Tensor, path: Path) -> Tensor:
    """Position table in the shape of `target`, or an `InputError` if it is not that of a square grid."""
    rows = tensor.shape[-2] if tensor.dim() > 1 else 0
    alike = (*tensor.shape[:-2], target.shape[-2], *tensor.shape[-1:]) == tuple(target.shape)
    if not alike or rows < 2 or math.isqrt(rows - 1) ** 2 != rows - 1:
        raise InputError(
            f"{path}: {name} is {tuple(tensor.shape)}, the model needs {tuple(target.shape)} or the "
            "positions of another square grid; is it a checkpoint of this model?"
        )
    side = math.isqrt(target.shape[-2] - 1)
    table = tensor.reshape(-1, tensor.shape[-1])
    resized = resample_positions(table, (side, side), antialias=name != "visual.pos_embed")
    return resized.reshape(target.shape)


def _check_architecture(
    tensors: Mapping[str, Tensor], architecture: Architecture, checkpoint: Checkpoint
) -> None:
    signature = signature_of(tensors)
    if signature is None:
        raise InputError(
            f"{checkpoint.path} holds no CLIP image tower ({first_gap(tensors)}); "
            "give an OpenAI, open_clip, EVA-CLIP or CLIPSelf checkpoint"
        )
    if signature == architecture.signature:
        return
    fitting = [n for n in list_architectures() if find_architecture(n).signature == signature]
    hint = f'; load it as "{min(fitting, key=len)}"' if fitting else ""
    raise InputError(
        f"{checkpoint.path} is of another model: its image tower is {signature}, that of "
        f"{architecture.name} is {architecture.signature}{hint}"
    )


def _check_names(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], checkpoint: Checkpoint
) -> None:
    if problem := name_problem(wanted, tensors):
        raise InputError(
            f"{checkpoint.path} {problem.what} ({problem.names}); "
            "is it a complete checkpoint of this model?"
        )


def _check_shapes(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], checkpoint: Checkpoint
) -> None:
    for name, target in wanted.items():
        if tensors[name].shape != target.shape:
            raise InputError(
                f"{checkpoint.path}: {name} is {tuple(tensors[name].shape)}, the model needs "
                f"{tuple(target.shape)}; is it a checkpoint of this model?"
            )
