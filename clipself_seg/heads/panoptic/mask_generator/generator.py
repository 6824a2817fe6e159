"""ODISE's mask generator (arXiv 2303.04803): feature maps and texts -> masks, class logits and void.

Shapes: B images, Q queries, S texts (all synonyms of all classes), K classes, E width of a text
embedding, C width of the generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clipself_seg.errors import InputError, nearest
from clipself_seg.heads.panoptic.class_logits import class_logits
from clipself_seg.heads.panoptic.mask_generator.pixel_decoder import PixelDecoder
from clipself_seg.heads.panoptic.mask_generator.query_decoder import (
    QueryDecoder,
    QueryPrediction,
)

VARIANTS = ("caption", "label")


@dataclasses.dataclass(frozen=True)
class GeneratorSizes:
    """Widths and depths; the defaults are those of ODISE's checkpoints."""

    width: int = 256
    heads: int = 8
    queries: int = 100
    encoder_layers: int = 6
    encoder_hidden: int = 1024
    points: int = 4
    decoder_layers: int = 9
    decoder_hidden: int = 2048


@dataclasses.dataclass(frozen=True)
class GeneratorScores:
    """What the generator thinks of its masks.

    Attributes:
        class_logits: (B, Q, K), without void.
        void_logits: what decides about void, and what the classification loss is made of:
            (B, Q, 2), object and void (caption), or (B, Q, K + 1), classes and void (label).
    """

    class_logits: Tensor
    void_logits: Tensor

    @property
    def void_prob(self) -> Tensor:
        """(B, Q) in [0, 1]"""
        return self.void_logits.float().softmax(dim=-1)[..., -1]


class SegmentationHead(nn.Module):
    """Pixel decoder and query decoder, under the names of the checkpoints."""

    def __init__(self, pixel_decoder: PixelDecoder, predictor: QueryDecoder) -> None:
        super().__init__()
        self.pixel_decoder, self.predictor = pixel_decoder, predictor


class TextHead(nn.Module):
    """From CLIP's text embeddings to the generator's; in the label model also void's own text."""

    def __init__(self, text_width: int, width: int, null_text: Tensor | None = None) -> None:
        """
        Args:
            text_width: E.
            width: C.
            null_text: initial embedding (E,) of void; None: no void here.
        """
        super().__init__()
        self.text_proj = nn.Linear(text_width, width)
        if null_text is not None:
            self.null_embed = nn.Parameter(null_text.detach().reshape(1, -1).clone())

    def forward(self, text_SE: Tensor) -> Tensor:
        """(S, E) -> (S, C), in the label model (S + 1, C): void last."""
        if hasattr(self, "null_embed"):
            text_SE = torch.cat([text_SE, self.null_embed.to(text_SE.dtype)])
        return self.text_proj(text_SE)


class MaskGenerator(nn.Module):
    """Parameter names are those of ODISE's checkpoints."""

    def __init__(
        self,
        *,
        variant: str = "caption",
        channels: Mapping[str, int],
        text_width: int = 768,
        null_text: Tensor | None = None,
        sizes: GeneratorSizes | None = None,
    ) -> None:
        """
        Args:
            variant: "caption" tells objects from void by a classifier, "label" by a text of void.
            channels: of the feature maps s2, s3, s4 and s5, whose strides are 4, 8, 16 and 32.
            text_width: E.
            null_text: (E,), label only: where void's text starts, CLIP's embedding of the empty text;
                None: at zero, for weights that are loaded later.
            sizes: None for ODISE's.

        Raises:
            InputError: an unknown variant, or a width that does not fit heads and norms.
        """
        super().__init__()
        if variant not in VARIANTS:
            raise InputError(f'no mask generator "{variant}"; {nearest(variant, VARIANTS)}')
        sizes = sizes or GeneratorSizes()
        if sizes.width % 32 or sizes.width % sizes.heads:
            raise InputError(
                f"mask generator: a width of {sizes.width} has to be a multiple of 32 (groups of "
                f"norms) and of the {sizes.heads} heads"
            )
        self.variant, label = variant, variant == "label"
        pixel_decoder = PixelDecoder(
            channels=channels,
            width=sizes.width,
            heads=sizes.heads,
            layers=sizes.encoder_layers,
            points=sizes.points,
            hidden=sizes.encoder_hidden,
        )
        predictor = QueryDecoder(
            width=sizes.width,
            heads=sizes.heads,
            queries=sizes.queries,
            layers=sizes.decoder_layers,
            hidden=sizes.decoder_hidden,
            object_logits=not label,
        )
        self.sem_seg_head = SegmentationHead(pixel_decoder, predictor)
        if label:
            null_text = torch.zeros(text_width) if null_text is None else null_text
            self.category_head = TextHead(text_width, sizes.width, null_text)
        else:
            self.word_head = TextHead(text_width, sizes.width)

    @property
    def text_head(self) -> TextHead:
        """``word_head`` of the caption model, ``category_head`` of the label model."""
        return self.category_head if self.variant == "label" else self.word_head

    def forward(
        self, features: Mapping[str, Tensor], every_layer: bool = False
    ) -> list[QueryPrediction]:
        """Predictions of the last layer; with `every_layer` of the initial queries and all layers.

        Args:
            features: maps (B, channels, H / stride, W / stride) s2, s3, s4, s5; H and W are
                multiples of 32.
            every_layer: for losses on all of them.
        """
        mask_features, maps = self.sem_seg_head.pixel_decoder(features)
        return self.sem_seg_head.predictor(maps, mask_features, every_layer)

    def scores(
        self, prediction: QueryPrediction, text_SE: Tensor, synonyms: Sequence[int]
    ) -> GeneratorScores:
        """Class logits and void of a prediction.

        Args:
            prediction: of `forward`.
            text_SE: CLIP's text embeddings, not normalised, the synonyms of a class one after another.
            synonyms: how many texts each class has.

        Raises:
            InputError: counts that do not fit the texts.
        """
        texts_SC = self.text_head(text_SE)
        scale = self.sem_seg_head.predictor.post_mask_embed.scale
        if self.variant == "caption":
            logits = class_logits(prediction.embeddings, texts_SC, synonyms, scale)
            assert prediction.object_logits is not None
            return GeneratorScores(logits, prediction.object_logits)
        with_void = class_logits(prediction.embeddings, texts_SC, [*synonyms, 1], scale)
        return GeneratorScores(with_void[..., :-1], with_void)
