"""`CLIPBackbone` under stock Detectron2 heads."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

from clipself_seg.clip.backbone import CLIPBackbone
from clipself_seg.clip.tower_kind import CLIP_MEAN, CLIP_STD
from clipself_seg.config import add_clipself_seg_config
from clipself_seg.errors import InputError


def config(*options):
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "CLIPBackbone"
    cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS = "ViT-Mini-8", ""
    cfg.MODEL.PIXEL_MEAN = [255 * m for m in CLIP_MEAN]
    cfg.MODEL.PIXEL_STD = [255 * s for s in CLIP_STD]
    cfg.merge_from_list(list(options))
    return cfg


def test_output_shape_is_honest():
    cfg = config("MODEL.CLIP.OUT_FEATURES", ["block1", "dense"], "MODEL.CLIP.TRAINABLE_BLOCKS", 0)
    backbone = build_backbone(cfg)
    assert isinstance(backbone, CLIPBackbone) and backbone.size_divisibility == 8
    for name, feature in backbone(torch.randn(1, 3, 40, 64)).items():
        spec = backbone.output_shape()[name]
        assert feature.shape == (1, spec.channels, 40 // spec.stride, 64 // spec.stride)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_blocks_are_compiled_if_the_configuration_says_so():
    assert not build_backbone(config()).visual.compiling
    assert build_backbone(config("MODEL.CLIP.COMPILE", True)).visual.compiling


def test_an_address_in_a_configuration_is_not_fetched():
    with pytest.raises(InputError, match="MODEL.CLIP.WEIGHTS is the address https://a/b.pt, which"):
        build_backbone(config("MODEL.CLIP.WEIGHTS", "https://a/b.pt"))


def test_pixels_that_are_not_the_clips_are_warned_of(caplog):
    build_backbone(config("INPUT.FORMAT", "RGB"))
    assert not caplog.records
    build_backbone(config("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]))
    said = [record.getMessage() for record in caplog.records]
    assert [message.split(" is ")[0] for message in said] == ["MODEL.PIXEL_MEAN", "INPUT.FORMAT"]


def test_dense_features_have_unit_length():
    cfg = config("MODEL.CLIP.OUT_FEATURES", ["dense"])
    dense = build_backbone(cfg)(torch.randn(1, 3, 32, 32))["dense"]
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(1, 4, 4))


@pytest.mark.parametrize("trainable", [0, -1])
def test_stock_sem_seg_fpn_head_trains_one_step(trainable):
    cfg = config("MODEL.CLIP.OUT_FEATURES", ["dense"], "MODEL.CLIP.TRAINABLE_BLOCKS", trainable)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["dense"]
    cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 8
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    model = build_model(cfg)
    assert isinstance(model.sem_seg_head, SemSegFPNHead)
    before = [p.detach().clone() for p in model.backbone.parameters()]
    optimiser = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    image = torch.randint(0, 256, (3, 45, 62), dtype=torch.uint8)
    label = torch.randint(0, 5, (45, 62))
    loss = sum(model([{"image": image, "sem_seg": label}]).values())
    loss.backward()
    optimiser.step()
    changed = any(not torch.equal(a, b) for a, b in zip(before, model.backbone.parameters()))
    assert changed == (trainable == -1)


def test_trainable_blocks_behind_the_features_are_refused():
    cfg = config("MODEL.CLIP.OUT_FEATURES", ["block1"], "MODEL.CLIP.TRAINABLE_BLOCKS", 2)
    with pytest.raises(InputError, match="block1 end with block1: nothing would train; give 3"):
        build_backbone(cfg)


def test_stock_feature_pyramid_takes_an_inner_block():
    backbone = build_backbone(config("MODEL.CLIP.OUT_FEATURES", ["block2"]))
    pyramid = SimpleFeaturePyramid(backbone, "block2", 32, (2.0, 1.0, 0.5), square_pad=64)
    features = pyramid(torch.randn(1, 3, 64, 64))
    assert {n: tuple(f.shape) for n, f in features.items()} == {
        "p2": (1, 32, 16, 16),
        "p3": (1, 32, 8, 8),
        "p4": (1, 32, 4, 4),
    }


def test_the_dense_feature_and_its_attention_are_those_of_the_configuration():
    torch.manual_seed(0)
    chosen = config("MODEL.CLIP.DENSE", "gated_multi_value", "MODEL.CLIP.DENSE_BLOCKS", 2)
    backbone = build_backbone(chosen)
    assert str(backbone.visual.dense_feature) == "gated_multi_value of 2 blocks"
    dense = backbone(torch.randn(1, 3, 32, 32))["dense"]
    (dense * torch.randn_like(dense)).sum().backward()
    assert backbone.visual.dense_gate.weight.grad.any()
    frozen = ("MODEL.CLIP.ATTENTION", "naclip", "MODEL.CLIP.TRAINABLE_BLOCKS", 0)
    assert build_backbone(config(*frozen)).visual.attention == "naclip"
    with pytest.raises(InputError, match="ATTENTION naclip is for evaluation"):
        build_backbone(config(*frozen[:2]))


def test_weights_for_another_dense_feature_are_refused_with_the_keys_that_read_them():
    weights = ("MODEL.CLIP.WEIGHTS", "mini-clipself", "MODEL.CLIP.DENSE", "value")
    with pytest.raises(InputError, match="MODEL.CLIP.DENSE token if it was distilled"):
        build_backbone(config(*weights))
    assert build_backbone(config(*weights, "MODEL.CLIP.DENSE_OVERRIDE", True))
