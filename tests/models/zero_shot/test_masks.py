"""Segmentation within given masks: labels are those of masks, and what does not go together is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from clipself_seg.clip import load_clip
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.heads.windows import StridedWindows
from clipself_seg.models import ZeroShotSegmenter
from clipself_seg.models.zero_shot.model import DenseInMasks
from tests.conftest import ROOT
from tests.small_towers import POOLED, small_towers

WORDS = ("cat", "dog|puppy", "grass")
MINI = ROOT / "configs/mini/zero_shot_masks.yaml"


def model_of(correlation="clip", **how):
    torch.manual_seed(0)
    clip = load_clip("ViT-Mini-8", None)
    masks = DenseInMasks(clip, correlation, pretrained=False)
    how = {"templates": "single", "windows": StridedWindows(32, 16), "masks": masks} | how
    model = ZeroShotSegmenter(clip=clip, **how).eval()
    model.set_vocabulary(WORDS)
    return model


def sample_of(masks, rows=40, columns=48):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(256, (3, rows, columns), dtype=torch.uint8, generator=generator)
    return {"image": image, "height": 20, "width": 24, "given_masks": masks}


def halves():
    masks = torch.zeros(2, 20, 24, dtype=torch.bool)
    masks[0, :, :12] = masks[1, :10, 12:] = True
    return masks


@pytest.mark.parametrize("correlation", ["clip", "test_vit"])
def test_each_mask_has_one_class_and_one_probability(correlation):
    model = model_of(correlation)
    (outputs,) = model([sample_of(halves())], output="labels")
    labels, best = outputs["sem_seg_labels"], outputs["sem_seg_best"]
    assert labels.shape == best.shape == (20, 24)
    for mask in halves():
        assert len(labels[mask].unique()) == 1 and len(best[mask].unique()) == 1
    assert len(best[10:, 12:].unique()) > 1
    assert ((best > 0) & (best <= 1)).all()


def test_masks_decide_where_places_attend_before_they_vote():
    model = model_of()
    without = model([sample_of(halves()[:0])], output="labels")[0]["sem_seg_best"]
    within = model([sample_of(halves())], output="labels")[0]["sem_seg_best"]
    assert not torch.allclose(without[10:, 12:], within[10:, 12:])


def test_its_reading_and_its_weights_name_the_backbone():
    model, other = model_of(), model_of("test_vit")
    assert model.reading().features == "CorrCLIP's form in given masks, correlations of token"
    assert other.reading().features.endswith("correlations of test_vit")
    assert other.weights_hash().startswith(model.weights_hash() + "-")


def test_what_does_not_go_together_is_refused():
    model = model_of()
    for given, output, message in (
        (sample_of(halves()), "scores", 'no output "scores" with MODEL.ZERO_SHOT.MASKS'),
        (sample_of(torch.ones(1, 40, 48).bool()), "labels", r"masks of \(40, 48\) pixels, .*\(20, 24\)"),
        ({"image": torch.zeros(3, 40, 48, dtype=torch.uint8)}, "labels", "whose mapper reads"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            model([given], output=output)
    clip = load_clip("ViT-Mini-8", None)
    with pytest.raises(InputError, match='CORRELATION "vit_typo" is neither clip nor a model'):
        DenseInMasks(clip, "vit_typo")
    clip.visual.choose_attention("naclip")
    with pytest.raises(InputError, match="ATTENTION naclip and MODEL.ZERO_SHOT.MASKS both say"):
        DenseInMasks(clip)


@pytest.mark.parametrize("name", POOLED)
def test_a_tower_with_an_attention_pool_is_refused_as_by_the_attentions(name, tmp_path):
    with small_towers(tmp_path):
        clip = load_clip(name, None)
        with pytest.raises(
            InputError, match=f"MASKS needs a ViT whose last block .* {name} has not"
        ):
            DenseInMasks(clip)


def test_the_keys_build_it_and_are_of_this_model_alone(tmp_path):
    options = ["MODEL.CLIP.WEIGHTS", "", "MODEL.ZERO_SHOT.TEMPLATES", "single"]
    assert build_model(load_config(MINI, options)).masks is None
    model = build_model(load_config(MINI, [*options, "MODEL.ZERO_SHOT.MASKS", str(tmp_path)]))
    assert model.reading().features.endswith("correlations of value")
    with pytest.raises(InputError, match="CORRELATION must be .clip. where there are no masks"):
        load_config(MINI, ["MODEL.ZERO_SHOT.CORRELATION", "test_vit"])
    with pytest.raises(InputError, match="MASKS must be empty but for ZeroShotSegmenter"):
        load_config(ROOT / "configs/mini/semseg.yaml", ["MODEL.ZERO_SHOT.MASKS", str(tmp_path)])


def test_the_evaluation_reads_a_folder_of_masks_and_misses_none(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from clipself_seg.evaluation.sem_seg.evaluation import SemSegEvaluation

    rng = np.random.default_rng(0)
    for kind in ("images", "labels", "masks"):
        (tmp_path / kind).mkdir()
    for name in ("a", "b"):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{name}.png")
        ids = np.kron(np.arange(1, 5).reshape(2, 2), np.ones((12, 16))).astype(np.uint8)
        Image.fromarray(ids % 3).save(tmp_path / f"labels/{name}.png")
        Image.fromarray(ids).save(tmp_path / f"masks/{name}.png")
    (tmp_path / "words.json").write_text(json.dumps(list(WORDS)))
    records = [
        {
            "file_name": f"{tmp_path}/images/{n}.png",
            "sem_seg_file_name": f"{tmp_path}/labels/{n}.png",
        }
        for n in ("a", "b")
    ]
    DatasetCatalog.register("blocks", lambda: records)
    MetadataCatalog.get("blocks").set(
        image_root=str(tmp_path / "images"),
        sem_seg_root=str(tmp_path / "labels"),
        vocabulary=str(tmp_path / "words.json"),
        ignore_label=255,
    )
    try:
        options = ["MODEL.CLIP.WEIGHTS", "", "MODEL.ZERO_SHOT.TEMPLATES", "single"]
        options += ["DATASETS.TEST", "('blocks',)", "OUTPUT_DIR", str(tmp_path / "run")]
        options += ["TEST.TRAIN_VOCABULARY", "", "INPUT.MIN_SIZE_TEST", "0"]
        cfg = load_config(MINI, [*options, "MODEL.ZERO_SHOT.MASKS", str(tmp_path / "masks")])
        run, model = SemSegEvaluation(cfg), build_model(cfg)
        run.check(model)
        assert run.metadata()["masks given"]["blocks"]["forms"] == {"png": 2}
        assert run(model)["blocks"]["mIoU"] >= 0
        (tmp_path / "masks/b.png").unlink()
        with pytest.raises(InputError, match="masks of 1 of 2 images of blocks are missing"):
            SemSegEvaluation(cfg).check(model)
    finally:
        DatasetCatalog.remove("blocks")
        MetadataCatalog.remove("blocks")
