"""ODISE's mask generator (arXiv 2303.04803), and FC-CLIP's: from feature maps and texts to masks and class logits.

They are one architecture with other scores. ODISE projects masks and CLIP's texts to the width of the generator,
FC-CLIP (arXiv 2308.02487) projects masks to CLIP's own space, with a learned vector there for void. In both the
masked-attention decoder of Mask2Former (arXiv 2112.01527) comes first (`QueryDecoder`): queries attend inside their
masks. `MaskGenerator` puts it behind the pixel decoder, and compares its embeddings with texts.

Shapes: B images, Q queries, S texts (all synonyms of all classes), K classes, E width of a text embedding, C width
    of the generator, N cells of a level, h x w pixels of stride 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.layers import PackedAttention, merge_heads, split_heads
from clipself_seg.clip.linear import Linear
from clipself_seg.clip.runtime import full_precision
from clipself_seg.heads.panoptic.pixel_decoder import ENCODED, PixelDecoder, sine_positions
from clipself_seg.heads.text_scores import class_logits, similarity_scale

EPS = 1e-8


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


class MLP(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, width: int, out: int | None = None) -> None:
        """
        Args:
            width: width C of the input and of the hidden layers.
            out: width of the output; None: C.
        """
        super().__init__()
        self.layers = nn.ModuleList(Linear(width, wide) for wide in (width, width, out or width))

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (..., C) into (..., out)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class PooledMaskEmbed(nn.Module):
    """The query's state plus the mean feature of its mask, through an MLP.

    Attributes:
        logit_scale: logarithm of the factor that cosines are multiplied by.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool_proj = nn.Sequential(nn.LayerNorm(width), Linear(width, width))
        self.mask_embed = nn.Sequential(nn.LayerNorm(width), MLP(width))
        self.logit_scale = initial_logit_scale()

    def forward(self, states_BQC: Tensor, features_BChw: Tensor, masks_BQhw: Tensor) -> Tensor:
        """Embeddings (B, Q, C), of any norm.

        Args:
            states_BQC: states of the queries after the final norm.
            features_BChw: mask features of the pixel decoder.
            masks_BQhw: mask logits; features are pooled where they are positive, and the masks get
                no gradient.
        """
        pooled_BQC = pool_masks(features_BChw, masks_BQhw)
        return self.mask_embed(self.pool_proj(pooled_BQC) + states_BQC)

    @property
    def scale(self) -> Tensor:
        """Positive scalar that cosines are multiplied by."""
        return similarity_scale(self.logit_scale)


def initial_logit_scale() -> nn.Parameter:
    """CLIP's own start of the logarithm of a learned factor of cosines."""
    return nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def pool_masks(features_BChw: Tensor, masks_BQhw: Tensor) -> Tensor:
    """Mean feature where a mask's logits are positive, (B, Q, C) float32; 0 for an empty mask."""
    with full_precision(features_BChw.device):
        inside_BQN = (masks_BQhw.detach() > 0).flatten(2).float()
        sums_BQC = inside_BQN @ features_BChw.float().flatten(2).transpose(1, 2)
        return sums_BQC / inside_BQN.sum(dim=-1, keepdim=True).clamp(min=EPS)


@dataclasses.dataclass(frozen=True)
class QueryPrediction:
    """Prediction of the queries after a layer.

    Attributes:
        states: states of the queries after the norm, (B, Q, C).
        mask_logits: (B, Q, h, w), positive inside a mask.
        embeddings: embeddings that are compared with texts, (B, Q, C), or (B, Q, E) in CLIP's own space (FC-CLIP).
        object_logits: (B, Q, 2), object and void; None if a text or a vector stands for void.
    """

    states: Tensor
    mask_logits: Tensor
    embeddings: Tensor
    object_logits: Tensor | None


