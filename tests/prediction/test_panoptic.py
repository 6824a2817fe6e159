"""Images in, segments out: class names, things and stuff, seen classes, measures, files in COCO's format."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clipself_seg.commands.panoptic_quality import Side
from clipself_seg.data.annotations import panoptic_records
from clipself_seg.data.mappers.panoptic import PanopticTestMapper
from clipself_seg.data.masks import EncodedMasks, read_panoptic_ids
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.models.model_protocols import Classes
from clipself_seg.models.panoptic.panoptic_outputs import FusionSettings
from clipself_seg.prediction.files import find_images
from clipself_seg.prediction.load import load
from clipself_seg.prediction.loop import predict_files
from clipself_seg.prediction.results import PanopticSegmentation
from clipself_seg.prediction.task_predictors import (
    BoxesOfSegments,
    PanopticPredictor,
    panoptic_words,
)
from clipself_seg.prediction.writers import ResultFiles
from tests.conftest import ROOT
from tests.mask_models import save_mask_model
from tests.panoptic_worlds import own_quality, panopticapi_quality
from tests.tiny import noise, save_noise

CONFIG = ROOT / "configs/mini/panoptic_original.yaml"
SMALL = ("MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP_BRANCH.INPUT_SIZE", "64", "MODEL.DEVICE", "cpu")
SMALL += ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7", "MODEL.CLIP_BRANCH.TEMPLATES", "odise")
WORDS, STUFF = "red star, grass|lawn, sky", "Lawn, sky"


class Quarters(nn.Module):
    """Finds the classes 0, 0, 1 and nothing in the quarters of an image, in this order."""

    device, alpha, beta = torch.device("cpu"), 0.35, 0.65
    fusion, masks = FusionSettings(), SimpleNamespace(generates=True, model_settings={})

    def classes_of(self, words, seen=None):
        things = tuple(k for k, entry in enumerate(words.classes) if entry.isthing is not False)
        return Classes(tuple(entry.names for entry in words.classes), things, seen)

    def weights_hash(self):
        return "none"

    def forward(self, samples, fusions, classes):
        (sample,) = samples
        ids = torch.zeros(sample["height"], sample["width"], dtype=torch.int64)
        y, x = sample["height"] // 2 + 1, sample["width"] // 2
        ids[:y, :x], ids[:y, x:], ids[y:, :x] = 2, 1, 3
        segments = [
            {
                "id": number,
                "category_id": label,
                "isthing": label in classes.things,
                "score": number / 4,
            }
            for number, label in ((1, 0), (2, 0), (3, 1))
        ]
        return [{"fusions": {name: {"panoptic_seg": (ids, segments)} for name in fusions}}]


def predictor(words=WORDS, stuff=STUFF):
    made = PanopticPredictor(
        model=Quarters(),
        mapper=PanopticTestMapper(min_size=0, max_size=99),
        trained=Vocabulary.of(["red star|x", "Grass"]),
    )
    made.set_vocabulary(words, stuff)
    return made


@pytest.fixture
def photos(tmp_path):
    for name, size in (("one.jpg", (40, 60)), ("sub/two.png", (71, 31)), ("sub/three.png", (9, 9))):
        save_noise(tmp_path / "in" / name, *size)
    return tmp_path / "in"


def write(photos, out, made=None):
    found, made = find_images([photos], out), made or predictor()
    save = ("overlays", "panoptic")
    results = ResultFiles(predictor=made, folder=out, images=found.images, save=save)
    return predict_files(results, found)


def test_measures_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 6, (5, 6)), np.ones((4, 3), np.int64))
    segments = [
        {"id": i, "category_id": i % 3, "isthing": i < 3, "score": 0.5} for i in range(1, 6)
    ]
    common = {"names": ("a", "b", "c"), "category_ids": (0, 1, 2)}
    image = np.zeros((20, 18, 3), np.uint8)
    found = PanopticSegmentation.of_segments(ids, segments, image=image, **common)
    assert [s.area for s in found.segments] == sorted((s.area for s in found.segments))[::-1]
    for segment in found.segments:
        mask = found.ids == segment.id
        (was,) = np.unique(ids[mask])
        rows, columns = np.nonzero(ids == was)
        assert segment.area == len(rows) and segment.label == was % 3
        x, y = columns.min(), rows.min()
        assert segment.box == (x, y, columns.max() + 1 - x, rows.max() + 1 - y)
    assert (found.ids == 0).sum() == (ids == 0).sum()
    nothing = PanopticSegmentation.of_segments(
        np.zeros((3, 4), np.int64), [], image=image[:3, :4], **common
    )
    assert nothing.segments == () and (nothing.ids == 0).all()
    assert nothing.regions().masks.shape == (0, 3, 4) and nothing.regions().boxes.shape == (0, 4)
    annotation, png = nothing.to_coco(7)
    assert annotation == {"image_id": 7, "file_name": "000000000007.png", "segments_info": []}
    assert png.shape == (3, 4, 3) and not png.any() and nothing.overlay().mode == "RGB"


def test_words_that_are_not_stuff_are_things_and_the_training_vocabulary_is_seen():
    made = predictor()
    assert made.vocabulary.thing.tolist() == [True, False, False]
    # As the lists spell them: "Grass" is not "grass".
    assert made.given.seen.tolist() == made.model.classes.seen.tolist() == [True, False, False]
    assert panoptic_words("dog, sky", "").thing.tolist() == [True, True]
    assert panoptic_words("dog, sky").classes[0].isthing is None
    assert panoptic_words("mini", "mini").thing.any() == np.False_
    assert (panoptic_words("mini").thing == Vocabulary.load("mini").thing).all()
    assert panoptic_words("ade20k_150", "wall, sky").thing.sum() == 148


@pytest.mark.parametrize(
    "words, stuff, message",
    [
        ("", None, "the vocabulary is empty"),
        ("ade20k_150", None, '"ade20k_150" does not tell.*say which words are stuff.*--stuff ""'),
        ("dog, dog", None, "name 'dog' is there twice"),
        ("dog, grass", "gras", 'stuff "gras" is not in the vocabulary; did you mean "grass"'),
        ("dog, grass", "grass, , sky", "empty name"),
    ],
)
def test_words_that_make_no_sense_are_refused(words, stuff, message):
    made = predictor()
    with pytest.raises(InputError, match=message):
        made.set_vocabulary(words, stuff)
    assert made.vocabulary.first_names == ("red star", "grass", "sky")


def test_results_in_cocos_format_are_their_own_truth(photos, tmp_path):
    out = tmp_path / "out"
    assert write(photos, out) == {}
    content = json.loads((out / "panoptic.json").read_text())
    assert content["info"]["complete"] and content["info"]["seen"] == ["red star"]
    assert [c["isthing"] for c in content["categories"]] == [1, 0, 0]
    side = Side(out / "panoptic.json", out / "panoptic")
    assert len(content["annotations"]) == 3
    quality = own_quality(side, side)
    assert quality.pq[:2].tolist() == [1, 1] and np.isnan(quality.pq[2])
    assert panopticapi_quality(side, side)[1][""]["pq"] == 1
    for record in panoptic_records(side.json, photos, side.folder):
        ids = read_panoptic_ids(record)
        assert ids.shape == (record["height"], record["width"])
        for info in record["segments_info"]:
            x, y, width, height = info["bbox"]
            mask = ids == info["id"]
            assert info["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
            assert info["score"] in (0.25, 0.5, 0.75)
        with Image.open(record["file_name"]) as image:
            assert image.size == ids.shape[::-1]


def test_a_png_has_the_colours_of_the_categories_and_ids_are_those_of_the_vocabulary(
    photos, tmp_path
):
    write(photos, tmp_path / "out", predictor("mini", None))
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    colours = [category["color"] for category in content["categories"]]
    png = np.asarray(Image.open(tmp_path / "out" / "panoptic" / "one.png"))
    assert png[0, -1].tolist() == colours[0] and png[-1, 0].tolist() == colours[1]
    assert png[-1, -1].tolist() == [0, 0, 0] and png[0, 0].tolist() not in colours
    listed = {category["id"]: category["name"] for category in content["categories"]}
    words = Vocabulary.load("mini")
    assert listed == {entry.dataset_id: entry.names[0] for entry in words.classes}
    infos = content["annotations"][0]["segments_info"]
    assert {info["category_id"] for info in infos} == {c.dataset_id for c in words.classes[:2]}


@pytest.fixture(scope="module")
def real():
    """A small OpenPanoptic with random weights."""
    return load("random", config_file=CONFIG, opts=SMALL)


def test_a_real_model_gives_what_it_gives_in_evaluation(real):
    real.set_vocabulary(WORDS, STUFF)
    assert real.trained.name == "mini_base" and real.model.classes.things == (0,)
    image = noise(50, 90)
    found = real(image)
    (output,) = real.model([real.mapper.resized(image)])
    assert output.keys() == {"panoptic_seg", "instances", "sem_seg"}
    ids, segments = output["panoptic_seg"]
    assert found.ids.shape == (50, 90) and len(found.segments) == len(segments)
    for segment in found.segments:
        (was,) = ids[torch.from_numpy(found.ids == segment.id)].unique().tolist()
        assert segments[was - 1]["category_id"] == segment.label


@pytest.mark.parametrize(
    "config, weights, opts, message",
    [
        (CONFIG, "random", ("MODEL.FUSION.ALPHA", 1.5), "ALPHA must be .* got 1.5"),
        (CONFIG, "random", ("DATASETS.TRAIN", "()"), "which classes are seen"),
        (CONFIG, "random", ("TEST.TRAIN_VOCABULARY", "mini_bas"), 'unknown vocabulary "mini_bas"'),
    ],
)
def test_what_finds_no_segments_is_refused(config, weights, opts, message):
    with pytest.raises(InputError, match=message):
        load(weights, config_file=config, opts=[*SMALL, *opts], task="panoptic")


@pytest.fixture(scope="module")
def naming():
    """Names masks with a CLIP of random weights, which no generator and so no weights stand beside."""
    made = load(config_file=ROOT / "configs/mini/panoptic_masks.yaml", opts=GIVEN)
    made.set_vocabulary("red star, blue ring")
    return made


GIVEN = ("MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP_BRANCH.WEIGHTS", "", "MODEL.DEVICE", "cpu")
GIVEN += ("MODEL.CLIP_BRANCH.INPUT_SIZE", "64", "MODEL.CLIP_BRANCH.TEMPLATES", "odise")


def halves(height, width):
    masks = np.zeros((2, height, width), dtype=bool)
    masks[0, :, : width // 2] = masks[1, :, width // 2 :] = True
    return masks


def test_masks_of_somebody_else_get_names(naming, tmp_path):
    images = [noise(height, 60, seed) for seed, height in enumerate((40, 50, 30))]
    ids = halves(50, 60)[0] + 2 * halves(50, 60)[1]
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "1.png")
    masks = [halves(40, 60), tmp_path / "1.png", []]
    listed = naming(images, masks=masks, batch_size=2)
    for result, image, given in zip(listed, images, masks, strict=True):
        assert (result.ids == naming(image, masks=given).ids).all()
    for result, image in zip(listed[:2], images):
        own = {tuple((result.ids == segment.id).ravel()) for segment in result.segments}
        assert own == {tuple(mask.ravel()) for mask in halves(*image.shape[:2])}
        assert all(0 < segment.score <= 1 for segment in result.segments)
    assert listed[2].segments == () and not listed[2].ids.any()


def test_a_model_finds_the_masks_of_images_that_bring_none(tmp_path):
    found = [*GIVEN, "MODEL.MASK_GENERATOR.OUTPUTS", save_mask_model("eomt", tmp_path)]
    predictor = load(config_file="mini/panoptic_masks.yaml", opts=[str(word) for word in found])
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    given = halves(40, 60)
    own, other, again = predictor([image] * 3, "red star, grass", masks=[None, given, None])
    assert own.segments and (own.ids == again.ids).all() and own.segments == again.segments
    assert ((other.ids > 0) == given.any(0)).all() and not (other.ids == own.ids).all()
    before = predictor.model.weights_hash()
    predictor.model.mask_model.network.query.weight.mul_(2)
    assert predictor.model.weights_hash() != before


def test_masks_of_boxes_in_a_large_image_are_run_lengths(monkeypatch):
    boxes = BoxesOfSegments(model=Quarters(), mapper=PanopticTestMapper(min_size=0, max_size=99))
    plain = boxes(np.zeros((40, 60, 3), np.uint8), "a, b")
    assert plain.scores.tolist() == [0.75, 0.5, 0.25] and plain.masks[0].sum() == 19 * 30
    monkeypatch.setattr("clipself_seg.prediction.task_predictors.MASK_BYTES", 3 * 40 * 60 - 1)
    large = boxes(plain.image, "a, b").masks
    assert isinstance(large, EncodedMasks) and (large.all() == plain.masks).all()


def test_masks_are_given_where_they_are_needed_and_nowhere_else(naming, real, tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    real.set_vocabulary(WORDS)
    boxes = BoxesOfSegments(model=naming.model, mapper=naming.mapper)
    for call, message in (
        (lambda: boxes(image, "dog, grass", stuff="grass"), "boxes are found of all words"),
        (lambda: naming(image), "MASK_GENERATOR.SOURCE is masks"),
        (lambda: naming([image, image], masks=[[]]), "2 images and 1 masks"),
        (lambda: naming(image, masks=halves(60, 40)), "masks is 40 x 60, the image, .* is 60 x 40"),
        (lambda: real(image, masks=halves(40, 60)), "a model that generates its own"),
        (lambda: naming.save_pretrained(tmp_path / "saved"), "no weights but its CLIP's"),
    ):
        with pytest.raises(InputError, match=message):
            call()
