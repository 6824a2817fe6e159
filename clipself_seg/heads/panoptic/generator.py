"""ODISE's mask generator (arXiv 2303.04803), and FC-CLIP's: from feature maps and texts to masks and class logits.

They are one architecture with other scores. ODISE projects masks and CLIP's texts to the width of the generator
(`CaptionGenerator`, `LabelGenerator`), FC-CLIP (arXiv 2308.02487) projects masks to CLIP's own space, with a learned
vector there for void (`VectorGenerator`). In all the masked-attention decoder of Mask2Former (arXiv 2112.01527) comes
first (`QueryDecoder`): queries attend inside their masks. `MaskGenerator` puts it behind the pixel decoder, and its
subclasses compare its embeddings with texts. A plain decoder (`plain_decoder`) is one more `Generator`.

Shapes: B images, Q queries, S texts (all synonyms of all classes), K classes, E width of a text embedding, C width
    of the generator, N cells of a level, h x w pixels of stride 4.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.layers import PackedAttention, merge_heads, split_heads
from clipself_seg.clip.linear import Linear
from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.tower_kind import LARGEST_SCALE
from clipself_seg.heads.panoptic.mask_losses import caption_lengths, grounding_loss
from clipself_seg.heads.panoptic.pixel_decoder import ENCODED, FINEST, PixelDecoder, sine_positions
from clipself_seg.heads.text_scores import class_logits

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


ODISES_SIZES = GeneratorSizes()


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
        if self.post_mask_embed is not None:
            embeddings = self.post_mask_embed(states, mask_features, masks)
            objects = None if self.class_embed is None else self.class_embed(states)
            return QueryPrediction(states, masks, embeddings, objects)
        assert self.class_embed is not None
        pooled_BQC = self._mask_pooling_proj(pool_masks(mask_features, masks))
        return QueryPrediction(states, masks, self.class_embed(pooled_BQC + states), None)

    @property
    def scale(self) -> Tensor:
        """Positive scalar, 100 at most, that cosines of embeddings and texts are multiplied by."""
        of_cosines = self if self.post_mask_embed is None else self.post_mask_embed
        return of_cosines.logit_scale.exp().clamp(max=LARGEST_SCALE)


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

    def __init__(self, text_width: int, width: int, void: bool = False) -> None:
        """
        Args:
            text_width: width E of CLIP's text embeddings.
            width: width C of the generator.
            void: True if there is a text of void, 0 at first, in place of which CLIP's embedding of the empty text
                starts a training.
        """
        super().__init__()
        self.text_proj = Linear(text_width, width)
        if void:
            self.null_embed = nn.Parameter(torch.zeros(1, text_width))

    def forward(self, text_SE: Tensor) -> Tensor:
        """Projected texts of texts (S, E): (S, C), or (S + 1, C) with void last in the label model."""
        if hasattr(self, "null_embed"):
            text_SE = torch.cat([text_SE, self.null_embed.to(text_SE.dtype)])
        return self.text_proj(text_SE)


def scores_with_void(
    prediction: QueryPrediction, texts: Tensor, synonyms: Sequence[int] | None, scale: Tensor
) -> GeneratorScores:
    """Scores where void is one more class with a single text or vector.

    Args:
        prediction: of B images.
        texts: (S + 1, width of the embeddings), void last.
        synonyms: number of texts of each class; None: each text is a class.
        scale: positive scalar that cosines are multiplied by.
    """
    with_void = None if synonyms is None else [*synonyms, 1]
    logits = class_logits(prediction.embeddings, texts, with_void, scale)
    return GeneratorScores(logits[..., :-1], logits)


class Generator(nn.Module, abc.ABC):
    """A mask generator: from feature maps to masks, and from masks and texts to class logits.

    Attributes:
        variant: value of MODEL.MASK_GENERATOR.VARIANT.
        templates: prompts around its class names, a name in `templates.TEMPLATES`; "" for those of the CLIP branch.
        in_clip_space: True if masks are compared with CLIP's texts as they are, of unit length, and void is a vector,
            `void_embedding`; else with a projection of texts, which depends on their length.
        needs_captions: True if training needs the noun phrases of captions.
        class_agnostic: True if void is told from objects of any class, not from the classes that are asked for.
    """

    variant: str
    templates = ""
    in_clip_space = False
    needs_captions = False
    class_agnostic = False

    @abc.abstractmethod
    def forward(
        self, features: Mapping[str, Tensor], every_layer: bool = False
    ) -> list[QueryPrediction]:
        """The last prediction, or with `every_layer` all that losses are computed of.

        Args:
            features: maps (B, channels, H / stride, W / stride) by name.
            every_layer: return all predictions, for losses on all of them.
        """

    @abc.abstractmethod
    def scores(
        self, prediction: QueryPrediction, text_SE: Tensor, synonyms: Sequence[int] | None
    ) -> GeneratorScores:
        """Class and void logits of a prediction.

        Args:
            prediction: an element of the list that `forward` returns.
            text_SE: CLIP's text embeddings, the synonyms of a class one after another, see `in_clip_space`.
            synonyms: number of texts of each class; None: each text is a class.
        """

    def grounding(
        self,
        predictions: Sequence[QueryPrediction],
        captions: Sequence[Sequence[str]],
        embed: Callable[[list[str]], Tensor],
    ) -> dict[str, Tensor]:
        """Losses by name of words of captions; none where it does not learn from captions.

        Args:
            predictions: of all layers.
            captions: noun phrases of each image.
            embed: gives CLIP's text embeddings (n, E) of phrases.
        """
        return {}

    def set_step(self, step: int, total: int) -> None:
        """Sets what depends on how far training is; nothing by default.

        Args:
            step: number of steps of the optimiser that were made.
            total: number of steps of the whole training.
        """


class MaskGenerator(Generator):
    """Pixel decoder and query decoder under the parameter names of ODISE's and FC-CLIP's checkpoints."""

    def __init__(
        self,
        *,
        channels: Mapping[str, int],
        text_width: int = 768,
        sizes: GeneratorSizes = ODISES_SIZES,
    ) -> None:
        """
        Args:
            channels: channels of the feature maps s2, s3, s4 and s5 (strides 4, 8, 16 and 32).
            text_width: width E of CLIP's text embeddings.
            sizes: widths and depths.
        """
        super().__init__()
        assert sizes.width % 32 == 0 and sizes.width % sizes.heads == 0  # groups of norms; heads
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
            object_logits=self.class_agnostic,
            text_width=text_width if self.in_clip_space else None,
        )
        self.sem_seg_head = SegmentationHead(pixel_decoder, predictor)
        self._add_text_head(text_width, sizes.width)

    @abc.abstractmethod
    def _add_text_head(self, text_width: int, width: int) -> None:
        """Adds what texts and void are compared by, under the name of the checkpoints."""

    def forward(
        self, features: Mapping[str, Tensor], every_layer: bool = False
    ) -> list[QueryPrediction]:
        """Predictions of the last layer, or with `every_layer` of the initial queries and all layers.

        Args:
            features: maps (B, channels, H / stride, W / stride) s2, s3, s4, s5; H and W are
                multiples of 32.
            every_layer: return all predictions, for losses on all of them.
        """
        features = {name: of.float() for name, of in features.items()}
        # FC-CLIP's autocast leaves out the whole pixel decoder, ODISE's its encoder alone.
        device = features[FINEST].device
        with full_precision(device) if self.in_clip_space else contextlib.nullcontext():
            mask_features, maps = self.sem_seg_head.pixel_decoder(features)
        return self.sem_seg_head.predictor(maps, mask_features, every_layer)


class CaptionGenerator(MaskGenerator):
    """ODISE's caption model: a classifier separates objects from void, and words of captions are learned."""

    variant = "caption"
    templates = "odise"
    needs_captions = True
    class_agnostic = True

    def _add_text_head(self, text_width: int, width: int) -> None:
        self.word_head = TextHead(text_width, width)

    def scores(
        self, prediction: QueryPrediction, text_SE: Tensor, synonyms: Sequence[int] | None
    ) -> GeneratorScores:
        texts_SC, scale = self.word_head(text_SE), self.sem_seg_head.predictor.scale
        logits = class_logits(prediction.embeddings, texts_SC, synonyms, scale)
        assert prediction.object_logits is not None
        return GeneratorScores(logits, prediction.object_logits)

    def grounding(
        self,
        predictions: Sequence[QueryPrediction],
        captions: Sequence[Sequence[str]],
        embed: Callable[[list[str]], Tensor],
    ) -> dict[str, Tensor]:
        scale = self.sem_seg_head.predictor.scale
        lengths = caption_lengths(captions, scale.device)
        valid, count = lengths > 0, max(1, int(lengths.max()))
        # A caption without noun phrases has padded words, and is a negative for the others (`valid`).
        phrases = [phrase for own in captions for phrase in (own or [""] * count)]
        texts = self.word_head(embed(phrases)).unflatten(0, (len(captions), -1))
        losses = [grounding_loss(p.embeddings, texts, valid, scale) for p in predictions]
        suffixes = [*(f"_{i}" for i in range(len(losses) - 1)), ""]
        return {f"loss_grounding{suffix}": loss for suffix, loss in zip(suffixes, losses)}


