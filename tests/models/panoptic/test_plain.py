"""OpenPanoptic with a plain decoder: taps and names of one pass of a frozen tower, what trains, and its weights."""

import dataclasses
import logging

import pytest
import torch
from torch.nn import functional as F

from clipself_seg.checkpoints.training_state import trained_parameters
from clipself_seg.clip import load_clip
from clipself_seg.clip.backbone import CLIPBackbone
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.clip.openai import VisionTransformer
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.feature_sources import CLIPTaps
from clipself_seg.heads.panoptic.plain_decoder import PlainDecoderSizes
from clipself_seg.models.panoptic.panoptic_checkpoint import trained_state
from clipself_seg.models.panoptic.panoptic_config import build_plain_decoder, build_source
from tests.heads.panoptic.released import released_decoder
from tests.models.panoptic.small import (
    CONFIG,
    FCCLIP,
    MASKED,
    PLAIN,
    SMALL,
    model_of,
    sample,
    training_samples,
    vocabulary,
)

BLOCKS = ["block0", "block1", "block2", "block3"]


@pytest.fixture(scope="module")
def plain():
    return model_of(*PLAIN)


@pytest.fixture
def passes(monkeypatch):
    """Towers whose stem reads an image, one for each time."""
    read, own = [], VisionTransformer.embed
    monkeypatch.setattr(VisionTransformer, "embed", lambda *a: read.append(a[0]) or own(*a))
    return read


def test_features_masks_names_and_segments_of_an_image_are_one_pass_of_the_tower(plain, passes):
    (outputs,) = plain([sample()])
    assert passes == [plain.clip.visual] and outputs["sem_seg"].shape == (3, 40, 50)
    passes.clear()
    generated = plain.generate(sample())
    named = plain.name_masks(sample(), generated)
    assert passes == [plain.clip.visual]
    assert generated.backbone_map.shape == (1, plain.clip.embed_dim, 8, 12)
    assert torch.equal(named["sem_seg"], outputs["sem_seg"]) and named.keys() == outputs.keys()
    assert torch.equal(named["panoptic_seg"][0], outputs["panoptic_seg"][0])
    two = model_of(*PLAIN, "MODEL.CLIP_BRANCH.KIND", "dense")
    passes.clear()
    two([sample()])
    assert len(passes) == 2


def test_names_are_means_of_dense_features_inside_the_masks(plain):
    one = sample(64, 96)
    generated = plain.generate(one)
    logits, valid = plain.clip_scores(one, generated)
    masks = 5 * torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(0))
    image = one["image"].float() / 255
    found, _ = plain.branch.embed(image, masks, (64, 96), generated.backbone_map)
    wanted = plain.clip.encode_masks(plain.clip.normalise(image)[None], [masks > 0])
    torch.testing.assert_close(F.normalize(found, dim=-1), wanted)
    assert valid.all() and logits.shape == (7, 3)
    assert "of the generator's pass" in plain.reading().features


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (33, 75)])
def test_without_the_map_of_the_pass_masks_are_named_as_with_it_padding_and_all(plain, size):
    one = sample(*size)
    generated = plain.generate(one)
    alone = dataclasses.replace(generated, backbone_map=None)
    for found, again in zip(plain.clip_scores(one, generated), plain.clip_scores(one, alone)):
        torch.testing.assert_close(again, found)


def test_a_canvas_of_any_shape_has_masks_of_a_quarter_of_the_stride(plain):
    shapes = [plain.generate(sample(*size)).mask_logits.shape for size in ((30, 90), (130, 64))]
    # Patches of 8 pixels are doubled once, as PMT has it.
    assert shapes == [(7, 8, 24), (7, 40, 16)]


@pytest.mark.parametrize("name", ["ViT-Mini-8", "EVA-Mini-8"])
def test_taps_are_blocks_behind_the_towers_own_norm_and_have_no_parameter(name):
    clip = load_clip(name, None)
    source, images = CLIPTaps(clip, named=True), torch.rand(2, 3, 64, 96)
    assert list(source.channels) == BLOCKS and not list(source.state_dict())
    maps = source(images)
    features = clip.features(clip.normalise(images), [*BLOCKS, "dense"])
    norm = clip.visual.ln_post if name.startswith("ViT") else clip.visual.norm
    for block in BLOCKS:
        wanted = F.layer_norm(
            features[block].movedim(1, -1), (128,), norm.weight, norm.bias, norm.eps
        )
        torch.testing.assert_close(maps[block], wanted.movedim(-1, 1))
    assert torch.equal(maps["dense"], features["dense"])
    assert not any(one.requires_grad for one in maps.values())
    assert list(CLIPTaps(clip, taps=("block2", "dense"))(images)) == ["block2", "dense"]


@pytest.mark.parametrize(
    ("name", "taps", "words"),
    [
        ("ConvNeXt-Mini-32", (), "SOURCE blocks needs a ViT"),
        ("ViT-Mini-8", ("block9",), 'no feature "block9"'),
        ("ViT-Mini-8", ("keys",), "give block0 to block3 or dense, each once"),
        ("ViT-Mini-8", ("block1", "block1"), "TAPS is block1, block1"),
    ],
)
def test_features_that_are_no_taps_are_refused(name, taps, words):
    with pytest.raises(InputError, match=words):
        CLIPTaps(load_clip(name, None), taps=taps)


