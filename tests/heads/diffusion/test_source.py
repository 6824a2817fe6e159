"""Diffusion features: maps of crops and canvases, captioner and projections, names and sizes of ODISE's checkpoints."""

import ast
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import clipself_seg
from clipself_seg.clip import load_clip
from clipself_seg.errors import InputError
from clipself_seg.heads.diffusion.source import (
    Bottleneck,
    DiffusionFeatures,
    ImplicitCaptioner,
    embed_crops,
    project_taps,
)
from clipself_seg.heads.diffusion.stable_diffusion import (
    StableDiffusion,
    StableDiffusionSizes,
    build_unet,
    build_vae,
)
from clipself_seg.heads.diffusion.weights import load_stable_diffusion
from clipself_seg.heads.panoptic.generator import GENERATORS

pytest.importorskip("diffusers", reason="needs diffusers (the extra [diffusion])")
NAMES = ["s2", "s3", "s4", "s5"]
TAPS = (512, 512, 2560, 1920, 960, 640, 512, 512)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return load_clip("ViT-Mini-8", None)


def features(clip, **how) -> DiffusionFeatures:
    return DiffusionFeatures(
        clip=clip, stable_diffusion=load_stable_diffusion("random-small"), **how
    )


@pytest.fixture
def small(clip) -> DiffusionFeatures:
    torch.manual_seed(0)
    return features(clip, crop=64)


@pytest.fixture(scope="module")
def official() -> DiffusionFeatures:
    sizes = StableDiffusionSizes()
    with torch.device("meta"):
        frozen = StableDiffusion(
            unet=build_unet(sizes), vae=build_vae(sizes), empty_prompt=torch.zeros(1, 77, 768)
        )
        clip = load_clip("ViT-L-14-336-quickgelu", None)
        return DiffusionFeatures(clip=clip, stable_diffusion=frozen)


def open_gates(source: DiffusionFeatures) -> None:
    captioner = source.feature_extractor
    torch.nn.init.constant_(captioner.alpha_cond, 0.7)
    torch.nn.init.constant_(captioner.alpha_cond_time_embed, 0.7)


