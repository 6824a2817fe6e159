"""What the models of this package share: members, groups of parameters, samples, and files of weights.

In this order: `ModelBase` and `FrozenCLIP`, which models inherit from; the partitions of the parameters that train into
the optimiser's groups, by structure and never by names; what samples say; and how weights are read and written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.locate import locate
from clipself_seg.checkpoints.pickles import read_numpy_pickle
from clipself_seg.checkpoints.read import load_tensors, name_problem, read_checkpoint
from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.kinds import signature_of
from clipself_seg.clip.runtime import QUEUES, send
from clipself_seg.clip.text_bank import TextBank
from clipself_seg.clip.tower import DENSE
from clipself_seg.clip.weights import to_native
from clipself_seg.data.examples import ClassExamples
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Names
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path
from clipself_seg.models.protocol import Classes, Group

NORMS = (nn.LayerNorm, nn.GroupNorm, _NormBase)
# A Swin for classification has no norms between its stages; they start as what changes nothing.
OUTPUT_NORM = re.compile(r"norm\d\.(weight|bias)")


class ModelBase(nn.Module):
    """Members of `models.protocol` that most models have alike.

    Attributes:
        clip: the model's CLIP.
        classes: the classes that `set_vocabulary` gave.
        tower_features: what the model reads of its image tower.
    """

    clip: VisionLanguageBackbone
    classes = Classes()
    tower_features: tuple[str, ...] = (DENSE,)

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Accepts every configuration: a CLIP can be evaluated as it is, a random one too."""

    @classmethod
    def training_config(cls, cfg: CfgNode) -> CfgNode:
        """The configuration as it is: its keys give all that training starts from."""
        return cfg

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.clip.device

    @property
    def names(self) -> Names:
        """For each class the names that count."""
        return self.classes.names

    def give_classes(
        self,
        names: Names,
        seen: np.ndarray | None,
        things: tuple[int, ...] = (),
        examples: tuple[ClassExamples, ...] = (),
    ) -> None:
        """Sets the classes, see `Classes`.

        Raises:
            ValueError: `seen` is of another number of classes.
        """
        if seen is not None and len(seen) != len(names):
            raise ValueError(f"seen has {len(seen)} classes, there are {len(names)}")
        known = None if seen is None else np.asarray(seen, dtype=bool)
        self.classes = Classes(names, things, known, examples)

    def require_vocabulary(self) -> None:
        """Refuses a call before `set_vocabulary`."""
        if not self.names:
            raise RuntimeError("call set_vocabulary before the model")

    def seen(self) -> Tensor:
        """Classes of the training vocabulary, (K,) bool."""
        known = self.classes.seen
        seen = torch.ones(len(self.names)) if known is None else torch.from_numpy(known)
        return seen.to(self.device, non_blocking=QUEUES).bool()

    def after_optimizer_step(self) -> None:
        """Does nothing: the loss reaches every weight of the optimiser."""

    def weights_hash(self) -> str:
        """Hash of all weights."""
        return hash_tensors(self.state_dict())

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS`` of a model that needs no other weights than a CLIP's; see `load_model_state`."""
        load_model_state(self, tensors, source)


class FrozenCLIP(ModelBase):
    """A model whose weights are those of one frozen CLIP, ``MODEL.CLIP.WEIGHTS``.

    Attributes:
        clip: the CLIP, in evaluation mode.
        bank: its text embeddings of class names.
        precision: dtype of autocast, or None.
    """

    def __init__(
        self, *, clip: VisionLanguageBackbone, templates: str, precision: torch.dtype | None = None
    ) -> None:
        """
        Args:
            clip: CLIP with both towers.
            templates: prompts around a class name, see `TextBank`.
            precision: dtype of autocast, or None.
        """
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.bank = TextBank(clip, templates)
        self.precision = precision

    def weights_hash(self) -> str:
        return self.clip.weights_hash()

    def original_hash(self) -> str:
        """Hash of all weights: none of them trains."""
        return self.weights_hash()


