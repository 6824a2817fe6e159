"""The grounding loss of ODISE's caption model: queries of an image against words of its caption.

Shapes: B images of a process and as many captions, Q queries, W words of a caption, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.precision import full_precision
from clipself_seg.heads.gathering import of_all_processes


def grounding_loss(
    embeddings_BQC: Tensor, words_BWC: Tensor, valid_B: Tensor, scale: Tensor
) -> Tensor:
    """Mean of two cross-entropies, images against captions and captions against images; a scalar.

    The score of an image and a caption is the mean score of the caption's words; a word's score is
    the mean of its scaled cosines with all queries of the image, weighted by their softmax. Captions
    of all processes are negatives, so the loss is the same in each process;
    `DistributedDataParallel` averages the gradients.

    As in ODISE, a pair whose caption has no words is a negative like any other, and its own two terms
    are left out. The images' terms are divided by the number of pairs with words, the captions' terms
    by the number of all pairs.

    Args:
        embeddings_BQC: embeddings of the queries, of any norm.
        words_BWC: projected text embeddings, of any norm, of the words of each image's caption; with
            several processes W is `longest_caption`.
        valid_B: boolean, False for a caption without words. Without any valid pair the loss is 0,
            where ODISE's is NaN.
        scale: positive scalar that cosines are multiplied by.
    """
    with full_precision(embeddings_BQC.device):
        valid = of_all_processes(valid_B.float()) > 0
        queries = F.normalize(of_all_processes(embeddings_BQC.float()), dim=-1)
        words = F.normalize(of_all_processes(words_BWC.float()), dim=-1)
        if not valid.any():
            # Zero with a gradient: DistributedDataParallel waits for one of every parameter.
            return 0.0 * (embeddings_BQC.sum() + words_BWC.sum() + scale)
        scores_iqjw = scale.float() * torch.einsum("iqc,jwc->iqjw", queries, words)
        scores_ij = (scores_iqjw.softmax(dim=1) * scores_iqjw).sum(dim=1).mean(dim=-1)
        images = -scores_ij.log_softmax(dim=1).diagonal()[valid]
        captions = -scores_ij.log_softmax(dim=0).diagonal()[valid]
        return 0.5 * (images.mean() + captions.sum() / len(valid))


def longest_caption(captions: Sequence[Sequence[str]], device: torch.device) -> int:
    """Number of words of the longest caption of all processes, at least 1.

    Args:
        captions: words of the caption of each image of this process.
        device: device of the model, through which the processes communicate.
    """
    count = torch.tensor(max([1, *map(len, captions)]), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count, dist.ReduceOp.MAX)
    return int(count)
