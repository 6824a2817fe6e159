"""Towers: forward passes, dense features by hand and by loops, masks, what trains, gradients, files and exports."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipself_seg.checkpoints.dense_feature import ANY, GATED, DenseFeature
from clipself_seg.clip import block_calls, load_clip, save_clip
from clipself_seg.clip.eva import EvaTransformer
from clipself_seg.clip.layers import ResidualBlock
from clipself_seg.clip.openai import VisionTransformer
from clipself_seg.clip.tower import TowerOptions, train_last_blocks
from clipself_seg.errors import InputError
from clipself_seg.prediction.onnx.towers import export_towers
from tests.small_towers import small_towers


@pytest.fixture(scope="module")
def tiny_eva():
    from clipself_seg.clip.eva import EvaTransformer

    torch.manual_seed(0)
    return EvaTransformer(
        image_size=32, patch_size=8, width=64, layers=3, heads=2, hidden=96, embed_dim=16
    ).eval()


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


def test_with_attention_all_of_the_last_block_trains_for_the_image_embedding(tiny_eva):
    train_last_blocks(tiny_eva, 1, attention=True)
    tiny_eva(torch.randn(2, 3, 32, 32)).square().sum().backward()
    trained = {name for name, p in tiny_eva.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in tiny_eva.named_parameters() if "blocks.2." in name}
    assert all(tiny_eva.get_parameter(name).grad.any() for name in trained)
    tiny_eva.zero_grad()
    train_last_blocks(tiny_eva, 1)
    assert not any(parameter.requires_grad for parameter in tiny_eva.unused_by())


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


MINI = "ViT-Mini-8"
SIZES = {"image_size": 32, "patch_size": 8, "width": 64, "heads": 2, "embed_dim": 16}
TWO = DenseFeature("multi_value", 2)


def openai_tower(**more):
    torch.manual_seed(0)
    tower = VisionTransformer(**SIZES, layers=3, quick_gelu=True, **more)
    return _stirred(tower)


def eva_tower():
    torch.manual_seed(0)
    return _stirred(EvaTransformer(**SIZES, layers=3, hidden=96))


def _stirred(tower):
    """No bias and no norm at its start, where a mistake would not show."""
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return tower.eval()


def scaled_tower():
    return openai_tower(layer_scale=0.3)


TOWERS = pytest.mark.parametrize("make_tower", [openai_tower, eva_tower, scaled_tower])


def value_of_one(block, token_D, gate=None):
    """What one block adds to one token, in the plainest way: out(g * (W_v norm(x) + b))."""
    openai = isinstance(block, ResidualBlock)
    normed = (block.ln_1 if openai else block.norm1)(token_D)
    attention = block.attn
    if openai:
        width = len(token_D)
        value = attention.in_proj_weight[2 * width :] @ normed + attention.in_proj_bias[2 * width :]
    else:
        value = attention.v_proj.weight @ normed + attention.v_bias
    if gate is not None:
        weight, bias = gate
        for head, part in enumerate(value.chunk(attention.heads)):
            part *= 2 / (1 + math.exp(-float(weight[head] @ normed + bias[head])))
    if openai:
        return block.ls_1(attention.out_proj(value))
    return attention.proj(attention.inner_attn_ln(value))


@torch.no_grad()
def dense_by_loops(tower, images, blocks, gate=None):
    """Place by place and block by block."""
    tokens, extras, grid = tower.embed(images)
    maps = torch.zeros(len(images), tower.embed_dim, *grid)
    summed = torch.zeros(len(images), grid[0] * grid[1], tower.width)
    for index, block in enumerate(tower.blocks):
        if index >= len(tower.blocks) - blocks:
            for image in range(len(images)):
                for place in range(summed.shape[1]):
                    token = tokens[image, 1 + place]
                    summed[image, place] += value_of_one(block, token, gate)
        tokens = block(tokens, *extras)
    for place in range(summed.shape[1]):
        maps[:, :, place // grid[1], place % grid[1]] = tower.project(summed[:, place])
    return maps


@TOWERS
@pytest.mark.parametrize(
    "feature", [DenseFeature("value"), TWO, DenseFeature("multi_value", 3)], ids=str
)
def test_values_of_the_last_blocks_are_those_of_loops_over_places(make_tower, feature):
    tower, images = make_tower(), torch.randn(2, 3, 16, 24)
    tower.configure(TowerOptions(feature))
    expected = dense_by_loops(tower, images, feature.blocks)
    torch.testing.assert_close(tower.dense(images), expected, atol=1e-5, rtol=1e-4)


@TOWERS
def test_a_gate_weighs_the_heads_of_every_place_and_block_by_one_linear_map(make_tower):
    tower, images = make_tower(), torch.randn(1, 3, 16, 16)
    tower.configure(TowerOptions(DenseFeature(GATED, 2)))
    with torch.no_grad():
        for parameter in tower.dense_gate.parameters():
            parameter.normal_()
        expected = dense_by_loops(tower, images, 2, [*tower.dense_gate.parameters()])
        torch.testing.assert_close(tower.dense(images), expected, atol=1e-5, rtol=1e-4)


@TOWERS
def test_a_gate_begins_as_the_plain_sum_to_the_last_bit_and_learns(make_tower):
    tower, images = make_tower(), torch.randn(1, 3, 16, 16)
    tower.configure(TowerOptions(TWO))
    plain = tower.dense(images)
    tower.configure(TowerOptions(DenseFeature(GATED, 2)))
    gated = tower.dense(images)
    assert torch.equal(plain, gated)
    # The sum alone would not do: behind the final norm its gradient is 0 for any common factor.
    (gated * torch.randn_like(gated)).sum().backward()
    assert all(parameter.grad.any() for parameter in tower.dense_gate.parameters())


@TOWERS
def test_an_image_embedding_a_region_and_the_stream_are_the_same_whatever_is_dense(make_tower):
    tower, images = make_tower(), torch.randn(1, 3, 32, 32)
    masks = [torch.rand(2, 4, 4) > 0.5]

    def others():
        maps = tower.features(images, ["block0", "block2", "dense"])
        return [
            tower(images),
            tower.masked_attention(images, masks),
            maps["block0"],
            maps["block2"],
        ]

    with torch.no_grad():
        expected = others()
        for feature in (DenseFeature("value"), TWO, DenseFeature(GATED, 3)):
            tower.configure(TowerOptions(feature))
            for actual, wanted in zip(others(), expected, strict=True):
                assert torch.equal(actual, wanted)


READ = [(1, ["dense"]), (1, ["dense", "block0"]), (1, ["block2"])]
READ += [(-1, ["dense"]), (-1, ["dense", "block2"]), (-1, ["block0"])]


@TOWERS
@pytest.mark.parametrize(("count", "names"), READ)
@pytest.mark.parametrize(
    "feature", [DenseFeature(), DenseFeature("value"), DenseFeature(GATED, 2)], ids=str
)
def test_all_that_trains_gets_a_gradient_and_nothing_else_of_the_blocks(
    make_tower, names, feature, count
):
    tower = make_tower()
    tower.configure(TowerOptions(feature))
    train_last_blocks(tower, count, names)
    maps = tower.features(torch.randn(1, 3, 16, 16), names)
    sum((m * torch.randn_like(m)).sum() for m in maps.values()).backward()
    for name, parameter in tower.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    gated = feature.gated and "dense" in names
    assert gated == any("gate" in n for n, p in tower.named_parameters() if p.requires_grad)


@TOWERS
def test_groups_are_a_partition_with_a_gate_too(make_tower):
    tower = make_tower()
    tower.configure(TowerOptions(DenseFeature(GATED, 2)))
    groups = tower.layer_groups()
    assert len(groups["gate"]) == 2
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in tower.parameters())
    tower.configure(TowerOptions(DenseFeature()))
    assert "gate" not in tower.layer_groups()


@TOWERS
def test_recomputed_and_compiled_blocks_have_the_same_values_and_gradients(make_tower, monkeypatch):
    graphs = []

    def kept(function, **how):
        graphs.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", kept)
    block_calls._compiled_function.cache_clear()
    images, results = torch.randn(2, 3, 16, 16), []
    for how in ("unchanged", "checkpointing", "compiling"):
        tower = make_tower()
        tower.configure(TowerOptions(DenseFeature(GATED, 2)))
        setattr(tower, how, True)
        dense = tower.dense(images)
        (dense.square() * dense).sum().backward()
        gradients = [p.grad for p in tower.parameters() if p.grad is not None]
        results.append([dense, *gradients])
    block_calls._compiled_function.cache_clear()
    for one in results[1:]:
        for actual, expected in zip(one, results[0], strict=True):
            torch.testing.assert_close(actual, expected)
    assert "values" in graphs  # the method of a block, and not of the tower


def test_no_images_and_more_blocks_than_there_are():
    tower = openai_tower()
    tower.configure(TowerOptions(DenseFeature("multi_value", 3)))
    assert tower.dense(torch.zeros(0, 3, 16, 16)).shape == (0, 16, 2, 2)
    with pytest.raises(InputError, match="DENSE_BLOCKS is 4, .* 3 blocks: give 3 at most"):
        tower.configure(TowerOptions(DenseFeature("multi_value", 4)))


def test_a_resnet_has_one_dense_feature():
    with torch.device("meta"):
        with pytest.raises(InputError, match="MODEL.CLIP.DENSE is value"):
            load_clip("RN50", None, dense=DenseFeature("value"))
        resnet = load_clip("RN50", None).visual
    with pytest.raises(InputError, match="MODEL.CLIP.ATTENTION is kk"):
        resnet.configure(TowerOptions(attention="kk"))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("layout", ["official", "open_clip"])
def test_a_gate_and_the_name_of_the_feature_are_saved_and_loaded(tmp_path, suffix, layout):
    clip = load_clip(MINI, "mini", dense=DenseFeature(GATED, 2))
    assert "gate at its start" in str(clip.report) and clip.distilled == ANY
    nn.init.normal_(clip.visual.dense_gate.weight)
    clip.distilled = clip.visual.dense_feature
    path = tmp_path / f"gated.{suffix}"
    save_clip(clip, path, layout=layout)
    for feature in (None, DenseFeature(GATED, 2)):
        back = load_clip(MINI, path, dense=feature)
        assert back.weights_hash() == clip.weights_hash()
        assert back.distilled == back.visual.dense_feature == DenseFeature(GATED, 2)
        assert "dense feature gated_multi_value of 2 blocks" in str(back.report)


def test_weights_for_another_feature_are_refused_unless_that_is_overridden(tmp_path):
    path = tmp_path / "gated.safetensors"
    clip = load_clip(MINI, "mini", dense=DenseFeature(GATED, 2))
    clip.distilled = clip.visual.dense_feature
    save_clip(clip, path)
    for feature in (DenseFeature(), TWO, DenseFeature(GATED, 3)):
        with pytest.raises(InputError, match="gated.* is for .*gated_multi_value of 2 blocks"):
            load_clip(MINI, path, dense=feature)
    plain = load_clip(MINI, path, dense=DenseFeature(), override=True)
    assert plain.weights_hash() == load_clip(MINI, "mini").weights_hash()
    said = str(plain.report)
    assert "gate left out" in said and "gated_multi_value of 2 blocks, read as token" in said
    assert plain.distilled == DenseFeature(GATED, 2)  # what is said of the weights stays


def test_a_file_that_says_nothing_is_of_token_and_a_published_clip_of_any(tmp_path):
    with pytest.raises(InputError, match="feature token .which files without the entry are"):
        load_clip(MINI, "mini-clipself", dense=TWO)
    assert load_clip(MINI, "mini-clipself").distilled == DenseFeature()
    assert load_clip(MINI, "mini", dense=TWO).distilled == ANY
    save_clip(load_clip(MINI, "mini"), tmp_path / "copy.safetensors")
    assert load_clip(MINI, tmp_path / "copy.safetensors", dense=TWO).visual.dense_feature == TWO
    torch.save(load_clip(MINI, "mini").state_dict(), tmp_path / "bare.pt")
    with pytest.raises(InputError, match="bare.pt is for the dense feature token"):
        load_clip(MINI, tmp_path / "bare.pt", dense=TWO)


def test_a_gate_that_is_missing_or_too_much_is_a_damaged_file(tmp_path):
    clip = load_clip(MINI, "mini", dense=DenseFeature(GATED, 2))
    state = {"state_dict": load_clip(MINI, "mini").state_dict()}
    torch.save(state | DenseFeature(GATED, 2).entries(), tmp_path / "missing.pt")
    with pytest.raises(InputError, match="missing.pt .*dense_gate"):
        load_clip(MINI, tmp_path / "missing.pt")
    torch.save({"state_dict": clip.state_dict()} | TWO.entries(), tmp_path / "more.pt")
    with pytest.raises(InputError, match="more.pt .*dense_gate"):
        load_clip(MINI, tmp_path / "more.pt")


def test_an_attention_without_training_is_not_exported(tmp_path):
    clip = load_clip(MINI, "mini")
    clip.visual.configure(TowerOptions(attention="naclip"))
    with pytest.raises(InputError, match="ATTENTION naclip is not exported.*leave it none"):
        export_towers(clip, tmp_path / "onnx")


@torch.no_grad()
def test_the_final_norm_of_every_tower_is_the_one_in_front_of_its_head(tmp_path):
    with small_towers(tmp_path) as names:
        towers = [openai_tower(), eva_tower(), *(load_clip(n, None).visual for n in names)]
    for tower in towers:
        weight, bias = tower.ends()[2][:2]
        weight.normal_()
        bias.normal_()
        tokens = 3 * torch.randn(2, 5, tower.width) + 1
        expected = F.layer_norm(tokens, (tower.width,), weight, bias)
        torch.testing.assert_close(tower.final_norm(tokens), expected, atol=1e-4, rtol=1e-4)
        # The head reads nothing else.
        torch.testing.assert_close(
            tower.project(5 * tokens + 2), tower.project(tokens), atol=1e-3, rtol=1e-3
        )
