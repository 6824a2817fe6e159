"""Data sets with label maps alone, evaluated by a panoptic model: FC-CLIP's A-847, PC-59, PC-459, PAS-20 and PAS-21."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clipself_seg.config import load_config
from clipself_seg.data.datasets.records import find_dataset
from clipself_seg.data.datasets.table import SemSegSet
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.panoptic.ground_truth import is_semantic_only, read_semantic_only
from clipself_seg.models.model_protocols import Classes
from tests.conftest import ROOT
from tests.spoiled_panoptic import Spoiler, evaluation

CONFIG = ROOT / "configs/panoptic/fcclip_convnext_large_semantic.yaml"
TRAINED = ("TEST.TRAIN_VOCABULARY", "openseg_coco_panoptic_133")
A847, PC59, PC459, PAS20, PAS21 = load_config(CONFIG).DATASETS.TEST
# Classes, seen ones, label of pixels that do not count.
FACTS = {
    A847: (847, 100, 65535),
    PC59: (59, 45, 255),
    PC459: (459, 74, 459),
    PAS20: (20, 20, 255),
    PAS21: (21, 21, 255),
}


class Reader(nn.Module):
    """Gives the label map itself."""

    exponents = (0.4, 0.8)
    void_discount = 0.0

    def __init__(self):
        super().__init__()
        self.classes = Classes()
        self.asked = []

    def set_vocabulary(self, words, seen=None):
        self.classes = Classes(tuple(entry.names for entry in words.classes), (), seen)

    def evaluation_metadata(self, records):
        return {}

    def forward(self, batch, fusions):
        (sample,) = batch
        self.asked.append((self.classes, fusions, sample.get("classes")))
        labels = np.array(Image.open(sample["sem_seg_file_name"])).astype(np.int64)
        labels = torch.from_numpy(labels % len(self.classes.names))
        return [{"fusions": {name: {"sem_seg_labels": self.read(labels)} for name in fusions}}]

    def read(self, labels):
        return labels


def write_images(name, labels=((0, 3, 7), (12, 19, 19)), count=2):
    """Images of blocks, whose first row does not count."""
    files = find_dataset(name, SemSegSet)
    for index in range(count):
        values = np.kron(np.roll(labels, index), np.ones((12, 9), int))
        values[0] = files.ignore_label
        wide = files.label_suffix == ".tif"
        for folder, suffix, pixels in (
            (files.path(files.images), ".jpg", np.repeat(values[..., None] % 251, 3, 2)),
            (files.path(files.annotations), files.label_suffix, values),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            dtype = np.uint16 if wide and pixels is values else np.uint8
            Image.fromarray(pixels.astype(dtype)).save(folder / f"{index}{suffix}")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def evaluator_of(folder, name, *options):
    given = ("DATASETS.TEST", (name,), "TEST.PANOPTIC.ROWS", ("fused",), *TRAINED)
    return evaluation(folder, *given, *options)


@pytest.mark.parametrize("name", FACTS)
def test_every_set_of_the_published_table_is_evaluated_by_its_own_rules(root, name):
    classes, seen, ignored = FACTS[name]
    assert is_semantic_only(name)
    write_images(name)
    model, own = Reader(), evaluator_of(root, name)
    own.check(model)
    results = own(model)[name]["fused"]
    assert (results["mIoU"], results["pACC"], results["images"]) == (100, 100, 2)
    assert not {"PQ", "AP"} & results.keys()
    given, fusions, _ = model.asked[0]
    assert len(given.names) == classes and given.seen.sum() == seen
    assert fusions["fused"] == (0.4, 0.8, ("semantic",), 0.0)
    assert own.data(name).ignore_label == ignored
    assert f"{seen} of {classes}" in own.notes([name])[0]
    assert list(own.tables({name: {"fused": results}})) == ["All data sets in percent"]


def test_names_of_the_background_are_one_class_with_all_of_them(root):
    write_images(PAS21)
    truth = read_semantic_only(PAS21, ("semantic",), "openseg_coco_panoptic_133")
    prompts = Vocabulary.load("voc_20b_prompts").first_names
    assert [entry.names for entry in truth.vocabulary.classes[:20]] == [(n,) for n in prompts[:20]]
    assert truth.vocabulary.classes[20].names == ("background", *prompts[20:])
    assert truth.seen.all()
    # Of another class list nothing is assumed: the mini world's has but a name of the background.
    assert read_semantic_only(PAS21, ("semantic",), "mini").seen.nonzero()[0].tolist() == [20]
    assert read_semantic_only(PAS21, ("semantic",), "").seen is None


def test_all_names_of_a_class_count_not_cat_segs_entry_of_it(root):
    name = "ade20k_150_test_sem_seg"
    write_images(name)
    truth = read_semantic_only(name, ("semantic",), "")
    own = Vocabulary.load("ade20k_150").classes
    assert [e.names for e in truth.vocabulary.classes] == [entry.names for entry in own]
    assert not any(entry.catseg_name for entry in truth.vocabulary.classes)


def test_a_label_file_names_the_classes_wherever_its_background_stands(root):
    write_images(PAS21)
    names = Vocabulary.load("voc_20").first_names
    lines = ["0:background,wall", *(f"{i}:{name},{name}s" for i, name in enumerate(names, 1))]
    path = root / "words.txt"
    path.write_text("\n".join(lines))
    own = evaluator_of(root, PAS21, "TEST.LABEL_FILES", (str(path),))
    model = Reader()
    assert own(model)[PAS21]["fused"]["mIoU"] == 100
    given = model.asked[0][0].names
    assert given[:2] == (("aeroplane", "aeroplanes"), ("bicycle", "bicycles"))
    assert given[20] == ("background", "wall")
    path.write_text("\n".join(line.replace("background", "wall") for line in lines))
    with pytest.raises(InputError, match='has 0 classes with the name "background"'):
        read_semantic_only(PAS21, ("semantic",), "", str(path))


def test_what_needs_segments_is_refused_before_the_first_image(root):
    write_images(PAS20)
    options = ("TEST.PANOPTIC.TASKS", ("panoptic", "instances"))
    with pytest.raises(InputError, match='TASKS is .* add "semantic"'):
        evaluator_of(root, PAS20, *options).check(Reader())


def test_a_panoptic_set_beside_keeps_its_numbers_and_the_papers_table(datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    write_images(PAS20)
    alone = evaluation(datasets, "DATASETS.TEST", ("one",))
    both = evaluation(datasets, "DATASETS.TEST", ("one", PAS20))

    class Both(Spoiler):
        def set_vocabulary(self, words, seen=None):
            self.words = words
            self.classes = Classes(words.first_names, (0, 2, 4) if len(words) == 5 else (), seen)

        def forward(self, batch, fusions):
            if "segments_info" in batch[0]:
                return super().forward(batch, fusions)
            return Reader.forward(self, batch, fusions)

        read = Reader.read

    model = Both()
    results = both(model)
    assert results["one"] == alone(Spoiler())["one"] and results[PAS20]["fused"]["mIoU"] == 100
    (run,) = both.tables(results).values()
    assert "VOC-20" in run and "one" in run
