"""Numbers beside PQ, AP and mIoU of the panoptic evaluation (TEST.NUMBERS), and the protocol that says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from clipself_seg.data.generator_outputs import GeneratorOutput
from clipself_seg.data.masks import read_panoptic_png
from clipself_seg.data.similarity import write_similarity
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.data.wordnet import UNKNOWN
from clipself_seg.errors import InputError
from tests.panoptic_worlds import save_ids
from tests.spoiled_panoptic import CLASSES, SIZE, Spoiler, evaluation


class TwoSteps(Spoiler):
    """Makes masks and names them apart: blocks of the image, of which one is no segment, all of the first class."""

    device = torch.device("cpu")

    def generate(self, sample):
        truth = read_panoptic_png(sample["pan_seg_file_name"])
        masks = [truth == number for number in np.unique(truth)[:-1]] + [truth >= 0]
        logits = torch.from_numpy(np.stack(masks)).float() * 2 - 1
        zeros = torch.zeros(len(masks))
        return GeneratorOutput(logits, torch.zeros(len(masks), 5), zeros, SIZE, SIZE)

    def clip_scores(self, sample, generated):
        logits = torch.zeros(len(generated.mask_logits), len(self.classes.names))
        return logits + torch.eye(5)[0], torch.ones(len(logits)).bool()


def numbers_beside(folder, *options):
    """The numbers of the fusions of "one" that some of TEST.NUMBERS add, and the evaluation."""
    names = [f"TEST.NUMBERS.{option}" if i % 2 == 0 else option for i, option in enumerate(options)]
    plain = evaluation(folder, "DATASETS.TEST", ("one",))(TwoSteps())["one"]
    run, model = evaluation(folder, "DATASETS.TEST", ("one",), *names), TwoSteps()
    run.check(model)
    more = run(model)["one"]
    for fusion, numbers in plain.items():
        assert {key: more[fusion][key] for key in numbers} == numbers
    json.dumps(more, allow_nan=False)
    beside = {
        fusion: {key: v for key, v in numbers.items() if key not in plain[fusion]}
        for fusion, numbers in more.items()
    }
    return beside, plain, model, run


def test_open_pq_and_ap_of_classes_that_are_not_alike_are_pq_and_ap(datasets):
    words = load_vocabulary(datasets / "words.json")
    apart = np.full((5, 5), UNKNOWN, dtype=np.uint8)
    np.fill_diagonal(apart, 0)
    write_similarity(datasets / "table.json", words, apart, "nothing")
    options = ("SIMILARITY", str(datasets / "table.json"), "BOUNDARY", True)
    numbers, plain, _, _ = numbers_beside(datasets, *options)
    for fusion, own in plain.items():
        for suffix in ("", "_th", "_st", "_seen", "_unseen"):
            assert numbers[fusion][f"Open-PQ{suffix}"] == own[f"PQ{suffix}"]
        for suffix in ("", "50", "-seen", "-unseen"):
            assert numbers[fusion][f"Open-AP{suffix}"] == pytest.approx(own[f"AP{suffix}"])
        assert numbers[fusion]["Open-mIoU"] == pytest.approx(own["mIoU"])
    assert numbers["generator"]["Boundary-mIoU"] == 100 and numbers["clip"]["Boundary-mIoU"] == 0


def test_the_gap_of_each_fusion_sums_up_and_the_best_queries_are_all_but_one(datasets):
    numbers, plain, _, _ = numbers_beside(datasets, "GAP", True)
    for fusion, own in plain.items():
        parts = [numbers[fusion][f"gap-{part}"] for part in ("naming", "thrown-away", "masks")]
        assert own["PQ"] + sum(parts) == pytest.approx(100)
        assert numbers[fusion]["best-queries-PQ"] == numbers["clip"]["best-queries-PQ"]
    # Of 8 segments an image the last one has no mask of its own.
    assert 75 < numbers["clip"]["best-queries-PQ"] < 100
    assert numbers["generator"]["true-names-PQ"] == 100


def test_naming_of_true_masks_is_right_for_the_one_class_that_is_ever_named(datasets):
    numbers, _, _, _ = numbers_beside(datasets, "NAMING", True)
    for own in numbers.values():
        assert (own["naming"], own["naming_st"], own["naming_th"]) == (
            20,
            0,
            pytest.approx(100 / 3),
        )
        assert own["true-masks-PQ_st"] == 0 < own["true-masks-PQ_th"] < 100
        assert "best-queries-PQ" not in own and "gap-naming" not in own


def test_oracle_words_are_given_with_each_sample(datasets):
    model, given = TwoSteps(), []
    forward = model.forward
    model.forward = lambda batch, fusions: given.append(batch[0].get("classes")) or forward(
        batch, fusions
    )
    run = evaluation(datasets, "DATASETS.TEST", ("one",), "TEST.NUMBERS.ORACLE", True)
    results = run(model)["one"]["fused"]
    entries = json.loads((datasets / "one/panoptic.json").read_text())["annotations"]
    index = {category: position for position, (_, category, _) in enumerate(CLASSES)}
    true = [sorted({index[s["category_id"]] for s in entry["segments_info"]}) for entry in entries]
    assert given == [None] * 5 + true
    assert results["oracle-PQ"] == results["PQ"] and "oracle-AP-unseen" in results


def test_the_synonym_test_keeps_what_is_seen(datasets):
    content = json.loads((datasets / "words.json").read_text())
    content["classes"][0]["names"] = ["cat", "kitten"]
    (datasets / "words.json").write_text(json.dumps(content))
    numbers, plain, model, _ = numbers_beside(datasets, "SYNONYMS", 5)
    assert [names[0] for _, names in model.asked] == ["cat"] * 10 + ["kitten"] * 5
    for fusion, own in plain.items():
        assert numbers[fusion]["synonyms"] == 2
        assert numbers[fusion]["synonyms-worst-PQ_seen"] == own["PQ_seen"]
        assert numbers[fusion]["synonyms-spread-AP"] == 0


def test_what_cannot_be_measured_is_refused_early(datasets):
    run = evaluation(datasets, "TEST.NUMBERS.GAP", True, "TEST.PANOPTIC.TASKS", ("semantic",))
    with pytest.raises(InputError, match='add "panoptic" to TEST.PANOPTIC.TASKS'):
        run.check(TwoSteps())
    with pytest.raises(InputError, match="which Spoiler does not"):
        evaluation(datasets, "TEST.NUMBERS.NAMING", True).check(Spoiler())
    model = TwoSteps()
    model.evaluation_metadata = lambda records: {"generator on disk": {}}
    with pytest.raises(InputError, match="SYNONYMS needs a generator"):
        evaluation(datasets, "TEST.NUMBERS.SYNONYMS", 2).check(model)


def test_the_protocol_says_what_was_used(datasets):
    run = evaluation(datasets, "DATASETS.TEST", ("one",), "TEST.NUMBERS.ORACLE", True)
    run(Spoiler())
    parts = run.protocols["one"].as_dict()
    assert parts["words"] == "words, 5 classes" and parts["size"] == "own size"
    assert parts["seen"] == f"a name as {datasets / 'trained.json'} spells it: 2 of 5"
    assert parts["beside"] == "ORACLE" and parts["rule"] == "mIoU over classes by rule present"


class GivenMasks(TwoSteps):
    """Names masks that come with the samples; it makes none."""

    def evaluation_metadata(self, records):
        return {"masks given": {}}

    def generate(self, sample):
        raise InputError("makes none")


@pytest.mark.parametrize("all_given", [True, False])
def test_the_gap_of_masks_from_elsewhere_is_of_the_masks_that_were_given(datasets, all_given):
    folder = datasets / "masks"
    for path in (datasets / "one/segments").glob("*.png"):
        ids = read_panoptic_png(path)
        # One of the eight segments of an image may have no mask.
        save_ids(folder / path.name, np.where(ids == ids.max() + all_given, 0, ids))
    source = ("MODEL.MASK_GENERATOR.SOURCE", "masks", "MODEL.MASK_GENERATOR.OUTPUTS", str(folder))
    options = ("TEST.PANOPTIC.ROWS", ("clip",), "TEST.NUMBERS.GAP", True, "DATASETS.TEST", ("one",))
    run, model = evaluation(datasets, *source, *options), GivenMasks()
    run.check(model)
    (numbers,) = run(model)["one"].values()
    parts = [numbers[f"gap-{part}"] for part in ("naming", "thrown-away", "masks")]
    assert numbers["PQ"] + sum(parts) == pytest.approx(100)
    # What is missed counts half: about 100 * (1 - 7 / 7.5).
    assert parts[2] == 0 if all_given else 4 < parts[2] < 9
