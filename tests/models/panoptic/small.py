"""Small panoptic models of random weights, and samples for them."""

import numpy as np
import torch
from detectron2.modeling import build_model

from clipself_seg import models  # noqa: F401 (registers OpenPanoptic)
from clipself_seg.config import load_config
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from tests.conftest import ROOT

CONFIG = ROOT / "configs/mini/panoptic_original.yaml"
SMALL = ("MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP_BRANCH.INPUT_SIZE", "64", "SEED", "1")
SMALL += ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7", "MODEL.CLIP_BRANCH.TEMPLATES", "odise")
SMALL += ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64")
SMALL += ("MODEL.FUSION.ALPHA", "0.35", "MODEL.FUSION.BETA", "0.65")
# FC-CLIP on a small ConvNeXt, which is backbone and CLIP branch.
FCCLIP = ("MODEL.CLIP.NAME", "ConvNeXt-Mini-32", "MODEL.CLIP_BRANCH.INPUT_SIZE", "0")
FCCLIP += ("MODEL.MASK_GENERATOR.SOURCE", "clip", "MODEL.MASK_GENERATOR.VARIANT", "fcclip")
FCCLIP += ("MODEL.MASK_GENERATOR.PADDING", "-1", "MODEL.CLIP_BRANCH.KIND", "backbone")
# Its masks, named by a distilled ViT.
NAMED_BY_VIT = ("MODEL.CLIP_BRANCH.KIND", "dense", "MODEL.CLIP_BRANCH.INPUT_SIZE", "64")
NAMED_BY_VIT += ("MODEL.CLIP_BRANCH.NAME", "ViT-Mini-8")
NAMED_BY_VIT += ("MODEL.CLIP_BRANCH.WEIGHTS", "mini-clipself")
# A plain decoder on the blocks of the mini CLIP, whose dense features of the same pass name its masks.
PLAIN = ("MODEL.MASK_GENERATOR.KIND", "plain", "MODEL.MASK_GENERATOR.SOURCE", "blocks")
PLAIN += ("MODEL.MASK_GENERATOR.VARIANT", "fcclip", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "0")
PLAIN += ("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.CLIP_BRANCH.INPUT_SIZE", "0")
PLAIN += ("MODEL.CLIP_BRANCH.KIND", "backbone")
MASKED = (*PLAIN, "MODEL.PLAIN_DECODER.MASKED_ATTENTION", "True")
# Masks that are given with the image.
GIVEN = ("MODEL.MASK_GENERATOR.SOURCE", "masks", "MODEL.FUSION.MODE", "clip")
THING, STUFF = ("red star", "blue ring"), ("grass", "lawn")


def vocabulary():
    entries = [VocabularyClass((name,), i, isthing=True) for i, name in enumerate(THING)]
    return Vocabulary("tiny", (*entries, VocabularyClass(STUFF, 2, isthing=False)))


def model_of(*opts, seed=0):
    torch.manual_seed(seed)
    model = build_model(load_config(CONFIG, [*SMALL, *map(str, opts)]))
    model.set_vocabulary(vocabulary(), np.array([True, False, True]))
    return model.eval()


def sample(height=60, width=75, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image, "height": 40, "width": 50}


def training_samples(count=2):
    samples = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, (1, 4, 4), generator=generator).float()
        ids = torch.nn.functional.interpolate(ids[None], (64, 64))[0, 0]
        samples.append(
            {
                "image": torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=generator),
                "labels": torch.tensor([2, 0, 1]),
                "masks": torch.stack([ids == i for i in range(3)]),
                "words": ["red star", "grass"] if seed else [],
            }
        )
    return samples
