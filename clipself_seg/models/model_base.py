"""Members and functions that the models of this package share.

In this order: `ModelBase` and `FrozenCLIP`, which models inherit from; sizes and classes that samples state; reading
the weights of a Detectron2 backbone, and writing files of weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.locate import locate
from clipself_seg.checkpoints.pickles import read_numpy_pickle
from clipself_seg.checkpoints.read import fit, read_checkpoint
from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.find_kind import signature_of
from clipself_seg.clip.runtime import send
from clipself_seg.clip.text_bank import TextBank
from clipself_seg.clip.tower import DENSE
from clipself_seg.clip.weights import to_native
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Names, Vocabulary, Words
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path
from clipself_seg.models.model_protocols import Classes, Memory

if TYPE_CHECKING:
    from typing_extensions import Self

# Tensors that a classifier's file may lack: a Swin's norms between its stages, which start as what changes nothing, and
# counters of batch norms.
OPTIONAL = re.compile(r"norm\d\.(weight|bias)|.*num_batches_tracked")
# What files of classifiers have besides: heads (torchvision's resnet101 and its conversion by Detectron2; Microsoft's
# Swin, with its last norm), the stage behind those that are read, masks, tables and counters.
UNREAD = re.compile(
    r"(stem\.)?fc\..*|head\..*|norm3?\..*|res5\..*|layers\.(3|2\.downsample)\..*"
    r"|.*(attn_mask|relative_position_index|num_batches_tracked)"
)
# Parts of names of torchvision's ResNets -> of Detectron2's, as its tools/convert-torchvision-to-d2.py has them.
OF_TORCHVISION = {
    **{f"layer{stage}.": f"res{stage + 1}." for stage in (1, 2, 3, 4)},
    **{f"bn{number}.": f"conv{number}.norm." for number in (1, 2, 3)},
    "downsample.0.": "shortcut.",
    "downsample.1.": "shortcut.norm.",
}


class ModelBase(nn.Module):
    """Members of `models.model_protocols` that most models have alike.

    Attributes:
        clip: the model's CLIP.
        classes: the classes that `set_vocabulary` gave.
        tower_features: features that the model reads of its image tower.
        purpose: use of a predictor of the model, for its card; empty for a model that no predictor takes.
        weights_key: key of the weights that make the model a trained one.
        epochs: times that a training on a user's own data sees each image.
        memory: memory of a GPU that a training needs; None where nobody computed it.
    """

    purpose = ""
    weights_key = "MODEL.WEIGHTS"
    epochs = 20
    memory: Memory | None = None
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
        return self.clip.logit_scale.device

    @property
    def names(self) -> Names:
        """The names of each class that count."""
        return self.classes.names

    def classes_of(self, words: Words, seen: np.ndarray | None = None) -> Classes:
        """Reads and checks class names, and sets nothing: `forward` takes the result as an argument.

        Args:
            words: see `Vocabulary.of`.
            seen: (K,) bool, classes of the training vocabulary; None stands for all of them.

        Raises:
            InputError: no class, an empty name, or one with more tokens than CLIP reads.
            ValueError: `seen` is of another number of classes.
        """
        vocabulary = Vocabulary.of(words)
        return Classes(vocabulary.names(), seen=seen, examples=vocabulary.examples)

    def set_vocabulary(
        self, words: Words, seen: np.ndarray | None = None, **choices: bool | None
    ) -> None:
        """Gives the model the classes of calls without `classes`; the arguments are those of its `classes_of`."""
        self.classes = self.classes_of(words, seen, **choices)

    def training_vocabulary(self, vocabulary: Vocabulary | Sequence[str] | None) -> Vocabulary:
        """The classes that `setup_training` is given, of a model that trains on classes.

        Raises:
            InputError: there are none.
        """
        if vocabulary is None:
            raise InputError(
                f"{type(self).__name__} trains on classes: name data sets that have some in DATASETS.TRAIN"
            )
        return Vocabulary.of(vocabulary, repeats=True)

    def given_classes(self, classes: Classes | None) -> Classes:
        """The classes of a call: its argument, or if that is None those that `set_vocabulary` gave."""
        classes = self.classes if classes is None else classes
        if not classes.names:
            raise RuntimeError("call set_vocabulary before the model")
        return classes

    def stays_frozen(self) -> Iterable[nn.Module]:
        """Parts that never are in training mode, such as a frozen CLIP with batch norms; none by default."""
        return ()

    def train(self, mode: bool = True) -> Self:
        """Switches the training mode as in every module; what `stays_frozen` stays in evaluation mode."""
        super().train(mode)
        for part in self.stays_frozen():
            part.eval()
        return self

    def after_optimizer_step(self) -> None:
        """Does nothing: the loss reaches every weight of the optimiser."""

    def weights_hash(self) -> str:
        """Hash of all weights."""
        return hash_tensors(self.state_dict())

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS`` of a model that needs no other weights than ``MODEL.CLIP.WEIGHTS``.

        Args:
            tensors: name -> tensor.
            source: the file, for messages.

        Raises:
            InputError: a CLIP, which has a key of its own, or a checkpoint of another model.
        """
        kind, origin = type(self).__name__, f"MODEL.WEIGHTS {source}"
        if signature_of(to_native(tensors)):
            raise InputError(
                f"{origin} is a CLIP, which {kind} takes as MODEL.CLIP.WEIGHTS: give it there and leave MODEL.WEIGHTS "
                "empty"
            )
        remedy = f"it is no checkpoint of {kind}, which needs none besides MODEL.CLIP.WEIGHTS"
        self.load_state_dict(fit(tensors, self.state_dict(), origin, remedy=remedy))


