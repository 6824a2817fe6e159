"""Segmentation without training: class scores, windows, names, and labels within masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.zoo import SHIPPED
from clipself_seg.clip import load_clip
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.evaluation.sem_seg.evaluation import SemSegEvaluation
from clipself_seg.heads.windows import StridedWindows
from clipself_seg.models import ZeroShotSegmenter
from clipself_seg.models.protocol import Model, TrainableModel
from clipself_seg.models.zero_shot import DenseInMasks
from lab.prepare.common import Options
from lab.prepare.pascal import prepare_voc20
from tests.conftest import ROOT
from tests.small_towers import POOLED, small_towers
from tests.tiny import random_clip, save_noise

WORDS = ("cat", "dog|puppy|hound", "grass|lawn")
MINI = ROOT / "configs/mini/zero_shot.yaml"
WITH_MASKS = ROOT / "configs/mini/zero_shot_masks.yaml"
PLAIN = ROOT / "configs/zero_shot/base+openai_vitb16.yaml"
CAT_SEG = ROOT / "configs/mini/semseg.yaml"
RANDOM = ("MODEL.CLIP.WEIGHTS", "", "MODEL.ZERO_SHOT.TEMPLATES", "single")


def tiny(**how) -> ZeroShotSegmenter:
    how = {"templates": "single", "windows": StridedWindows(32, 16)} | how
    return ZeroShotSegmenter(clip=random_clip(), **how).eval()


def sample(rows: int = 43, columns: int = 60, **more) -> dict:
    generator = torch.Generator().manual_seed(rows)
    image = torch.randint(256, (3, rows, columns), dtype=torch.uint8, generator=generator)
    return {"image": image, **more}


def naive_scores(model, sample, words, size):
    """Scores (K, *size), a window and a class at a time, from the public functions of the CLIP."""
    names = [entry.split("|") for entry in words]
    flat = [f"a photo of a {name}" for synonyms in names for name in synonyms]
    text = model.clip.encode_text(flat)
    height, width = sample["image"].shape[1:]
    side, stride = model.windows.size or max(height, width), model.windows.stride
    stride = stride if model.windows.size else side
    rows, columns = min(side, height), min(side, width)
    sums, times = torch.zeros(len(words), height, width), torch.zeros(height, width)
    for top in sorted({min(y, height - rows) for y in range(0, height, stride)}):
        for left in sorted({min(x, width - columns) for x in range(0, width, stride)}):
            window = sample["image"][None, :, top : top + rows, left : left + columns]
            pixels = F.pad(model.clip.preprocess(window), (0, -columns % 8, 0, -rows % 8))
            cosines = torch.einsum("ne,ehw->nhw", text, model.clip.encode_dense(pixels)[0])
            parts = (model.scale * cosines).softmax(0).split([len(own) for own in names])
            best = torch.stack([part.amax(0) for part in parts])
            large = F.interpolate(best[None], scale_factor=8, mode="bilinear")[0]
            sums[:, top : top + rows, left : left + columns] += large[:, :rows, :columns]
            times[top : top + rows, left : left + columns] += 1
    return F.interpolate((sums / times)[None], size, mode="bilinear")[0]


@pytest.mark.parametrize("output", ["labels", "scores"])
def test_a_flipped_image_gives_exactly_the_flipped_result_and_another_without_flips(output):
    model, one = tiny(flip=True), sample(height=50, width=70)
    model.set_vocabulary(WORDS)
    mirrored = {**one, "image": one["image"].flip(-1)}
    (own,), (other,) = model([one], output=output), model([mirrored], output=output)
    assert all(torch.equal(own[name].flip(-1), other[name]) for name in own)
    model.flip = False
    (own,), (other,) = model([one], output=output), model([mirrored], output=output)
    assert not any(torch.equal(own[name].flip(-1), other[name]) for name in own)


def test_calls_and_sizes_that_cannot_be_are_refused():
    model = tiny()
    with pytest.raises(RuntimeError, match="call set_vocabulary"):
        model([sample()])
    with pytest.raises(InputError, match="shorten the name"):
        model.set_vocabulary(["x " * 99])
    model.set_vocabulary(WORDS)
    with pytest.raises(ValueError, match='no output "maps": choose from scores, labels'):
        model([sample()], output="maps")
    with pytest.raises(InputError, match="WINDOW 60 is not a multiple .*; take 56 or 64"):
        tiny(windows=StridedWindows(60, 20))


@pytest.mark.parametrize("window", [(32, 16), (0, 1)])
@pytest.mark.parametrize("shape, size", [((43, 60), (50, 71)), ((20, 45), (20, 45))])
@torch.no_grad()
def test_scores_and_labels_are_those_of_plain_loops(shape, size, window):
    model, given = tiny(windows=StridedWindows(*window)), sample(
        *shape, height=size[0], width=size[1]
    )
    model.set_vocabulary(WORDS)
    expected = naive_scores(model, given, WORDS, size)
    scores = model([given])[0]["sem_seg"]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    labelled = model([given], output="labels")[0]
    assert labelled["sem_seg_labels"].equal(scores.argmax(0))
    assert labelled["sem_seg_best"].equal(scores.amax(0))
    assert len(labelled["sem_seg_labels"].unique()) > 1


def test_each_image_of_a_batch_is_what_it_is_alone():
    model, given = tiny(), [sample(43), sample(33)]
    model.set_vocabulary(WORDS)
    for one, image in zip(model(given), given, strict=True):
        assert one["sem_seg"].equal(model([image])[0]["sem_seg"])


@torch.no_grad()
def test_synonyms_count_as_they_are_asked_for():
    given = sample()
    models = {how: tiny(synonyms=how) for how in ("max", "mean", "first")}
    for model in models.values():
        model.set_vocabulary(WORDS)
    assert models["first"].names == (("cat",), ("dog",), ("grass",))
    assert models["mean"].names == models["max"].names
    scores = {how: model([given])[0]["sem_seg"] for how, model in models.items()}
    firsts = ("cat", "dog", "grass")
    expected = naive_scores(models["first"], given, firsts, (43, 60))
    torch.testing.assert_close(scores["first"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores["mean"].sum(0), torch.ones(43, 60))
    assert not torch.allclose(scores["mean"], scores["max"], atol=1e-3)
    # What own words want, whatever the key says.
    models["first"].set_vocabulary(WORDS, all_synonyms=True)
    assert models["first"]([given])[0]["sem_seg"].equal(scores["max"])
    models["max"].set_vocabulary(WORDS, all_synonyms=False)
    assert models["max"]([given])[0]["sem_seg"].equal(scores["first"])


def test_words_that_change_take_effect_and_classes_given_back_are_whole():
    model, given = tiny(), sample()
    model.set_vocabulary(WORDS)
    classes, before = model.classes, model([given])[0]["sem_seg"]
    model.set_vocabulary(["sky"])
    alone = model([given])[0]["sem_seg"]
    assert alone.shape == (1, 43, 60) and alone.sub(1).abs().max() < 1e-6
    model.classes = classes
    assert model([given])[0]["sem_seg"].equal(before)


def test_it_is_built_from_its_keys_and_does_not_train(capfd, tmp_path):
    opts = ["MODEL.CLIP.WEIGHTS", "", "MODEL.ZERO_SHOT.SCALE", "30", "MODEL.ZERO_SHOT.WINDOW", "64"]
    opts += ["MODEL.ZERO_SHOT.STRIDE", "32", "MODEL.ZERO_SHOT.SYNONYMS", "first"]
    model = build_model(load_config(MINI, opts))
    assert (model.scale, model.windows, model.synonyms) == (30, StridedWindows(64, 32), "first")
    assert model.bank.templates == "openai80" and model.task() == "sem_seg"
    assert isinstance(model, Model) and not issubclass(ZeroShotSegmenter, TrainableModel)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert train.main(["--config-file", str(MINI), *opts, "OUTPUT_DIR", str(tmp_path)]) == 2
    assert "ZeroShotSegmenter does not train: add --eval-only" in capfd.readouterr().err


def test_weights_belong_to_the_clip():
    model = tiny()
    with pytest.raises(InputError, match="which ZeroShotSegmenter takes as MODEL.CLIP.WEIGHTS"):
        model.load_checkpoint(
            read_checkpoint(SHIPPED / "vit_mini_8.safetensors").tensors, "clip.pt"
        )
    assert model.original_hash() == model.weights_hash() == model.clip.weights_hash()


def evaluated(folder, *opts) -> dict:
    """Numbers and provenance of the mini CLIP on three photographs of VOC, with and without the background."""
    small = {
        "MODEL.CLIP.NAME": "ViT-Mini-8",
        "MODEL.CLIP.WEIGHTS": "mini",
        "MODEL.ZERO_SHOT.TEMPLATES": "single",
        "MODEL.ZERO_SHOT.WINDOW": "64",
        "MODEL.ZERO_SHOT.STRIDE": "64",
        "INPUT.MIN_SIZE_TEST": "96",
        "DATASETS.TEST": "('voc_2012_test_background_sem_seg', 'voc_2012_test_sem_seg')",
        "DATALOADER.NUM_WORKERS": "0",
        "OUTPUT_DIR": str(folder),
    }
    words = [word for pair in small.items() for word in pair]
    config = str(ROOT / "configs/zero_shot/voc_21.yaml")
    assert train.main(["--config-file", config, "--eval-only", *words, *opts]) == 0
    return json.loads((folder / "results.json").read_text())


def test_real_images_pass_the_evaluator(data_dir, tmp_path, monkeypatch):
    own, theirs = tmp_path / "VOCdevkit/VOC2012", data_dir / "VOCdevkit/VOC2012"
    own.mkdir(parents=True)
    for folder in ("ImageSets", "JPEGImages", "SegmentationClassAug"):
        (own / folder).symlink_to(theirs / folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    prepare_voc20(Options(tmp_path))
    content = evaluated(tmp_path / "run")
    with_background, without = content["results"].values()
    assert with_background["images"] == without["images"] == 3
    assert all(0 <= numbers["mIoU"] <= 100 for numbers in content["results"].values())
    assert content["provenance"]["names of a class"] == "all, the best score of them"
    assert content["provenance"]["background"] == "its names, and a score below 0.1"
    # What nothing reaches is background, of which most of an image is: other data sets have none.
    high = evaluated(tmp_path / "high", "TEST.BACKGROUND.THRESHOLD", "1.0")["results"].values()
    assert [one["mIoU"] for one in high][1] == without["mIoU"]
    assert next(iter(high))["ACC-background"] == 100


MASK_WORDS = ("cat", "dog|puppy", "grass")


def model_of(correlation="clip", **how):
    clip = random_clip()
    masks = DenseInMasks(clip, correlation, pretrained=False)
    how = {"templates": "single", "windows": StridedWindows(32, 16), "masks": masks} | how
    model = ZeroShotSegmenter(clip=clip, **how).eval()
    model.set_vocabulary(MASK_WORDS)
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


def test_what_does_not_go_together_is_refused():
    model = model_of()
    for given, output, message in (
        (sample_of(halves()), "scores", 'no output "scores" with MODEL.ZERO_SHOT.MASKS'),
        (sample_of(torch.ones(1, 40, 48).bool()), "labels", r"masks of \(40, 48\) pixels, .*\(20, 24\)"),
        ({"image": torch.zeros(3, 40, 48, dtype=torch.uint8)}, "labels", "whose mapper reads"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            model([given], output=output)
    clip = random_clip()
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


# Keys of a configuration -> what the error says.
REFUSED = [
    (PLAIN, "MODEL.ZERO_SHOT.STRIDE 400", "STRIDE must be from a sixteenth of WINDOW"),
    (PLAIN, "MODEL.ZERO_SHOT.STRIDE 20", "STRIDE must be from a sixteenth of WINDOW"),
    (PLAIN, "MODEL.ZERO_SHOT.SCALE 0", "SCALE must be greater than 0"),
    (PLAIN, "MODEL.ZERO_SHOT.SYNONYMS all", 'SYNONYMS cannot be "all"'),
    (PLAIN, "MODEL.ZERO_SHOT.TEMPLATES odise", 'TEMPLATES cannot be "odise"'),
    (PLAIN, "TEST.SLIDING_WINDOW True", "SLIDING_WINDOW True has no effect: ZeroShotSegmenter"),
    (PLAIN, "TEST.BACKGROUND.THRESHOLD 1.5", r"THRESHOLD must be in \[0, 1\]"),
    (
        PLAIN,
        "TEST.BACKGROUND.WORDS False TEST.BACKGROUND.THRESHOLD 0",
        "THRESHOLD must be greater than 0 where no name",
    ),
    (
        WITH_MASKS,
        "MODEL.ZERO_SHOT.CORRELATION test_vit",
        "CORRELATION must be .clip. where there are",
    ),
    (CAT_SEG, "MODEL.ZERO_SHOT.MASKS folder", "ZERO_SHOT.MASKS .* CATSeg does not read it"),
]


@pytest.mark.parametrize("config, opts, message", REFUSED)
def test_keys_that_make_no_sense_are_refused(config, opts, message):
    with pytest.raises(InputError, match=message):
        load_config(config, opts.split())


def test_its_readings_are_what_it_does(tmp_path):
    reading = tiny(windows=StridedWindows(32, 16), synonyms="max").reading()
    assert reading.synonyms == "all, the best score of them"
    assert (reading.windows, reading.features) == ("32 px, stride 16 px", "token")
    assert reading.scale == "40"
    assert tiny(windows=StridedWindows(0, 1), synonyms="first").reading().windows == "none"
    model, other = model_of(), model_of("test_vit")
    assert model.reading().features == "CorrCLIP's form in given masks, correlations of token"
    assert other.reading().features.endswith("correlations of test_vit")
    assert other.weights_hash().startswith(model.weights_hash() + "-")
    assert build_model(load_config(WITH_MASKS, RANDOM)).masks is None
    masks = ["MODEL.ZERO_SHOT.MASKS", str(tmp_path)]
    built = build_model(load_config(WITH_MASKS, [*RANDOM, *masks]))
    assert built.reading().features.endswith("correlations of value")


def test_the_evaluation_reads_a_folder_of_masks_and_misses_none(tmp_path, catalogue):
    for kind in ("images", "labels", "masks"):
        (tmp_path / kind).mkdir()
    for name in ("a", "b"):
        save_noise(tmp_path / f"images/{name}.png", 24, 32)
        ids = np.kron(np.arange(1, 5).reshape(2, 2), np.ones((12, 16))).astype(np.uint8)
        Image.fromarray(ids % 3).save(tmp_path / f"labels/{name}.png")
        Image.fromarray(ids).save(tmp_path / f"masks/{name}.png")
    (tmp_path / "words.json").write_text(json.dumps(list(MASK_WORDS)))
    files = {"file_name": "images", "sem_seg_file_name": "labels"}
    records = [{key: f"{tmp_path}/{kind}/{n}.png" for key, kind in files.items()} for n in "ab"]
    DatasetCatalog.register("blocks", lambda: records)
    MetadataCatalog.get("blocks").set(
        image_root=str(tmp_path / "images"),
        sem_seg_root=str(tmp_path / "labels"),
        vocabulary=str(tmp_path / "words.json"),
        ignore_label=255,
    )
    options = [*RANDOM, "DATASETS.TEST", "('blocks',)", "OUTPUT_DIR", str(tmp_path / "run")]
    options += ["TEST.TRAIN_VOCABULARY", "", "INPUT.MIN_SIZE_TEST", "0"]
    cfg = load_config(WITH_MASKS, [*options, "MODEL.ZERO_SHOT.MASKS", str(tmp_path / "masks")])
    run, model = SemSegEvaluation(cfg), build_model(cfg)
    run.check(model)
    assert run.metadata()["masks given"]["blocks"]["forms"] == {"png": 2}
    assert run(model)["blocks"]["mIoU"] >= 0
    (tmp_path / "masks/b.png").unlink()
    with pytest.raises(InputError, match="masks of 1 of 2 images of blocks are missing"):
        SemSegEvaluation(cfg).check(model)
