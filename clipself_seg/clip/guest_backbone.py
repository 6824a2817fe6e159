"""`GuestBackbone`, the adapter of a backbone that another module registered in Detectron2's BACKBONE_REGISTRY.

docs/backbone.md shows how to register one, and `Guest` has its members with their types.

Shapes: B images, K texts, E width of the embedding, h x w grid of the dense features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from clipself_seg.checkpoints.read import Checkpoint, fit
from clipself_seg.clip.text import BATCH
from clipself_seg.clip.tower import DENSE, FeatureShape, ImageTower, Readouts
from clipself_seg.clip.vision_language import LARGEST_SCALE, VisionLanguageBackbone
from clipself_seg.errors import InputError

START = "start"  # entry of a file: MODEL.CLIP.WEIGHTS that the guest was built with, before the file's were loaded
REQUIRED = ("mean", "std", "image_size", "output_shape", "encode_text")
# Optional member -> what it gives.
OPTIONAL = {
    "encode_image": "embeddings of whole images and of crops",
    "layer_groups": "groups of parameters, without which nothing of it trains",
}


class Guest(Protocol):
    """Members that every model needs of a registered backbone, beside those of Detectron2's `Backbone`.

    Optional members:
        ``encode_image``: embeddings (B, E) of normalised square images. Models that read crops refuse a backbone
            without it.
        ``layer_groups``: parameters of the image tower, as `ImageTower.layer_groups` returns them. Models that train
            the tower refuse a backbone without it.
        ``final_norm``: norm of tokens (..., C) behind its last block. Where it is missing, ``block{i}`` are taps of a
            plain mask decoder as they are.
        ``heads``: number of heads of its attention; one of 64 channels each where it is missing.
        ``scale``: factor by which cosines are multiplied before the softmax, of any size; 100 where it is missing.
        ``text``: module whose weights decide the embeddings of texts; the whole backbone where it is missing.
        ``reads``: keys of `CLIPBackbone` that the backbone reads too, an attribute of the class. Those that it does
            not list are an error where somebody sets them, and the name and the weights of the CLIP are empty.

    Attributes:
        mean: mean of RGB pixels in [0, 1] that is subtracted from an image.
        std: standard deviation of RGB pixels in [0, 1] that an image is divided by.
        image_size: side in pixels of the square images that it was made for.
    """

    mean: Sequence[float]
    std: Sequence[float]
    image_size: int

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """Features (B, C, H / stride, W / stride) by name of normalised images: ``dense``, and ``block{i}`` if any."""

    def output_shape(self) -> Mapping[str, ShapeSpec]:
        """Channels and stride of every feature; those of ``dense`` are in the space of its texts."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (K, E) of K sentences, of any length."""


