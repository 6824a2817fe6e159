"""Images in, boxes out: class names, seen classes, thresholds, files in COCO's format."""

import contextlib
import io
import json
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from clipself_seg.choice import ModelChoice
from clipself_seg.data.mappers.detection import DetectionTestMapper
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.heads.fvit.boxes import DetectionRule
from clipself_seg.heads.fvit.roi_heads import DetectionSettings
from clipself_seg.models.model_protocols import Classes
from clipself_seg.prediction.files import find_images
from clipself_seg.prediction.load import prediction_config
from clipself_seg.prediction.loop import predict_files
from clipself_seg.prediction.task_predictors import DetectionPredictor
from clipself_seg.prediction.writers import ResultFiles
from tests.models.fvit.test_model import TINY, WORDS, tiny
from tests.tiny import noise, save_noise

OPTS = [str(part) for pair in TINY.items() for part in pair]
OPTS += ["MODEL.DEVICE", "cpu", "INPUT.FORMAT", "RGB", "DATASETS.TRAIN", '("mini_base_boxes",)']
OPTS += ["TEST.DETECTIONS_PER_IMAGE", "5", "MODEL.FVIT.SCORE_THRESHOLD", "0.0"]


class Corners(nn.Module):
    """Finds class 1 in the left upper quarter of an image, and class 0 in the whole of it."""

    settings = DetectionSettings(0.1, 0.8, rule=DetectionRule(0.25))

    def __init__(self, masks):
        super().__init__()
        self.has_masks = masks
        self.clip = mock.Mock(context_length=1000)
        self.bank = mock.Mock(templates="vild63")

    def classes_of(self, words, seen=None, all_synonyms=None):
        self.all_synonyms = all_synonyms
        return Classes(tuple(entry.names for entry in words.classes), seen=seen)

    def weights_hash(self):
        return "none"

    def forward(self, samples, classes):
        (sample,) = samples
        height, width = sample["height"], sample["width"]
        boxes = torch.tensor([[0, 0, width / 2, height / 2], [0, 0, width, height]])
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([0.75, 0.5])
        instances.pred_classes = torch.tensor([1, 0])
        if self.has_masks:
            masks = torch.zeros(2, height, width, dtype=torch.bool)
            masks[0, : height // 2, : width // 2] = True
            masks[1, 3] = True
            instances.pred_masks = masks
        return [{"instances": instances}]


def predictor(words="red star, dog|puppy", masks=False):
    made = DetectionPredictor(
        model=Corners(masks),
        mapper=DetectionTestMapper(side=64),
        trained=Vocabulary.of(["Red-Star"]),
    )
    made.set_vocabulary(words)
    return made


@pytest.fixture
def images(tmp_path):
    for name, size in (("7.png", (20, 40)), ("sub/12.png", (60, 30))):
        save_noise(tmp_path / "in" / name, *size)
    return tmp_path / "in"


def write(images, out, made):
    files = find_images([images], out)
    results = ResultFiles(predictor=made, folder=out, images=files.images)
    return predict_files(results, files), json.loads((out / "detections.json").read_text())


def test_results_in_cocos_format_checked_by_hand(images, tmp_path):
    failed, content = write(images, tmp_path / "out", predictor())
    assert failed == {} == content["info"]["failed"] and content["info"]["complete"]
    assert content["info"]["score threshold"] == 0.25 and content["info"]["trained"] == "custom"
    assert content["info"]["prompted"] == [["red star"], ["dog", "puppy"]]
    assert content["categories"] == [
        {"id": 1, "name": "red star", "seen": True},
        {"id": 2, "name": "dog", "seen": False},
    ]
    assert content["images"] == [
        {"id": 7, "file_name": "7.png", "width": 40, "height": 20},
        {"id": 12, "file_name": "sub/12.png", "width": 30, "height": 60},
    ]

    def entry(number, image, category, box, score):
        own = {"id": number, "area": box[2] * box[3], "iscrowd": 0, "image_id": image}
        return own | {"category_id": category, "bbox": box, "score": score}

    assert content["annotations"] == [
        entry(1, 7, 2, [0, 0, 20, 10], 0.75),
        entry(2, 7, 1, [0, 0, 40, 20], 0.5),
        entry(3, 12, 2, [0, 0, 15, 30], 0.75),
        entry(4, 12, 1, [0, 0, 30, 60], 0.5),
    ]
    assert all((tmp_path / "out/overlays" / f"{name}.png").is_file() for name in ("7", "sub/12"))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_pycocotools_reads_them_as_truth_and_as_results(images, tmp_path, kind):
    _, content = write(images, tmp_path / "out", predictor("mini", masks=True))
    words = Vocabulary.load("mini")
    assert [c["id"] for c in content["categories"]] == [c.dataset_id for c in words.classes]
    masks = rle.decode([entry["segmentation"] for entry in content["annotations"][:2]])
    assert masks[:10, :20, 0].all() and masks[3, :, 1].all()
    assert masks.sum(axis=(0, 1)).tolist() == [200, 40]
    assert [entry["area"] for entry in content["annotations"][:2]] == [200, 40]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tmp_path / "out/detections.json")
        evaluation = COCOeval(truth, truth.loadRes(content["annotations"]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_own_words_count_with_every_synonym_and_built_in_ones_as_configured():
    made = predictor()
    assert made.model.all_synonyms is True and made.given.seen.tolist() == [True, False]
    made.set_vocabulary("ov_coco_65")
    assert made.model.all_synonyms is False and len(made.given.seen) == 65
    assert not made.given.seen.any()


def detector(weights, opts):
    choice = ModelChoice("detection", "", None if weights is None else str(weights))
    return DetectionPredictor(prediction_config(choice, opts))


@pytest.fixture(scope="module")
def real():
    """A small FViT with random weights, without masks."""
    return detector("random", OPTS)


def test_a_real_model_gives_what_it_gives_in_evaluation(real):
    texts = []
    for words in ("green star, blue ring", "green star, hoop|blue ring"):
        real.set_vocabulary(words)
        texts.append(real.model.text(real.model.classes))
    assert torch.equal(texts[0][0], texts[1][0]) and not torch.allclose(texts[0][1], texts[1][1])
    image = noise(50, 90)
    result = real(image)
    assert result.boxes.shape == (5, 4) and result.boxes.dtype == result.scores.dtype == np.float32
    assert result.labels.dtype == np.int64 and result.masks is None
    (output,) = real.model([real.mapper.resized(image)])
    instances = output["instances"]
    assert (result.boxes == instances.pred_boxes.tensor.numpy()).all()
    assert (result.scores == instances.scores.numpy()).all()
    assert (result.labels == instances.pred_classes.numpy()).all()
    assert instances.image_size == (50, 90)
    # The weights do not know their classes, the training data set does.
    assert real.given.seen.tolist() == [True, False] and real.trained.name == "mini_things"


def test_a_list_gives_what_each_image_gives(real):
    real.set_vocabulary("green star, hoop|blue ring")
    images = [noise(height, 60, seed) for seed, height in enumerate((40, 50, 40))]
    given = [images[0], Image.fromarray(images[1]), images[2]]
    for one, image in zip(real(given), images, strict=True):
        alone = real(image)
        assert (one.boxes == alone.boxes).all() and (one.scores == alone.scores).all()
        assert (one.labels == alone.labels).all()
    # Batches round differently.
    for one, other in zip(real(given, batch_size=2), real(given), strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_seen_classes_are_those_that_the_weights_name(tmp_path):
    model = tiny(MASKS=True)
    model.setup_training(WORDS)
    model.export(tmp_path / "model_final.pth")
    opts = [*OPTS, "MODEL.FVIT.MASKS", "True"]
    made = detector(tmp_path / "model_final.pth", opts)
    made.set_vocabulary("red sphere, green cone, red star")
    assert made.trained is None and made.given.seen.tolist() == [True, False, False]
    assert made(np.zeros((20, 30, 3), np.uint8)).masks.shape == (5, 20, 30)
    given = ["TEST.TRAIN_VOCABULARY", "mini_things"]
    made = detector(tmp_path / "model_final.pth", [*opts, *given])
    made.set_vocabulary(Vocabulary.of("red sphere, green star"))
    assert made.given.seen.tolist() == [False, True]


@pytest.mark.parametrize(
    "weights, opts, message",
    [
        ("random", ("MODEL.FVIT.SCORE_THRESHOLD", "1.5"), "SCORE_THRESHOLD must be .* got 1.5"),
        ("random", ("DATASETS.TRAIN", "()"), "say which classes are seen"),
        (None, (), "names no MODEL.WEIGHTS"),
    ],
)
def test_what_detects_nothing_is_refused(weights, opts, message):
    with pytest.raises(InputError, match=message):
        detector(weights, [*OPTS, *opts])
