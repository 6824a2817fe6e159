"""Loads CLIP weights of every published layout into the towers, strictly and with a report.

Native names are those of the modules here: ``visual.*``, ``text.*``, ``logit_scale``. Which layouts a kind's files
have is in its `TowerKind`. Two are written:

- official: OpenAI's, open_clip's and CLIPSelf's names for OpenAI ViTs and ResNets (text tower at the
  top level); EVA-CLIP's and CLIPSelf's names for EVA-02 (text tower under ``text.``);
- open_clip: the same for OpenAI ViTs and ResNets; timm's names under ``visual.trunk.`` for EVA-02.

Published files have more than the weights of both towers; `NO_WEIGHTS` names all of it that is left out, and any other
tensor is refused. By family, and where that is known from:

OpenAI's ViTs and ResNets   input_resolution, context_length, vocab_size (openai/CLIP, clip/model.py `build_model`);
                            num_batches_tracked of ResNets (the .bin of timm/resnet50_clip.openai)
transformers' CLIP, SigLIP  position_ids (openai/clip-vit-base-patch32, google/siglip2-base-patch16-224)
EVA-02 and its students     rotary tables, attn_mask: buffers that mmcv saves although they are not persistent
                            (wusize/CLIPSelf issue 24, of F-ViT's files)
TIPSv2                      mask_token, which `tips` leaves out (google/tipsv2-b14)
LAION, DataComp, DFN, MetaCLIP, ConvNeXt, SigLIP and PE-Core by timm: nothing; theirs are open_clip's state dicts
CLIPSelf's releases         epoch and name beside the state_dict (their training's code); no tensors

What stands beside a state dict, such as an optimiser's state or the best score, is not read.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipself_seg.checkpoints import read
from clipself_seg.checkpoints.dense_feature import ANY, DenseFeature
from clipself_seg.clip import tower_kind
from clipself_seg.clip.find_kind import (
    KINDS,
    find_architecture,
    list_architectures,
    signature_of,
)
from clipself_seg.clip.openai import TRANSFORMERS_MARK
from clipself_seg.clip.positions import resample_positions
from clipself_seg.clip.text import NoTextTower
from clipself_seg.clip.tower import ImageTower
from clipself_seg.errors import InputError, known, nearest, shown
from clipself_seg.files import read_json
from clipself_seg.schema import TEXT

logger = logging.getLogger(__name__)
# Entries of published files that are no weights: recomputed (rotary tables, masks) or constants. F-ViT's files have
# rotary tables of further lengths, and a flag beside them (wusize/CLIPSelf, issue 24).
NO_WEIGHTS = re.compile(
    r"(^|\.)(freqs_(cos|sin)(_\d+)?|rope\.flag|num_batches_tracked|attn_mask|input_resolution|context_length"
    r"|vocab_size|position_ids)$"
)
OF_META = "visual.attn_pool.probe"  # in every file of PE-Core that Meta published, and in no other
GATE_MODULE = "dense_gate"  # module of an image tower


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Report of a checkpoint, all of which was loaded; its string is the line in the log.

    Attributes:
        model: name of the model.
        source: name of the checkpoint.
        loaded: number of tensors that were loaded.
        converted: number of tensors whose precision was changed.
        notes: further remarks, such as resized positions.
    """

    model: str
    source: str
    loaded: int
    converted: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"{self.model} <- {self.source}: {self.loaded} loaded, {self.converted} converted, "
            f"0 missing, 0 unexpected{notes}"
        )