class GuestBackbone(VisionLanguageBackbone, ImageTower):
    """A backbone of another module, in evaluation mode all the time; it is its own image tower."""

    readouts = Readouts(masked_attention=False, compiled=(False,))
    largest_scale = math.inf  # its own factor is what it was trained to
    # An image tower has them as attributes.
    image_size = 0
    patch_size = 0

    def __init__(self, name: str, module: nn.Module, start: str = "") -> None:
        """
        Args:
            name: of the entry.
            module: the backbone, which becomes a part of this module.
            start: weights that it was built from, see `START`.

        Raises:
            InputError: names what the backbone lacks.
        """
        super().__init__()
        if lacks := [member for member in REQUIRED if not hasattr(module, member)]:
            raise InputError(
                f"the backbone {name} has no {', '.join(lacks)}: docs/backbone.md says what a backbone offers "
                "that sees images and reads texts"
            )
        backbone = cast(Guest, module)
        self.name = name
        self.start = start
        self.shapes = {
            feature: FeatureShape(spec.channels or 0, spec.stride or 0)
            for feature, spec in backbone.output_shape().items()
        }
        if DENSE not in self.shapes or 0 in self.shapes[DENSE]:
            raise InputError(
                f'the backbone {name} gives {", ".join(self.shapes)}, and no "{DENSE}" of some channels and stride: '
                "models compare that with texts"
            )
        self.embed_dim, self.patch_size = self.shapes[DENSE]
        with torch.no_grad():
            width = backbone.encode_text(["a"]).shape[1]
        if width != self.embed_dim:
            raise InputError(
                f"the backbone {name} has texts of {width} numbers, and dense features of {self.embed_dim}"
            )
        self.image_size = int(backbone.image_size)
        self.mean = tuple(float(value) for value in backbone.mean)
        self.std = tuple(float(value) for value in backbone.std)
        scale = float(getattr(backbone, "scale", LARGEST_SCALE))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.backbone = backbone
        self.eval()

    @property
    def visual(self) -> GuestBackbone:  # type: ignore[override]
        """The guest itself."""
        return self

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """None that this project knows: what trains is what `layer_groups` says."""
        return nn.ModuleList()

    @property
    def depth(self) -> int:
        """Number of features ``block{i}``."""
        return sum(name.startswith("block") for name in self.shapes)

    @property
    def width(self) -> int:
        """Channels of the widest feature."""
        return max(shape.channels for shape in self.shapes.values())

    @property
    def pooled_map(self) -> str:
        """``dense``, whose cells alone are comparable with texts."""
        return DENSE

    @property
    def heads(self) -> int:
        """Number of heads of its attention."""
        return int(getattr(self.backbone, "heads", max(1, self.width // 64)))

    @property
    def text_weights(self) -> nn.Module:
        """The backbone's `text`, or all of it."""
        return cast(nn.Module, getattr(self.backbone, "text", self.backbone))

    def train(self, mode: bool = True) -> GuestBackbone:
        """Keeps the backbone in evaluation mode, whatever `mode` is."""
        super().train(False)
        return self

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Applies the backbone's final norm to tokens (..., C) of any block. Without one they stay as they are."""
        norm = getattr(self.backbone, "final_norm", None)
        return tokens if norm is None else norm(tokens)

    def description(self) -> str:
        """Describes the dense features in words."""
        return f"dense of {self.name}"

    def forward(self, images: Tensor) -> Mapping[str, Tensor]:  # type: ignore[override]
        """The backbone's features by name."""
        return self.backbone(images)

    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        wanted, maps = self.check_names(names), self(images)
        return {name: maps[name] for name in wanted}

    def embed_images(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), of any length, of normalised images (B, 3, S, S).

        Raises:
            InputError: the backbone has none.
        """
        return cast(Tensor, self._optional("encode_image")(images))

    def embed_texts(
        self, texts: Sequence[str], *, checkpointing: bool = False, stable: bool = True
    ) -> Tensor:
        """Embeddings (K, E), of any length, of K sentences, of which as many are encoded together as of a CLIP's."""
        batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        embeddings = torch.cat([self.backbone.encode_text(batch) for batch in batches])
        return embeddings.to(self.device)

    def require_images(self) -> None:
        """Refuses to embed whole images and crops where the backbone has no `encode_image`."""
        self._optional("encode_image")

    def feature_shapes(self) -> dict[str, FeatureShape]:
        """Channels and stride in pixels of every feature."""
        return dict(self.shapes)

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """The backbone's own partition of its parameters.

        Raises:
            InputError: it has none.
        """
        groups = self._optional("layer_groups")()
        given = cast(Mapping[str, Iterable[nn.Parameter]], groups)
        return {name: list(parameters) for name, parameters in given.items()}

    def file_entries(self) -> dict[str, str]:
        return {START: self.start}

    def file_tensors(
        self, tensors: Mapping[str, Tensor], layout: str = "official"
    ) -> dict[str, Tensor]:
        return dict(tensors)

    def load_file(self, checkpoint: Checkpoint) -> None:
        remedy = f"is it a complete checkpoint of the backbone {self.name}?"
        fitted = fit(checkpoint.tensors, self.state_dict(), str(checkpoint.path), remedy=remedy)
        self.load_state_dict(fitted)
        self.distilled = checkpoint.dense

    def _optional(self, member: str) -> Callable[..., object]:
        method = getattr(self.backbone, member, None)
        if method is None:
            raise InputError(f"the backbone {self.name} has no {member}, {OPTIONAL[member]}")
        return cast(Callable[..., object], method)
