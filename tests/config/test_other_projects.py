"""The project's keys beside those of other Detectron2 projects, whoever comes first."""

import pytest
from detectron2.config import CfgNode, get_cfg

from clipself_seg.config import add_clip_backbone_config, add_clipself_seg_config
from clipself_seg.config.keys import default_config
from clipself_seg.errors import InputError
from clipself_seg.yaml_files import leaves

STOCK = dict(leaves(get_cfg()))
BACKBONE = {key for key in dict(leaves(default_config())) if key.startswith("MODEL.CLIP.")}
BACKBONE -= {"MODEL.CLIP.VISUAL_INIT", "MODEL.CLIP.BACKBONE"}  # CAT-Seg's; the name of the entry


def like_mask2former(cfg):
    """Sections made anew, with keys that are ours too and others; values of its large model."""
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_panoptic"
    cfg.INPUT.SIZE_DIVISIBILITY = 32
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    former = cfg.MODEL.MASK_FORMER = CfgNode()
    former.DEEP_SUPERVISION = True
    former.SIZE_DIVISIBILITY = 32
    former.TEST = CfgNode()
    former.TEST.PANOPTIC_ON = True
    former.TEST.OVERLAP_THRESHOLD = 1  # a whole number
    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.EMBED_DIM = 192
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"


def like_cat_seg(cfg):
    """Its own values of our keys; one key alone in Mask2Former's section."""
    cfg.DATASETS.VAL_ALL = ("val_all",)
    cfg.INPUT.SIZE_DIVISIBILITY = 384
    cfg.SOLVER.CLIP_MULTIPLIER = 0.02
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.MODEL.META_ARCHITECTURE = "CATSeg"
    cfg.MODEL.MASK_FORMER = CfgNode()
    cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = 64
    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.EMBED_DIM = 128
    cfg.MODEL.SEM_SEG_HEAD.POOLING_SIZES = (6, 6)
    cfg.MODEL.SEM_SEG_HEAD.CLIP_FINETUNE = None
    cfg.MODEL.SEM_SEG_HEAD.TEXT_AFFINITY_DIM = 512


def keys_of(*functions):
    """Key -> value of Detectron2's configuration after some functions were called with it."""
    cfg = get_cfg()
    for function in functions:
        function(cfg)
    return dict(leaves(cfg))


def set_by(theirs):
    """Keys that another project sets, with its values."""
    return {key: v for key, v in keys_of(theirs).items() if key not in STOCK or v != STOCK[key]}


each_project = pytest.mark.parametrize("theirs", [like_mask2former, like_cat_seg])


@each_project
def test_what_another_project_set_before_stays(theirs):
    both = keys_of(theirs, add_clipself_seg_config)
    assert both == dict(leaves(default_config())) | set_by(theirs)


@each_project
def test_what_another_project_sets_afterwards_stays_at_a_second_call(theirs):
    assert set_by(theirs).items() <= keys_of(add_clipself_seg_config, theirs).items()
    again = keys_of(add_clipself_seg_config, theirs, add_clipself_seg_config)
    assert again == dict(leaves(default_config())) | set_by(theirs)


def test_a_second_call_changes_nothing():
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = STOCK["MODEL.META_ARCHITECTURE"]
    cfg.SOLVER.BASE_LR = STOCK["SOLVER.BASE_LR"]
    before = dict(leaves(cfg))
    add_clipself_seg_config(cfg)
    assert dict(leaves(cfg)) == before


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("CLIP", "ViT-B/16", "MODEL.CLIP is 'ViT-B/16', here a section"),
        ("FUSION", {"ALPHA": "learned"}, "MODEL.FUSION.ALPHA is 'learned', here 0.35"),
        ("FVIT", {"BLOCKS": 11}, r"MODEL.FVIT.BLOCKS is 11, here \(3, 5, 7, 11\)"),
    ],
)
def test_another_meaning_of_a_name_is_refused_and_nothing_is_changed(section, value, message):
    cfg = get_cfg()
    cfg.MODEL[section] = CfgNode(value) if isinstance(value, dict) else value
    before = cfg.dump()
    with pytest.raises(InputError, match=message) as caught:
        add_clipself_seg_config(cfg)
    assert cfg.dump() == before and len(str(caught.value).splitlines()) == 1


def test_all_collisions_are_named_at_once():
    cfg = get_cfg()
    cfg.MODEL.PYRAMID = False
    cfg.MODEL.DIFFUSION = ""
    with pytest.raises(InputError, match="MODEL.DIFFUSION is '', .* MODEL.PYRAMID is False, "):
        add_clipself_seg_config(cfg)


@each_project
def test_the_backbones_keys_are_all_that_is_added_for_the_backbone(theirs):
    before, after = keys_of(theirs), keys_of(theirs, add_clip_backbone_config)
    assert after.keys() - before.keys() == BACKBONE and before.items() <= after.items()
    assert keys_of(add_clip_backbone_config, theirs) == after
    assert all(after[key] == dict(leaves(default_config()))[key] for key in BACKBONE)


def test_keys_of_the_backbone_that_are_there_stay():
    cfg = get_cfg()
    cfg.MODEL.CLIP = CfgNode({"NAME": "RN50", "CROP_REGION_TYPE": "GT"})
    add_clip_backbone_config(cfg)
    assert (cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.CROP_REGION_TYPE) == ("RN50", "GT")
    assert cfg.MODEL.CLIP.OUT_FEATURES == ("dense",)


def test_both_functions_in_either_order_make_one_configuration():
    whole = dict(leaves(default_config()))
    assert keys_of(add_clip_backbone_config, add_clipself_seg_config) == whole
    assert keys_of(add_clipself_seg_config, add_clip_backbone_config) == whole