class FrozenCLIP(ModelBase):
    """A model whose weights are those of one frozen CLIP, ``MODEL.CLIP.WEIGHTS``.

    Attributes:
        clip: the CLIP, in evaluation mode.
        bank: its text embeddings of class names.
        precision: dtype of autocast, or None.
    """

    weights_key = "MODEL.CLIP.WEIGHTS"

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

    def stays_frozen(self) -> Iterable[nn.Module]:
        """The CLIP, whose batch norms would go on counting."""
        return (self.clip,)

    def weights_hash(self) -> str:
        """Hash of the CLIP's weights."""
        return self.clip.weights_hash()

    def original_hash(self) -> str:
        """Hash of all weights: none of them trains."""
        return self.weights_hash()


def load_backbone(backbone: nn.Module, path: str | os.PathLike[str], key: str) -> None:
    """Loads tensors of a classifier into a Detectron2 backbone, but those of `UNREAD`.

    Args:
        backbone: module under Detectron2's names.
        path: a .pth, .safetensors or .pkl file, or a name of the zoo; under Detectron2's names, or torchvision's.
        key: configuration key that names the file, for messages.

    Raises:
        InputError: the file lacks tensors of the backbone, has others, or they have other shapes.
    """
    path = locate(path)
    tensors = read_numpy_pickle(path) if path.suffix == ".pkl" else read_checkpoint(path).tensors
    tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    if "layer1.0.conv1.weight" in tensors:
        tensors = {_of_detectron2(name): tensor for name, tensor in tensors.items()}
    own = backbone.state_dict()
    wanted = {n: t for n, t in own.items() if n in tensors or not OPTIONAL.fullmatch(n)}
    read = {n: t for n, t in tensors.items() if n in wanted or not UNREAD.fullmatch(n)}
    remedy = f"give weights of a {type(backbone).__name__} of these sizes"
    backbone.load_state_dict(own | fit(read, wanted, f"{key} {path}", remedy=remedy))


def _of_detectron2(name: str) -> str:
    """Name in Detectron2's ResNet of a tensor of torchvision's."""
    for old, new in OF_TORCHVISION.items():
        name = name.replace(old, new)
    return name if name.startswith("res") else f"stem.{name}"


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
