"""Every task on every kind of tower whose published models are large, with small random ones."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from clipself_seg.clip.tower_kind import CLIP_MEAN
from clipself_seg.config import load_config
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.heads.windows import StridedWindows
from clipself_seg.models import CLIPSelf, ZeroShotSegmenter
from tests.conftest import ROOT
from tests.small_towers import SMALL, small_towers
from tests.tiny import clip_logits, random_clip

pytestmark = [pytest.mark.parametrize("name", list(SMALL)), pytest.mark.usefixtures("known")]
WORDS = ("cat", "dog|puppy", "grass")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    with small_towers(tmp_path_factory.mktemp("weights")):
        yield


def built(config, name, *opts):
    torch.manual_seed(0)
    chosen = ["MODEL.CLIP.NAME", name, "MODEL.CLIP.WEIGHTS", "", "SEED", "1"]
    return build_model(load_config(config, [*chosen, *map(str, opts)]))


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def region_sample(clip, seed=0):
    """An image of four by five patches with three regions, all readouts' needs."""
    patch, side = clip.patch_size, clip.image_size
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[index : index + 2, 1:4] = True
    return {
        "image": noise(3, 4 * patch, 5 * patch, seed=seed),
        "boxes": torch.tensor([[0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1], [0.5, 0.5, 0.7, 0.9]]),
        "crops": noise(3, 3, side, side, seed=seed + 1),
        "masks": masks,
        "labels": torch.zeros(3).long(),
        "image_id": seed,
        "iteration": 0,
    }


