"""Merges class probabilities and masks of queries into panoptic, semantic and instance outputs.

The rules are Mask2Former's. Masks are read once, some pixels of all queries at a time, so memory beyond inputs and
outputs does not grow with the image; `canvas_labels`, which resizes scores, takes some classes at a time. Masks of a
large image are resized some of them, or some columns, at a time.
Decisions about queries are made on the host, after one transfer of scores and one of areas.

Shapes: Q queries, n of them kept, K classes, P pixels of a piece, H W rows and columns of the output. `probs` is
    (Q, K + 1) with void last, as `fusion.fuse_scores` returns it; `mask_logits` is (Q, H, W).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.runtime import chunk_size, constant, on_cpu, widest
from clipself_seg.data.masks import MASK_BYTES, EncodedMasks, Rle, encode_masks

CPU_NUMBERS = 2**18  # numbers that are processed at once, within a core's cache
CANVAS_NUMBERS = 2**25  # of masks on the canvas at once, on a CPU
COPIES = 4  # numbers in memory for one of a piece: the copy, its product, the mask
# Pieces are multiples of a vector register: scalar arithmetic on a rest may differ in the last bit.
LANES = 64
MOST_PIXELS = 2**24  # of a piece: sums of so many ones are exact in float32
# Masks that are resized at once for a large image. Three would be resized by another kernel of torch, with other bits.
TOGETHER = 2
Segment = dict[str, Any]
# Rows and columns of the canvas, of the resized image on it, and of the output, see `resize_masks`.
Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
CLASS_NUMBERS = 2**26  # of class scores that are resized at once, on a CPU
COLUMN_NUMBERS = 2**27  # of masks of some columns that are resized along rows


def pixel_pieces(
    mask_logits: Tensor, queries: Tensor | None = None, more: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Yields a slice of pixels and a float32 copy (n, P) of their logits that may be overwritten.

    Args:
        mask_logits: (Q, H, W); the slices are of its flattened pixels.
        queries: indices (n,) of the queries to yield; None for all Q.
        more: further numbers a pixel that the caller computes, so that pieces get smaller.
    """
    flat = mask_logits.flatten(1)
    count = len(flat) if queries is None else len(queries)
    numbers = max(1, (count + more) * LANES)
    pixels = chunk_size(flat.device, CPU_NUMBERS // numbers, COPIES * numbers) * LANES
    pixels = min(pixels, MOST_PIXELS)
    for start in range(0, flat.shape[1], pixels):
        piece = slice(start, min(start + pixels, flat.shape[1]))
        part = flat[:, piece]
        chosen = part.clone() if queries is None else part.index_select(0, queries)
        yield piece, chosen.float()


def first_best(values_nP: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum (P,) over rows and the first row (P,) int64 that attains it; overwrites its argument.

    The same as `max(dim=0)`, which is about ten times as slow along rows on a CPU.
    """
    if not on_cpu(values_nP):
        best, first = values_nP.max(dim=0)
        return best, first
    best = values_nP.amax(dim=0)
    count = len(values_nP)
    # Row i is given n - i where it attains the maximum, so the largest number marks the first row.
    backwards = torch.arange(count, 0, -1, dtype=values_nP.dtype, device=values_nP.device)
    first = count - values_nP.eq_(best).mul_(backwards[:, None]).amax(dim=0)
    # Nothing equals a maximum of NaN, which leaves n.
    return best, first.long().clamp_(max=count - 1)


def resize_masks(
    mask_logits: Tensor,
    canvas_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Tensor:
    """Mask logits (Q, H, W) of the original image from those of the generator, float32 unless nothing is resized.

    They are resized to the padded canvas, cut to the image's part of it (top left) and resized to the
    output, bilinearly and a few queries at a time. A single resize gives other numbers.

    Args:
        mask_logits: (Q, h, w), usually at a quarter of the canvas's resolution.
        canvas_size: rows and columns of the padded input in pixels.
        image_size: rows and columns of the resized image on the canvas.
        output_size: rows and columns (H, W) of the original image.
    """
    if tuple(mask_logits.shape[1:]) == canvas_size == image_size == output_size:
        return mask_logits
    output = mask_logits.new_empty((len(mask_logits), *output_size), dtype=torch.float32)
    for target, on_image in _on_image(output, mask_logits, canvas_size, image_size):
        target.copy_(F.interpolate(on_image, output_size, mode="bilinear")[0])
    return output


def _on_image(
    output: Tensor, mask_logits: Tensor, canvas_size: tuple[int, int], image_size: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields some of the output's maps, and the masks (1, n, h, w) float32 of the resized image that belong there."""
    if output.numel() == 0:
        return
    rows, columns = image_size
    pixels = canvas_size[0] * canvas_size[1]
    count = chunk_size(output.device, CANVAS_NUMBERS // pixels, 2 * (pixels + output[0].numel()))
    for target, source in zip(output.split(count), mask_logits.split(count)):
        on_canvas = F.interpolate(source[None].float(), canvas_size, mode="bilinear")
        yield target, on_canvas[..., :rows, :columns]


def merge_panoptic(
    probs: Tensor,
    mask_logits: Tensor,
    thing_ids: Collection[int],
    object_threshold: float = 0.0,
    overlap_threshold: float = 0.8,
    sizes: Sizes | None = None,
) -> tuple[Tensor, list[Segment]]:
    """Panoptic segments: every pixel is assigned to one query, and every query to one segment.

    A query takes part if its best class is not void and has more than `object_threshold`. A pixel is
    assigned to the query with the highest product of class and mask probability, the first of equal
    ones, and drawn only if that mask's probability is at least one half there. A query is dropped if
    it won fewer pixels than `overlap_threshold` times the pixels where its mask's probability is at
    least one half. Queries of the same stuff class form one segment.

    Args:
        probs: class probabilities (Q, K + 1), void last.
        mask_logits: (Q, H, W), positive inside a mask.
        thing_ids: indices of the thing classes, in [0, K).
        object_threshold: probability that a query's class has to exceed, in [0, 1].
        overlap_threshold: smallest ratio of a query's won pixels to its mask's area, in [0, 1].
        sizes: those of `resize_masks`, to which masks of another size are brought `TOGETHER` at a time, and those of
            queries that take no part are not; None for masks that have the size of the output.

    Returns:
        Segment ids (H, W) int64, 0 where there is no segment, and a dict for each segment: "id" (from
        1), "isthing" (bool), "category_id" (in [0, K)), "score", the highest class probability of its
        queries, and "queries", their places in `probs`.

    Raises:
        FloatingPointError: a probability or a deciding mask is not finite.
    """
    num_classes = probs.shape[1] - 1
    assert mask_logits.ndim == 3 and len(probs) == len(mask_logits)
    scores_Q, labels_Q = probs.float().max(dim=1)
    taken_Q = (labels_Q != num_classes) & (scores_Q > object_threshold)
    # A GPU is waited for twice: here, and for the areas.
    taken, labels, scores = _with_finite(probs, taken_Q, labels_Q, scores_Q)
    order = [query for query, takes_part in enumerate(taken) if takes_part]
    size = tuple(mask_logits.shape[1:]) if sizes is None else sizes[-1]
    if not order or 0 in size:
        return torch.zeros(size, dtype=torch.int64, device=probs.device), []
    kept = constant(order, labels_Q)
    winner, drawn, areas = _contest(scores_Q[kept], mask_logits, kept, sizes)
    own = [int(labels[query]) for query in order], [scores[query] for query in order]
    segment_of, segments = _segments(*own, areas, thing_ids, overlap_threshold)
    for query, segment in zip(order, segment_of):
        if segment:
            segments[segment - 1]["queries"].append(query)
    ids = constant(segment_of, winner)[winner] * drawn
    return ids.view(size), segments


def _segments(
    labels: Sequence[int],
    scores: Sequence[float],
    areas: Sequence[Sequence[int]],
    things: Collection[int],
    overlap_threshold: float,
) -> tuple[list[int], list[Segment]]:
    """The segment of each of n queries, 0 for those that are dropped, and the segments.

    Args:
        labels: class of each query.
        scores: its probability.
        areas: three numbers of pixels of each query, see `_contest`.
        things: indices of the thing classes.
        overlap_threshold: see `merge_panoptic`.
    """
    segment_of = [0] * len(labels)
    segments = list[Segment]()
    stuff = dict[int, int]()  # id of the segment of each stuff class
    for query, (label, score, won, half, both) in enumerate(zip(labels, scores, *areas)):
        if not (won and half and both) or won / half < overlap_threshold:
            continue
        isthing = label in things
        if not isthing and label in stuff:
            segment_of[query] = stuff[label]
            segment = segments[stuff[label] - 1]
            segment["score"] = max(segment["score"], score)
            continue
        own = len(segments) + 1
        segment = {"id": own, "isthing": isthing, "category_id": label, "score": score}
        segments.append(segment | {"queries": []})
        segment_of[query] = own
        if not isthing:
            stuff[label] = own
    return segment_of, segments


def _contest(
    scores: Tensor, mask_logits: Tensor, kept: Tensor, sizes: Sizes | None
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """The query that wins each pixel, and the areas that decide about the queries.

    Args:
        scores: class probabilities (n,) of the kept queries.
        mask_logits: (Q, H, W).
        kept: indices (n,) of the kept queries.
        sizes: see `merge_panoptic`.

    Returns:
        The winner of each pixel, (H W,) int64 in [0, n); whether the winner's mask probability is at
        least one half there, (H W,) bool; and three times the number of pixels of each query: won, with
        a probability of at least one half, and both.

    Raises:
        FloatingPointError: a deciding mask is not finite.
    """
    device = mask_logits.device
    pixels = mask_logits[0].numel() if sizes is None else math.prod(sizes[-1])
    winner = torch.empty(pixels, dtype=torch.int64, device=device)
    drawn = torch.empty(pixels, dtype=torch.bool, device=device)
    most = torch.empty(pixels, device=device)
    half = torch.zeros(len(kept), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for queries, masks, rows in _of_output_size(mask_logits, kept, sizes):
        for piece, logits in pixel_pieces(masks, rows):
            mask_nP = logits.sigmoid_()
            best, first = first_best(mask_nP * scores[queries, None])
            finite &= best.isfinite().all()
            # 0 or 1 in place of the mask: sums of floats are fast, and exact up to `MOST_PIXELS`.
            mask_nP.ge_(0.5)
            half[queries] += mask_nP.sum(dim=1).long()
            inside = mask_nP.gather(0, first[None])[0] > 0
            if queries.start:
                better = best > most[piece]  # of equal ones the first
                first = torch.where(better, first + queries.start, winner[piece])
                inside = torch.where(better, inside, drawn[piece])
                best = torch.maximum(best, most[piece])
            most[piece], winner[piece], drawn[piece] = best, first, inside
    if on_cpu(winner):
        won, both = (x.bincount(minlength=len(kept)) for x in (winner, winner[drawn]))
    else:
        # A GPU would be waited for, to know the largest number; what is below 0 is not counted.
        won, both = (
            torch.histc(x.to(widest(device)), len(kept), min=0, max=len(kept)).long()
            for x in (winner, winner.where(drawn, -1))
        )
    # One transfer for all that decides.
    *areas, all_finite = torch.stack([won, half, both, finite.long().expand_as(half)]).tolist()
    if not all_finite[0]:
        raise FloatingPointError("mask logits are not finite: the weights are at fault")
    return winner, drawn, areas


def _of_output_size(
    mask_logits: Tensor, kept: Tensor, sizes: Sizes | None, apart: bool = False
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields which of the kept queries, masks of the output's size, and their rows in them; where they are resized or
    `apart`, a few at a time."""
    few, numbers = (TOGETHER, COPIES * sum(map(math.prod, sizes))) if sizes else (len(kept), 1)
    together = TOGETHER if apart else chunk_size(mask_logits.device, few, numbers)
    for start in range(0, len(kept), together):
        queries = slice(start, min(start + together, len(kept)))
        if sizes is None:
            yield queries, mask_logits, kept[queries]
        else:
            resized = resize_masks(mask_logits[kept[queries]], *sizes)
            yield queries, resized, torch.arange(len(resized), device=resized.device)


def merge_semantic(probs: Tensor, mask_logits: Tensor, sizes: Sizes | None = None) -> Tensor:
    """Scores (K, H, W) float32 of each class: class times mask probability, summed over queries.

    Args:
        probs: class probabilities (Q, K + 1); void is left out.
        mask_logits: (Q, H, W), positive inside a mask.
        sizes: those of `resize_masks`, to which masks of another size are brought some columns at a time; None for
            masks that have the size of the output.
    """
    num_classes = _check(probs, mask_logits)
    size = mask_logits.shape[1:] if sizes is None else sizes[-1]
    scores = mask_logits.new_empty((num_classes, *size), dtype=torch.float32)
    for pixels, scores_KP in _class_scores(probs, mask_logits, sizes):
        scores.view(num_classes, -1)[:, pixels] = scores_KP
    return scores


def semantic_labels(probs: Tensor, mask_logits: Tensor, sizes: Sizes | None = None) -> Tensor:
    """Best class (H, W) int64 of every pixel, as the first maximum of `merge_semantic`'s scores.

    The scores (K, H, W) themselves are never in memory as a whole. The arguments are those of `merge_semantic`.
    """
    _check(probs, mask_logits)
    size = mask_logits.shape[1:] if sizes is None else sizes[-1]
    labels = mask_logits.new_zeros(size, dtype=torch.int64)
    for pixels, scores_KP in _class_scores(probs, mask_logits, sizes):
        labels.view(-1)[pixels] = first_best(scores_KP)[1]
    return labels


def canvas_labels(
    probs: Tensor,
    mask_logits: Tensor,
    canvas_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Tensor:
    """Best class (H, W) int64 of every pixel, of class scores that are made on the canvas and then resized.

    That is Mask2Former's order where nothing but semantic segmentation is asked for: masks (Q, m, n) are resized to the
    padded canvas, `merge_semantic`'s scores are made there, cut to the image's part of it (top left) and resized to
    the output, bilinearly. At edges it gives other classes than `semantic_labels` of resized masks. Scores are cut
    before they are made, and kept for some classes at a time, neither of which changes them: every class is resized
    by itself. The first of equal classes wins.

    Args:
        probs: class probabilities (Q, K + 1); void is left out.
        mask_logits: (Q, m, n), positive inside a mask, usually at a quarter of the canvas's resolution.
        canvas_size: rows and columns of the padded input in pixels.
        image_size: rows and columns of the resized image on the canvas.
        output_size: rows and columns (H, W) of the original image.
    """
    num_classes = _check(probs, mask_logits)
    class_KQ = probs[:, :-1].float().T
    output_pixels = output_size[0] * output_size[1]
    labels_P = torch.zeros(output_pixels, dtype=torch.int64, device=probs.device)
    if labels_P.numel() == 0:
        return labels_P.view(output_size)
    best_P = labels_P.new_full((output_pixels,), -1, dtype=torch.float32)  # scores are 0 or more
    with full_precision(probs.device):
        masks_Qhw = probs.new_empty((len(mask_logits), *image_size), dtype=torch.float32)
        for target, on_image in _on_image(masks_Qhw, mask_logits, canvas_size, image_size):
            target.copy_(on_image[0])
        mask_Qp = masks_Qhw.sigmoid_().flatten(1)
        # In memory for each class: its scores before and after resizing, and what finds the best of them.
        pixels = mask_Qp.shape[1] + 3 * output_pixels
        count = chunk_size(probs.device, CLASS_NUMBERS // pixels, pixels)
        for start in range(0, num_classes, count):
            scores_kp = class_KQ[start : start + count] @ mask_Qp
            scores_khw = scores_kp.view(-1, *image_size)
            if image_size != output_size:
                scores_khw = F.interpolate(scores_khw[None], output_size, mode="bilinear")[0]
            top_P, first_P = first_best(scores_khw.flatten(1))
            better_P = top_P > best_P
            labels_P = torch.where(better_P, first_P + start, labels_P)
            best_P = torch.where(better_P, top_P, best_P)
    return labels_P.view(output_size)


def _class_scores(
    probs: Tensor, mask_logits: Tensor, sizes: Sizes | None
) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """Yields some of the flattened pixels and their class scores (K, P)."""
    class_KQ = probs[:, :-1].float().T
    for columns, masks in _of_columns(mask_logits, sizes):
        for piece, logits in pixel_pieces(masks, more=len(class_KQ)):
            with full_precision(logits.device):
                pixels = piece if columns is None else columns[piece]
                yield pixels, class_KQ @ logits.sigmoid_()


def _of_columns(mask_logits: Tensor, sizes: Sizes | None) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Yields the numbers of the pixels of some columns (None for all pixels), and all masks (Q, H, n) there.

    They have the bits of `resize_masks`, from 128 rows on: a bilinear resize is one along rows and then one down
    columns, and the second needs no other columns.
    """
    if sizes is None:
        yield None, mask_logits
        return
    canvas, image, (rows, columns) = sizes
    numbers = max(1, len(mask_logits) * image[0] * LANES)
    count = max(1, COLUMN_NUMBERS // numbers) * LANES
    above = columns * torch.arange(rows, device=mask_logits.device)[:, None]
    for some in torch.arange(columns, device=mask_logits.device).split(count):
        along = torch.empty(len(mask_logits), image[0], len(some), device=mask_logits.device)
        for target, on_image in _on_image(along, mask_logits, canvas, image):
            for own, part in zip(target.split(TOGETHER), on_image.split(TOGETHER, dim=1)):
                whole = F.interpolate(part, (image[0], columns), mode="bilinear")
                own.copy_(whole[0].index_select(2, some))
        for few, part in zip(some.split(LANES), along.split(LANES, dim=2)):
            masks = F.interpolate(part[None], (rows, len(few)), mode="bilinear")[0]
            yield (above + few).flatten(), masks


@torch.no_grad()
def merge_instances(
    probs: Tensor,
    mask_logits: Tensor,
    thing_ids: Collection[int],
    top_k: int = 100,
    sizes: Sizes | None = None,
) -> Instances:
    """Instances of the best pairs of query and class, things only.

    The `top_k` pairs are chosen among all classes, and stuff is dropped afterwards. A query may
    appear with several classes. The score is the class probability times the mean mask probability
    inside the mask.

    Args:
        probs: class probabilities (Q, K + 1); void is left out.
        mask_logits: (Q, H, W), positive inside a mask.
        thing_ids: indices of the thing classes, in [0, K).
        top_k: number of pairs, at least 0.
        sizes: see `merge_panoptic`.

    Returns:
        n instances of an (H, W) image: "pred_masks" (n, H, W) bool or `EncodedMasks`, "scores" (n,) float32,
        "pred_classes" (n,) int64, and "pred_boxes", which are all 0: only masks are meant to be
        evaluated. They are in order of falling class probability, equal ones in that of query and
        class.

    Raises:
        FloatingPointError: a probability is not finite.
    """
    num_classes = probs.shape[1] - 1
    assert mask_logits.ndim == 3 and len(probs) == len(mask_logits)
    class_scores, order = probs[:, :-1].float().flatten().sort(stable=True, descending=True)
    class_scores = class_scores[:top_k]
    order = order[:top_k]
    things = constant(sorted(thing_ids), order)
    (of_things,) = _with_finite(probs, torch.isin(order % num_classes, things))
    chosen = constant([pair for pair, thing in enumerate(of_things) if thing], order)
    class_scores = class_scores[chosen]
    order = order[chosen]
    queries = order // num_classes
    size = tuple(mask_logits.shape[1:]) if sizes is None else sizes[-1]
    encodes = len(queries) * math.prod(size) > MASK_BYTES
    masks = mask_logits.new_empty((0 if encodes else len(queries), *size), dtype=torch.bool)
    codes = list[Rle]()
    exact = widest(class_scores.device)
    inside, area = class_scores.new_zeros(2, len(queries), dtype=exact)
    for pairs, resized, rows in _of_output_size(mask_logits, queries, sizes, apart=encodes):
        own = masks.new_empty((len(rows), *size)) if encodes else masks[pairs]
        # Pieces as of all pairs, for sums of other pieces have other bits.
        for piece, logits in pixel_pieces(resized, rows, more=len(queries) - len(rows)):
            mask = torch.gt(logits, 0, out=own.flatten(1)[:, piece])
            inside[pairs].add_((logits.sigmoid_() * mask).sum(dim=1))
            area[pairs].add_(mask.sum(dim=1))
        if encodes:
            codes += encode_masks(own.cpu().numpy())
    instances = Instances(size)
    instances.pred_masks = EncodedMasks(codes) if encodes else masks
    instances.pred_boxes = Boxes(class_scores.new_zeros(len(queries), 4))
    instances.scores = class_scores * (inside / (area + 1e-6)).float()
    instances.pred_classes = order % num_classes
    return instances


def _check(probs: Tensor, mask_logits: Tensor) -> int:
    """Number of classes K, after a check of shapes and of finite probabilities."""
    assert mask_logits.ndim == 3 and len(probs) == len(mask_logits)
    _with_finite(probs)
    return probs.shape[1] - 1


def _with_finite(probs: Tensor, *rows: Tensor) -> list[list[float]]:
    """Numbers of rows (n,) as Python has them, exactly, after a check of finite probabilities, in one transfer."""
    exact = widest(probs.device)
    finite = probs.isfinite().all().to(exact)
    *numbers, all_finite = torch.cat([*(row.to(exact) for row in rows), finite[None]]).tolist()
    if not all_finite:
        raise FloatingPointError("class probabilities are not finite: the weights are at fault")
    parts = iter(numbers)
    return [list(itertools.islice(parts, len(row))) for row in rows]
