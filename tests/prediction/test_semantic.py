"""Images in, labels out: class names, background, sizes; with a real random model and with a stand-in."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clipself_seg.choice import ModelChoice
from clipself_seg.config import load_config
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.models.model_protocols import Classes
from clipself_seg.prediction.load import load, prediction_config
from clipself_seg.prediction.results import label_type
from clipself_seg.prediction.task_predictors import SemanticPredictor
from tests.conftest import ROOT
from tests.tiny import noise, save_noise

CONFIG = "mini/semseg_original"
OPTS = ["MODEL.CLIP.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION", [8, 8]]
OPTS += ["MODEL.SEM_SEG_HEAD.WINDOW_SIZES", 4, "INPUT.MIN_SIZE_TEST", 64, "MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="module")
def real():
    """A small CATSeg with random weights."""
    return SemanticPredictor(prediction_config(ModelChoice("semantic", CONFIG, "random"), OPTS))


class Fixed(nn.Module):
    """Every column of the image scores its own class: 0.9, 0.4, 0.6, 0.3 from left to right."""

    device = torch.device("cpu")

    def classes_of(self, words, all_synonyms=None):
        return Classes(tuple(entry.names for entry in words.classes))

    def forward(self, samples, output, classes):
        (sample,) = samples
        count = len(classes.names)
        scores = torch.zeros(count, sample["height"], sample["width"])
        for column, score in enumerate((0.9, 0.4, 0.6, 0.3)[:count]):
            scores[column, :, column] = score
        best = scores.max(dim=0)
        if output == "labels":
            return [{"sem_seg_labels": best.indices, "sem_seg_best": best.values}]
        return [{"sem_seg": scores}]


IMAGE = np.zeros((2, 4, 3), np.uint8)


def fixed(words, *background, scores=False):
    predictor = SemanticPredictor(model=Fixed(), mapper=SemSegTestMapper(min_size=0, max_size=99))
    predictor.set_vocabulary(words, *background)
    return predictor(IMAGE, scores=scores)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(
    "words, background, names, row",
    [
        ("a, b, c, d", (), "abcd", [0, 1, 2, 3]),
        # What no class reaches 0.5 on gets a label of its own, the last.
        ("a, b, c, d", ("other",), ("a", "b", "c", "d", "other"), [0, 4, 2, 4]),
        ("a, b, c, d", ("other", 0.35), ("a", "b", "c", "d", "other"), [0, 1, 2, 4]),
        # A class of that name plays it.
        ("a, b, c, d", ("a",), "abcd", [0, 0, 2, 0]),
        # "x" and "y" compete for pixels; weak classes win against nothing.
        ("a, b", ("other|x|y",), ("a", "b", "other"), [0, 1, 2, 2]),
        ("a, b", ("other|x|y", 0.5), ("a", "b", "other"), [0, 2, 2, 2]),
        ("a, b", ("b|x|y",), ("a", "b"), [0, 1, 1, 1]),
    ],
)
def test_background_takes_what_no_class_reaches_and_what_its_words_win(
    words, background, names, row, scores
):
    found = fixed(words, *background, scores=scores)
    assert found.names == tuple(names)
    assert found.labels.tolist() == [row, row]
    if scores:
        assert found.scores.shape == (len(names), 2, 4)
        assert (found.scores.argmax(axis=0) == found.labels).all()


def test_fractions_add_up_and_leave_out_what_is_not_there():
    fractions = fixed("a, b, c, d", "other").fractions()
    assert fractions == {"other": 0.5, "a": 0.25, "c": 0.25} and list(fractions)[0] == "other"
    assert list(fixed("a, b").fractions()) == ["a", "b"]
    assert label_type(255) == np.uint8 and label_type(256) == np.uint16
    assert fixed([f"word {i}" for i in range(300)]).labels.dtype == np.uint16


def test_synonyms_of_own_words_count_and_a_data_set_is_read_as_configured(real):
    real.set_vocabulary("dog|puppy, grass")
    assert real.model.names == (("dog", "puppy"), ("grass",))
    real.set_vocabulary(Vocabulary.load("ade20k_847"))
    assert {len(names) for names in real.model.names} == {1}
    assert len(real(IMAGE).category_ids) == 847
    real.set_vocabulary(["dog, puppy"])
    with pytest.raises(InputError):
        real.set_vocabulary("")
    assert real.model.names == (("dog", "puppy"),) and real.names == ("dog",)


def test_files_arrays_and_evaluation_see_the_same_pixels(real, tmp_path):
    pixels, path = noise(50, 90), save_noise(tmp_path / "photo.png", 50, 90)
    record = {"file_name": str(path), "image_id": 0, "sem_seg_file_name": ""}
    sample = SemSegTestMapper(load_config(CONFIG, OPTS))(record)
    made = real.mapper.resized(pixels)
    assert sample["image"].shape == (3, 64, 115) and (made["image"] == sample["image"]).all()
    real.set_vocabulary("dog, grass, sky")
    expected = real.model([sample], output="labels")[0]["sem_seg_labels"].numpy()
    for image in (pixels, path):
        assert (real(image).labels == expected).all()
    assert expected.shape == (50, 90)


def test_a_list_gives_what_each_image_gives(real):
    images = [noise(height, 60, seed) for seed, height in enumerate((40, 50, 40))]
    real.set_vocabulary("dog, grass, sky", "background", 0.5)
    for batch_size in (1, 2):
        listed = real(
            [images[0], Image.fromarray(images[1]), images[2]], scores=True, batch_size=batch_size
        )
        for one, image in zip(listed, images, strict=True):
            alone = real(image, scores=True)
            assert (one.labels == alone.labels).all() and (one.scores == alone.scores).all()


def test_scores_and_labels_of_a_real_model_agree(real):
    real.set_vocabulary("dog, grass, sky", "background", 0.5)
    image = noise(40, 60)
    plain, scored = real(image), real(image, scores=True)
    assert plain.scores is None and scored.scores.shape == (4, 40, 60)
    assert (plain.labels == scored.labels).all()
    for label, mean in enumerate(plain.class_scores):
        own = scored.scores[label][scored.labels == label]
        assert mean == pytest.approx(own.mean(dtype=float) if own.size else 0)
    assert (plain.class_scores == scored.class_scores).all() and plain.image is image
    assert (scored.scores[3] == 0.5).all() and 0 <= scored.scores.min() <= scored.scores.max() <= 1


@pytest.mark.parametrize(
    "background, message",
    [
        (("background", 1.5), r"in \[0, 1\], got 1.5"),
        ((None, 0.5), "a threshold needs a background"),
        (("",), "the background is empty"),
        (([],), r"class 0 of the background is \[\], which is no name"),
        (("wall|a2",), '"a2" is a word of the vocabulary and one of the background: remove one$'),
    ],
)
def test_a_background_that_makes_no_sense_is_refused(background, message):
    with pytest.raises(InputError, match=message):
        fixed("a|a2, b", *background)


def test_one_class_alone_is_said_to_be_everywhere(caplog):
    assert fixed("dog, sky", "wall") and fixed("dog|puppy", "wall") and fixed("dog, sky")
    assert not caplog.records
    assert fixed("dog|puppy")
    (record,) = caplog.records
    assert record.getMessage().startswith('"dog" is the only class, so every pixel gets it: name')


def test_a_class_in_another_case_plays_the_background():
    assert fixed("dog, sky", "Sky").names == ("dog", "sky")
    predictor = SemanticPredictor(model=Fixed(), mapper=SemSegTestMapper(min_size=0, max_size=99))
    predictor.set_vocabulary("dog, sky", "SKY|wall")
    assert predictor.names == ("dog", "sky") and predictor.given.background == 1


def test_a_model_without_weights_of_its_own_is_given_those_of_its_clip():
    config = ROOT / "configs/mini/zero_shot.yaml"
    keys = ("MODEL.ZERO_SHOT.TEMPLATES", "single", "MODEL.DEVICE", "cpu")
    made = [load(name, config_file=config, opts=keys) for name in (None, "mini", "mini-clipself")]
    hashes = [predictor.model.weights_hash() for predictor in made]
    assert hashes[0] == hashes[1] != hashes[2]
    with pytest.raises(InputError, match="names no MODEL.CLIP.WEIGHTS"):
        load(config_file=config, opts=[*keys, "MODEL.CLIP.WEIGHTS", ""])
    opts = [*keys, "TEST.BACKGROUND.THRESHOLD", "0.2"]
    predictor = load("random", config_file=config, opts=opts)
    for background, own in ((None, 0.0), ("other", 0.2), ("other|wall", 0.0)):
        predictor.set_vocabulary("dog|puppy, sky", background)
        assert predictor.given.threshold == own
    assert predictor.model.names == (("dog", "puppy"), ("sky",), ("wall",))
    plain, scored = predictor(IMAGE), predictor(IMAGE, scores=True)
    assert (plain.labels == scored.labels).all() and plain.labels.shape == (2, 4)