class LabelGenerator(MaskGenerator):
    """ODISE's label model: void is a text."""

    variant = "label"
    templates = "bare"

    def _add_text_head(self, text_width: int, width: int) -> None:
        self.category_head = TextHead(text_width, width, void=True)

    def scores(
        self, prediction: QueryPrediction, text_SE: Tensor, synonyms: Sequence[int] | None
    ) -> GeneratorScores:
        texts, scale = self.category_head(text_SE), self.sem_seg_head.predictor.scale
        return scores_with_void(prediction, texts, synonyms, scale)


class VectorGenerator(MaskGenerator):
    """FC-CLIP's: masks and texts are compared in CLIP's own space, where void is a learned vector."""

    variant = "fcclip"
    in_clip_space = True

    def _add_text_head(self, text_width: int, width: int) -> None:
        self.void_embedding = nn.Embedding(1, text_width)

    def scores(
        self, prediction: QueryPrediction, text_SE: Tensor, synonyms: Sequence[int] | None
    ) -> GeneratorScores:
        texts = torch.cat([text_SE, self.void_embedding.weight.to(text_SE.dtype)])
        return scores_with_void(prediction, texts, synonyms, self.sem_seg_head.predictor.scale)


# Value of MODEL.MASK_GENERATOR.VARIANT -> the generator of the kind mask2former.
GENERATORS: dict[str, type[MaskGenerator]] = {
    one.variant: one for one in (CaptionGenerator, LabelGenerator, VectorGenerator)
}
