"""Data sets of several vocabularies in one run, and the same numbers from one process as from two."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg
from PIL import Image
from torch import nn

from clipself_seg.config import add_clipself_seg_config
from clipself_seg.errors import InputError
from clipself_seg.evaluation.semantic_evaluation import SemanticEvaluation
from clipself_seg.models.model_protocols import Reading
from tests.two_processes import in_two_processes

WORDS = {"pets": ["cat", "dog", "wide-grass"], "rooms": ["bed", "lamp", "wall", "door", "floor"]}


class Echo(nn.Module):
    """Reads a pixel's class off its red channel, as far as its classes go."""

    def __init__(self):
        super().__init__()
        self.classes = ("training's",)
        self.asked = []

    def set_vocabulary(self, vocabulary):
        self.classes = vocabulary.first_names

    def forward(self, batch, output="scores"):
        assert len(batch) == 1 and not self.training
        self.asked.append((self.classes, output))
        labels = batch[0]["image"][0].long() % len(self.classes)
        if output == "labels":
            return [{"sem_seg_labels": labels}]
        return [{"sem_seg": torch.eye(len(self.classes))[labels].permute(2, 0, 1)}]


def write_datasets(folder):
    """Five images of pets and three of rooms, whose labels are right in nine of ten pixels."""
    rng = np.random.default_rng(0)
    for name, count, labels in (("pets", 5, 3), ("rooms", 3, 4)):
        (folder / f"{name}.json").write_text(json.dumps(WORDS[name]))
        for kind in ("images", "labels"):
            (folder / name / kind).mkdir(parents=True)
        for index in range(count):
            truth = rng.integers(0, labels, (12, 9 + index)).astype(np.uint8)
            red = np.where(rng.random(truth.shape) < 0.1, 1, truth).astype(np.uint8)
            truth[:2] = 255
            for kind, pixels in (("images", np.repeat(red[..., None], 3, 2)), ("labels", truth)):
                Image.fromarray(pixels).save(folder / name / kind / f"{index}.png")


def register(folder):
    """As a user does it. The rooms' last two classes are both the background, label 3."""
    for name, background in (("pets", None), ("rooms", 3)):
        images, labels = folder / name / "images", folder / name / "labels"
        DatasetCatalog.register(name, lambda i=images, t=labels: load_sem_seg(t, i, "png", "png"))
        MetadataCatalog.get(name).set(
            image_root=str(images),
            sem_seg_root=str(labels),
            ignore_label=255,
            vocabulary=str(folder / f"{name}.json"),
            background=background,
        )


@pytest.fixture
def datasets(tmp_path, catalogue):
    write_datasets(tmp_path)
    register(tmp_path)
    return tmp_path


