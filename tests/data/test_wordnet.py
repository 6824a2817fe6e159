"""A WordNet of ten synsets: its files, how names are looked up, and distances by hand."""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np
import pytest

from clipself_seg.data.wordnet import (
    UNKNOWN,
    WordNet,
    class_distances,
    lemmas,
    name_synset,
    read_wordnet,
)
from clipself_seg.errors import InputError
from tests.wordnet_world import SYNSETS, write_wordnet


@pytest.fixture
def wordnet(tmp_path):
    return read_wordnet(write_wordnet(tmp_path / "dict"))


def test_files_are_read(wordnet):
    assert wordnet.senses["crane"] == (170, 160) and wordnet.senses["couch"] == (140,)
    assert wordnet.hypernyms[140] == (130,) and wordnet.exceptions["lice"] == ("louse",)


@pytest.mark.parametrize(
    ("name", "synset"),
    [
        ("Sofa", 140),
        ("sofas", 140),
        ("sofa_bed", None),
        ("garden chairs", 150),
        ("sofa-stuff", 140),
        ("chair-other-merged", 150),
        ("seat-leather", 130),
        ("crane_(machine)", 170),
        ("light", 190),
        ("brightness", 180),
        ("machinebirds", 170),
        ("rusted machine-chair", 150),
        ("rustedlamp", 190),
        ("xlamp", None),
        ("unicorn", None),
    ],
)
def test_names_are_looked_up(wordnet, name, synset):
    assert name_synset(name, wordnet) == synset


def test_whole_names_come_before_heads():
    plain = list(lemmas("wall-brick", {}))
    assert plain[:3] == ["wall-brick", "wallbrick", "wall_brick"] and "wall" in plain
    assert list(lemmas("swimming pool", {}))[:2] == ["swimming_pool", "pool"]
    assert list(lemmas("lice", {"lice": ("louse",)})) == ["lice", "louse"]


def test_distances_by_hand(wordnet):
    names = [["sofa", "unicorn"], ["chair"], ["bird"], ["light", "couch"], ["unicorn"]]
    assert class_distances(names, wordnet).tolist() == [
        [0, 2, 4, 0, UNKNOWN],
        [2, 0, 4, 2, UNKNOWN],
        [4, 4, 0, 3, UNKNOWN],
        [0, 2, 3, 0, UNKNOWN],
        [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 0],
    ]


def test_distances_are_those_of_a_search_through_the_graph(wordnet):
    links = {offset: set(above) for offset, (_, above) in SYNSETS.items()}
    for offset, (_, above) in SYNSETS.items():
        for parent in above:
            links[parent].add(offset)

    def search(start, end):
        queue, reached = deque([(start, 0)]), {start}
        while queue:
            one, steps = queue.popleft()
            if one == end:
                return steps
            queue.extend((other, steps + 1) for other in links[one] - reached)
            reached |= links[one]

    names = [["sofa"], ["chair"], ["bird"], ["machine"], ["brightness"], ["lamp"]]
    distances = class_distances(names, wordnet)
    for i, j in itertools.combinations(range(len(names)), 2):
        ends = (name_synset(names[k][0], wordnet) for k in (i, j))
        assert distances[i, j] == distances[j, i] == search(*ends)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("data.noun", None, "data.noun is missing: give the folder of WordNet's database"),
        ("data.noun", "00000100 03 n 01 entity 0 002 @ 1 n 0\n", "data.noun.*no line of WordNet"),
        ("index.noun", "sofa n 2 1 @ 2 1 00000140\n", "index.noun.*no line of WordNet"),
        (
            "index.noun",
            "sofa n 1 1 @ 1 1 00000999\n",
            '"sofa" in synset 999, which data.noun lacks',
        ),
    ],
)
def test_broken_files_are_named(tmp_path, file, text, message):
    path = write_wordnet(tmp_path) / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_wordnet(tmp_path)


def test_a_class_without_anything_in_common_is_unknown():

    apart = WordNet({"a": (1,), "b": (2,)}, {1: (), 2: ()}, {})
    assert class_distances([["a"], ["b"]], apart)[0, 1] == UNKNOWN
    assert class_distances([["x"]], apart).tolist() == [[0]]
    assert np.array_equal(class_distances([["a"], ["a"]], apart), np.zeros((2, 2)))