class QueryAttention(PackedAttention):
    """Attention with separate inputs for queries, keys and values."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__(width=width, heads=heads)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def attend(
        self,
        queries_BQC: Tensor,
        keys_BNC: Tensor,
        values_BNC: Tensor,
        allowed_BQN: Tensor | None = None,
    ) -> Tensor:
        """Attended values (B, Q, C).

        Args:
            queries_BQC: inputs of the query projection.
            keys_BNC: inputs of the key projection.
            values_BNC: inputs of the value projection.
            allowed_BQN: boolean, True where a query may attend; None allows everything.
        """
        inputs = (queries_BQC, keys_BNC, values_BNC)
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            split_heads(F.linear(x, weight, bias), self.heads)
            for x, weight, bias in zip(inputs, weights, biases)
        )
        mask = None if allowed_BQN is None else allowed_BQN[:, None]
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))


class SelfAttentionLayer(nn.Module):
    """Self-attention of the queries, with residual and norm."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = QueryAttention(width=width, heads=heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, queries_BQC: Tensor, positions_QC: Tensor) -> Tensor:
        """Updates the queries, (B, Q, C) -> (B, Q, C); positions are added to queries and keys."""
        placed = queries_BQC + positions_QC
        return self.norm(queries_BQC + self.self_attn.attend(placed, placed, queries_BQC))


class CrossAttentionLayer(nn.Module):
    """Attention of the queries to the allowed cells of a level, with residual and norm."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = QueryAttention(width=width, heads=heads)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, queries_BQC: Tensor, positions_QC: Tensor, level: Level, allowed_BQN: Tensor
    ) -> Tensor:
        """Updates the queries, (B, Q, C) -> (B, Q, C); `allowed_BQN` is as in `QueryAttention`."""
        placed = queries_BQC + positions_QC
        attended = self.multihead_attn.attend(placed, level.keys, level.values, allowed_BQN)
        return self.norm(queries_BQC + attended)


class FeedForwardLayer(nn.Module):
    """Two linear layers with ReLU between them, with residual and norm."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, queries_BQC: Tensor) -> Tensor:
        """Updates the queries, (B, Q, C) -> (B, Q, C)."""
        return self.norm(queries_BQC + self.linear2(F.relu(self.linear1(queries_BQC))))


@dataclasses.dataclass(frozen=True)
class Level:
    """Inputs of the cross attention to a map: keys and values (B, N, C), mask features (B, C, N)."""

    keys: Tensor
    values: Tensor
    mask_features: Tensor


