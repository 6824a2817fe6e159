"""Segmentation without training: class scores, windows and names."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.zoo import SHIPPED
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.heads.windows import StridedWindows
from clipself_seg.models import ZeroShotSegmenter
from clipself_seg.models.model_protocols import Model, TrainableModel
from tests.conftest import ROOT
from tests.tiny import random_clip

WORDS = ("cat", "dog|puppy|hound", "grass|lawn")
MINI = ROOT / "configs/mini/zero_shot.yaml"
PLAIN = ROOT / "configs/zero_shot/base+openai_vitb16.yaml"


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
    assert model.bank.templates == "openai80" and model.task() == "semantic"
    assert isinstance(model, Model) and not issubclass(ZeroShotSegmenter, TrainableModel)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert train.main(["--config-file", str(MINI), *opts, "OUTPUT_DIR", str(tmp_path)]) == 2
    assert "ZeroShotSegmenter does not train: evaluate it (eval)" in capfd.readouterr().err


def test_weights_belong_to_the_clip():
    model = tiny()
    with pytest.raises(InputError, match="which ZeroShotSegmenter takes as MODEL.CLIP.WEIGHTS"):
        model.load_checkpoint(
            read_checkpoint(SHIPPED / "vit_mini_8.safetensors").tensors, "clip.pt"
        )
    assert model.original_hash() == model.weights_hash() == model.clip.weights_hash()


# Keys of a configuration -> what the error says.
REFUSED = [
    (PLAIN, "MODEL.ZERO_SHOT.STRIDE 400", "STRIDE must be from a sixteenth of WINDOW"),
    (PLAIN, "MODEL.ZERO_SHOT.SCALE 0", "SCALE must be greater than 0"),
    (PLAIN, "MODEL.ZERO_SHOT.SYNONYMS all", 'SYNONYMS cannot be "all"'),
    (PLAIN, "MODEL.ZERO_SHOT.TEMPLATES odise", 'TEMPLATES cannot be "odise"'),
    (PLAIN, "TEST.SLIDING_WINDOW True", "SLIDING_WINDOW True has no effect: ZeroShotSegmenter"),
    (PLAIN, "TEST.BACKGROUND.THRESHOLD 1.5", r"THRESHOLD must be in \[0, 1\]"),
    (
        PLAIN,
        "TEST.BACKGROUND.WORDS False TEST.BACKGROUND.THRESHOLD 0",
        "THRESHOLD must be greater than 0 unless WORDS",
    ),
]


@pytest.mark.parametrize("config, opts, message", REFUSED)
def test_keys_that_make_no_sense_are_refused(config, opts, message):
    with pytest.raises(InputError, match=message):
        load_config(config, opts.split())


def test_its_readings_are_what_it_does():
    reading = tiny(windows=StridedWindows(32, 16), synonyms="max").reading()
    assert reading.synonyms == "all, the best score of them"
    assert (reading.windows, reading.features) == ("32 px, stride 16 px", "token")
    assert reading.scale == "40"
    assert tiny(windows=StridedWindows(0, 1), synonyms="first").reading().windows == "none"
