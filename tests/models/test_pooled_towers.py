"""Every task on towers of every kind, small and random: distillation, regions, CAT-Seg, panoptic, F-ViT, zero-shot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from clipself_seg.clip import DenseCLIP
from clipself_seg.config import READOUTS, load_config
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.heads.zero_shot.windows import StridedWindows
from clipself_seg.models import CLIPSelf, RegionReader, ZeroShotSegmenter
from tests import small_pooled
from tests.conftest import ROOT
from tests.small_pooled import NAMES, small_clip
from tests.tiny import WORDS, tiny_region_sample, tiny_samples

TOYS = Vocabulary(
    "toys",
    (
        VocabularyClass(("red ball", "red sphere"), 1, seen=True, isthing=True),
        VocabularyClass(("blue box",), 2, seen=True, isthing=True),
        VocabularyClass(("grass",), 3, seen=False, isthing=False),
    ),
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    small_pooled.make_known(monkeypatch)


@pytest.fixture(params=NAMES)
def name(request, known) -> str:
    return request.param


@pytest.fixture
def clip(name) -> DenseCLIP:
    return small_clip(name)


def configured(path: str, name: str, *opts: object):
    """A random model of a configuration with a small tower."""
    given = ["MODEL.CLIP.NAME", name, "MODEL.CLIP.WEIGHTS", "", *map(str, opts)]
    torch.manual_seed(0)
    return build_model(load_config(ROOT / "configs" / path if path else None, given))


def image(height: int = 64, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_distillation_from_the_towers_own_crops(clip):
    samples = tiny_samples(2)
    for sample in samples:
        sample["crops"] = sample["crops"][..., : clip.image_size, : clip.image_size]
    model = CLIPSelf(clip=clip, trainable_blocks=2, read=("dense_boxes",), templates="single")
    before = {n: p.clone() for n, p in model.student.named_parameters()}
    loss = model.train()(samples)["loss_clipself"]
    images = clip.preprocess(torch.stack([s["image"] for s in samples]))
    boxes = [s["boxes"] for s in samples]
    crops = clip.encode_image(clip.preprocess(torch.cat([s["crops"] for s in samples])))
    with torch.no_grad():
        expected = 1 - F.cosine_similarity(clip.encode_boxes(images, boxes), crops).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    trained = {n for n, p in model.student.named_parameters() if p.requires_grad}
    with_gradient = {n for n, p in model.student.named_parameters() if p.grad is not None}
    assert trained == with_gradient and {n.split(".")[1] for n in trained} == {"2", "3"}
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    model.after_optimizer_step()
    changed = {n for n, p in model.student.named_parameters() if not torch.equal(p, before[n])}
    assert changed == trained
    assert model.ensembled_clip().weights_hash() != clip.weights_hash()


def test_regions_are_read_in_every_way(clip):
    reader = RegionReader(clip=clip, read=READOUTS, templates="single")
    reader.set_vocabulary(WORDS)
    sample = tiny_region_sample(0, 3)
    sample["crops"] = sample["crops"][..., : clip.image_size, : clip.image_size]
    scores = reader([sample])[0]["scores"]
    assert set(scores) == set(READOUTS)
    pixels = clip.preprocess(sample["image"][None])
    with torch.no_grad():
        by_mask = clip.encode_masks(pixels, [sample["masks"]], masked_attention=True)
    torch.testing.assert_close(scores["attention_masks"], by_mask @ reader.text_KE.T)


def test_zero_shot_segmentation_on_windows(clip):
    how = {"templates": "single", "windows": StridedWindows(32, 16)}
    model = ZeroShotSegmenter(clip=clip, **how).eval()
    model.set_vocabulary(["cat", "dog|puppy", "grass"])
    scores = model([{"image": image(43, 60), "height": 43, "width": 60}])[0]["sem_seg"]
    assert scores.shape == (3, 43, 60) and scores.isfinite().all() and scores.std() > 0


CAT_SEG = ("MODEL.CLIP.VISUAL_INIT", "") + (
    "MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION",
    "[8, 8]",
    "MODEL.SEM_SEG_HEAD.WINDOW_SIZES",
    4,
)


def cat_seg(name: str, clip: DenseCLIP, *opts: object):
    head = "MODEL.SEM_SEG_HEAD."
    sizes = (
        f"{head}TEXT_GUIDANCE_DIM",
        clip.embed_dim,
        f"{head}APPEARANCE_GUIDANCE_DIM",
        clip.embed_dim,
    )
    return configured("mini/semseg.yaml", name, *CAT_SEG, *sizes, *opts)


def test_cat_seg_segments_and_trains_queries_and_values(name, clip):
    model = cat_seg(name, clip, "MODEL.CAT_SEG.RESIDUAL", "none")
    model.set_vocabulary(["cat", "dog"])
    scores = model.eval()([{"image": image(), "height": 20, "width": 30}])[0]["sem_seg"]
    assert scores.shape == (2, 20, 30)
    trained = [n for n, p in model.clip.named_parameters() if p.requires_grad]
    assert {n.rsplit(".", 1)[1] for n in trained} == {"q_proj_weight", "v_proj_weight"}
    assert {n.split(".")[0] for n in trained} == {"visual", "text"}
    labels = torch.zeros(64, 64, dtype=torch.long)
    labels[:, 32:] = 1
    losses = model.train()([{"image": image(), "sem_seg": labels}])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(InputError, match=f"RESIDUAL is token, and the attention pool of {name}"):
        cat_seg(name, clip, "MODEL.CAT_SEG.RESIDUAL", "token")


@pytest.mark.parametrize("kind", ["masked_attention", "dense"])
def test_the_panoptic_branch_names_masks(name, kind):
    opts = ("MODEL.CLIP_BRANCH.INPUT_SIZE", 64, "MODEL.CLIP_BRANCH.TEMPLATES", "odise")
    opts += ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7, "MODEL.CLIP_BRANCH.KIND", kind)
    model = configured("mini/base_panoptic.yaml", name, *opts).eval()
    model.set_vocabulary(TOYS, np.array([True, False, True]))
    outputs = model([{"image": image(60, 75), "height": 40, "width": 50}])[0]
    panoptic, _ = outputs["panoptic_seg"]
    assert panoptic.shape == (40, 50) and outputs["sem_seg"].isfinite().all()


def test_fvit_detects_and_trains_on_taps_of_every_block(name):
    opts = ("MODEL.META_ARCHITECTURE", "FViT", "MODEL.FVIT.BLOCKS", "(0, 1, 2, 3)")
    opts += ("MODEL.FVIT.CHANNELS", 8, "INPUT.DETECTION.SIDE", 64)
    with pytest.raises(InputError, match=r"MODEL.FVIT.PIXEL_MEAN .* trained with \(127.5, 127.5"):
        configured("", name, *opts)
    half = "(127.5, 127.5, 127.5)"
    opts += ("MODEL.FVIT.PIXEL_MEAN", half, "MODEL.FVIT.PIXEL_STD", half)
    model = configured("", name, *opts)
    model.setup_training(TOYS)
    sample = {"image": image(64, 56), "draw": 0, "labels": torch.tensor([0, 1])}
    sample["boxes"] = torch.tensor([[4.0, 4, 30, 28], [20, 30, 54, 62]])
    sum(model.train()([sample]).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval().set_vocabulary(TOYS)
    instances = model([{"image": image(64, 56), "height": 64, "width": 56}])[0]["instances"]
    assert len(instances) and instances.scores.isfinite().all()
