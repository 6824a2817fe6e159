"""CAT-Seg's own configuration files are read as they are."""

from __future__ import annotations

import yaml

from clipself_seg.config import flatten, load_config
from clipself_seg.config.retired import RETIRED

# Every key that CAT-Seg's own files name, in the form in which they are written there.
CAT_SEG_FILE = """
MODEL:
  META_ARCHITECTURE: CATSeg
  BACKBONE: {NAME: D2SwinTransformer, FREEZE_AT: 0}
  SWIN: {EMBED_DIM: 128, DEPTHS: [2, 2, 18], NUM_HEADS: [4, 8, 16], WINDOW_SIZE: 12, APE: False,
    DROP_PATH_RATE: 0.3, PATCH_NORM: True, PRETRAIN_IMG_SIZE: 384, OUT_FEATURES: [res2, res3, res4]}
  WEIGHTS: ""
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  CLIP_PIXEL_MEAN: [122.7709383, 116.7460125, 104.09373615]
  CLIP_PIXEL_STD: [68.5005327, 66.6321579, 70.3231630]
  PROMPT_ENSEMBLE: False
  PROMPT_ENSEMBLE_TYPE: single
  MASK_FORMER: {SIZE_DIVISIBILITY: 32}
  SEM_SEG_HEAD: {NAME: CATSegHead, IN_FEATURES: [res2, res3, res4], IGNORE_VALUE: 255,
    NUM_CLASSES: 171, TRAIN_CLASS_JSON: datasets/coco.json, TEST_CLASS_JSON: datasets/coco.json,
    TRAIN_CLASS_INDEXES: "", TEST_CLASS_INDEXES: "", CLIP_PRETRAINED: "ViT-L/14@336px",
    CLIP_FINETUNE: attention, PROMPT_DEPTH: 0, PROMPT_LENGTH: 0, TEXT_GUIDANCE_DIM: 768,
    TEXT_GUIDANCE_PROJ_DIM: 128, APPEARANCE_GUIDANCE_DIM: 768, APPEARANCE_GUIDANCE_PROJ_DIM: 128,
    DECODER_DIMS: [64, 32], DECODER_GUIDANCE_DIMS: [256, 128], DECODER_GUIDANCE_PROJ_DIMS: [32, 16],
    NUM_LAYERS: 2, NUM_HEADS: 4, HIDDEN_DIMS: 128, POOLING_SIZES: [2, 2], WINDOW_SIZES: 12,
    FEATURE_RESOLUTION: [24, 24], ATTENTION_TYPE: linear}
DATASETS:
  TRAIN: ("coco_2017_train_stuff_all_sem_seg",)
  TEST: ("coco_2017_test_stuff_all_sem_seg",)
  VAL_ALL: ("coco_2017_val_all_stuff_sem_seg",)
SOLVER: {IMS_PER_BATCH: 4, BASE_LR: 0.0002, MAX_ITER: 80000, WARMUP_FACTOR: 1.0, WARMUP_ITERS: 0,
  WEIGHT_DECAY: 0.0001, WEIGHT_DECAY_NORM: 0.0, WEIGHT_DECAY_EMBED: 0.0, OPTIMIZER: ADAMW,
  BACKBONE_MULTIPLIER: 0.0, CLIP_MULTIPLIER: 0.01, LR_SCHEDULER_NAME: WarmupCosineLR,
  CHECKPOINT_PERIOD: 5000, POLY_LR_POWER: 0.9, POLY_LR_CONSTANT_ENDING: 0.0, AMP: {ENABLED: False},
  CLIP_GRADIENTS: {ENABLED: True, CLIP_TYPE: full_model, CLIP_VALUE: 0.01, NORM_TYPE: 2.0}}
INPUT:
  MIN_SIZE_TRAIN: (384,)
  MIN_SIZE_TRAIN_SAMPLING: choice
  MIN_SIZE_TEST: 640
  MAX_SIZE_TRAIN: 1333
  MAX_SIZE_TEST: 2560
  CROP: {ENABLED: True, TYPE: absolute, SIZE: [384, 384], SINGLE_CATEGORY_MAX_AREA: 1.0}
  COLOR_AUG_SSD: True
  SIZE_DIVISIBILITY: 384
  FORMAT: RGB
  DATASET_MAPPER_NAME: mask_former_semantic
TEST: {EVAL_PERIOD: 5000, SLIDING_WINDOW: True, AUG: {ENABLED: False, FLIP: True}}
DATALOADER: {FILTER_EMPTY_ANNOTATIONS: True, NUM_WORKERS: 8, ASPECT_RATIO_GROUPING: True}
CUDNN_BENCHMARK: True
SEED: -1
VERSION: 2
"""


def test_cat_segs_own_files_merge_and_minus_one_is_the_default_seed(tmp_path):
    (tmp_path / "vitl_336.yaml").write_text(CAT_SEG_FILE)
    cfg = load_config(tmp_path / "vitl_336.yaml")
    written = dict(flatten(yaml.safe_load(CAT_SEG_FILE)))
    assert written.keys() <= {*dict(flatten(cfg)), *RETIRED}
    assert cfg.SEED == load_config(None).SEED
    assert cfg.MODEL.SEM_SEG_HEAD.TEXT_GUIDANCE_DIM == 768
