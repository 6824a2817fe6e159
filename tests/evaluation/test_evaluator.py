"""The base of the evaluators that keep images: merged once, in order, none missing."""

import numpy as np
import pytest

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation import evaluator as module
from clipself_seg.evaluation.evaluator import ImageEvaluator, equal_runs

WORDS = Vocabulary.of(["cat", "grass"])


class Kept(ImageEvaluator[int]):
    def process(self, inputs, outputs):
        for sample, output in zip(inputs, outputs, strict=True):
            self._images[sample["image_id"]] = output

    def _numbers(self, images):
        return list(images.items())


def kept(image_ids, **images):
    one = Kept(dataset_name="tiny", vocabulary=WORDS, image_ids=image_ids)
    one.process([{"image_id": image} for image in images], images.values())
    return one


@pytest.fixture
def beside(monkeypatch):
    """Another process, which has kept some images too."""
    other = {"b": 2, "c": 3}
    monkeypatch.setattr(
        module.comm, "all_gather", lambda own: [own, other] if isinstance(own, dict) else [own]
    )
    monkeypatch.setattr(module.comm, "gather", lambda own: [own, other])


def test_images_of_all_processes_count_once_in_the_order_of_the_data_set(beside):
    assert kept(["c", "a", "b"], a=1, b=2).evaluate() == [("c", 3), ("a", 1), ("b", 2)]
    # Nobody asks for c.
    assert kept(["b", "a"], a=1).evaluate() == [("b", 2), ("a", 1)]


def test_without_a_data_set_images_are_compared_by_id():
    assert kept(None, b=2, a=1).evaluate() == [("a", 1), ("b", 2)]
    empty = kept(None, a=1)
    empty.reset()
    assert empty.evaluate() == []


def test_missing_images_are_named(beside):
    with pytest.raises(InputError, match=r'1 of 3 images of "tiny".*\[\'d\'\]: evaluate'):
        kept(["a", "b", "d"], a=1).evaluate()


def test_an_error_of_the_comparison_reaches_every_process(monkeypatch):
    monkeypatch.setattr(module.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(module.comm, "all_gather", lambda own: [InputError("broken"), own])
    with pytest.raises(InputError, match="broken"):
        kept(["a"], a=1).evaluate()


@pytest.mark.parametrize(
    ("one", "other", "starts", "lengths"),
    [
        ([], [], [], []),
        ([5], [2], [0], [1]),
        ([1, 1, 1, 2], [7, 7, 8, 8], [0, 2, 3], [2, 1, 1]),
        ([3, 3, 3], [4, 4, 4], [0], [3]),
    ],
)
def test_a_run_ends_where_either_label_changes(one, other, starts, lengths):
    found = equal_runs(np.array(one, np.uint8), np.array(other, np.int64))
    assert [part.tolist() for part in found] == [starts, lengths]
    assert all(part.dtype == np.int64 for part in found)
