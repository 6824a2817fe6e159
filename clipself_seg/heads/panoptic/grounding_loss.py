"""The grounding loss of ODISE's caption model: queries of an image against words of its caption.

Shapes: B images of a process and as many captions, Q queries, W words of a caption, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.runtime import full_precision
from clipself_seg.heads.gathering import of_all_processes


def grounding_loss(
    embeddings_BQC: Tensor, words_BWC: Tensor, valid: Tensor, scale: Tensor
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
            several processes W is the largest of `caption_lengths`.
        valid: boolean, on the CPU, False for a caption without words, of the captions of all processes; see
            `caption_lengths`. Without any valid pair the loss is 0, where ODISE's is NaN.
        scale: positive scalar that cosines are multiplied by.
    """
    with full_precision(embeddings_BQC.device):
        queries = F.normalize(of_all_processes(embeddings_BQC.float()), dim=-1)
        words = F.normalize(of_all_processes(words_BWC.float()), dim=-1)
        if not valid.any():
            # Zero with a gradient: DistributedDataParallel waits for one of every parameter.
            return 0.0 * (embeddings_BQC.sum() + words_BWC.sum() + scale)
        scores_iqjw = scale.float() * torch.einsum("iqc,jwc->iqjw", queries, words)
        scores_ij = (scores_iqjw.softmax(dim=1) * scores_iqjw).sum(dim=1).mean(dim=-1)
        # Indices: a mask would make Python wait for the GPU.
        rows = valid.nonzero()[:, 0].to(scores_ij.device, non_blocking=True)
        images = -scores_ij.log_softmax(dim=1).diagonal()[rows]
        captions = -scores_ij.log_softmax(dim=0).diagonal()[rows]
        return 0.5 * (images.mean() + captions.sum() / len(valid))


def caption_lengths(captions: Sequence[Sequence[str]], device: torch.device) -> Tensor:
    """Number of words of each caption of all processes, int64, on the CPU.

    Args:
        captions: words of the caption of each image of this process.
        device: device of the model, through which several processes communicate, and wait for each other.
    """
    own = torch.tensor([len(words) for words in captions])
    if not (dist.is_available() and dist.is_initialized()):
        return own
    return of_all_processes(own.to(device, non_blocking=True)).cpu()
