"""Image towers: dense features and regions against naive loops, what trains, and checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipself_seg.clip import load_clip
from clipself_seg.clip.tower import train_last_blocks


@pytest.fixture(scope="module")
def tiny_eva():
    from clipself_seg.clip.eva import EvaTransformer

    torch.manual_seed(0)
    return EvaTransformer(
        image_size=32, patch_size=8, width=64, layers=3, heads=2, hidden=96, embed_dim=16
    ).eval()


def test_dense_features_equal_a_last_block_in_which_each_token_attends_only_to_itself(mini):
    """The value path is attention under a diagonal mask."""
    images, tower = torch.randn(1, 3, 48, 64), mini.visual
    with torch.no_grad():
        tokens, _, (h, w) = tower.embed(images)
        for block in tower.blocks[:-1]:
            tokens = block(tokens)
        patches = tokens[:, 1:]
        alone = torch.eye(h * w, dtype=torch.bool)[None]
        expected = tower.project(tower.blocks[-1].forward_mask_tokens(patches, patches, alone))
    actual = tower.dense(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_named_features_have_the_announced_shapes(mini, tiny_eva, size):
    for tower in (mini.visual, tiny_eva):
        shapes = tower.feature_shapes()
        for name, feature in tower.features(torch.randn(2, 3, *size), shapes).items():
            channels, stride = shapes[name]
            assert feature.shape == (2, channels, size[0] // stride, size[1] // stride), name


def test_features_stop_after_the_last_block_that_is_asked_for(mini):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        alone = mini.visual.features(images, ["block0"])
        both = mini.visual.features(images, ["block0", "dense"])
    torch.testing.assert_close(alone["block0"], both["block0"])
    assert set(alone) == {"block0"}


def test_region_that_is_the_whole_image_gives_the_image_embedding_by_masked_attention(
    mini, tiny_eva
):
    for tower in (mini.visual, tiny_eva):
        images = torch.randn(2, 3, tower.image_size, tower.image_size)
        side = tower.image_size // tower.patch_size
        whole = [torch.ones(1, side, side, dtype=torch.bool)] * 2
        with torch.no_grad():
            regions, expected = tower.masked_attention(images, whole), tower(images)
        torch.testing.assert_close(regions, expected, atol=1e-5, rtol=1e-4)


def test_images_with_different_numbers_of_regions_do_not_disturb_each_other(mini):
    images = torch.randn(2, 3, 64, 64)
    masks = [torch.rand(3, 8, 8) > 0.5, torch.rand(1, 8, 8) > 0.5]
    with torch.no_grad():
        together = mini.encode_masks(images, masks, masked_attention=True)
        apart = [
            mini.encode_masks(images[i : i + 1], [masks[i]], masked_attention=True) for i in (0, 1)
        ]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-4)


def test_tokens_and_mask_tokens_in_one_step_come_out_as_apart(mini, tiny_eva):
    for tower in (mini.visual, tiny_eva):
        with torch.no_grad():
            tokens, extras, _ = tower.embed(torch.randn(2, 3, 24, 40))
            mask_tokens = torch.randn(2, 4, tokens.shape[2])
            allowed = torch.rand(2, 4, tokens.shape[1]) > 0.5
            allowed[:, 0] = False
            allowed[..., 0] = True  # the class token, for an empty region too
            block = tower.blocks[0]
            together = block.forward_with_mask_tokens(
                torch.cat([tokens, mask_tokens], dim=1), allowed, *extras
            )
            apart = [
                block(tokens, *extras),
                block.forward_mask_tokens(mask_tokens, tokens, allowed, *extras),
            ]
        torch.testing.assert_close(together, torch.cat(apart, dim=1), atol=1e-5, rtol=1e-4)


def test_a_hundred_regions_cost_less_than_a_fifth_of_an_image_at_odises_size():
    """Operations by torch's counter, on tensors without memory."""
    with torch.device("meta"):
        tower = load_clip("ViT-L-14-336-quickgelu", None).visual.requires_grad_(False)
        images, masks = torch.empty(1, 3, 336, 336), torch.empty(100, 24, 24, dtype=torch.bool)
    counts = []
    for call in (lambda: tower(images), lambda: tower.masked_attention(images, [masks])):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    assert 1.14 < counts[1] / counts[0] < 1.16


def test_checkpointing_changes_no_gradient_of_regions(mini, tiny_eva):
    masks = [torch.rand(3, 5, 5) > 0.5]
    for tower in (mini.visual, tiny_eva):
        images, gradients = torch.randn(1, 3, 40, 40), []
        for tower.checkpointing in (False, True):
            tower.zero_grad()
            tower.masked_attention(images, masks).square().sum().backward()
            gradients.append([p.grad.clone() for p in tower.parameters()])
        tower.checkpointing = False
        torch.testing.assert_close(gradients[0], gradients[1])


