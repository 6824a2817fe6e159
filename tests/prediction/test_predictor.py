"""What predictors of all tasks do alike: images in whatever form, a vocabulary, warnings of the mini models."""

import io
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.choice import DEFAULTS, TASKS, find_model
from clipself_seg.config import load_config
from clipself_seg.data.images import open_image, read_image
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.models.model_protocols import Classes
from clipself_seg.prediction import predictor
from clipself_seg.prediction.load import load
from clipself_seg.prediction.mini_worlds import SIZES, WorldCheck
from clipself_seg.prediction.predictor import ImagePredictor, rgb_image
from clipself_seg.prediction.task_predictors import SemanticPredictor
from lab.mini.concepts import WORLDS
from lab.mini.scenes import draw_scene

LIMIT = 1000


@pytest.fixture
def turned(tmp_path):
    """A JPEG that is to be turned, as a camera writes it."""
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    return tmp_path / "turned.jpg"


def test_a_path_a_pil_image_and_an_array_give_the_pixels_of_the_file(turned):
    expected = read_image(turned)
    assert expected.shape == (20, 12, 3)
    with Image.open(turned) as image:
        for given in (turned, str(turned), image, expected):
            assert np.array_equal(rgb_image(given, LIMIT), expected)


@pytest.fixture(params=TASKS)
def mini(request):
    """A shipped model, and an image of the world that it knows."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return load("mini", task=request.param), image


def test_outputs_that_are_no_numbers_are_refused_in_every_task(mini):
    model, image = mini
    model.set_vocabulary("red star, grass")
    for parameter in model.model.clip.visual.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        model(image)


def test_eight_threads_with_words_of_their_own_get_what_each_gets_alone(mini):
    model, image = mini
    names = ("red star", "blue ring", "grass", "sand", "dog", "cat", "sky", "old tree")
    words = [names[number:] + names[:number] for number in range(8)]

    def ask(own):
        result = model(image, own)
        return result.names, *result.regions()

    serial = [ask(own) for own in words]
    assert len({result[0] for result in serial}) == 8 and any(len(r[1]) for r in serial)
    with ThreadPoolExecutor(8) as pool:
        for own, expected in zip(pool.map(ask, words * 3), serial * 3):
            np.testing.assert_equal(own, expected)


def test_a_large_image_is_refused_whatever_it_comes_in(turned):
    with Image.open(turned) as image:
        for given in (turned, image):
            with pytest.raises(InputError, match=r"turned.jpg is 20 x 12, .* 100 pixels of INPUT"):
                rgb_image(given, 100)


@pytest.mark.parametrize(
    "image, message",
    [(given, f"got {type(given).__name__}") for given in (b"bytes", None, 3, io.BytesIO())]
    + [("https://a.example/a.jpg", "image https://a.example/a.jpg is missing")]
    + [(Image.new("F", (3, 4)), "floating-point pixels")]
    + [(np.zeros((4, 4), np.uint8), "uint8 of shape"), (np.zeros((4, 4, 3)), "got float64")],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(InputError, match=message):
        rgb_image(image, LIMIT)


class Mapper:
    max_pixels = LIMIT

    def resized(self, image):
        return image.shape[:2]


class Sizes(ImagePredictor):
    """Says of each image its height and width."""

    def __init__(self):
        super().__init__(model=nn.Dropout().train(), mapper=Mapper())
        self.batches = []
        self.reads = 0

    def read(self, words, **asked):
        self.reads += 1
        words = Vocabulary.of(words)
        classes = Classes(tuple(entry.names for entry in words.classes))
        return self._given(words, classes, asked=asked)

    def outputs(self, samples, given):
        self.batches.append(len(samples))
        return samples

    def result(self, output, given, nothing, **common):
        return output


def blank(height, width):
    return np.zeros((height, width, 3), np.uint8)


@pytest.fixture
def made():
    made = Sizes()
    made.set_vocabulary(["cat"])
    return made


def test_a_model_is_evaluated_and_needs_a_vocabulary():
    made = Sizes()
    assert not made.model.training and made.config is None
    assert made.names == ()
    with pytest.raises(InputError, match="no words: give them, as in model"):
        made(blank(2, 3))
    made.set_vocabulary(["cat"])
    assert made.names == ("cat",) and made.given.category_ids == (1,)
    assert made(blank(2, 3)) == (2, 3)


def test_categories_have_the_numbers_of_a_file_or_count_from_1(made):
    classes = [{"names": ["cat"], "dataset_id": 0}, {"names": ["dog"], "dataset_id": 7}]
    assert made.set_vocabulary({"classes": classes}).category_ids == (0, 7)
    assert made.set_vocabulary({"classes": ["cat", "dog"]}).category_ids == (1, 2)
    words = Vocabulary.of("cat").with_examples({"dog": [(blank(4, 4), np.ones((4, 4), bool))]})
    assert made.set_vocabulary(words).category_ids == (1, 2)


def test_a_list_is_read_and_predicted_in_batches_and_keeps_its_order(made, turned):
    given = [blank(height, 5) for height in (1, 2, 3, 4)]
    shapes = [(1, 5), (2, 5), (3, 5), (4, 5), (20, 12)]
    assert made([*given, turned], batch_size=2) == shapes and made.batches == [2, 2, 1]
    assert made(tuple(given), batch_size=1) == shapes[:4]
    assert made(given[2], batch_size=8) == (3, 5)
    assert made([]) == []


def test_words_of_a_call_are_set_where_they_are_others(made, tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("cat\ndog|puppy\n")
    for words in (
        "cat, dog|puppy",
        ["cat", "dog|puppy"],
        file,
        str(file),
        Vocabulary.of(["cat", "dog|puppy"]),
    ):
        made(blank(2, 3), words)
        assert made.names == ("cat", "dog") and made.reads == 2
    made(blank(2, 3))
    made.set_vocabulary("cat, dog|puppy", stuff="wall")
    made(blank(2, 3), "cat, dog|puppy")
    assert made.reads == 4 and not made.given.asked
    made(blank(2, 3), "mini")
    assert made.vocabulary.name == "mini"


def test_a_bad_entry_of_a_list_is_named_by_its_index(made, turned):
    for bad, reason in (("gone.jpg", "image gone.jpg is missing"), ([blank(2, 2)], "got list")):
        with pytest.raises(InputError, match=f"image 2 of the list: .*{reason}"):
            made([blank(2, 2), turned, bad], batch_size=2)


def test_a_model_of_another_task_is_named_before_keys_that_it_does_not_read():
    with pytest.raises(InputError, match="mini/detection.yaml does detection: leave out"):
        opts = ["TEST.BACKGROUND.THRESHOLD", "0.5"]
        load(config_file="mini/detection.yaml", opts=opts, task="semantic")


@pytest.fixture
def warnings(caplog):
    """Messages so far; asking for them forgets them."""

    def messages():
        texts = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return texts

    with caplog.at_level(logging.WARNING):
        yield messages


@pytest.mark.parametrize("name", ["mini", "mini2", "mini_base", "mini_things", "mini2_things"])
def test_words_of_the_worlds_are_known(name, warnings):
    WorldCheck(["ViT-Mini-8"], "semantic").of_words(Vocabulary.load(name).classes)
    own = ["Red  Star", "star", "crescent", "blue ring|hoop", "lawn|meadow", "polka dots"]
    WorldCheck(["ViT-Mini-8"], "semantic").of_words(Vocabulary.of(own).classes)
    assert warnings() == []


@pytest.mark.parametrize(
    "words, said",
    [
        (["red star", "dog|puppy", "orange ring"], 'have no "dog", "orange ring":'),
        ("ade20k_150", '"wall", "building", "sky", "floor", "tree" and 140 more'),
    ],
)
def test_other_words_are_named_once(warnings, words, said):
    vocabulary = Vocabulary.load(words) if isinstance(words, str) else Vocabulary.of(words)
    strict = WorldCheck(["ViT-Mini-8"], "semantic")
    for _ in range(2):
        strict.of_words(vocabulary.classes)
    strict.of_images([blank(480, 640)])
    (message,) = warnings()
    assert said in message


def test_images_of_the_worlds_are_known_and_real_ones_are_not(data_dir, warnings):
    for name, spec in WORLDS.items():
        scenes = [draw_scene(np.random.default_rng([ord(name[-1]), n]), spec) for n in range(4)]
        WorldCheck(["ViT-Mini-8"], "semantic").of_images([scene.image for scene in scenes])
    assert warnings() == []
    images = sorted(data_dir.rglob("*.jpg"))
    assert len(images) > 150
    for path in images:
        with open_image(path) as image:
            assert image.size not in SIZES, path
    WorldCheck(["ViT-Mini-8"], "semantic").of_images([blank(480, 640)])
    assert "than the 640 x 480 pixels of one here" in warnings()[0]


@pytest.mark.parametrize("task", TASKS)
def test_each_task_names_official_weights_that_do_it(task, warnings):
    WorldCheck(["ViT-Mini-8"], task).of_words(Vocabulary.of(["dog"]).classes)
    (message,) = warnings()
    weights = message.split("For photographs take the model ")[1]
    assert weights in zoo() and find_model(weights, task).task == task


def test_models_on_the_mini_clip_are_checked_and_others_are_not(monkeypatch):
    monkeypatch.setattr(predictor, "build_model", lambda cfg: None)
    for opts, checked in (([], True), (["MODEL.CLIP.NAME", "ViT-B-16"], False)):
        cfg = load_config("mini/semseg.yaml", ["MODEL.WEIGHTS", "a.pth", *opts])
        assert SemanticPredictor.from_config(cfg)["world_check"].mini == checked


def test_a_predictor_warns_once_of_words_or_image(warnings):
    made = load("mini", device="cpu")
    made.set_vocabulary("red star, grass", background="background")
    scene = draw_scene(np.random.default_rng(0), WORLDS["mini"])
    made(scene.image)
    assert warnings() == []
    for _ in range(2):
        made(scene.image[:100, :100])
    assert len(warnings()) == 1
    made.set_vocabulary("dog, cat")
    assert warnings() == []
    assert 'no "dog"' in made.warning_of([scene.image], made.given)
    made.set_vocabulary("red star, grass")
    assert made.warning_of([scene.image], made.given) == ""
    assert made.warning_of([blank(9, 9)], made.given)


def test_the_model_that_warnings_of_mini_models_name_takes_given_masks():
    assert find_model(DEFAULTS["panoptic"], "panoptic").clip  # --masks refuses others
