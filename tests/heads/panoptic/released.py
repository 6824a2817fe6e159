"""PMT's decoders as they were released: with a classifier of fixed classes in place of what is compared with texts."""

from types import MethodType

from torch import Tensor

from clipself_seg.clip.linear import Linear
from clipself_seg.heads.panoptic.plain_decoder import PlainDecoder, PlainDecoderSizes, TokenDecoder


def _class_logits(self: TokenDecoder, states: Tensor, features: Tensor, masks: Tensor) -> Tensor:
    return self.class_head(states)


def released_decoder(
    names: list[str], sizes: PlainDecoderSizes, classes: int, masked: bool = False
) -> PlainDecoder:
    """A decoder whose embeddings are logits (B, Q, K + 1) of K classes, void last."""
    channels = dict.fromkeys(names, sizes.width)
    decoder = PlainDecoder(channels=channels, sizes=sizes, masked_attention=masked)
    inner = decoder.decoder
    del decoder.void_embedding, inner.mask_pooling_proj, inner.class_embed, inner.logit_scale
    inner.class_head = Linear(sizes.width, classes + 1)
    inner._embed = MethodType(_class_logits, inner)
    return decoder