def to_native(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any supported layout under native names, without entries that are no weights."""
    weights = {name: t for name, t in tensors.items() if not NO_WEIGHTS.search(name)}
    layouts = [layout for kind in KINDS.values() for layout in kind.layouts.values()]
    layout = _marked(layouts, weights)
    return tower_kind.common_names(weights) if layout is None else layout.read(weights)


def _marked(
    layouts: Iterable[tower_kind.Layout], tensors: Mapping[str, Tensor]
) -> tower_kind.Layout | None:
    """The first layout whose marks a file has."""
    marked = (layout for layout in layouts if layout.marks)
    return next((layout for layout in marked if all(m in tensors for m in layout.marks)), None)


def as_written(
    architecture: tower_kind.Architecture, checkpoint: read.Checkpoint
) -> tower_kind.Architecture:
    """An architecture in the variant that a checkpoint is of: by its own word, or by its layout.

    Raises:
        InputError: it says one that models of this kind do not have.
    """
    kind, variant = architecture.kind, checkpoint.variant
    layout = _marked(kind.layouts.values(), checkpoint.tensors)
    if not variant and layout is not None and layout.variant is not None:
        variant = layout.variant(checkpoint.tensors)
    if not variant:
        return architecture
    if variant not in kind.variants:
        raise InputError(
            f"{checkpoint.path} says that it is of the variant {shown(variant)}, which {kind.name} does not have; "
            f"{nearest(variant, kind.variants)}"
        )
    return dataclasses.replace(kind.variants[variant](architecture), variant=variant)


def to_layout(
    tensors: Mapping[str, Tensor], kind: tower_kind.TowerKind, layout: str = "official"
) -> dict[str, Tensor]:
    """Tensors with native names under those of a layout, such as the kind's official one.

    Raises:
        InputError: files of this kind have no such layout, or it is read only.
    """
    written = {name: one.write for name, one in kind.layouts.items() if one.write}
    return written[known(layout, written, f"layout of {kind.name}")](tensors)


def load_strictly(
    module: nn.Module, architecture: tower_kind.Architecture, checkpoint: read.Checkpoint
) -> LoadReport:
    """Loads a checkpoint into a module; all names and shapes have to match.

    Tensors of any floating-point precision become float32, and a position table of another square grid
    is resized. Of a file of the image tower alone the module gets no text tower, where its kind has such files.

    Args:
        module: module with ``visual``, ``text`` and ``logit_scale``; its tensors may be on "meta".
        architecture: architecture of the module.
        checkpoint: checkpoint in any supported layout.

    Raises:
        InputError: the checkpoint is of another architecture, has missing, unexpected or misshapen
            tensors, or weights that are integers, sparse, without values, NaN or infinite.
    """
    tensors = to_native(checkpoint.tensors)
    _check_architecture(tensors, module.state_dict(), architecture, checkpoint)
    notes = []
    if architecture.kind.image_files and not any(name.startswith("text.") for name in tensors):
        length = architecture.text["context_length"]
        module.text = NoTextTower(context_length=length, source=checkpoint.path.name)
        notes.append("no text tower")
    wanted = module.state_dict()
    for name, table in architecture.kind.positions.items():
        if name in tensors and name in wanted and tensors[name].shape != wanted[name].shape:
            tensors[name] = _resize_positions(
                name, tensors[name], wanted[name], table, checkpoint.path
            )
            notes.append(f"positions resized to {tuple(wanted[name].shape)}")
    fitted = read.fit(
        tensors, wanted, str(checkpoint.path), remedy="is it a complete checkpoint of this model?"
    )
    module.load_state_dict(fitted, assign=True)
    converted = sum(tensors[name].dtype != tensor.dtype for name, tensor in fitted.items())
    if converted:
        notes.append("converted to float32")
    source = f"{checkpoint.path.name} ({checkpoint.format})"
    return LoadReport(architecture.name, source, len(wanted), converted, tuple(notes))


def fit_gate(
    tower: ImageTower, checkpoint: read.Checkpoint
) -> tuple[read.Checkpoint, tuple[str, ...]]:
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
    gate = tower.get_submodule(GATE_MODULE)
    start = {f"visual.{GATE_MODULE}.{n}": torch.zeros(p.shape) for n, p in gate.named_parameters()}
    return dataclasses.replace(checkpoint, tensors=tensors | start), ("gate at its start",)


def dense_notes(dense: DenseFeature, stated: DenseFeature) -> tuple[str, ...]:
    """Notes for the report about what weights were distilled for and what they are read as, if that is not `token`."""
    if stated not in (dense, ANY):
        return (f"distilled for the dense feature {stated}, read as {dense}",)
    return () if dense == DenseFeature() else (f"dense feature {dense}",)


def choose_activation(
    architecture: tower_kind.Architecture, checkpoint: read.Checkpoint, published: Mapping[str, Any]
) -> tuple[bool, tuple[str, ...]]:
    """True if the towers use QuickGELU, and the notes about it for the report.

    Args:
        architecture: architecture of the model.
        checkpoint: checkpoint, which may record its activation.
        published: open_clip's settings of downloaded weights, empty for other weights.

    Raises:
        InputError: the weights were trained with exact GELU, and the model has QuickGELU.
    """
    if not architecture.kind.quick_gelu:
        return False, (f"variant {architecture.variant}",) if architecture.variant else ()
    recorded = checkpoint.activation or _stated_beside(checkpoint)
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


def _stated_beside(checkpoint: read.Checkpoint) -> str | None:
    """The activation in the config.json beside a file in transformers' layout; None for others, and without one."""
    path = checkpoint.path.with_name("config.json")
    if TRANSFORMERS_MARK not in checkpoint.tensors or not path.is_file():
        return None
    stated = read_json(path, "settings", {"vision_config": {"hidden_act?": TEXT}})["vision_config"]
    # Files leave out what is transformers' default.
    activation = stated.get("hidden_act", "quick_gelu")
    return known(activation, read.ACTIVATIONS, f"hidden_act of {path}")


def _resize_positions(
    name: str, tensor: Tensor, target: Tensor, table: tower_kind.PositionTable, path: Path
) -> Tensor:
    """Position table in the shape of `target`, or an `InputError` if it is not that of a square grid."""
    rows = tensor.shape[-2] if tensor.dim() > 1 else 0
    cells = rows - table.first
    alike = (*tensor.shape[:-2], target.shape[-2], *tensor.shape[-1:]) == tuple(target.shape)
    if not alike or cells < 1 or math.isqrt(cells) ** 2 != cells:
        raise InputError(
            f"{path}: {name} is {tuple(tensor.shape)}, the model needs {tuple(target.shape)} or the "
            "positions of another square grid; is it a checkpoint of this model?"
        )
    side = math.isqrt(target.shape[-2] - table.first)
    rows_LD = tensor.reshape(-1, tensor.shape[-1])
    resized = resample_positions(rows_LD, (side, side), **dataclasses.asdict(table))
    return resized.reshape(target.shape)


def _check_architecture(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    architecture: tower_kind.Architecture,
    checkpoint: read.Checkpoint,
) -> None:
    if OF_META in tensors:
        raise InputError(
            f"{checkpoint.path} is PE-Core in Meta's layout, which is not read: take timm's copy of the same weights, "
            "by the names that begin with PE-Core- in clipself-seg weights, such as PE-Core-B-16:meta"
        )
    signature = signature_of(tensors)
    if signature is None:
        raise InputError(
            f"{checkpoint.path} holds no CLIP image tower, or not all of one (it starts with "
            f"{', '.join(list(tensors)[:3])}); give a checkpoint of {' or '.join(KINDS)}"
        )
    if signature == architecture.kind.signature(wanted):
        return
    fitting = _name_of(tensors, signature)
    hint = f'; load it as "{fitting}"' if fitting else ""
    raise InputError(
        f"{checkpoint.path} is of another model: its image tower is {signature}, that of "
        f"{architecture.name} is {architecture.kind.signature(wanted)}{hint}"
    )


def _name_of(tensors: Mapping[str, Tensor], signature: tower_kind.Signature) -> str:
    """The shortest name of a model with the image tower and the positions of a file; "" if there is none.

    Args:
        tensors: of the file, under native names.
        signature: of its image tower.
    """
    names = []
    for own in map(find_architecture, list_architectures()):
        if (own.kind.name, own.embed_dim) != (signature.kind, signature.embed_dim):
            continue  # quick to see; for the rest a tower is built
        wanted = own.image_tensors()
        tables = [name for name in own.kind.positions if name in tensors]
        alike = all(tensors[name].shape == wanted[name].shape for name in tables)
        if alike and own.kind.signature(wanted) == signature:
            names.append(own.name)
    return min(names, key=len, default="")


def clip_of_file(path: Path) -> str:
    """Name of the CLIP alone that a file has; "" if neither the file nor its tensors say it for sure.

    Files of this project have the name. Those of OpenAI, also in transformers' layout, are of the model of their sizes
    and their number of positions, which tells ViT-L-14-336 from ViT-L-14. Of others models of equal sizes may have
    other pixels or another activation.

    Raises:
        InputError: as `read_checkpoint`.
    """
    checkpoint = read.read_checkpoint(path)
    tensors = to_native(checkpoint.tensors)
    signature = signature_of(tensors)
    if signature is None:
        return ""
    if checkpoint.model in list_architectures():
        return checkpoint.model
    original = {read.OF_OPENAI, TRANSFORMERS_MARK} & checkpoint.tensors.keys()
    return _name_of(tensors, signature) if original else ""