def _trained(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Parameters that train, each with the module that owns it and its name there."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                yield module, name, parameter


def matrices_and_vectors(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """Parameters that train, in two groups: matrices with weight decay, vectors (biases, norms) without."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def norms_and_biases_apart(model: nn.Module, weight_decay: float) -> list[Group]:
    """Parameters that train, in two groups: norms and biases without weight decay, all others with it."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module, name, parameter in _trained(model):
        vector = isinstance(module, NORMS) or name.endswith("bias")
        (plain if vector else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def by_rate_and_kind(
    model: nn.Module,
    *,
    multipliers: Iterable[tuple[nn.Module | None, float]],
    weight_decay: float,
    norm_decay: float | None = None,
    embedding_decay: float | None = None,
) -> list[Group]:
    """Parameters that train, grouped by learning rate and weight decay.

    The partition is that of Detectron2's `get_default_optimizer_params`.

    Args:
        model: the whole model.
        multipliers: parts of the model, each with the multiple of the base learning rate at which it
            learns; all other parameters learn at the base rate.
        weight_decay: weight decay of all parameters, biases too, but those of norms and embeddings.
        norm_decay: weight decay of the parameters of norms; None is that of all others.
        embedding_decay: weight decay of `nn.Embedding`; None is that of all others.
    """
    slow = {
        id(p): rate for part, rate in multipliers if part is not None for p in part.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module, _, parameter in _trained(model):
        special = None
        if isinstance(module, NORMS):
            special = norm_decay
        elif isinstance(module, nn.Embedding):
            special = embedding_decay
        decay = weight_decay if special is None else special
        groups.setdefault((slow.get(id(parameter), 1.0), decay), []).append(parameter)
    return [
        {"params": parameters, "lr_multiplier": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def load_model_state(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load the whole state of a model that needs no weights but ``MODEL.CLIP.WEIGHTS``.

    Args:
        model: a `FrozenCLIP`, or a `CLIPSelf`, whose training ends in a CLIP as well.
        tensors: name -> tensor.
        source: the file, for messages.

    Raises:
        InputError: a CLIP, which has a key of its own, or a checkpoint of another model.
    """
    kind = type(model).__name__
    if signature_of(to_native(tensors)):
        raise InputError(
            f"MODEL.WEIGHTS {source} is a CLIP, which {kind} takes as "
            "MODEL.CLIP.WEIGHTS: give it there and leave MODEL.WEIGHTS empty"
        )
    if problem := name_problem(model.state_dict(), tensors):
        raise InputError(
            f"MODEL.WEIGHTS {source} {problem.what} ({problem.names}): it is no checkpoint of "
            f"{kind}, which needs none besides MODEL.CLIP.WEIGHTS"
        )
    load_tensors(model, tensors, f"MODEL.WEIGHTS {source}")


def load_backbone(backbone: nn.Module, path: str | os.PathLike[str], key: str) -> None:
    """Loads tensors of a classifier or a detector into a Detectron2 backbone, but those that it does not have.

    Args:
        backbone: module under Detectron2's names.
        path: a .pth, .safetensors or .pkl file, or a name of the zoo.
        key: configuration key that names the file, for messages.

    Raises:
        InputError: the file lacks tensors of the backbone, or they have other shapes.
    """
    path, whose = locate(path), type(backbone).__name__
    origin = f"{key} {path}"
    tensors = read_numpy_pickle(path) if path.suffix == ".pkl" else read_checkpoint(path).tensors
    tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    missing = load_tensors(backbone, tensors, origin, whose)
    missing = [name for name in missing if not OUTPUT_NORM.fullmatch(name)]
    if problem := name_problem(missing, ()):
        raise InputError(f"{origin} {problem.what} of {whose} ({problem.names})")


def sizes_of(sample: Sample) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the image of a sample, and of the original image."""
    height, width = sample["image"].shape[1:]
    return (height, width), (sample.get("height", height), sample.get("width", width))


def chosen_classes(sample: Sample, device: torch.device) -> Tensor | None:
    """The classes (k,) int64 of a sample that are to be told apart, on a device; None where all of them are."""
    return send(torch.tensor(sample["classes"]), device) if "classes" in sample else None


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file has them: on the CPU, contiguous and without gradients."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def as_bytes(text: str) -> Tensor:
    """A text as a tensor of bytes, for a checkpoint."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def save_atomically(path: str | os.PathLike[str], content: Mapping[str, object]) -> None:
    """Writes a checkpoint, whole or not at all."""
    # A file, not its path: torch would write the random temporary name into the archive.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(content), file)