@pytest.mark.parametrize(
    ("opts", "predictions"),
    [(PLAIN, 1), (MASKED, 3), ((*PLAIN, "MODEL.PLAIN_DECODER.TAPS", "('dense',)"), 1)],
)
def test_all_but_the_tower_trains_and_decays(opts, predictions):
    model = model_of(*opts).train()
    losses = model(training_samples())
    assert len(losses) == 3 * predictions
    sum(losses.values()).backward()
    trained = trained_parameters(model)
    assert {name.split(".")[0] for name in trained} == {"generator"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    solver = load_config(CONFIG, [*SMALL, *map(str, opts)]).SOLVER
    (group,) = model.optimizer_groups(solver)
    assert {id(p) for p in group["params"]} == {id(p) for p in trained.values()}
    assert group["weight_decay"] == solver.WEIGHT_DECAY > 0


def test_a_decoder_that_pmt_released_starts_a_training(caplog):
    own = model_of(*PLAIN)
    released = released_decoder([*own.backbone.channels], own.generator.sizes, 7).state_dict()
    own.load_checkpoint({f"network.{name}": tensor for name, tensor in released.items()}, "a.pth")
    loaded = own.generator.state_dict()
    assert all(torch.equal(loaded[n], t) for n, t in released.items() if "class_head" not in n)
    assert "a decoder of fixed classes: its classifier is left out" in caplog.text
    with pytest.raises(InputError, match="what compares its masks with words is random, and"):
        own([sample()])
    own.setup_training(vocabulary())  # which may evaluate before its first step
    own([sample()])
    with pytest.raises(InputError, match="lacks .*; MODEL.MASK_GENERATOR.KIND, VARIANT and SOURCE"):
        model_of(*FCCLIP).load_checkpoint({f"network.{n}": t for n, t in released.items()}, "a.pth")
    with pytest.raises(InputError, match="the panoptic checkpoint a.pth lacks 1 tensor: bn.0.bias"):
        own.load_checkpoint(
            {f"network.{n}": t for n, t in released.items() if n != "bn.0.bias"}, "a.pth"
        )


def test_an_exported_model_is_the_same_after_loading(tmp_path, caplog):
    first, second = model_of(*PLAIN), model_of(*PLAIN, seed=1)
    second.clip.load_state_dict(first.clip.state_dict())
    first.generator.bn[0].running_mean.add_(1)
    names = set(trained_state(first))
    assert {"bn.0.running_var", "decoder.q.weight", "void_embedding.weight"} <= names
    assert all(name.startswith(("bn.", "decoder.", "void_embedding.")) for name in names)
    first.export(tmp_path / "model.pth")
    saved = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    with caplog.at_level(logging.INFO):
        second.load_checkpoint(saved, "a.pth")
    assert f"{len(names)} loaded, 0 missing, 0 unexpected" in caplog.text
    one, other = (model([sample()])[0]["sem_seg"] for model in (first, second))
    assert torch.equal(one, other) and second.exponents == first.exponents
    order = str(tuple(reversed(BLOCKS)))
    turned = model_of(*PLAIN, "MODEL.PLAIN_DECODER.TAPS", order)
    turned.clip.load_state_dict(first.clip.state_dict())
    with pytest.raises(InputError, match="trained on feature_taps block0, .* has block3, .*TAPS"):
        turned.load_checkpoint(saved, "a.pth")
    wider = model_of(*PLAIN, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 5)
    wider.clip.load_state_dict(first.clip.state_dict())
    with pytest.raises(InputError, match="MODEL.CLIP.NAME, MODEL.MASK_FORMER"):
        wider.load_checkpoint(saved, "a.pth")
    with pytest.raises(InputError, match="trained on clip_hash .* give the former as MODEL.CL"):
        model_of(*PLAIN, seed=2).load_checkpoint(saved, "a.pth")


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("MODEL.MASK_GENERATOR.KIND", "plain"), "SOURCE must be blocks where KIND is plain"),
        ((*PLAIN, "MODEL.MASK_GENERATOR.VARIANT", "label"), "VARIANT must be fcclip"),
        ((*PLAIN, "MODEL.MASK_FORMER.HIDDEN_DIM", "32"), "reads it with .*KIND mask2former alone"),
        (("MODEL.PLAIN_DECODER.MASKED_ATTENTION", "True"), "reads it with .*KIND plain alone"),
    ],
)
def test_keys_that_do_not_fit_a_plain_decoder_are_refused(opts, words):
    with pytest.raises(InputError, match=words):
        model_of(*opts)


TOWERS = ("openai_vitb16", "openai_vitl14_336", "eva02_vitb16", "eva02_vitl14_336")
TOWERS += ("siglip2_vitb16", "pe_core_vitb16", "tipsv2_vitb14")


@pytest.mark.parametrize("tower", TOWERS)
def test_the_recipe_takes_a_tower_and_has_the_width_heads_and_squares_of_it(tower):
    cfg = load_config(f"panoptic/plain+{tower}")
    sizes = find_architecture(cfg.MODEL.CLIP.NAME).signature
    with torch.device("meta"):
        clip = CLIPBackbone(architecture=find_architecture(cfg.MODEL.CLIP.NAME), quick_gelu=False)
        taps = build_source(cfg, clip)
        decoder = build_plain_decoder(cfg, clip, taps)
    quarter = sizes.layers // 4
    assert list(taps.channels) == [f"block{quarter * part - 1}" for part in (1, 2, 3, 4)]
    assert decoder.sizes == PlainDecoderSizes(sizes.width, sizes.width // 64, 200, 6, sizes.width)
    assert cfg.INPUT.IMAGE_SIZE == cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY == 640
