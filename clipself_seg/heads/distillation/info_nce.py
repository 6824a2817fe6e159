"""Image-level supervision: symmetric InfoNCE of images and their captions (CLIPSelf, Table 1c, #5*).

Shapes: B images of a process and as many captions, E embedding width, L tokens of a caption.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.runtime import full_precision
from clipself_seg.heads.gathering import of_all_processes


def info_nce_loss(
    images_BE: Tensor, texts_BE: Tensor, tokens_BL: Tensor, scale: Tensor, gather: bool = True
) -> Tensor:
    """Mean of two cross-entropies, images against captions and captions against images; a scalar of at least 0.

    Where all captions differ, it is the loss of CLIP's training (open_clip's `ClipLoss`). Equal captions
    are all right for each of their images: their probabilities are summed, as RegionCLIP does with
    equal nouns; else the loss would have a floor that nothing can learn away. It is computed in float32,
    whatever the type of the inputs.

    Args:
        images_BE: image embeddings, of any norm.
        texts_BE: text embeddings of the images' captions, of any norm.
        tokens_BL: tokens of the captions, integers; captions with equal tokens are equal; on any device.
        scale: positive scalar that cosines are multiplied by.
        gather: whether images and captions of all processes, of which each has B, compete. Then the
            loss is the same in each process, and `DistributedDataParallel` averages the gradients to
            those of one process on the whole batch.
    """
    with full_precision(images_BE.device):
        images = F.normalize(images_BE.float(), dim=-1)
        texts = F.normalize(texts_BE.float(), dim=-1)
        tokens = tokens_BL.to(images.device, non_blocking=True)
        if gather:
            images, texts, tokens = (of_all_processes(own) for own in (images, texts, tokens))
        logits_ij = scale.float() * images @ texts.T
        different_ij = (tokens[:, None] != tokens).any(dim=-1)
        losses = [summed_cross_entropy(logits_ij, different_ij, dim) for dim in (0, 1)]
        return 0.5 * torch.stack(losses).sum(0).mean()


def summed_cross_entropy(logits: Tensor, wrong: Tensor, dim: int) -> Tensor:
    """Cross-entropies of a softmax in which several entries may be right: their probabilities are summed.

    Args:
        logits: of any shape.
        wrong: bool of that shape, entries that are not right.
        dim: dimension of the softmax, which the result has lost.
    """
    right = logits.masked_fill(wrong, -torch.inf)
    return logits.logsumexp(dim) - right.logsumexp(dim)
