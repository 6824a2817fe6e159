"""The line of a protocol."""

import numpy as np
import torch

from clipself_seg.evaluation.measuring_protocol import (
    MeasuringProtocol,
    protocol_line,
    protocol_lines,
    seen_text,
    size_text,
    words_text,
)
from clipself_seg.models.model_protocols import Reading


def protocol(**changes):
    parts = {
        "words": words_text("pets", 3),
        "synonyms": "the first alone",
        "templates": '"a {}"',
        "background": "none",
        "windows": "none",
        "size": "own size",
        "seen": seen_text(None, ""),
    }
    return MeasuringProtocol(**parts | changes)


def test_a_line_has_every_part_that_says_something():
    line = (
        'words: pets, 3 classes | synonyms: the first alone | templates: "a {}" | background: none | '
        "windows: none | size: own size | seen: not known, no split"
    )
    assert protocol_line(protocol().as_dict()) == line
    assert protocol_line(protocol(rule="present").as_dict()) == f"{line} | rule: present"


def test_a_lower_precision_is_named():
    stated = {"words": "w", "size": "s", "seen": "n"}
    own = MeasuringProtocol.of_model(Reading("a", "b"), **stated).as_dict()
    low = MeasuringProtocol.of_model(Reading("a", "b", precision=torch.bfloat16), **stated)
    assert low.as_dict() == own | {"precision": "bfloat16"}


def test_data_sets_of_one_protocol_share_a_line():
    same, other = protocol().as_dict(), protocol(size="short side 640 px").as_dict()
    lines = protocol_lines({"a": same, "b": other, "c": same})
    assert [line.split(":")[0] for line in lines] == ["Protocol of a, c", "Protocol of b"]
    assert protocol_lines({}) == []


def test_seen_classes_are_counted_and_sizes_stated():
    assert seen_text(np.array([True, False, True]), "a name in x") == "a name in x: 2 of 3"
    assert size_text(lambda record: record, "") == "not stated by the mapper"
    assert size_text(lambda record: record, "at 8 px") == "not stated by the mapper; at 8 px"
