"""ODISE's mask generator (arXiv 2303.04803), and FC-CLIP's: from feature maps and texts to masks and class logits.

They are one architecture with other scores. ODISE projects masks and CLIP's texts to the width of the generator,
FC-CLIP (arXiv 2308.02487) projects masks to CLIP's own space, with a learned vector there for void.

Shapes: B images, Q queries, S texts (all synonyms of all classes), K classes, E width of a text embedding, C width
    of the generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clipself_seg.clip.linear import Linear
from clipself_seg.errors import InputError, nearest
from clipself_seg.heads.class_scores import class_logits
from clipself_seg.heads.panoptic.pixel_decoder import PixelDecoder
from clipself_seg.heads.panoptic.query_decoder import (
    QueryDecoder,
    QueryPrediction,
)

VARIANTS = ("caption", "label", "fcclip")


@dataclasses.dataclass(frozen=True)
class GeneratorSizes:
    """Widths and depths of the generator; the defaults are those of ODISE's checkpoints.

    Attributes:
        width: number of channels C.
        heads: number of heads of every attention.
        queries: number of queries Q.
        encoder_layers: number of layers of the pixel decoder's encoder.
        encoder_hidden: hidden width of the encoder's MLPs.
        points: number of points of a head on each level in deformable attention.
        decoder_layers: number of layers of the query decoder.
        decoder_hidden: hidden width of the query decoder's MLPs.
    """

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
    """Class and void logits of the generator's masks.

    Attributes:
        class_logits: (B, Q, K), without void.
        void_logits: logits with void last, from which void's probability and the classification loss
            are computed: (B, Q, 2), object and void (caption), or (B, Q, K + 1), classes and void
            (label, fcclip).
    """

    class_logits: Tensor
    void_logits: Tensor

    @property
    def void_prob(self) -> Tensor:
        """Probability of void, (B, Q) in [0, 1]."""
        return self.void_logits.float().softmax(dim=-1)[..., -1]


class SegmentationHead(nn.Module):
    """Pixel decoder and query decoder under the parameter names of ODISE's checkpoints."""

    def __init__(self, pixel_decoder: PixelDecoder, predictor: QueryDecoder) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor


class TextHead(nn.Module):
    """Projects CLIP's text embeddings to the generator's width; the label model appends void's text."""

    def __init__(self, text_width: int, width: int, null_text: Tensor | None = None) -> None:
        """
        Args:
            text_width: width E of CLIP's text embeddings.
            width: width C of the generator.
            null_text: initial text embedding (E,) of void; None: no text of void (the caption model).
        """
        super().__init__()
        self.text_proj = Linear(text_width, width)
        if null_text is not None:
            self.null_embed = nn.Parameter(null_text.detach().reshape(1, -1).clone())

    def forward(self, text_SE: Tensor) -> Tensor:
        """Projected texts of texts (S, E): (S, C), or (S + 1, C) with void last in the label model."""
        if hasattr(self, "null_embed"):
            text_SE = torch.cat([text_SE, self.null_embed.to(text_SE.dtype)])
        return self.text_proj(text_SE)


class MaskGenerator(nn.Module):
    """Pixel decoder, query decoder and text head under the parameter names of ODISE's and FC-CLIP's checkpoints."""

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
            variant: "caption" separates objects from void with a classifier, "label" with a text of
                void, "fcclip" with a vector in CLIP's space.
            channels: channels of the feature maps s2, s3, s4 and s5 (strides 4, 8, 16 and 32).
            text_width: width E of CLIP's text embeddings.
            null_text: initial text embedding (E,) of void in the label model, CLIP's embedding of the
                empty text; None: zeros, for weights that are loaded later.
            sizes: widths and depths; None for ODISE's.

        Raises:
            InputError: the variant is unknown, or the width does not fit heads and norms.
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
        self.variant = variant
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
            object_logits=variant == "caption",
            text_width=text_width if variant == "fcclip" else None,
        )
        self.sem_seg_head = SegmentationHead(pixel_decoder, predictor)
        if variant == "fcclip":
            self.void_embedding = nn.Embedding(1, text_width)
        elif variant == "label":
            null_text = torch.zeros(text_width) if null_text is None else null_text
            self.category_head = TextHead(text_width, sizes.width, null_text)
        else:
            self.word_head = TextHead(text_width, sizes.width)

    @property
    def text_head(self) -> TextHead:
        """Head for texts: ``word_head`` in the caption model, ``category_head`` in the label model.

        Raises:
            AttributeError: the model is FC-CLIP's, which takes texts as they are.
        """
        return self.category_head if self.variant == "label" else self.word_head

    def forward(
        self, features: Mapping[str, Tensor], every_layer: bool = False
    ) -> list[QueryPrediction]:
        """Predictions of the last layer, or with `every_layer` of the initial queries and all layers.

        Args:
            features: maps (B, channels, H / stride, W / stride) s2, s3, s4, s5; H and W are
                multiples of 32.
            every_layer: return all predictions, for losses on all of them.
        """
        mask_features, maps = self.sem_seg_head.pixel_decoder(features)
        return self.sem_seg_head.predictor(maps, mask_features, every_layer)

    def scores(
        self, prediction: QueryPrediction, text_SE: Tensor, synonyms: Sequence[int]
    ) -> GeneratorScores:
        """Class and void logits of a prediction.

        Args:
            prediction: an element of the list that `forward` returns.
            text_SE: CLIP's text embeddings, the synonyms of a class one after another; not normalised, but for FC-CLIP,
                which has no projection that would notice.
            synonyms: number of texts of each class.

        Raises:
            InputError: the counts do not fit the texts.
        """
        scale = self.sem_seg_head.predictor.scale
        if self.variant == "fcclip":
            void_1E = self.void_embedding.weight.to(text_SE.dtype)
            texts_SC = torch.cat([text_SE, void_1E])
        else:
            texts_SC = self.text_head(text_SE)
        if self.variant == "caption":
            logits = class_logits(prediction.embeddings, texts_SC, synonyms, scale)
            assert prediction.object_logits is not None
            return GeneratorScores(logits, prediction.object_logits)
        # Void is one more class with a single text, or vector.
        with_void = class_logits(prediction.embeddings, texts_SC, [*synonyms, 1], scale)
        return GeneratorScores(with_void[..., :-1], with_void)
