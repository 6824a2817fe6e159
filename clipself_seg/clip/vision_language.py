"""`VisionLanguageBackbone`, the backbone that sees images and reads texts, which every model holds as its ``clip``.

`model.CLIP` is the one of this project, and `backbone.CLIPBackbone` the same under Detectron2;
`guest_backbone.GuestBackbone` holds one that another module registered.
Models read features by `features` and `dense`, embeddings of images and of texts by `embed_images` and `embed_texts`,
and what there is to read from `visual`.

Shapes: B images, K texts, n regions of an image, E width of the embedding, h x w grid of the dense features.
"""

from __future__ import annotations

import abc
import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.checkpoints.dense_feature import ANY, DenseFeature
from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.read import Checkpoint
from clipself_seg.clip import region_pooling
from clipself_seg.clip.runtime import constant
from clipself_seg.clip.tower import DENSE, ImageTower
from clipself_seg.errors import InputError

LARGEST_SCALE = 100.0  # of OpenAI's CLIP and those that were trained like it


class VisionLanguageBackbone(nn.Module, metaclass=abc.ABCMeta):
    """A backbone whose dense features are comparable with its embeddings of texts.

    Attributes:
        name: open_clip's model name, or that of an entry of BACKBONE_REGISTRY.
        embed_dim: width E of the embedding.
        mean: mean of RGB pixels in [0, 1] that is subtracted from an image.
        std: standard deviation of RGB pixels in [0, 1] that an image is divided by.
        squash: True if its authors squash whole images into a square, in place of cutting out the middle.
        filter: by which they resize them, "bicubic" or "bilinear".
        logit_scale: logarithm of the factor of cosines; a parameter.
        largest_scale: largest factor of cosines where regions are compared with classes.
        context_length: number of tokens of a text, start and end included; None where texts may be of any length.
        report: says how its weights were read; None where they are random, or another module's.
        distilled: dense feature that the weights were distilled for, which `save_clip` writes; `ANY` if for none.
        visual: the image tower, which knows its features, its blocks and its groups of parameters.
    """

    name: str
    embed_dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False
    filter: str = "bicubic"
    logit_scale: nn.Parameter
    largest_scale: float = LARGEST_SCALE
    context_length: int | None = None
    report: object | None = None
    distilled: DenseFeature = ANY
    visual: ImageTower

    @abc.abstractmethod
    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by name: ``dense`` (B, E, h, w) of any length, and ``block{i}`` (B, C, h', w').

        Args:
            images: (B, 3, H, W), normalised; H and W are multiples of `patch_size`.
            names: some of those that `visual` knows.

        Raises:
            InputError: there is no feature of a name.
        """

    @abc.abstractmethod
    def embed_images(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), of any length, of normalised images (B, 3, S, S)."""

    @abc.abstractmethod
    def embed_texts(
        self, texts: Sequence[str], *, checkpointing: bool = False, stable: bool = True
    ) -> Tensor:
        """Text embeddings (K, E), of any length, on the backbone's device.

        Args:
            texts: K strings.
            checkpointing: with gradients, recompute the blocks of the text tower in the backward pass.
            stable: see `text.encode_prompts`.
        """

    @abc.abstractmethod
    def file_entries(self) -> dict[str, str]:
        """Entries of a file of the backbone that say how to build it, beside its tensors."""

    @abc.abstractmethod
    def file_tensors(
        self, tensors: Mapping[str, Tensor], layout: str = "official"
    ) -> dict[str, Tensor]:
        """Tensors under the names of a file of the backbone.

        Args:
            tensors: the tensors of `state_dict`, or some of them.
            layout: of the names, see `save_clip`.

        Raises:
            InputError: its files have no such layout.
        """

    @abc.abstractmethod
    def load_file(self, checkpoint: Checkpoint) -> None:
        """Loads all weights of a file, whose names and shapes have to match.

        Raises:
            InputError: it is of another model, or tensors are missing, unexpected, misshapen or not finite.
        """

    def copy(self) -> VisionLanguageBackbone:
        """A copy, of whose image tower nothing is shared."""
        return copy.deepcopy(self)

    @property
    @abc.abstractmethod
    def text_weights(self) -> nn.Module:
        """The module whose weights decide the embeddings of texts."""

    @property
    def text_key(self) -> str | None:
        """A key of all that decides embeddings of texts beside the weights; None if they must not be kept on disk."""
        return None

    @property
    def text_trains(self) -> bool:
        """True if weights of the text tower train."""
        return False

    @property
    def text_blocks(self) -> list[nn.Module]:
        """The blocks of the text tower that can be trained, in order."""
        return []

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokens (K, T) int64 of K texts; of a backbone without tokens a number of each, equal for equal texts."""
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
        return torch.tensor([[int.from_bytes(d, "big", signed=True)] for d in digests])

    def token_count(self, text: str) -> int:
        """Number of tokens of a text, start and end included."""
        raise AssertionError("asked only of a backbone with a context_length")

    def dense(self, images: Tensor) -> Tensor:
        """Dense features (B, E, h, w), of any length, of normalised images (B, 3, H, W)."""
        return self.features(images, [DENSE])[DENSE]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.logit_scale.device

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images of `encode_image`."""
        return self.visual.image_size

    @property
    def patch_size(self) -> int:
        """Stride in pixels of the dense features."""
        return self.visual.patch_size

    @property
    def similarity_scale(self) -> Tensor:
        """Factor of cosines where regions are compared with classes, at most `largest_scale`; a scalar."""
        return self.logit_scale.exp().clamp(max=self.largest_scale)

    def check_side(self, side: int, what: str = "input side") -> None:
        """Refuses a side of the input that the patch does not divide, before anything is read or trained.

        Args:
            side: in pixels.
            what: the side or its key, for the message.

        Raises:
            InputError: names the two nearest sides that work.
        """
        patch = self.patch_size
        if side < patch or side % patch:
            below = max(side // patch, 1) * patch
            raise InputError(
                f"{what} {side} is not a multiple of the patch of {self.name}, {patch} pixels; take "
                f"{below} or {below + patch}"
            )

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalised images, float32, of uint8 RGB images (B, 3, H, W) on any device."""
        return self.normalise(images.float() / 255)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalised images of RGB pixels (..., 3, H, W) in [0, 1], in the pixels' type."""
        shift, scale = (constant(v, pixels)[:, None, None] for v in (self.mean, self.std))
        return (pixels - shift) / scale

    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), unit length, of normalised images (B, 3, S, S)."""
        return F.normalize(self.embed_images(images), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings (K, E), unit length, of K strings."""
        return F.normalize(self.embed_texts(texts), dim=-1)

    def encode_dense(self, images: Tensor) -> Tensor:
        """Dense features (B, E, h, w), unit length per location, of normalised images (B, 3, H, W).

        Raises:
            InputError: the patch does not divide H or W.
        """
        return F.normalize(self.dense(images), dim=1)

    def encode_boxes(
        self, images: Tensor, boxes: Sequence[Tensor], masked_attention: bool = False
    ) -> Tensor:
        """Embeddings (sum n, E), unit length, of boxes read from the dense features.

        Args:
            images: (B, 3, H, W), normalised.
            boxes: boxes (n, 4) of each image, XYXY relative to the image, in [0, 1].
            masked_attention: use mask tokens, copies of the class token that attend only to the box (ViT
                only; ``v1`` of the official code), in place of pooling.

        Raises:
            InputError: `boxes` is not one tensor (n, 4) for each image.
        """
        grid = self._grid(images)
        placed = region_pooling.check_regions("boxes", boxes, images, (4,))
        if masked_attention:
            return self._attend(images, [region_pooling.box_cells(b, grid) for b in placed])
        return self._pool(images, [region_pooling.box_weights(b, grid) for b in placed])

    def encode_masks(
        self, images: Tensor, masks: Sequence[Tensor], masked_attention: bool = False
    ) -> Tensor:
        """Embeddings (sum n, E), unit length, of masks read from the dense features.

        An empty mask has a zero vector; with `masked_attention` its mask token attends to the class
        token only.

        Args:
            images: (B, 3, H, W), normalised.
            masks: masks (n, h, w) of each image at the resolution of the tokens.
            masked_attention: use mask tokens in place of pooling, as in `encode_boxes`.

        Raises:
            InputError: `masks` is not one tensor (n, h, w) for each image.
        """
        grid = self._grid(images)
        placed = region_pooling.check_regions("masks", masks, images, grid)
        if masked_attention:
            return self._attend(images, [mask.bool() for mask in placed])
        return self._pool(images, [region_pooling.mask_weights(mask) for mask in placed])

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _attend(self, images: Tensor, cells: list[Tensor]) -> Tensor:
        """Unit embeddings (sum n, E) of regions with the given boolean cells (n, h, w), by masked attention."""
        return F.normalize(self.visual.masked_attention(images, cells), dim=-1)

    def _pool(self, images: Tensor, weights: list[Tensor]) -> Tensor:
        """Unit embeddings (sum n, E) of regions with the given cell weights (n, h, w)."""
        dense = self.encode_dense(images)
        pooled = [region_pooling.pool(f, w) for f, w in zip(dense, weights, strict=True)]
        # torch.cat needs a tensor in a batch of no images.
        none = dense.new_zeros(0, self.embed_dim, dtype=torch.float32)
        return F.normalize(torch.cat([none, *pooled]), dim=-1)

    def weights_hash(self) -> str:
        """Hash of all weights of the model, 12 hexadecimal digits."""
        return hash_tensors(self.state_dict())
