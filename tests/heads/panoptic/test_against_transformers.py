"""The mask generator against that of transformers, on the same weights and maps, and the settings of its losses."""

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipself_seg.config.keys import default_config
from clipself_seg.heads.panoptic import mask_losses
from clipself_seg.heads.panoptic.generator import CaptionGenerator, GeneratorSizes
from clipself_seg.heads.panoptic.pixel_decoder import DeformableAttention

# None of this is transformers' public interface: setup.cfg says which versions have it.
theirs = pytest.importorskip(
    "transformers.models.mask2former.modeling_mask2former",
    reason="needs transformers (the extra [dev])",
)

# Four layers, so that the first of three levels has a second turn; two channels for each norm's group.
SIZES = GeneratorSizes(
    width=64,
    heads=4,
    queries=7,
    encoder_layers=2,
    encoder_hidden=80,
    decoder_layers=4,
    decoder_hidden=96,
)
CHANNELS = {"s2": 8, "s3": 12, "s4": 16, "s5": 20}
CANVASES = [(64, 64), (96, 128), (64, 160), (224, 32)]

PIXEL_DECODER = [
    ("input_proj", "input_projections"),
    (r"transformer\.(encoder|level_embed)", r"\1"),
    ("norm1", "self_attn_layer_norm"),
    ("norm2", "final_layer_norm"),
    (r"linear(\d)", r"fc\1"),
    (r"((?:adapter|layer)_1)\.norm", r"\1.1"),
    (r"((?:adapter|layer)_1)\.weight", r"\1.0.weight"),
    ("mask_features", "mask_projection"),
]
QUERY_DECODER = [
    ("query_feat", "queries_features"),
    ("query_embed", "queries_embedder"),
    (r"_(self|cross)_attention_layers\.(\d+)\.norm", r"_layers.\2.\1_attn_layer_norm"),
    (r"_ffn_layers\.(\d+)\.norm", r"_layers.\1.final_layer_norm"),
    (r"transformer\w*_layers", "decoder.layers"),
    ("multihead_attn", "cross_attn"),
    (r"linear(\d)", r"fc\1"),
    ("decoder_norm", "decoder.layernorm"),
    (r"mask_embed\.layers\.(\d)", r"decoder.mask_predictor.mask_embedder.\1.0"),
]
# Masks do not depend on these, and transformers has nothing like them.
OURS_ALONE = ("class_embed.", "post_mask_embed.")


def renamed(named: Mapping[str, Tensor], names: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Weights, or gradients of them, under the names that transformers has for them."""
    tensors = {}
    for name, tensor in named.items():
        if name.startswith(OURS_ALONE):
            continue
        for pattern, new in names:
            name = re.sub(pattern, new, name)
        before, packed, kind = name.partition("self_attn.in_proj_")
        if packed:
            tensors |= {
                f"{before}self_attn.{one}_proj.{kind}": part
                for one, part in zip("qkv", tensor.chunk(3))
            }
        else:
            tensors[name] = tensor
    return tensors


def settings(sizes: GeneratorSizes) -> Any:
    return theirs.Mask2FormerConfig(
        feature_size=sizes.width,
        mask_feature_size=sizes.width,
        hidden_dim=sizes.width,
        encoder_feedforward_dim=sizes.encoder_hidden,
        encoder_layers=sizes.encoder_layers,
        decoder_layers=sizes.decoder_layers + 1,  # they count the prediction of the initial queries
        num_attention_heads=sizes.heads,
        dim_feedforward=sizes.decoder_hidden,
        num_queries=sizes.queries,
    )


def modules(sizes: GeneratorSizes, channels: Mapping[str, int]) -> tuple[nn.Module, ...]:
    """Our head, their pixel decoder and their query decoder, the weights not yet alike."""
    config = settings(sizes)
    return (
        CaptionGenerator(channels=channels, sizes=sizes).sem_seg_head,
        theirs.Mask2FormerPixelDecoder(config, list(channels.values())),
        theirs.Mask2FormerTransformerModule(sizes.width, config),
    )


@torch.no_grad()
def alike() -> tuple[nn.Module, ...]:
    """Small modules of the same weights, none of which is zero, one or the same in two channels.

    Theirs, built alone, are never initialised (the level embedding is whatever was in memory).
    """
    ours, pixel_decoder, query_decoder = modules(SIZES, CHANNELS)
    for parameter in ours.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    pixel_decoder.load_state_dict(renamed(ours.pixel_decoder.state_dict(), PIXEL_DECODER))
    query_decoder.load_state_dict(renamed(ours.predictor.state_dict(), QUERY_DECODER))
    return ours, pixel_decoder, query_decoder


def inputs(height: int, width: int) -> dict[str, Tensor]:
    return {
        name: torch.randn(2, channels, height >> i, width >> i)
        for i, (name, channels) in enumerate(CHANNELS.items(), 2)
    }


def queries_of_ours(decoder, maps, mask_features) -> dict[str, list[Tensor]]:
    predictions = decoder(maps, mask_features, every_layer=True)
    return {
        "masks": [one.mask_logits for one in predictions],
        "states": [one.states for one in predictions],
    }


def queries_of_theirs(query_decoder, maps, mask_features) -> dict[str, list[Tensor]]:
    outputs = query_decoder(maps, mask_features)
    states = [state.transpose(0, 1) for state in outputs.intermediate_hidden_states]
    return {"masks": list(outputs.masks_queries_logits), "states": states}


def decode(ours, maps) -> dict[str, list[Tensor]]:
    """Everything that the two have in common; masks and states of the initial queries and all layers."""
    mask_features, coarse_to_fine = ours.pixel_decoder(maps)
    queries = queries_of_ours(ours.predictor, coarse_to_fine, mask_features)
    return {"mask_features": [mask_features], "maps": coarse_to_fine} | queries


def decode_theirs(pixel_decoder, query_decoder, maps) -> dict[str, list[Tensor]]:
    how = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
    outputs = pixel_decoder(list(maps.values()), **how)
    coarse_to_fine, mask_features = list(outputs.multi_scale_features), outputs.mask_features
    queries = queries_of_theirs(query_decoder, coarse_to_fine, mask_features)
    return {"mask_features": [mask_features], "maps": coarse_to_fine} | queries


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for float32 gets float64.

    Our encoder, positions and places keep to float32 whatever they are given; theirs go along with the
    maps (in half precision their positions are coarse). With float64 all over, no rounding hides a mistake.
    """
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.parametrize("canvas", CANVASES)
@torch.no_grad()
def test_in_double_precision_they_are_the_same(doubles, canvas):
    ours, *others = alike()
    maps = inputs(*canvas)
    outputs, expected = decode(ours, maps), decode_theirs(*others, maps)
    assert {t.dtype for tensors in outputs.values() for t in tensors} == {torch.float64}
    torch.testing.assert_close(outputs, expected, atol=1e-11, rtol=0)


def test_gradients_of_inputs_and_weights_are_the_same(doubles):
    ours, *others = alike()
    maps = {name: one.requires_grad_() for name, one in inputs(64, 96).items()}
    weights = {name: [torch.randn_like(t) for t in ts] for name, ts in decode(ours, maps).items()}
    gradients = []
    for decoded in (decode(ours, maps), decode_theirs(*others, maps)):
        pairs = [(t, w) for name in weights for t, w in zip(decoded[name], weights[name])]
        sum((t * w).mean() for t, w in pairs).backward()
        gradients.append({name: one.grad for name, one in maps.items()})
        for one in maps.values():
            one.grad = None
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=0)
    for part, names, other in zip(
        (ours.pixel_decoder, ours.predictor), (PIXEL_DECODER, QUERY_DECODER), others
    ):
        own = {n: p.grad for n, p in part.named_parameters() if not n.startswith(OURS_ALONE)}
        expected = {name: p.grad for name, p in other.named_parameters()}
        assert all(gradient.any() for gradient in expected.values())
        torch.testing.assert_close(renamed(own, names), expected, atol=1e-11, rtol=0)


