"""CLIP's scores of masks (cells that a mask opens, what CLIP sees, each readout), and its maps for a generator."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip import load_clip
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic import clip_branches
from clipself_seg.heads.panoptic.clip_branches import DensePooling, MaskedAttention, visible_cells
from clipself_seg.heads.panoptic.feature_sources import CLIPPyramid
from clipself_seg.heads.panoptic.pixel_decoder import STRIDES
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict
from tests.tiny import clip_logits

GRID, PATCH = (5, 7), 6
MODELS = {
    "odise_maskclip_b16": "ViT-B-16-quickgelu",
    "odise_maskclip_l14_336": "ViT-L-14-336-quickgelu",
}
SQUARE = {"masked_attention": MaskedAttention, "dense": DensePooling}


def smooth(count: int, rows: int, columns: int) -> torch.Tensor:
    return F.avg_pool2d(torch.randn(count, rows, columns), 5, 1, 2)


@pytest.mark.parametrize("rule", ["centre", "any"])
def test_a_whole_map_is_rounded_as_the_official_resizing_rounds(rule):
    torch.manual_seed(0)
    patch = 1 if rule == "centre" else PATCH
    size = GRID[0] * patch, GRID[1] * patch

    def pooled(masks):
        resized = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)
        return F.max_pool2d(resized[0], patch)

    masks = smooth(20, 96, 128)
    # A cell of each mask is at the threshold, but for rounding.
    masks = masks - pooled(masks)[:, 2, 3, None, None]
    expected = pooled(masks) > 0 if rule == "centre" else pooled(masks) >= 0
    assert torch.equal(visible_cells(masks, GRID, PATCH, binarise=rule), expected)


def test_a_fraction_of_the_map_is_that_part_cut_out():
    masks = smooth(9, 20, 42)
    part = masks[:, :10, :28]
    # Only cells whose samples do not reach over the cut are the same.
    whole = visible_cells(masks, GRID, PATCH, fraction=(10 / 20, 28 / 42))[:, :-1, :-1]
    assert torch.equal(whole, visible_cells(part, GRID, PATCH)[:, :-1, :-1])


def test_a_fraction_of_the_map_is_the_same_under_autocast():
    masks, fraction = smooth(9, 96, 128), (1.37, 1.13)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = visible_cells(masks, GRID, PATCH, fraction=fraction)
    assert torch.equal(low, visible_cells(masks, GRID, PATCH, fraction=fraction))


def test_small_masks_fall_back_to_any_touched_cell_and_the_others_do_not():
    masks = torch.full((3, 30, 42), -4.0)
    masks[0, 6:8, 6:8] = 4  # in the corner of cell (1, 1), away from its centre
    masks[1, 0:20, 0:20] = 4
    cells = visible_cells(masks, GRID, PATCH, binarise="centre_or_any")
    assert cells[0].nonzero().tolist() == [[1, 1]]
    assert torch.equal(cells[1:], visible_cells(masks[1:], GRID, PATCH, binarise="centre"))
    assert not cells[2].any()


@pytest.mark.parametrize("binarise", ["any", "centre", "centre_or_any"])
def test_padding_is_never_visible(binarise):
    cells = visible_cells(torch.ones(1, 8, 8), (4, 4), 10, shown=(26, 40), binarise=binarise)
    # The centre of the third row, 25, is inside; that of the fourth is not, nor is any pixel.
    assert cells[0].any(dim=1).tolist() == [True, True, True, False]


@pytest.mark.cpu
def test_masks_without_a_positive_logit_are_not_resampled(monkeypatch):
    resampled = []
    monkeypatch.setattr(
        clip_branches, "_resample", lambda masks, *_: resampled.append(masks) or masks
    )
    masks = torch.full((3, *GRID), -1.0)
    masks[1, 2, 3] = 0  # one half: visible
    cells = visible_cells(masks, GRID, 1)
    assert cells.nonzero().tolist() == [[1, 2, 3]]
    assert torch.equal(torch.cat(resampled), masks[1:2])


@pytest.fixture(scope="module")
def mini():
    return load_clip("ViT-Mini-8", "mini")


def rectangle(rows: int, columns: int, *corners: int) -> torch.Tensor:
    top, left, bottom, right = corners
    logits = torch.full((1, rows, columns), -5.0)
    logits[:, top:bottom, left:right] = 5
    return logits


def test_the_factor_of_a_clip_is_at_most_what_its_training_clamped_it_to():
    clip = load_clip("ViT-Mini-8", None)
    asked = (torch.rand(3, 64, 64), rectangle(64, 64, 0, 0, 32, 32))
    text = F.normalize(torch.randn(2, clip.embed_dim), dim=-1)
    branch = DensePooling(clip, input_size=64)
    region, _ = branch.embed(*asked)
    cosines = F.normalize(region, dim=-1) @ text.T
    for own, factor in ((50, 50), (150, 100)):
        with torch.no_grad():
            clip.logit_scale.fill_(math.log(own))
        logits, _ = clip_logits(branch, *asked, text, [1, 1])
        torch.testing.assert_close(logits, factor * cosines)


@pytest.mark.parametrize("case", MODELS)
def test_masks_open_the_official_cells(case):
    expected = np.load(PARITY / f"{case}.npz")
    with torch.device("meta"):
        clip = load_clip(MODELS[case], None)
    masks = torch.from_numpy(expected["mask_logits"])
    cells = MaskedAttention(clip).cells(masks, (448, 560), (448, 560))
    assert np.array_equal(cells.flatten(1), expected["visible_patches"])


# ViT-L has the same code as ViT-B, and ten times its time.
@pytest.mark.parametrize(
    "case", ["odise_maskclip_b16", pytest.param("odise_maskclip_l14_336", marks=pytest.mark.heavy)]
)
def test_masked_attention_gives_the_official_numbers(case):
    expected = {k: torch.from_numpy(v) for k, v in np.load(PARITY / f"{case}.npz").items()}
    shapes = json.loads((PARITY / f"{case}.shapes.json").read_text())
    weights = named_state_dict(shapes)
    with torch.device("meta"):  # no random numbers for weights that are replaced
        clip = load_clip(MODELS[case], None)
    clip.logit_scale = torch.nn.Parameter(weights.pop("logit_scale"))
    tensors = {name.removeprefix("visual."): value for name, value in weights.items()}
    clip.visual.load_state_dict(tensors, assign=True)
    tiles = named_input(f"{case}:tiles", (1, 3, 4, 5))
    low = tiles.repeat_interleave(112, 2).repeat_interleave(112, 3)
    image = 0.5 + 0.2 * low + 0.12 * named_input(f"{case}:image", (1, 3, 448, 560))
    image, masks = image.clamp(0, 1)[0], expected["mask_logits"]
    text = named_input(f"{case}:text", (10, clip.embed_dim))
    branch = MaskedAttention(clip)
    # A mask of everything sees what the class token sees: large towers go once.
    seen, visible = branch.embed(image, torch.cat([masks, torch.ones_like(masks[:1])]))
    (*_, whole), regions, valid = seen, seen[:-1], visible[:-1]
    assert valid.tolist() == [True, True, True, False, True, True]
    torch.testing.assert_close(regions, expected["mask_embed"], atol=1e-4, rtol=0)
    synonyms = expected["synonyms_per_class"].tolist()
    branch.embed = lambda *_: (regions, valid)
    logits, _ = clip_logits(branch, image, masks, text, synonyms)
    torch.testing.assert_close(logits, expected["class_logits"], atol=5e-5, rtol=0)
    torch.testing.assert_close(whole, expected["image_embed"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", SQUARE)
def test_empty_masks_are_finite_and_not_valid(mini, kind):
    branch = SQUARE[kind](mini, input_size=64)
    masks = torch.cat([torch.full((1, 16, 16), -9.0), torch.ones(1, 16, 16)])
    logits, valid = clip_logits(
        branch, torch.rand(3, 64, 64), masks, torch.randn(3, mini.embed_dim), [1, 2]
    )
    assert valid.tolist() == [False, True]
    assert logits.shape == (2, 2) and logits.isfinite().all()


@pytest.mark.parametrize("kind", SQUARE)
def test_queries_do_not_disturb_each_other(mini, kind):
    branch, image = SQUARE[kind](mini, input_size=64), torch.rand(3, 48, 64)
    masks = F.avg_pool2d(torch.randn(3, 12, 16), 3, 1, 1)
    together, _ = branch.embed(image, masks)
    apart = torch.cat([branch.embed(image, mask[None])[0] for mask in masks])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert branch.embed(image, masks[:0])[0].shape == (0, mini.embed_dim)


@pytest.mark.parametrize("kind", SQUARE)
@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_aligned_masks_select_the_same_patches_with_and_without_padding(mini, kind, aspect):
    how = {"input_size": 128, "aspect": aspect, "align_masks": True}
    branch = SQUARE[kind](mini, **how)
    plain = branch.cells(rectangle(48, 64, 11, 21, 29, 50), (192, 256), (192, 256))
    padded = rectangle(64, 80, 11, 21, 29, 50)
    assert torch.equal(branch.cells(padded, (192, 256), canvas=(256, 320)), plain)
    branch.align_masks = False
    assert not torch.equal(branch.cells(padded, (192, 256), canvas=(256, 320)), plain)


def test_official_masks_are_laid_over_the_image_with_their_padding(mini):
    branch, masks = MaskedAttention(mini), F.avg_pool2d(torch.randn(4, 16, 16), 3, 1, 1)
    stretched = branch.cells(masks, (40, 64), canvas=(64, 64))
    assert torch.equal(stretched, branch.cells(masks, (40, 64), (40, 64)))


def test_padded_aspect_lays_masks_where_the_image_is(mini):
    branch = DensePooling(mini, input_size=128)  # the image fills rows 0..63: eight of 16 cells
    cells = branch.cells(torch.ones(1, 8, 16), (32, 64), (32, 64))
    assert cells[0].nonzero().amax(0).tolist() == [7, 15] and cells.sum() == 8 * 16
    image = branch.clip_input(torch.ones(3, 32, 64))
    white, black = (1 - mini.mean[0]) / mini.std[0], -mini.mean[0] / mini.std[0]
    assert image[0, 63, 0] == pytest.approx(white) and image[0, 64, 0] == pytest.approx(black)


def test_a_size_that_the_patch_does_not_divide_is_refused(mini):
    with pytest.raises(InputError, match="INPUT_SIZE 100 is not a multiple of .*; take"):
        DensePooling(mini, input_size=100)


def test_masks_of_another_image_are_refused(mini):
    with pytest.raises(InputError, match="another image's"):
        MaskedAttention(mini).cells(torch.ones(1, 8, 8), (96, 64), canvas=(64, 64))


@pytest.mark.parametrize(("name", "stride"), [("ViT-Mini-8", 8), ("ViT-B-16", 16)])
def test_maps_have_their_strides_and_channels(name, stride):
    with torch.device("meta"):
        pyramid = CLIPPyramid(load_clip(name, None), channels=32)
    assert pyramid.stride == stride and pyramid.channels == dict.fromkeys(STRIDES, 32)
    with torch.no_grad():
        maps = pyramid(torch.rand(2, 3, 64, 96, device="meta"))
    shapes = {n: (2, 32, 64 // s, 96 // s) for n, s in STRIDES.items()}
    assert {n: tuple(m.shape) for n, m in maps.items()} == shapes


def test_a_patch_of_14_is_enlarged_to_a_stride_of_16():
    clip = load_clip("ViT-Mini-8", None)
    pyramid = CLIPPyramid(clip, channels=32)
    assert pyramid.stride == 8
    sizes = []
    clip.visual.patch_size = 7  # as 14 is to 16
    clip.visual.features = lambda x, names: sizes.append(tuple(x.shape)) or dict.fromkeys(
        names, torch.zeros(1, 128, 8, 12)
    )
    pyramid(torch.rand(1, 3, 64, 96))
    assert sizes == [(1, 3, 56, 84)]


def test_blocks_default_to_quarters_of_the_depth():
    with torch.device("meta"):
        clip = load_clip("ViT-B-16", None)
    assert CLIPPyramid(clip).names == ["block2", "block5", "block8", "block11"]
    assert CLIPPyramid(clip, blocks=(1, 7)).names == ["block1", "block7"]


def test_the_stem_sees_what_a_patch_hides():
    pyramid = CLIPPyramid(load_clip("ViT-Mini-8", None), channels=32).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole = pyramid(images)
        pyramid.stem[0][0].weight.zero_()
        blind = pyramid(images)
    assert not torch.equal(whole["s2"], blind["s2"]) and torch.equal(whole["s5"], blind["s5"])
