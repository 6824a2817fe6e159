"""The grounding loss of ODISE's caption model: an image's queries find the words of its caption.

Shapes: B images and as many captions, Q queries, W words of a caption, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grounding_loss(
    embeddings_BQC: Tensor, words_BWC: Tensor, valid_B: Tensor, scale: Tensor
) -> Tensor:
    """Cross-entropy of images against captions and of captions against images, half of each; a scalar.

    An image and a caption fit as well as the caption's words do on average; a word fits as well as
    the queries do, each counted by the softmax over all queries of the image.

    Args:
        embeddings_BQC: of the queries, of any length.
        words_BWC: projected text embeddings, of any length, of the caption of each image.
        valid_B: boolean, False for a caption without words: the pair takes no part. Without
            any valid pair the loss is 0.
        scale: what cosines are multiplied with.
    """
    with torch.autocast(embeddings_BQC.device.type, enabled=False):
        queries = F.normalize(embeddings_BQC[valid_B].float(), dim=-1)
        words = F.normalize(words_BWC[valid_B].float(), dim=-1)
        if not len(queries):
            return 0.0 * (embeddings_BQC.sum() + words_BWC.sum() + scale)
        fits_iqjw = scale.float() * torch.einsum("iqc,jwc->iqjw", queries, words)
        fits_ij = (fits_iqjw.softmax(dim=1) * fits_iqjw).sum(dim=1).mean(dim=-1)
        own = torch.arange(len(fits_ij), device=fits_ij.device)
        return 0.5 * (F.cross_entropy(fits_ij, own) + F.cross_entropy(fits_ij.T, own))
