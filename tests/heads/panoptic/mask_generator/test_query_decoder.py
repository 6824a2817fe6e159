"""The query decoder: where queries may look, and that masks decide it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clipself_seg.heads.panoptic.pixel_decoder import sine_positions
from clipself_seg.heads.panoptic.query_decoder import QueryAttention, QueryDecoder

GRIDS = [(2, 3), (4, 6), (8, 12)]


def tiny(**how) -> QueryDecoder:
    sizes = {"width": 32, "heads": 2, "queries": 7, "layers": 4, "hidden": 48}
    return QueryDecoder(**sizes | how).eval()


def inputs(batch: int = 1) -> tuple[list[torch.Tensor], torch.Tensor]:
    return [torch.randn(batch, 32, *grid) for grid in GRIDS], torch.randn(batch, 32, 16, 24)


def test_attention_is_that_of_torch():
    own, other = QueryAttention(width=32, heads=4), torch.nn.MultiheadAttention(32, 4)
    other.load_state_dict(own.state_dict())
    queries, keys, values = (
        torch.randn(5, 1, 32),
        torch.randn(9, 1, 32),
        torch.randn(9, 1, 32),
    )
    allowed = torch.rand(5, 9) > 0.4
    allowed[:, 0] = True
    expected, _ = other(queries, keys, values, attn_mask=~allowed)
    actual = own.attend(*(x.transpose(0, 1) for x in (queries, keys, values)), allowed[None])
    torch.testing.assert_close(actual.transpose(0, 1), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_allowed_cells_are_those_of_the_resized_mask():
    decoder, (maps, features) = tiny(), inputs()
    states = decoder.query_feat.weight[None]
    masks = (decoder.mask_embed(decoder.decoder_norm(states)) @ features.flatten(2)).unflatten(
        2, (16, 24)
    )
    for level, grid in zip(decoder._levels(maps, features), GRIDS):
        resized = F.interpolate(masks, grid, mode="bilinear", align_corners=False).flatten(2)
        assert resized.abs().min() > 1e-5, "nothing on the threshold"
        expected = resized > 0
        expected |= ~expected.any(dim=-1, keepdim=True)
        assert torch.equal(decoder._allowed(states, level), expected)


@torch.no_grad()
def test_a_query_without_a_mask_may_look_everywhere():
    decoder, (maps, features) = tiny(), inputs()
    features, states = features.abs(), decoder.query_feat.weight[None]
    torch.nn.init.zeros_(decoder.mask_embed.layers[2].weight)
    torch.nn.init.constant_(decoder.mask_embed.layers[2].bias, -1)
    for level in decoder._levels(maps, features):
        assert decoder._allowed(states, level).all()


@torch.no_grad()
def test_last_layer_alone_is_the_last_of_all():
    decoder, (maps, features) = tiny(), inputs()
    (last,), every = decoder(maps, features), decoder(maps, features, every_layer=True)
    assert len(every) == 5
    torch.testing.assert_close(vars(last), vars(every[-1]))


@torch.no_grad()
def test_images_do_not_disturb_each_other():
    decoder, (maps, features) = tiny(object_logits=False), inputs(batch=2)
    (both,) = decoder(maps, features)
    for index in (0, 1):
        (alone,) = decoder([m[index : index + 1] for m in maps], features[index : index + 1])
        torch.testing.assert_close(alone.mask_logits[0], both.mask_logits[index])
    assert both.object_logits is None


def test_sine_positions_by_hand():
    # Four numbers a cell: sine and cosine of the row, of the column; the last one is a full turn.
    positions = sine_positions((1, 4), 4, torch.device("cpu"))
    expected = [[0, 1, 1, 0], [0, 1, 0, -1], [0, 1, -1, 0], [0, 1, 0, 1]]
    torch.testing.assert_close(positions, torch.tensor(expected).float(), atol=1e-5, rtol=0)
    slow = sine_positions((1, 1), 8, torch.device("cpu"))[0, :4]  # the second pair: a 100th
    angle = torch.tensor(2 * torch.pi / 100)
    torch.testing.assert_close(slow[2:], torch.stack([angle.sin(), angle.cos()]))