def test_distillation_changes_the_students_blocks_towards_the_teachers_crops(name):
    model = CLIPSelf(clip=random_clip(name)).train()
    samples = [region_sample(model.teacher, 3 * seed) for seed in range(2)]
    before = {n: t.clone() for n, t in model.student.state_dict().items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        losses.append(model(samples)["loss_clipself"])
        losses[-1].backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
    assert losses[-1] < losses[0]
    changed = {n for n, t in model.student.state_dict().items() if not torch.equal(t, before[n])}
    blocks = {id(p) for block in model.student.blocks for p in block.parameters()}
    of_blocks = {n for n, p in model.student.named_parameters() if id(p) in blocks}
    assert changed and changed <= of_blocks


@torch.no_grad()
def test_zero_shot_segmentation_labels_windows_by_cosines(name):
    clip = random_clip(name)
    patch = clip.patch_size
    windows = StridedWindows(3 * patch, 2 * patch)
    model = ZeroShotSegmenter(clip=clip, templates="tcl9", scale=1.0, windows=windows).eval()
    model.set_vocabulary(WORDS)
    image = noise(3, 3 * patch, 3 * patch)
    scores = model([{"image": image}])[0]["sem_seg"]
    text_KE = model.bank.embed([["cat"], ["dog"], ["puppy"], ["grass"]])
    dense = F.normalize(clip.dense(clip.preprocess(image[None])), dim=1)[0]
    cells = torch.einsum("ke,ehw->khw", text_KE, dense).softmax(0)
    best = torch.stack([cells[0], cells[1:3].amax(0), cells[3]])
    wide = F.interpolate(best[None], scale_factor=patch, mode="bilinear")[0]
    torch.testing.assert_close(scores, wide, atol=1e-5, rtol=1e-4)
    large = model([{"image": noise(3, 5 * patch + 3, 70), "height": 40, "width": 50}])
    assert large[0]["sem_seg"].shape == (3, 40, 50)


def test_cat_seg_trains_on_it_and_labels(name):
    head = "MODEL.SEM_SEG_HEAD"
    opts = (f"{head}.FEATURE_RESOLUTION", "[4, 4]", f"{head}.WINDOW_SIZES", "4")
    clip = random_clip(name)
    opts += (f"{head}.TEXT_GUIDANCE_DIM", clip.embed_dim)
    opts += (f"{head}.APPEARANCE_GUIDANCE_DIM", clip.embed_dim, "MODEL.CLIP.VISUAL_INIT", "")
    opts += ("MODEL.CAT_SEG.RESIDUAL", "token")
    if clip.visual.pooled:
        with pytest.raises(InputError, match=f"is token, and the attention pool of {name} adds"):
            built(ROOT / "configs/mini/semseg.yaml", name, *opts)
        opts += ("MODEL.CAT_SEG.RESIDUAL", "none")
    model = built(ROOT / "configs/mini/semseg.yaml", name, *opts)
    model.set_vocabulary(["cat", "dog"])
    side = model.clip.image_size
    image = noise(3, side, side).float()
    labels = torch.zeros(side, side, dtype=torch.long)
    labels[side // 2 :] = 1
    losses = model.train()([{"image": image, "sem_seg": labels}])
    sum(losses.values()).backward()
    parts = {"visual": False, "text": False}
    for parameter_name, parameter in model.clip.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
            parts[parameter_name.split(".")[0]] = True
    assert all(parts.values())
    with torch.no_grad():
        outputs = model.eval()([{"image": image, "height": 20, "width": 30}])
    assert outputs[0]["sem_seg"].shape == (2, 20, 30)


@pytest.mark.parametrize("kind", ["dense", "masked_attention"])
def test_panoptic_masks_are_named_by_it(name, kind):
    opts = ("MODEL.CLIP_BRANCH.INPUT_SIZE", 56, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 5)
    opts += ("MODEL.CLIP_BRANCH.KIND", kind, "MODEL.CLIP_BRANCH.TEMPLATES", "odise")
    model = built(ROOT / "configs/mini/panoptic_original.yaml", name, *opts).eval()
    entries = [VocabularyClass((word,), i, isthing=i < 2) for i, word in enumerate(WORDS)]
    model.set_vocabulary(Vocabulary("tiny", tuple(entries)), np.array([True, False, True]))
    outputs = model([{"image": noise(3, 60, 75), "height": 40, "width": 50}])[0]
    assert outputs["panoptic_seg"][0].shape == (40, 50)
    assert outputs["sem_seg"].isfinite().all() and outputs["sem_seg"].shape == (3, 40, 50)
    # Not limited to 100, as in CLIP's training: a kind's own factor is what it was trained to.
    with torch.no_grad():
        model.branch.clip.logit_scale.fill_(math.log(197))
    masks = torch.randn(2, 14, 14, generator=torch.Generator().manual_seed(0))
    texts, asked = model.branch_texts(), (torch.rand(3, 56, 56), masks)
    logits, _ = clip_logits(model.branch, *asked, texts, model.classes.synonyms)
    regions, _ = model.branch.embed(*asked)
    expected = F.normalize(regions, dim=-1) @ F.normalize(texts, dim=-1).T
    torch.testing.assert_close(logits, 197 * expected, atol=2e-4, rtol=1e-4)
    assert model.reading().scale == "197"


def test_a_detector_stands_on_its_blocks(name):
    opts = ("MODEL.META_ARCHITECTURE", "FViT", "MODEL.FVIT.BLOCKS", "(0, 1, 2, 3)")
    opts += ("MODEL.FVIT.CHANNELS", 8, "INPUT.DETECTION.SIDE", 56)
    strange = ("MODEL.FVIT.PIXEL_MEAN", "(1.0, 2.0, 3.0)")
    if random_clip(name).mean != CLIP_MEAN:
        with pytest.raises(InputError, match="PIXEL_MEAN is .* was trained with .*: leave it out"):
            built(None, name, *opts, *strange)
    model = built(None, name, *opts)
    entries = [VocabularyClass((word,), i, seen=i < 2) for i, word in enumerate(WORDS)]
    model.setup_training(Vocabulary("tiny", tuple(entries)))
    sample = {
        "image": noise(3, 56, 42),
        "boxes": torch.tensor([[4.0, 4, 30, 28], [10, 20, 40, 50]]),
        "labels": torch.tensor([0, 1]),
        "masks": torch.ones(2, 56, 42, dtype=torch.bool),
        "draw": 0,
    }
    losses = model.train()([sample])
    assert all(math.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    with torch.no_grad():
        (outputs,) = model.eval()([{"image": sample["image"], "height": 56, "width": 42}])
    assert outputs["instances"].scores.isfinite().all()