class QueryDecoder(nn.Module):
    """Layers of masked attention that turn learned queries into masks and embeddings.

    Parameter names are those of ODISE's checkpoints below ``sem_seg_head.predictor.``, or of FC-CLIP's (arXiv
    2308.02487), which differ in what makes the embeddings: FC-CLIP's are as wide as CLIP's, ODISE's as the decoder.
    """

    def __init__(
        self, sizes: GeneratorSizes, *, object_logits: bool, text_width: int | None = None
    ) -> None:
        """
        Args:
            sizes: widths and depths; each layer is a cross attention, a self attention and an MLP.
            object_logits: predict object against void here (the caption model), not from a text.
            text_width: width E of FC-CLIP's embeddings, which has no `object_logits`; None: ODISE's of width C.
        """
        super().__init__()
        width, heads, layers = sizes.width, sizes.heads, range(sizes.decoder_layers)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(width=width, heads=heads) for _ in layers
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(width=width, heads=heads) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(width=width, hidden=sizes.decoder_hidden) for _ in layers
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.query_feat = nn.Embedding(sizes.queries, width)
        self.query_embed = nn.Embedding(sizes.queries, width)
        self.level_embed = nn.Embedding(len(ENCODED), width)
        self.class_embed: nn.Module | None = Linear(width, 2) if object_logits else None
        self.mask_embed = MLP(width)
        self.post_mask_embed: PooledMaskEmbed | None = None
        if text_width is None:
            self.post_mask_embed = PooledMaskEmbed(width)
        else:
            self._mask_pooling_proj = nn.Sequential(nn.LayerNorm(width), Linear(width, width))
            self.class_embed = MLP(width, text_width)
            self.logit_scale = initial_logit_scale()

    def forward(
        self, maps: Sequence[Tensor], mask_features: Tensor, every_layer: bool = False
    ) -> list[QueryPrediction]:
        """Predictions of the last layer, or with `every_layer` of the initial queries and all layers.

        Args:
            maps: one map (B, C, ...) for each level, in the order in which the layers use them.
            mask_features: features (B, C, h, w), whose products with queries are the masks.
            every_layer: return all predictions, for losses on all of them.
        """
        levels = self._levels(maps, mask_features)
        states = self.query_feat.weight.expand(len(mask_features), -1, -1)
        predictions = [self._predict(states, mask_features)] if every_layer else []
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
        )
        for index, (cross, own, mlp) in enumerate(layers):
            level = levels[index % len(levels)]
            allowed_BQN = self._allowed(states, level)
            states = cross(states, self.query_embed.weight, level, allowed_BQN)
            states = mlp(own(states, self.query_embed.weight))
            if every_layer:
                predictions.append(self._predict(states, mask_features))
        return predictions or [self._predict(states, mask_features)]

    def _levels(self, maps: Sequence[Tensor], mask_features: Tensor) -> list[Level]:
        """Keys, values and mask features of each map."""
        levels = []
        for features, embedding in zip(maps, self.level_embed.weight):
            _, width, *grid = features.shape
            values = features.flatten(2).transpose(1, 2) + embedding
            positions = sine_positions((grid[0], grid[1]), width, features.device)
            keys = values + positions.to(values.dtype)
            # Resizing the features resizes every mask, their product with a query, for far less work.
            small = F.interpolate(mask_features, grid, mode="bilinear", align_corners=False)
            levels.append(Level(keys, values, small.flatten(2)))
        return levels

    @torch.no_grad()
    def _allowed(self, states: Tensor, level: Level) -> Tensor:
        """Cells (B, Q, N) where a query's mask is not negative; all cells if there is none."""
        logits = self.mask_embed(self.decoder_norm(states)) @ level.mask_features
        allowed = logits >= 0
        return allowed | ~allowed.any(dim=-1, keepdim=True)

    def _predict(self, states: Tensor, mask_features: Tensor) -> QueryPrediction:
        """Prediction of the queries' states (B, Q, C)."""
        states = self.decoder_norm(states)
        products = self.mask_embed(states) @ mask_features.flatten(2)
        masks = products.unflatten(2, mask_features.shape[2:])
        embeddings = self.embed(states, mask_features, masks)
        return QueryPrediction(states, masks, embeddings, self.objects(states))

    def embed(self, states_BQC: Tensor, features_BChw: Tensor, masks_BQhw: Tensor) -> Tensor:
        """Embeddings of queries and their masks that are compared with texts; see `PooledMaskEmbed.forward`."""
        if self.post_mask_embed is not None:
            return self.post_mask_embed(states_BQC, features_BChw, masks_BQhw)
        assert self.class_embed is not None
        pooled_BQC = self._mask_pooling_proj(pool_masks(features_BChw, masks_BQhw))
        return self.class_embed(pooled_BQC + states_BQC)

    def objects(self, states_BQC: Tensor) -> Tensor | None:
        """Logits (B, Q, 2) of object and void, None where a text or a vector stands for void."""
        if self.post_mask_embed is None or self.class_embed is None:
            return None
        return self.class_embed(states_BQC)

    @property
    def scale(self) -> Tensor:
        """Positive scalar that cosines of embeddings and texts are multiplied by."""
        if self.post_mask_embed is not None:
            return self.post_mask_embed.scale
        return similarity_scale(self.logit_scale)


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
        """
        super().__init__()
        sizes = sizes or GeneratorSizes()
        assert sizes.width % 32 == 0 and sizes.width % sizes.heads == 0  # groups of norms; heads
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
            sizes,
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
        """Head for texts: ``word_head`` in the caption model, ``category_head`` in the label model."""
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
