"""Numbers beside PQ, AP and mIoU of the panoptic evaluation (TEST.NUMBERS), and the protocol that says so."""

from __future__ import annotations

import json

from tests.spoiled_panoptic import CLASSES, Spoiler, evaluation


def numbers_beside(folder, *options):
    """The numbers of the fusions of "one" that some of TEST.NUMBERS add."""
    names = [f"TEST.NUMBERS.{option}" if i % 2 == 0 else option for i, option in enumerate(options)]
    plain = evaluation(folder, "DATASETS.TEST", ("one",))(Spoiler())["one"]
    run, model = evaluation(folder, "DATASETS.TEST", ("one",), *names), Spoiler()
    run.check(model)
    more = run(model)["one"]
    for fusion, numbers in plain.items():
        assert {key: more[fusion][key] for key in numbers} == numbers
    json.dumps(more, allow_nan=False)
    return {
        fusion: {key: v for key, v in numbers.items() if key not in plain[fusion]}
        for fusion, numbers in more.items()
    }


def test_boundary_iou_leaves_the_published_numbers_as_they_are(datasets):
    numbers = numbers_beside(datasets, "BOUNDARY", True)
    assert numbers["generator"]["Boundary-mIoU"] == 100 and numbers["clip"]["Boundary-mIoU"] == 0


def test_oracle_words_are_given_with_each_sample(datasets):
    model, given = Spoiler(), []
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


def test_the_protocol_says_what_was_used(datasets):
    run = evaluation(datasets, "DATASETS.TEST", ("one",), "TEST.NUMBERS.ORACLE", True)
    run(Spoiler())
    parts = run.protocols["one"].as_dict()
    assert parts["words"] == "words, 5 classes" and parts["size"] == "own size"
    assert parts["seen"] == f"a name as {datasets / 'trained.json'} spells it: 2 of 5"
    assert parts["beside"] == "ORACLE" and parts["rule"] == "mIoU over classes by rule present"
