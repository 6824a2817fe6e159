"""ConvNeXt towers: open_clip's numbers, the official cases of FC-CLIP (tests/parity), and pooled cells."""

import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip import load_clip
from clipself_seg.clip.convnext import CONVNEXT_SHAPES, ConvNeXtShape, ConvNeXtTower
from clipself_seg.clip.resnet import ResNetTower
from clipself_seg.clip.weights import to_native
from clipself_seg.heads.panoptic.clip_branches import visible_cells
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict

MEAN = torch.tensor([122.7709383, 116.7460125, 104.09373615])[:, None, None]
STD = torch.tensor([68.5005327, 66.6321579, 70.32316305])[:, None, None]
SENTENCES = [
    "a photo of a dog.",
    "There is the traffic light in the scene",
    "This is a photo of a medium potted plant.",
    "a photo of a small sky-other-merged.",
]
STAGES = ["stem", "block0", "block1", "block2", "block3"]
# Case -> open_clip's name, (channels, pixels) of which each map has one, tolerances of maps, embeddings and texts.
# The second has 352 million named numbers.
CASES = {
    "fcclip_rn50": (
        "RN50-quickgelu",
        ((8, 16), (16, 8), (16, 4), (32, 2), (64, 1)),
        (2e-5, 1e-5, 1e-5),
    ),
    "fcclip_convnext_l": (
        "convnext_large_d_320",
        ((16, 8), (16, 8), (16, 4), (16, 2), (16, 1)),
        (5e-5, 1e-5, 2e-5),
    ),
}


@pytest.fixture(
    scope="module",
    params=["fcclip_rn50", pytest.param("fcclip_convnext_l", marks=pytest.mark.heavy)],
)
def case(request):
    """Name, CLIP, normalised image, cells of masks and numbers of a case."""
    name = request.param
    shapes = json.loads((PARITY / f"{name}.shapes.json").read_text())
    weights = to_native(
        {n.removeprefix("backbone.clip_model."): t for n, t in named_state_dict(shapes).items()}
    )
    with torch.device("meta"):
        clip = load_clip(CASES[name][0], None)
    clip.load_state_dict(weights, assign=True)
    expected = dict(np.load(PARITY / f"{name}.npz"))
    low = named_input(f"{name}:tiles", (1, 3, 4, 5))
    low = low.repeat_interleave(64, 2).repeat_interleave(64, 3)
    image = 0.5 + 0.2 * low + 0.12 * named_input(f"{name}:image", (1, 3, 256, 320))
    masks = named_input(f"{name}:masks", (1, 8, 64, 80))[0] * 4
    masks[3] = -masks[3].abs() - 0.5
    cells = visible_cells(masks, (8, 10), 32, binarise="centre")
    return name, clip.requires_grad_(False), normalised(image), cells, expected


def normalised(image):
    return ((image.clamp(0, 1) * 255).round() - MEAN) / STD


def expect(actual, expected, tolerance):
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=tolerance, rtol=0)


def test_stages_pooled_cells_and_texts_have_the_official_numbers(case):
    name, clip, image, cells, expected = case
    _, steps, (of_maps, of_embeddings, of_texts) = CASES[name]
    maps = clip.features(image, STAGES)
    for stage, (channels, pixels), of_case in zip(
        STAGES, steps, ("stem", "res2", "res3", "res4", "res5")
    ):
        expect(maps[stage][0, ::channels, ::pixels, ::pixels], expected[of_case], of_maps)
    assert (np.packbits(cells.flatten(1).numpy(), axis=1) == expected["cells"]).all()
    regions = clip.visual.pool_cells(maps["block3"], cells)
    expect(regions, expected["mask_embed"], of_embeddings)
    # Masks differ by a fiftieth of what they have in common in the ResNet.
    expect(regions - regions[:1], expected["mask_embed"] - expected["mask_embed"][:1], 1e-5)
    whole = clip.visual.pool_cells(maps["block3"], torch.ones_like(cells[:1]))
    expect(whole[0], expected["whole_embed"], of_embeddings)
    expect(clip.text(clip.tokenize(SENTENCES)), expected["text_embed"], of_texts)


def test_the_whole_image_pooled_is_its_embedding_but_for_the_mean_token_of_a_resnet(case):
    name, clip, image, _, expected = case
    if name == "fcclip_convnext_l":
        expect(clip.embed_images(image)[0], expected["image_embed"], 1e-5)
        return
    square = normalised(0.5 + 0.2 * named_input("fcclip_rn50:square", (1, 3, 224, 224)))
    expect(clip.embed_images(square)[0], expected["square_image_embed"], 1e-5)
    last = clip.features(square, ["block3"])["block3"]
    whole = clip.visual.pool_cells(last, torch.ones(1, 7, 7, dtype=torch.bool))
    expect(whole[0], expected["square_whole_embed"], 1e-5)


def test_the_empty_mask_of_a_resnet_is_the_bias_of_its_projection():
    torch.manual_seed(0)
    tower = ResNetTower(image_size=224, width=8, layers=(1, 1, 1, 1), embed_dim=6)
    last = torch.randn(1, 256, 2, 3)
    cells = torch.zeros(2, 2, 3, dtype=torch.bool)
    cells[1, 1, 2] = True
    with torch.no_grad():
        empty, one = tower.pool_cells(last, cells)
        positions = tower.attnpool.positional_embedding[1:].T.unflatten(1, (7, 7))[None]
        placed = last + F.interpolate(positions, (2, 3), mode="bilinear")
        value = tower.attnpool.v_proj(placed[0, :, 1, 2])
        torch.testing.assert_close(one, tower.attnpool.c_proj(value), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(empty, tower.attnpool.c_proj.bias)


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    tower = ConvNeXtTower(
        shape=ConvNeXtShape(8, (1, 2, 1, 1)), image_size=64, embed_dim=6, projection="mlp"
    )
    for block in (block for stage in tower.blocks for block in stage.blocks):
        torch.nn.init.normal_(block.gamma)  # at its start a block does almost nothing
    return tower.eval()


def test_features_and_embeddings_are_open_clips():
    torch.manual_seed(0)
    theirs = open_clip.timm_model.TimmModel("convnext_tiny", 12, 64, pool="", proj="linear")
    for name, parameter in theirs.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(parameter)
    ours = ConvNeXtTower(
        shape=CONVNEXT_SHAPES["convnext_tiny"], image_size=64, embed_dim=12, projection="linear"
    )
    ours.load_state_dict(theirs.state_dict())
    theirs.eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
        maps = theirs.trunk.forward_intermediates(images, intermediates_only=True)
        for name, expected in zip(STAGES[1:], maps):
            feature = ours.features(images, [name])[name]
            torch.testing.assert_close(feature, expected, atol=1e-4, rtol=1e-5)


def test_pooled_cells_are_projected_after_their_mean(tower):
    with torch.no_grad():
        maps = tower.features(torch.randn(1, 3, 64, 96), ["block3", "dense"])
        cells = torch.tensor(
            [[[1, 0, 0], [0, 0, 0]], [[1, 0, 1], [0, 1, 0]], [[0, 0, 0]] * 2]
        ).bool()
        one, several, none = tower.pool_cells(maps["block3"], cells)
        torch.testing.assert_close(one, maps["dense"][0, :, 0, 0], atol=1e-6, rtol=1e-5)
        mean = torch.stack([maps["block3"][0, :, y, x] for y, x in ((0, 0), (0, 2), (1, 1))]).mean(
            0
        )
        torch.testing.assert_close(several, tower.project(mean), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(none, tower.project(torch.zeros(64)))