def evaluation(folder, *options):
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    cfg.merge_from_list(
        ["DATASETS.TEST", ("pets", "rooms"), "DATASETS.TRAIN", (), "INPUT.MIN_SIZE_TEST", 0]
        + ["INPUT.FORMAT", "RGB", "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(folder / "run")]
    )
    cfg.merge_from_list(list(options))
    return SemanticEvaluation(cfg)


def test_every_data_set_is_read_with_its_own_words(datasets):
    model = Echo()
    results = evaluation(datasets)(model)
    words = [tuple(WORDS["pets"])] * 5 + [tuple(WORDS["rooms"])] * 3
    assert model.asked == [(names, "labels") for names in words]
    for name, classes in (
        ("pets", WORDS["pets"]),
        ("rooms", ["bed", "lamp", "wall", "background"]),
    ):
        counted = {key for key in results[name] if key.startswith("IoU-")}
        assert counted == {f"IoU-{label}" for label in classes}
    assert results["pets"]["images"] == 5 and results["rooms"]["images"] == 3
    assert all(60 < results[name]["mIoU"] < 100 for name in WORDS)


def test_the_model_is_given_back_as_it_was(datasets):
    model = Echo().train()
    evaluation(datasets)(model)
    assert model.training and model.classes == ("training's",)
    broken = Echo()
    broken.forward = None
    with pytest.raises(TypeError):
        evaluation(datasets)(broken)
    assert broken.classes == ("training's",)


def test_seen_classes_are_those_that_training_names(datasets):
    (datasets / "train.json").write_text(json.dumps(["puppy|Dog", "Wide grass", "door"]))
    results = evaluation(datasets, "TEST.TRAIN_VOCABULARY", str(datasets / "train.json"))(Echo())
    pets, rooms = results["pets"], results["rooms"]
    assert (pets["classes-seen"], pets["classes-unseen"]) == (2, 1)
    assert pets["mIoU-unseen"] == pets["IoU-cat"]
    assert pets["mIoU-seen"] == pytest.approx((pets["IoU-dog"] + pets["IoU-wide-grass"]) / 2)
    # "door" is a word of the background, which is neither seen nor unseen.
    assert (rooms["classes-seen"], rooms["classes-unseen"]) == (0, 3)
    assert "mIoU-seen" not in rooms


def test_the_first_training_data_set_says_what_is_seen(datasets):
    results = evaluation(datasets, "DATASETS.TRAIN", ("pets",))(Echo())
    assert results["pets"]["classes-seen"] == 3 and results["rooms"]["classes-seen"] == 0
    assert "classes-seen" not in evaluation(datasets)(Echo())["pets"]


def test_numbers_of_each_data_set_are_handed_on_once_they_are_there(datasets):
    finished = []
    run = evaluation(datasets)
    next((datasets / "rooms" / "images").iterdir()).write_bytes(b"broken")
    with pytest.raises(InputError, match="rooms"):
        run(Echo(), lambda results: finished.append(dict(results)))
    assert [list(results) for results in finished] == [["pets"]]


def test_the_old_rule_is_one_key_away(datasets):
    for path in (datasets / "pets" / "labels").iterdir():
        truth = np.array(Image.open(path))
        Image.fromarray(np.where(truth == 1, 255, truth).astype(np.uint8)).save(path)
    new, old = (evaluation(datasets, "TEST.MIOU_RULE", r)(Echo()) for r in ("present", "union"))
    # "dog" is now predicted without being there: no number by one rule, 0 by the other.
    assert "IoU-dog" not in new["pets"] and old["pets"]["IoU-dog"] == 0
    assert old["pets"]["mIoU"] == pytest.approx(new["pets"]["mIoU"] * 2 / 3)


def test_the_rule_is_in_the_metadata(datasets):
    run = evaluation(datasets, "TEST.MIOU_RULE", "union")
    assert run.metadata()["evaluator rule"] == "union"


@pytest.mark.parametrize(
    "options, message",
    [
        (("DATASETS.TEST", ("petz",)), 'no data set "petz" for semantic segmentation'),
        (("TEST.TRAIN_VOCABULARY", "coco_stuff"), "coco_stuff_171"),
    ],
)
def test_what_would_fail_late_is_refused_early(datasets, options, message):
    with pytest.raises(InputError, match=message):
        evaluation(datasets, *options).check(Echo())


def test_two_processes_give_the_numbers_and_files_of_one(datasets, caplog):
    both = in_two_processes(lambda rank, folder: evaluation(folder)(Echo()), datasets)
    tables = [datasets / f"run/sem_seg_classes_{name}.csv" for name in WORDS]
    written = [table.read_bytes() for table in tables]
    with caplog.at_level(logging.INFO, logger="clipself_seg"):
        expected = evaluation(datasets)(Echo())
    assert both == [expected, expected]
    assert [table.read_bytes() for table in tables] == written
    assert "fwIoU" in caplog.text
    json.dumps(expected, allow_nan=False)


class Unsure(Echo):
    """Scores 0 where the pixel is of the rooms' background, and 1 elsewhere."""

    def forward(self, batch, output="scores"):
        (outputs,) = super().forward(batch, output)
        return [outputs | {"sem_seg_best": (batch[0]["image"][0] < 3).float()}]


def test_the_background_may_be_what_no_class_is_sure_of_in_place_of_its_names(datasets):
    keys = ["TEST.BACKGROUND.WORDS", False, "TEST.BACKGROUND.THRESHOLD", 0.5]
    model, alone = Unsure(), evaluation(datasets, *keys)
    results = alone(model)
    assert {words for words, _ in model.asked} == {tuple(WORDS["pets"]), ("bed", "lamp", "wall")}
    assert results == evaluation(datasets)(Echo())
    assert alone.metadata()["background"] == "no names, and a score below 0.5"
    assert "background" not in evaluation(datasets).metadata()


def test_the_file_of_a_run_says_which_names_count_of_whatever_model(datasets):
    run, model = evaluation(datasets), Echo()
    run.check(model)
    assert run.metadata()["names of a class"] == "not stated by the model"
    model.reading = lambda: Reading("the first alone", "")
    run.check(model)
    assert run.metadata()["names of a class"] == "the first alone"


def test_the_protocol_stands_below_tables_and_says_what_was_used(datasets, caplog):
    options = ("DATASETS.TEST", ("pets",))
    (datasets / "train.json").write_text(json.dumps(["puppy|Dog", "Wide grass"]))
    run = evaluation(datasets, *options, "TEST.TRAIN_VOCABULARY", str(datasets / "train.json"))
    model = Echo()
    model.reading = lambda: Reading("the first alone", '"a {}"', "windows of 8 px", size="at 8 px")
    with caplog.at_level(logging.INFO, logger="clipself_seg"):
        run(model)
    assert run.protocols["pets"].as_dict() == {
        "words": "pets, 3 classes",
        "synonyms": "the first alone",
        "templates": '"a {}"',
        "background": "none",
        "windows": "windows of 8 px",
        "features": "not stated by the model",
        "size": "own size; at 8 px",
        "seen": f"a name in {datasets / 'train.json'}: 2 of 3",
        "rule": "means over classes by rule present",
    }
    (note,) = run.notes(["pets"])
    assert note.startswith("Protocol of pets: words: pets, 3 classes | synonyms: the first alone")
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert max(map(len, logged.splitlines())) < 350
    assert " ".join(logged.split()).count(note) == 1  # below the table
    rooms = evaluation(datasets, "DATASETS.TEST", ("rooms",))
    rooms(Echo())
    parts = rooms.protocols["rooms"]
    assert parts.background == "its names; classes from 3 on count as one"
    assert parts.words == "rooms, 5 classes"
    assert parts.seen == "not known, no split" and parts.synonyms == "not stated by the model"
