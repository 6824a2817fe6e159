"""CAT-Seg's aggregator: a cost volume, refined over space and classes, decoded to logits.

(CAT-Seg, arXiv 2303.11797, section 3.) An image at a time: classes are the batch. On the CPU they
pass in groups small enough for its cache; without gradients memory does not follow their number then.

Shapes: T classes, P prompts of a class, E embedding, N = h * w cells, C channels, K classes kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipself_seg.heads.cat_seg.class_aggregation import ClassAggregation
from clipself_seg.heads.cat_seg.cost_decoder import CostDecoder
from clipself_seg.heads.cat_seg.cost_volume import best_classes, cosine_cost, text_direction
from clipself_seg.heads.cat_seg.spatial_aggregation import SpatialAggregation

LEFT_OUT = -100.0  # logit of the classes that are not among the best
CACHED_VALUES = 4 * 24 * 24 * 128  # of the cost volume: four classes of the published models


@dataclasses.dataclass(frozen=True)
class AggregatorSizes:
    """Sizes of the aggregator; the names of `MODEL.SEM_SEG_HEAD` in words.

    Attributes:
        prompts: P, input channels of the cost embedding.
        text: E of the text guidance.
        appearance: channels of the appearance guidance.
        decoder_guidance: channels of the two decoder guidances.
        grid: (h, w).
        pad_len: classes that attention over classes sees at least, and at most; 0 is all there are.
    """

    prompts: int = 1
    text: int = 512
    appearance: int = 512
    decoder_guidance: tuple[int, int] = (256, 128)
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    grid: tuple[int, int] = (24, 24)
    window: int = 12
    pooling: tuple[int, ...] = (2, 2)
    attention: str = "linear"
    text_projected: int = 128
    appearance_projected: int = 128
    decoder_dims: tuple[int, int] = (64, 32)
    decoder_guidance_projected: tuple[int, int] = (32, 16)
    pad_len: int = 256

    @property
    def classes_in_cache(self) -> int:
        """Classes that may pass together if all that is made of them is to stay in a CPU's cache."""
        return max(1, CACHED_VALUES // (self.hidden * math.prod(self.grid)))


class Guidance(NamedTuple):
    """Features of one image: appearance (E, h, w), and for the decoder (D1, 2 h, 2 w), (D2, 4 h, 4 w)."""

    appearance: Tensor
    decoder: tuple[Tensor, Tensor]


class ClassLogits(NamedTuple):
    """Logits (K, 4 h, 4 w) of an image, and which of the T classes they are; None is all of them."""

    logits: Tensor
    classes: Tensor | None

    def all_classes(self, count: int) -> Tensor:
        """Logits (T, 4 h, 4 w), `LEFT_OUT` for the classes that are not among the best."""
        if self.classes is None:
            return self.logits
        full = self.logits.new_full((count, *self.logits.shape[1:]), LEFT_OUT)
        return full.index_copy(0, self.classes, self.logits)


class AggregatorLayer(nn.Module):
    """Over space, then over classes."""

    def __init__(self, sizes: AggregatorSizes, pooling: int) -> None:
        super().__init__()
        shape: dict[str, Any] = {"width": sizes.hidden, "heads": sizes.heads, "grid": sizes.grid}
        self.swin_block = SpatialAggregation(
            **shape, guidance_width=sizes.appearance_projected, window=sizes.window
        )
        self.attention = ClassAggregation(
            **shape,
            guidance_width=sizes.text_projected,
            pooling=pooling,
            pad_to=sizes.pad_len,
            attention=sizes.attention,
        )


class CostAggregator(CostDecoder):
    """From features of one image and texts to logits; parameter names as in CAT-Seg's checkpoints.

    Attributes:
        classes_at_once: classes that pass together; 0 is all.
        checkpointing: recompute each group in the backward pass.
    """

    def __init__(self, sizes: AggregatorSizes, classes_at_once: int = 0) -> None:
        super().__init__(
            width=sizes.hidden,
            dims=sizes.decoder_dims,
            guidance_dims=sizes.decoder_guidance_projected,
        )
        self.sizes, self.classes_at_once, self.checkpointing = (
            sizes,
            classes_at_once,
            False,
        )
        self.conv1 = nn.Conv2d(sizes.prompts, sizes.hidden, 7, padding=3)
        self.guidance_projection = _conv(sizes.appearance, sizes.appearance_projected)
        self.text_guidance_projection = nn.Sequential(
            nn.Linear(sizes.text, sizes.text_projected), nn.ReLU()
        )
        self.decoder_guidance_projection = nn.ModuleList(
            _conv(*pair) for pair in zip(sizes.decoder_guidance, sizes.decoder_guidance_projected)
        )
        self.layers = nn.ModuleList(AggregatorLayer(sizes, p) for p in sizes.pooling)

    def aggregate(self, dense_Ehw: Tensor, guidance: Guidance, text_TPE: Tensor) -> ClassLogits:
        """Logits of one image.

        Args:
            dense_Ehw: of CLIP, any length per location.
            guidance: of the same image.
            text_TPE: prompts of every class.
        """
        cost_PThw = cosine_cost(dense_Ehw, text_TPE)
        classes = best_classes(cost_PThw, self.sizes.pad_len)
        if classes is not None:
            cost_PThw, text_TPE = cost_PThw[:, classes], text_TPE[classes]
        text_TG = self.text_guidance_projection(text_direction(text_TPE))
        appearance_NG = self.guidance_projection(guidance.appearance[None])[0].flatten(1).T
        x_TNC = self._in_groups(self._embed, cost_PThw.transpose(0, 1))
        for layer in self.layers:
            x_TNC = self._layer(layer, x_TNC, appearance_NG, text_TG)
        return ClassLogits(self._decode(x_TNC, guidance.decoder), classes)

    def _layer(self, layer: nn.Module, x_TNC: Tensor, appearance: Tensor, text: Tensor) -> Tensor:
        assert isinstance(layer, AggregatorLayer)
        shares = layer.swin_block.guidance_shares(appearance)
        x_TNC = self._in_groups(lambda x: layer.swin_block(x, shares), x_TNC, in_place=True)
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer.attention, x_TNC, text, use_reentrant=False)
        return layer.attention(x_TNC, text)

    def _embed(self, cost_TPhw: Tensor) -> Tensor:
        """(T, P, h, w) -> (T, N, C)"""
        return self.conv1(cost_TPhw).flatten(2).transpose(1, 2).contiguous()

    def _decode(self, x_TNC: Tensor, guidance: tuple[Tensor, Tensor]) -> Tensor:
        projections = zip(self.decoder_guidance_projection, guidance)
        first, second = (project(features[None])[0] for project, features in projections)
        shared = self.shared((first, second))
        return self._in_groups(
            # The transposed view is what torch calls channels_last.
            lambda x: self(x.transpose(1, 2).unflatten(2, self.sizes.grid), shared),
            x_TNC,
        )

    def _in_groups(
        self, function: Callable[[Tensor], Tensor], x: Tensor, in_place: bool = False
    ) -> Tensor:
        """`function` of the classes, a group at a time; only `in_place` without gradients."""
        groups: Sequence[Tensor] = x.split(self.classes_at_once or len(x))
        if torch.is_grad_enabled():
            if self.checkpointing:
                parts = [checkpoint(function, group, use_reentrant=False) for group in groups]
            else:
                parts = [function(group) for group in groups]
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        if in_place:
            for group in groups:
                group.copy_(function(group))
            return x
        first = function(groups[0])
        found = first.new_empty(len(x), *first.shape[1:])
        found[: len(first)] = first
        for start, group in zip(range(len(first), len(x), len(first)), groups[1:]):
            found[start : start + len(group)] = function(group)
        return found


def _conv(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU())
