"""Tests of `clipself_seg.schema` and of `known`: a user's values are what they have to be, or refused."""

import pytest

from clipself_seg.errors import InputError, known
from clipself_seg.schema import COUNT, FLAG, NUMBER, TEXT, WHOLE, Each, check, one_of, texts

IMAGES = {"images": [{"id": WHOLE, "file_name?": TEXT}], "info?": {"scale": NUMBER}}


@pytest.mark.parametrize(
    "content, said",
    [
        ([], "a.json is [], and has to be an object: correct it"),
        ({}, "a.json: images is missing, and has to be a list"),
        ({"images": {}}, "a.json: images is {}, and has to be a list"),
        ({"images": [{"id": 1}, 2]}, "a.json: images[1] is 2, and has to be an object"),
        ({"images": [{"id": True}]}, "a.json: images[0].id is True, and has to be a whole number"),
        ({"images": [{"id": 1, "file_name": None}]}, "images[0].file_name is None, and has to be"),
        ({"images": [], "info": {"scale": float("nan")}}, "info.scale is nan, and has to be a fin"),
        ({"images": [], "info": {"scale": 10**400}}, "info.scale is of type int, and has to be"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place_and_the_way_out(content, said):
    with pytest.raises(InputError) as caught:
        check(content, IMAGES, "a.json")
    assert said in str(caught.value)


def test_what_fits_passes_with_keys_that_nobody_asks_for():
    content = {"images": [{"id": 1}, {"id": 2, "file_name": "a", "more": [1]}], "x": 1}
    check(content, IMAGES, "a.json")
    check({3: ["a"], 5: []}, Each(WHOLE, texts()), "a.yaml")


@pytest.mark.parametrize(
    "content, schema, said",
    [
        ({"a": "b"}, Each(WHOLE, TEXT), "with the key 'a', and has to be an object in which each"),
        ({3: 1}, Each(WHOLE, TEXT), "names.3 is 1, and has to be text"),
        (-1, COUNT, "names is -1, and has to be a whole number from 0 on"),
        (1, FLAG, "names is 1, and has to be true or false"),
        (2, one_of(0, 1, "all"), "names is 2, and has to be 0 or 1 or 'all'"),
        (["a", 1], texts("names"), "names is ['a', 1], and has to be a list of names"),
    ],
)
def test_kinds_and_keys_are_checked(content, schema, said):
    with pytest.raises(InputError) as caught:
        check(content, schema, "a.yaml", "leave it out", place="names")
    assert said in str(caught.value) and str(caught.value).endswith(": leave it out")


def test_an_unknown_name_is_refused_with_the_nearest_one():
    assert known("panoptic", ["panoptic", "semantic"], "task") == "panoptic"
    with pytest.raises(InputError, match='a.yaml: unknown task "pnoptic": did you mean "pan'):
        known("pnoptic", ["panoptic", "semantic"], "task", origin="a.yaml", hint=", or so")
    with pytest.raises(InputError, match=r"unknown task \[1\]: choose from: panoptic"):
        known([1], ["panoptic"], "task")
