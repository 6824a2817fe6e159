"""The grounding loss of ODISE's caption model: an image's queries find the words of its caption.

Shapes: B images of a process and as many captions, Q queries, W words of a caption, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from clipself_seg.clip.precision import full_precision


def grounding_loss(
    embeddings_BQC: Tensor, words_BWC: Tensor, valid_B: Tensor, scale: Tensor
) -> Tensor:
    """Cross-entropy of images against captions and of captions against images, half of each; a scalar.

    An image and a caption fit as well as the caption's words do on average; a word fits as well as
    the queries do, each counted by the softmax over all queries of the image. Captions of all
    processes compete, so the loss is the same in each; `DistributedDataParallel` averages the gradients.

    Args:
        embeddings_BQC: of the queries, of any length.
        words_BWC: projected text embeddings, of any length, of the caption of each image; with
            several processes W is that of `longest_caption`.
        valid_B: boolean, False for a caption without words: the pair takes no part. Without
            any valid pair the loss is 0.
        scale: what cosines are multiplied with.
    """
    with full_precision(embeddings_BQC.device):
        valid = _of_all_processes(valid_B.float()) > 0
        queries = F.normalize(_of_all_processes(embeddings_BQC.float())[valid], dim=-1)
        words = F.normalize(_of_all_processes(words_BWC.float())[valid], dim=-1)
        if not len(queries):
            return 0.0 * (embeddings_BQC.sum() + words_BWC.sum() + scale)
        fits_iqjw = scale.float() * torch.einsum("iqc,jwc->iqjw", queries, words)
        fits_ij = (fits_iqjw.softmax(dim=1) * fits_iqjw).sum(dim=1).mean(dim=-1)
        own = torch.arange(len(fits_ij), device=fits_ij.device)
        return 0.5 * (F.cross_entropy(fits_ij, own) + F.cross_entropy(fits_ij.T, own))


def longest_caption(captions: Sequence[Sequence[str]], device: torch.device) -> int:
    """Words of the longest caption of any process, at least 1.

    Args:
        captions: the words of each image of this process.
        device: of the model, which processes talk through.
    """
    count = torch.tensor(max([1, *map(len, captions)]), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count, dist.ReduceOp.MAX)
    return int(count)


def _of_all_processes(own: Tensor) -> Tensor:
    """(B, ...) of each process, one after another, with gradients to all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return own
    return torch.cat(all_gather(own.contiguous()))