def test_checkpointing_changes_no_gradient(mini, tiny_eva):
    for tower in (mini.visual, tiny_eva):
        images, gradients = torch.randn(1, 3, 40, 40), []
        for tower.checkpointing in (False, True):
            tower.zero_grad()
            tower.dense(images).square().sum().backward()
            gradients.append(
                {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}
            )
        tower.checkpointing = False
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_layer_groups_are_a_partition_of_the_parameters(mini, tiny_eva):
    with torch.device("meta"):  # without memory
        resnet = load_clip("RN50", None).visual
    for tower in (mini.visual, tiny_eva, resnet):
        grouped = [id(p) for group in tower.layer_groups().values() for p in group]
        assert sorted(grouped) == sorted(id(p) for p in tower.parameters())


def test_with_attention_all_of_the_last_block_trains_for_the_image_embedding(tiny_eva):
    train_last_blocks(tiny_eva, 1, attention=True)
    tiny_eva(torch.randn(2, 3, 32, 32)).square().sum().backward()
    trained = {name for name, p in tiny_eva.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in tiny_eva.named_parameters() if "blocks.2." in name}
    assert all(tiny_eva.get_parameter(name).grad.any() for name in trained)
    tiny_eva.zero_grad()
    train_last_blocks(tiny_eva, 1)
    assert not any(parameter.requires_grad for parameter in tiny_eva.unused_by())


def test_parameters_unused_by_dense_get_no_gradient_and_all_other_block_parameters_do(tiny_eva):
    train_last_blocks(tiny_eva, -1)
    tiny_eva.zero_grad(set_to_none=True)
    tiny_eva.dense(torch.randn(1, 3, 32, 32)).sum().backward()
    for name, parameter in tiny_eva.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    unused = {id(p) for p in tiny_eva.unused_by()}
    trained = {id(p) for p in tiny_eva.parameters() if p.requires_grad}
    blocks = {id(p) for p in tiny_eva.blocks.parameters()}
    assert trained == blocks - unused


@pytest.mark.parametrize(
    "names", [["block0"], ["block1"], ["block0", "dense"], ["block2"], ["block1", "block3"]]
)
@pytest.mark.parametrize("kind", ["OpenAI", "EVA"])
def test_all_that_trains_gets_a_gradient_whatever_features_are_read(mini, tiny_eva, kind, names):
    tower = mini.visual if kind == "OpenAI" else tiny_eva
    names = [name for name in names if name in tower.feature_shapes()]
    train_last_blocks(tower, -1, names)
    tower.zero_grad(set_to_none=True)
    sum(map(torch.sum, tower.features(torch.randn(1, 3, 32, 32), names).values())).backward()
    for name, parameter in tower.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    assert any(p.requires_grad for p in tower.blocks[0].parameters())


@pytest.mark.parametrize("count, expected", [(0, set()), (1, {3}), (-1, {0, 1, 2, 3})])
def test_last_blocks_train_whatever_was_set_before(count, expected):
    tower = load_clip("ViT-Mini-8", None).visual
    depth = len(tower.blocks)
    wanted = {depth - 4 + i for i in expected} if count != -1 else set(range(depth))
    train_last_blocks(tower, -1)
    train_last_blocks(tower, count)
    training = {
        i for i, b in enumerate(tower.blocks) if all(p.requires_grad for p in b.parameters())
    }
    assert training == wanted
    assert not tower.proj.requires_grad and not tower.positional_embedding.requires_grad


def test_queries_and_keys_are_those_of_the_last_blocks_attention(mini, tiny_eva):
    images = torch.randn(2, 3, 32, 48)
    for tower in (mini.visual, tiny_eva):
        with torch.no_grad():
            maps = tower.features(images, ["queries", "keys", "dense"])
            tokens, extras, grid = tower.embed(images)
            for block in tower.blocks[:-1]:
                tokens = block(tokens, *extras)
            last = tower.blocks[-1]
            norm, attention = getattr(last, "ln_1", None) or last.norm1, last.attn
            inputs = norm(tokens[:, 1:])
            if tower is tiny_eva:
                queries = attention.q_proj(inputs) + attention.q_bias
                keys = attention.k_proj(inputs)
            else:
                packed = inputs @ attention.in_proj_weight.T + attention.in_proj_bias
                queries, keys, _ = packed.chunk(3, dim=-1)
            torch.testing.assert_close(maps["queries"], queries.mT.unflatten(2, grid))
            torch.testing.assert_close(maps["keys"], keys.mT.unflatten(2, grid))
            assert torch.equal(maps["dense"], tower.dense(images))


@pytest.mark.parametrize("names", [["dense", "queries"], ["dense", "keys"], ["queries", "keys"]])
def test_of_query_and_key_of_the_last_block_what_is_read_trains(tiny_eva, names):
    train_last_blocks(tiny_eva, 1, names)
    attention = tiny_eva.blocks[-1].attn
    assert attention.q_proj.weight.requires_grad == ("queries" in names)
    assert attention.q_bias.requires_grad == ("queries" in names)
    assert attention.k_proj.weight.requires_grad == ("keys" in names)
