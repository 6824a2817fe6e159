"""CAT-Seg's aggregator: a cost volume, refined over space and over classes, decoded to logits; and what these become.

(CAT-Seg, arXiv 2303.11797, section 3.) Classes are the batch, of one image or view at a time. On the CPU classes
pass in groups that are small enough for its cache, so that the memory of inference does not grow with their number.
A GPU takes all classes together; in inference as many classes and images as its memory allows. Logits become
probabilities of an image, some classes at a time, or a loss (at the end).

Shapes: V views, B images, T classes, P prompts of a class, E embedding, N = h * w cells, C channels, K or k classes
    kept, s x s logits of a view, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.block_calls import INPUT_KINDS, Keep, keep_expensive, recomputed
from clipself_seg.clip.precision import in_own_precision
from clipself_seg.clip.runtime import chunk_size
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg.attention import COPIES, ClassAggregation, SpatialAggregation
from clipself_seg.heads.maps import mean_over_processes
from clipself_seg.heads.text_scores import cosine_cost
from clipself_seg.heads.windows import AT_ONCE, Part, WindowLayout
from clipself_seg.private_torch import allow_graphs

LEFT_OUT = -100.0  # logit of the classes that are not among the best
CACHED_VALUES = 4 * 24 * 24 * 128  # of the cost volume: four classes of the published models
# In training caches hold nothing until the backward pass, and larger products have fewer gradients to add up.
MORE_IN_TRAINING = 4


def best_classes(cost_PThw: Tensor, count: int) -> Tensor | None:
    """Indices (count,), ascending, of the classes whose highest cost in the image is highest.

    Args:
        cost_PThw: cosines.
        count: number of classes to keep; 0 keeps all.

    Returns:
        None if all classes are kept.
    """
    if not count or cost_PThw.shape[1] <= count:
        return None
    peaks_T = cost_PThw.amax(dim=(0, 2, 3))
    return torch.topk(peaks_T, count, sorted=False).indices.sort().values


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with group norm (16 channels a group) and ReLU."""

    def __init__(self, *, channels: int, out_channels: int) -> None:
        super().__init__()
        groups = max(1, out_channels // 16)
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(T, C, h, w) -> (T, D, h, w)"""
        return self.double_conv(x)


class UpBlock(nn.Module):
    """One step, (T, C, h, w) -> (T, D, 2 h, 2 w)."""

    def __init__(self, *, channels: int, out_channels: int, guidance_channels: int) -> None:
        """
        Args:
            channels: C.
            out_channels: D.
            guidance_channels: G, less than C: the transposed convolution gives the other C - G.
        """
        super().__init__()
        kept = channels - guidance_channels
        self.up = nn.ConvTranspose2d(channels, kept, 2, stride=2)
        self.conv = DoubleConv(channels=channels, out_channels=out_channels)

    def guidance_contribution(self, guidance_VG2h2w: Tensor) -> Tensor:
        """Contribution (V, D, 2 h, 2 w) of guidance and bias to the output of the first convolution."""
        assert self.up.bias is not None
        # The bias of the transposed convolution is a constant map in front of the first convolution,
        # so its contribution differs at the border alone, where zeros are padded.
        views, _, height, width = guidance_VG2h2w.shape
        bias = self.up.bias[:, None, None].expand(views, -1, height, width)
        contribution = self.conv.double_conv[0](torch.cat([bias, guidance_VG2h2w], dim=1))
        return contribution.contiguous(memory_format=torch.channels_last)

    def corner_weight(self) -> Tensor:
        """Transposed convolution and first convolution as one kernel, (4 D, C, 2, 2).

        It stands on the corner of four cells and gives the four pixels around it.
        """
        first: Any = self.conv.double_conv[0]
        kernel = first.weight[:, : self.up.out_channels]
        taps = _corner_taps(kernel)
        # o, i, u: output, input and intermediate channels; p, q: pixel; k, l: cell; d, x: tap of the
        # 3x3 kernel; a, b: half of a cell, which is the place in the transposed kernel.
        weight = torch.einsum("oudx,iuab,pkda,qlxb->pqoikl", kernel, self.up.weight, taps, taps)
        return weight.flatten(0, 2)

    def forward(self, x_TChw: Tensor, corner_weight: Tensor, contribution: Tensor) -> Tensor:
        """(T, C, h, w) -> (T, D, 2 h, 2 w), any number of classes at a time.

        Args:
            x_TChw: maps of the classes.
            corner_weight: result of `corner_weight`.
            contribution: result of `guidance_contribution`.
        """
        corners = F.conv2d(x_TChw, corner_weight, padding=1)
        _, norm1, relu, conv2, norm2, _ = self.conv.double_conv
        # The contribution of each view is added to all of its classes.
        pixels = _around_corners(corners).unflatten(0, (len(contribution), -1))
        x = relu(norm1((pixels + contribution[:, None]).flatten(0, 1)))
        return relu(norm2(conv2(x)))


def _corner_taps(like: Tensor) -> Tensor:
    """One axis of `corner_weight`: [pixel p, cell k, tap d, half a] is 1 where tap d of the 3-tap
    kernel at pixel p reads half a of cell k. The pixels are the two beside the corner of two cells.
    """
    taps = like.new_zeros(2, 2, 3, 2)
    for pixel in range(2):
        for tap in range(3):
            # Halves along the axis: 0 1 | 2 3, the corner is the bar, the pixels are 1 and 2.
            cell, half = divmod(pixel + tap, 2)
            taps[pixel, cell, tap, half] = 1
    return taps


def _around_corners(corners: Tensor) -> Tensor:
    """(T, 4 D, h + 1, w + 1), four pixels a corner -> (T, D, 2 h, 2 w)."""
    count, _, rows, columns = corners.shape
    parts = corners.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))
    pixels = parts.transpose(2, 3).reshape(count, 2 * rows, 2 * columns, -1)
    # Corners on the border have pixels outside of the map.
    return pixels[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class AggregatorSizes:
    """Sizes of the aggregator, the values of ``MODEL.SEM_SEG_HEAD`` and ``MODEL.CAT_SEG.PAD_LEN``.

    Attributes:
        prompts: P, input channels of the cost embedding.
        text: E, channels of the text guidance.
        appearance: channels of the appearance guidance.
        decoder_guidance: channels of the two guidances of the decoder.
        hidden: C, channels of the cost embedding.
        heads: number of attention heads, over space and over classes.
        grid: (h, w).
        window: side in cells of the attention windows over space.
        pooling: side in cells that each aggregation layer averages before its attention over classes.
        text_projected: channels of the projected text guidance.
        appearance_projected: channels of the projected appearance guidance.
        decoder_dims: output channels of the two steps of the decoder.
        decoder_guidance_projected: channels of the two projected guidances of the decoder.
        pad_len: classes that attention over classes sees at least, and at most; 0 is all there are.
    """

    prompts: int = 1
    text: int = 512
    appearance: int = 512
    decoder_guidance: tuple[int, int] = (256, 128)
    hidden: int = 128
    heads: int = 4
    grid: tuple[int, int] = (24, 24)
    window: int = 12
    pooling: tuple[int, ...] = (2, 2)
    text_projected: int = 128
    appearance_projected: int = 128
    decoder_dims: tuple[int, int] = (64, 32)
    decoder_guidance_projected: tuple[int, int] = (32, 16)
    pad_len: int = 256

    @property
    def classes_in_cache(self) -> int:
        """Number of classes whose cost embeddings stay in a CPU's cache together, at least 1."""
        return max(1, CACHED_VALUES // (self.hidden * math.prod(self.grid)))


class Guidance(NamedTuple):
    """Features of one image: appearance (A, h, w), and for the decoder (D1, 2 h, 2 w), (D2, 4 h, 4 w)."""

    appearance: Tensor
    decoder: tuple[Tensor, Tensor]


class ClassLogits(NamedTuple):
    """Logits (K, 4 h, 4 w) of an image, and which of the T classes they are; None is all of them."""

    logits: Tensor
    classes: Tensor | None

    def all_classes(self, count: int) -> Tensor:
        """Logits (T, 4 h, 4 w), `LEFT_OUT` for the classes that are not among the best.

        Args:
            count: T.
        """
        if self.classes is None:
            return self.logits
        full = self.logits.new_full((count, *self.logits.shape[1:]), LEFT_OUT)
        return full.index_copy(0, self.classes, self.logits)


class Groups(NamedTuple):
    """Groups of classes that are processed together.

    Attributes:
        size: classes that pass together; 0 is all.
        recompute: True if each group is computed again in the backward pass.
        keep: says what of it is not, see `recomputed`.
    """

    size: int
    recompute: bool
    keep: Keep | None

    def apply(
        self, function: Callable[[Tensor], Tensor], x: Tensor, in_place: bool = False
    ) -> Tensor:
        """Results of a function that treats every class by itself, applied to a group at a time.

        Args:
            function: (k, ...) -> (k, ...) for any number k of classes.
            x: (T, ...).
            in_place: without gradients, write the results of equal shape over `x`, which nobody
                reads again.
        """
        groups: Sequence[Tensor] = x.split(self.size) if self.size else (x,)
        if torch.is_grad_enabled():
            if self.recompute:
                parts = [recomputed(function, group, keep=self.keep) for group in groups]
            else:
                parts = [function(group) for group in groups]
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        if in_place:
            for group in groups:
                group.copy_(function(group))
            return x
        # Written where they belong, so that parts and their concatenation never exist at once.
        first = function(groups[0])
        results = first.new_empty(len(x), *first.shape[1:])
        results[: len(first)] = first
        for start, group in zip(range(len(first), len(x), len(first)), groups[1:]):
            results[start : start + len(group)] = function(group)
        return results


class AggregatorLayer(nn.Module):
    """One refinement of the cost embedding, over space and then over classes."""

    def __init__(self, sizes: AggregatorSizes, pooling: int) -> None:
        """
        Args:
            sizes: of the aggregator.
            pooling: side in cells that is averaged before the attention over classes.
        """
        super().__init__()
        shape: dict[str, Any] = {"width": sizes.hidden, "heads": sizes.heads, "grid": sizes.grid}
        self.swin_block = SpatialAggregation(
            **shape, guidance_width=sizes.appearance_projected, window=sizes.window
        )
        self.attention = ClassAggregation(
            **shape, guidance_width=sizes.text_projected, pooling=pooling, pad_to=sizes.pad_len
        )

    def forward(
        self, x_TNC: Tensor, appearance_VNG: Tensor, text_VKG: Tensor, groups: Groups
    ) -> Tensor:
        """Refined embedding (T, N, C) of T = V * K classes; without gradients it overwrites `x_TNC`.

        Args:
            x_TNC: cost embedding.
            appearance_VNG: projected appearance guidance of every cell of each view.
            text_VKG: projected text guidance of every class of each view, or (1, K, G) of all of them.
            groups: how the classes pass over space. Over classes all have to be there at once.
        """
        contributions = self.swin_block.guidance_contributions(appearance_VNG)
        over_space = functools.partial(self.swin_block, contributions=contributions)
        x_TNC = groups.apply(over_space, x_TNC, in_place=True)
        if groups.recompute and torch.is_grad_enabled():
            return recomputed(self.attention, x_TNC, text_VKG, keep=groups.keep)
        return self.attention(x_TNC, text_VKG)


class CostAggregator(nn.Module):
    """Turns features of images and texts into logits; parameter names as in CAT-Seg's checkpoints.

    Attributes:
        sizes: of its parts.
        classes_at_once: classes that pass together on a CPU; 0 is all.
        checkpointing: recompute each group in the backward pass.
        compiling: True if blocks are compiled.
    """

    def __init__(self, sizes: AggregatorSizes, classes_at_once: int = 0) -> None:
        """
        Args:
            sizes: of its parts.
            classes_at_once: classes that pass together on a CPU; 0 is all.
        """
        super().__init__()
        self.sizes = sizes
        self.classes_at_once = classes_at_once
        self.checkpointing = False
        self.compiling = False
        self._elements_per_class = COPIES * sizes.hidden * math.prod(sizes.grid)  # in memory
        width = sizes.hidden
        first, second = sizes.decoder_dims
        first_guidance, second_guidance = sizes.decoder_guidance_projected
        # The decoder comes first: random weights and optimiser groups follow from this order.
        self.decoder1 = UpBlock(
            channels=width, out_channels=first, guidance_channels=first_guidance
        )
        self.decoder2 = UpBlock(
            channels=first, out_channels=second, guidance_channels=second_guidance
        )
        self.head = nn.Conv2d(second, 1, 3, padding=1)
        self.conv1 = nn.Conv2d(sizes.prompts, width, 7, padding=3)
        self.guidance_projection = _conv(sizes.appearance, sizes.appearance_projected)
        self.text_guidance_projection = nn.Sequential(
            nn.Linear(sizes.text, sizes.text_projected), nn.ReLU()
        )
        self.decoder_guidance_projection = nn.ModuleList(
            _conv(*pair) for pair in zip(sizes.decoder_guidance, sizes.decoder_guidance_projected)
        )
        self.layers = nn.ModuleList(AggregatorLayer(sizes, p) for p in sizes.pooling)

    def compile_blocks(self) -> None:
        """Compiles the attention blocks over space and over classes, and not the decoder's convolutions."""
        allow_graphs(INPUT_KINDS)
        self.compiling = True
        for module in self.modules():
            if isinstance(module, SpatialAggregation | ClassAggregation):
                module.compiling = True

    def forward(
        self, dense_VEhw: Tensor, guidance: Sequence[Guidance], text_TPE: Tensor
    ) -> list[ClassLogits]:
        """Logits of several images; without gradients a GPU computes as many together as memory allows.

        Args:
            dense_VEhw: dense features of CLIP, of any length per cell.
            guidance: features of the same images.
            text_TPE: embeddings of the prompts of every class.
        """
        kept = min(len(text_TPE), self.sizes.pad_len or len(text_TPE))
        count = 1
        if not torch.is_grad_enabled():
            count = chunk_size(dense_VEhw.device, 1, kept * self._elements_per_class)
        logits: list[ClassLogits] = []
        for start in range(0, len(guidance), count):
            part = slice(start, start + count)
            logits += self._together([*dense_VEhw[part]], guidance[part], text_TPE)
        return logits

    def _together(
        self, dense: Sequence[Tensor], guidance: Sequence[Guidance], text_TPE: Tensor
    ) -> list[ClassLogits]:
        """Logits of images that pass together, and all of their classes; the arguments are those of `forward`."""
        size, device = 0, dense[0].device
        # On a GPU what is made of all classes is kept for the backward pass anyway.
        if len(dense) == 1 and (device.type == "cpu" or not torch.is_grad_enabled()):
            at_once = self.classes_at_once * (MORE_IN_TRAINING if torch.is_grad_enabled() else 1)
            size = at_once and chunk_size(device, at_once, self._elements_per_class)
        groups = Groups(size, self.checkpointing, None if self.compiling else keep_expensive)
        costs, texts, classes = zip(*(self._costs(own, text_TPE) for own in dense))
        text_VKG = _stacked(texts if classes[0] is not None else texts[:1])
        appearance, *decoder = (
            _stacked(x) for x in zip(*((g.appearance, *g.decoder) for g in guidance))
        )
        appearance_VNG = self.guidance_projection(appearance).flatten(2).transpose(1, 2)
        x_TNC = groups.apply(self._embed, costs[0] if len(costs) == 1 else torch.cat(costs))
        for layer in self.layers:
            x_TNC = layer(x_TNC, appearance_VNG, text_VKG, groups)
        logits_Thw = self._decode(x_TNC, decoder, groups)
        parts = logits_Thw.split(len(costs[0])) if len(costs) > 1 else (logits_Thw,)
        return [ClassLogits(own, kept) for own, kept in zip(parts, classes)]

    def _costs(self, dense_Ehw: Tensor, text_TPE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cost volume (K, P, h, w) of the classes kept, their projected texts (K, G), and which they are."""
        cost_PThw = cosine_cost(dense_Ehw, text_TPE)
        classes = best_classes(cost_PThw, self.sizes.pad_len)
        if classes is not None:
            cost_PThw = cost_PThw[:, classes]
            text_TPE = text_TPE[classes]
        # The mean embedding of the prompts of each class, scaled to unit length.
        text_KG = self.text_guidance_projection(F.normalize(text_TPE.mean(dim=1), dim=-1))
        return cost_PThw.transpose(0, 1), text_KG, classes

    def _embed(self, cost_TPhw: Tensor) -> Tensor:
        """(T, P, h, w) -> (T, N, C)"""
        return in_own_precision(self.conv1, cost_TPhw).flatten(2).transpose(1, 2).contiguous()

    def _decode(self, x_TNC: Tensor, guidance: Sequence[Tensor], groups: Groups) -> Tensor:
        """Logits (T, 4 h, 4 w)."""
        projections = zip(self.decoder_guidance_projection, guidance)
        projected = [project(features) for project, features in projections]
        blocks = (self.decoder1, self.decoder2)
        # What all classes of the image have in common is computed once.
        steps = [
            (b, b.corner_weight(), b.guidance_contribution(g)) for b, g in zip(blocks, projected)
        ]

        def decode(x_TNC: Tensor) -> Tensor:
            # The transposed view is what torch calls channels_last.
            x_TChw = x_TNC.transpose(1, 2).unflatten(2, self.sizes.grid)
            for block, corner_weight, contribution in steps:
                x_TChw = block(x_TChw, corner_weight, contribution)
            return in_own_precision(self.head, x_TChw)[:, 0]

        return groups.apply(decode, x_TNC)


def _stacked(maps: Sequence[Tensor]) -> Tensor:
    """Maps of one shape as a batch, which a single one is without a copy."""
    return torch.stack([*maps]) if len(maps) > 1 else maps[0][None]


def _conv(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU())


def kept_classes(views: Sequence[ClassLogits], count: int) -> Tensor:
    """Indices, ascending, of the classes out of `count` that any of the views keeps."""
    if any(view.classes is None for view in views):
        return torch.arange(count, device=views[0].logits.device)
    if len(views) == 1 and views[0].classes is not None:
        return views[0].classes
    # A GPU is waited for here, which costs less than the maps of classes that no view keeps.
    return torch.cat([view.classes for view in views if view.classes is not None]).unique()


def plain_probabilities(
    whole: ClassLogits, kept: Tensor, image_size: tuple[int, int], size: tuple[int, int]
) -> Iterator[Part]:
    """Probabilities at the size of the logits, cut to that of the image where it is smaller.

    (Detectron2's `sem_seg_postprocess` cuts in the same place, also where the logits are smaller than
    the padded input, as CAT-Seg's are.)

    Args:
        whole: logits of the whole padded image.
        kept: indices of the classes that get maps, see `kept_classes`.
        image_size: rows and columns of the image without padding.
        size: rows and columns that the caller resizes the maps to, on which their number in memory depends.
    """
    together = chunk_size(kept.device, AT_ONCE, 4 * max(whole.logits[0].numel(), math.prod(size)))
    rows, columns = image_size
    for part in kept.split(together):
        yield part, _of_classes(whole, part)[:, :rows, :columns].float().sigmoid()


def sliding_probabilities(
    views: Sequence[ClassLogits], kept: Tensor, layout: WindowLayout, size: tuple[int, int]
) -> Iterator[Part]:
    """Probabilities on the canvas of the windows.

    A class that a view leaves out has probability 0 there.

    Args:
        views: logits of each of `WindowLayout.views`.
        kept: indices of the classes that get maps, see `kept_classes`.
        layout: positions of the windows.
        size: rows and columns that the caller resizes the maps to, on which their number in memory depends.
    """
    numbers = 2 * (len(views) * layout.size**2 + layout.canvas**2 + math.prod(size))
    for part in kept.split(chunk_size(kept.device, AT_ONCE, numbers)):
        logits = torch.stack([_of_classes(view, part) for view in views])
        yield part, layout.merge(logits.float())


def _of_classes(view: ClassLogits, wanted: Tensor) -> Tensor:
    """Logits (k, s, s) of some classes; `LEFT_OUT`, whose sigmoid is 0, for those that are not kept."""
    if view.classes is None:
        return view.logits[wanted]
    # Both are ascending. A class that is not kept gets some other class's position, and is masked.
    position = torch.searchsorted(view.classes, wanted).clamp(max=len(view.classes) - 1)
    kept = view.classes[position] == wanted
    return torch.where(kept[:, None, None], view.logits[position], LEFT_OUT)


def check_labels(labels: Tensor, num_classes: int, ignore_label: int) -> None:
    """Refuses labels that the loss cannot use; on a GPU they would end the process.

    Args:
        labels: integers of any shape.
        num_classes: T.
        ignore_label: label of pixels without a class.

    Raises:
        InputError: a label is neither in [0, T) nor `ignore_label`.
    """
    if labels.is_meta:  # counting operations needs shapes alone, and there are no values to check
        return
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_label)]
    if len(wrong):
        raise InputError(
            f"label {int(wrong[0])} is outside of the vocabulary of {num_classes} classes (0 to "
            f"{num_classes - 1}; {ignore_label} is ignored): give the data set's class names to "
            "set_vocabulary, or its label as MODEL.SEM_SEG_HEAD.IGNORE_VALUE"
        )


def sigmoid_loss(
    logits_BTHW: Tensor, labels_BHW: Tensor, ignore_label: int, mask_ignored: bool = False
) -> Tensor:
    """Binary cross-entropy, the mean over images, pixels and classes, a scalar.

    ``-log sigmoid(x)`` of the labelled class and ``-log sigmoid(-x)`` of the others add up to
    ``sum softplus(x) - x[label]``.

    Args:
        logits_BTHW: logits, before the sigmoid.
        labels_BHW: integers in [0, T), or `ignore_label`.
        ignore_label: label of pixels without a class, which are negative examples of all classes, as
            in CAT-Seg.
        mask_ignored: leave such pixels out of the mean instead, which is over the images of all processes.
    """
    labels = labels_BHW.long()
    valid = labels != ignore_label
    # Ignored pixels gather the logit of class 0, which is then replaced by 0.
    own_BHW = logits_BTHW.gather(1, labels.where(valid, 0)[:, None])[:, 0].float()
    own = torch.where(valid, own_BHW, 0).sum()
    costs = F.softplus(logits_BTHW.float())
    if not mask_ignored:
        return (costs.sum() - own) / logits_BTHW.numel()
    kept = (costs.sum(dim=1) * valid).sum() - own
    count = mean_over_processes(valid.sum().float())
    return kept / (count.clamp(min=1) * logits_BTHW.shape[1])