@torch.no_grad()
def test_queries_with_an_empty_mask_look_everywhere_in_both(doubles):
    ours, _, query_decoder = alike()
    decoder = ours.predictor
    # Initial queries in turn find the left and the right part, neither, only the left one.
    embeddings = decoder.mask_embed(decoder.decoder_norm(decoder.query_feat.weight))
    logits_Q2 = torch.tensor([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0]]).repeat(3, 1)[:7]
    parts_C2 = torch.linalg.lstsq(embeddings, logits_Q2).solution
    mask_features = parts_C2.repeat_interleave(torch.tensor([12, 28]), dim=1)
    mask_features = mask_features[None, :, None].expand(2, -1, 16, -1)
    maps = [torch.randn(2, 64, *grid) for grid in ((2, 5), (4, 10), (8, 20))]
    outputs = queries_of_ours(decoder, maps, mask_features)
    torch.testing.assert_close(outputs["masks"][0][1, :, 15, [11, 12]], logits_Q2)
    expected = queries_of_theirs(query_decoder, maps, mask_features)
    torch.testing.assert_close(outputs, expected, atol=1e-11, rtol=0)


def test_untrained_heads_look_where_theirs_do():
    ours = DeformableAttention(width=64, heads=4, levels=3, points=4)
    other = theirs.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(64, 4, 3, 4)
    model = SimpleNamespace(config=settings(SIZES))
    theirs.Mask2FormerPreTrainedModel._init_weights(model, other)
    for name in ("sampling_offsets", "attention_weights"):
        outputs, expected = (getattr(one, name).state_dict() for one in (ours, other))
        torch.testing.assert_close(outputs, expected, atol=1e-6, rtol=0)


def test_default_settings_are_those_of_transformers():
    config = theirs.Mask2FormerConfig()
    weights = (config.class_weight, config.mask_weight, config.dice_weight)
    assert (
        (mask_losses.CLASS_WEIGHT, mask_losses.MASK_WEIGHT, mask_losses.DICE_WEIGHT)
        == weights
        == (2.0, 5.0, 5.0)
    )
    assert mask_losses.VOID_WEIGHT == config.no_object_weight == 0.1
    assert default_config().MODEL.MASK_FORMER.TRAIN_NUM_POINTS == config.train_num_points
    assert mask_losses.OVERSAMPLE == config.oversample_ratio
    assert mask_losses.IMPORTANT == config.importance_sample_ratio