def trained_state(source: DiffusionFeatures) -> dict[str, torch.Tensor]:
    """What a checkpoint holds."""
    prefixes = source.frozen_prefixes
    return {k: v for k, v in source.state_dict().items() if not k.startswith(prefixes)}


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name in NAMES:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(64, 64), (64, 128)])
def test_maps_have_their_strides_and_channels(small, height, width):
    maps = small(torch.rand(2, 3, height, width))
    assert list(maps) == NAMES and small.channels == dict.fromkeys(NAMES, 512)
    for name, stride in zip(NAMES, (4, 8, 16, 32)):
        assert maps[name].shape == (2, 512, height // stride, width // stride)


@torch.no_grad()
def test_every_crop_is_seen_alone(small):
    open_gates(small)
    images = torch.rand(2, 3, 64, 128)
    left, right = small(images[..., :64]), small(images[..., 64:])
    close(small(images), {name: torch.cat([left[name], right[name]], dim=-1) for name in NAMES})
    alone = small(images[1:])
    close(alone, {name: maps[1:] for name, maps in small(images).items()})


@torch.no_grad()
def test_crops_of_a_small_canvas_are_enlarged(clip):
    sizes = [
        tuple(m.shape[2:]) for m in features(clip, crop=128)(torch.rand(1, 3, 64, 128)).values()
    ]
    assert sizes == [(16, 32), (8, 16), (4, 8), (2, 4)]


def test_where_crops_overlap_maps_are_means_with_gradients(clip, monkeypatch):
    source = features(clip, crop=128)
    values = torch.arange(8.0, requires_grad=True)

    def maps_of(crops):
        """Each crop's maps are one number, that of its image and place, which its first pixel has."""
        of_crops = values[crops[:, 0, 0, 0].long()][:, None, None, None]
        return {
            n: of_crops.expand(-1, 2, 128 // s, 128 // s) for n, s in zip(NAMES, (4, 8, 16, 32))
        }

    monkeypatch.setattr(source, "_maps", maps_of)
    images = torch.zeros(2, 3, 192, 192)
    for number, place in enumerate(itertools.product((0, 1), (0,), (0, 64), (0, 64))):
        images[place] = number
    maps = source(images)["s5"]
    row = torch.tensor([0, 0, 0.5, 0.5, 1, 1])
    for image in (0, 1):
        assert torch.equal(maps[image, 1], row + 2 * row[:, None] + 4 * image)
    (gradient,) = torch.autograd.grad(maps.sum(), values)
    # 36 cells of an image and two channels: each cell is shared by the crops that cover it.
    torch.testing.assert_close(gradient, torch.full((8,), 18.0))


@torch.no_grad()
def test_features_start_unconditional_and_then_depend_on_what_clip_sees(small):
    images, stranger = torch.rand(1, 3, 64, 64), load_clip("ViT-Mini-8", "mini")
    other = DiffusionFeatures(clip=stranger, stable_diffusion=small.stable_diffusion, crop=64)
    other.load_state_dict(small.state_dict())
    close(other(images), small(images))
    for source in (small, other):
        open_gates(source)
    first, second = small(images), other(images)
    torch.testing.assert_close(first["s2"], second["s2"])  # the autoencoder has no prompt
    for name in NAMES[1:]:
        assert not torch.allclose(first[name], second[name], atol=1e-3)


def test_gradients_of_all_crops_reach_captioner_and_projections_only(small, clip):
    small.train()
    maps = small(torch.rand(1, 3, 64, 128))
    sum(m.square().mean() for m in maps.values()).backward()
    gradients = {name: p.grad for name, p in small.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    for name in ("alpha_cond", "alpha_cond_time_embed"):
        assert gradients[f"feature_extractor.{name}"].any()
    assert all(p.grad is None for p in small.stable_diffusion.parameters())
    assert all(p.grad is None for p in clip.parameters())
    assert not small.stable_diffusion.unet.training and small.training


def test_what_trains_is_what_a_checkpoint_holds(small):
    trains = {name for name, p in small.named_parameters() if p.requires_grad}
    assert set(trained_state(small)) == trains


def test_names_and_shapes_are_those_of_the_checkpoints(official):
    project, time = "feature_extractor.clip_project", "feature_extractor.time_embed_project"
    expected = {
        f"{project}.linear.weight": (768, 768),
        f"{project}.linear.bias": (768,),
        f"{project}.positional_embedding": (1, 77, 768),
        "feature_extractor.alpha_cond": (1, 77, 768),
        f"{time}.linear.weight": (1280, 768),
        f"{time}.linear.bias": (1280,),
        f"{time}.positional_embedding": (1, 1, 1280),
        "feature_extractor.alpha_cond_time_embed": (1280,),
    }
    for index, channels in enumerate(TAPS):
        shapes = {"conv1": (128, channels, 1, 1), "conv2": (128, 128, 3, 3)}
        shapes["conv3"] = (512, 128, 1, 1)
        if channels != 512:
            shapes["shortcut"] = (512, channels, 1, 1)
        for layer, shape in shapes.items():
            name = f"feature_projections.{index}.0.{layer}"
            expected[f"{name}.weight"] = shape
            expected |= {f"{name}.norm.{kind}": shape[:1] for kind in ("weight", "bias")}
    assert {name: tuple(t.shape) for name, t in trained_state(official).items()} == expected


@pytest.mark.parametrize("variant, total", [("caption", 28_066_755), ("label", 28_067_009)])
def test_totals_with_the_mask_generator_are_odises(official, variant, total):
    with torch.device("meta"):
        generator = GENERATORS[variant](channels=official.channels)
    parameters = [*official.parameters(), *generator.parameters()]
    assert sum(p.numel() for p in parameters if p.requires_grad) == total


def test_sizes_that_do_not_work_are_refused(small):
    with pytest.raises(InputError, match="64x100 pixels: .*SIZE_DIVISIBILITY must be 64"):
        small(torch.rand(1, 3, 64, 100))


def test_nothing_imports_diffusers_before_it_is_needed():
    files = sorted(Path(clipself_seg.__file__).parent.rglob("*.py"))
    eager = [
        str(path)
        for path in files
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "diffusers" in ast.unparse(node)
    ]
    assert files and not eager


@pytest.fixture
def captioner() -> ImplicitCaptioner:
    return ImplicitCaptioner(clip_width=6, text_width=10, time_width=4)


def test_gates_are_a_tanh_of_their_factors(captioner):
    torch.nn.init.constant_(captioner.alpha_cond, 0.5)
    torch.nn.init.constant_(captioner.alpha_cond_time_embed, -2.0)
    image, empty = torch.randn(2, 6), torch.randn(1, 77, 10)
    prompt, time = captioner(image, empty)
    part = captioner.clip_project
    token = part.linear.weight @ image[1] + part.linear.bias + part.positional_embedding[0, 9]
    torch.testing.assert_close(prompt[1, 9], empty[0, 9] + 0.46211716 * token)
    part = captioner.time_embed_project
    term = part.linear.weight @ image[0] + part.linear.bias + part.positional_embedding[0, 0]
    torch.testing.assert_close(time[0], -0.96402758 * term)


def test_clip_sees_the_crop_resized_and_normalised():
    clip, crops = load_clip("ViT-Mini-8", None), torch.rand(2, 3, 128, 128)
    size = (clip.image_size, clip.image_size)
    small = F.interpolate(crops, size, mode="bicubic")
    mean, std = (torch.tensor(v)[:, None, None] for v in (clip.mean, clip.std))
    embeddings = embed_crops(clip, crops)
    torch.testing.assert_close(embeddings, clip.embed_images((small - mean) / std))
    assert not torch.allclose(embeddings.norm(dim=-1), torch.ones(2), atol=0.01)
    assert not embeddings.requires_grad


@torch.no_grad()
def test_a_bottleneck_is_three_normed_convolutions_and_a_shortcut():
    for channels in (48, 512):
        block, x = Bottleneck(channels), torch.randn(2, channels, 5, 6)
        y = x
        for convolution, padding in ((block.conv1, 0), (block.conv2, 1), (block.conv3, 0)):
            norm = convolution.norm
            y = F.conv2d(y, convolution.weight, padding=padding)
            y = F.group_norm(y, 32, norm.weight, norm.bias)
            y = y if convolution is block.conv3 else y.clamp(min=0)
        residual = block.shortcut(x) if channels == 48 else x
        torch.testing.assert_close(block(x), (y + residual).clamp(min=0))


@torch.no_grad()
def test_taps_are_added_by_stride_at_the_nearest_cell():
    projections = torch.nn.ModuleList(torch.nn.Sequential(Bottleneck(8)) for _ in range(8))
    sides = (16, 8, 1, 2, 4, 8, 8, 16)
    taps = [torch.randn(1, 8, side, side) for side in sides]
    maps = project_taps(projections, taps, 64)
    assert [m.shape[-1] for m in maps.values()] == [16, 8, 4, 2] and list(maps) == NAMES
    torch.testing.assert_close(maps["s2"], projections[0](taps[0]) + projections[7](taps[7]))
    torch.testing.assert_close(maps["s4"], projections[4](taps[4]))
    three = projections[1](taps[1]) + projections[5](taps[5]) + projections[6](taps[6])
    torch.testing.assert_close(maps["s3"], three)
    enlarged = taps[2].expand(-1, -1, 2, 2)
    torch.testing.assert_close(maps["s5"], projections[2](enlarged) + projections[3](taps[3]))
