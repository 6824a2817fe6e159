"""Examples of classes: regions of images that somebody types or passes, and that no file can name."""

import json

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.examples import LARGEST_SIDE, as_example, read_example
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture
def path(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a=b#c.png")
    return str(tmp_path / "a=b#c.png")


def test_a_region_is_a_box_a_mask_or_the_whole_image(tmp_path, path, pixels):
    inside = np.zeros((60, 80), bool)
    inside[20:50, 10:50] = True
    Image.fromarray(inside.astype(np.uint8)).save(tmp_path / "mask.png")
    box = as_example(f"{path}#10,20,40,30")
    assert (box.pixels == np.dstack([pixels, 255 * inside])).all()
    forms = [f"{path}#{tmp_path / 'mask.png'}", (pixels, inside)]
    forms += [(Image.fromarray(pixels), [10, 20, 40, 30]), (path, (9.5 + 0.5, 20, 40, 30))]
    assert {as_example(form) for form in forms} == {box}
    assert as_example(path).pixels[..., 3].all() and as_example(path) != box
    assert as_example(f"{path}#-5,-5,95.4,90") == as_example(path)  # cut at the border
    assert as_example((pixels[::-1], [10, 20, 40, 30])) != box
    column = np.array([[True], [False], [False], [True]])  # numbers of a box, by NumPy before 2.4
    assert (as_example((pixels[:4, :1], column)).pixels[..., 3] == 255 * column).all()


def test_of_a_large_image_the_surroundings_are_kept(pixels):
    image = np.tile(pixels, (40, 40, 1))
    small = as_example((image, [1000, 700, 30, 20]))
    assert small.pixels.shape == (120, 120, 4) and (small.pixels[..., 3] > 0).sum() == 600
    assert as_example((image, [0, 0, 1, 1])).pixels.shape == (4, 4, 4)
    assert max(as_example((image, None)).pixels.shape) == LARGEST_SIDE


@pytest.mark.parametrize(
    "region, said",
    [
        ("100,20,40,30", "no pixel"),
        ("10,20,0,30", "no box x,y,w,h"),
        ("1,2,3", "no box x,y,w,h"),
        ("none.png", '"none.png" is no file of masks, and no box'),
        ("", '"" is no file of masks'),
    ],
)
def test_a_region_that_is_none_is_refused(path, region, said):
    with pytest.raises(InputError, match=said):
        as_example(f"{path}#{region}")


def test_an_empty_mask_is_refused_without_its_numbers():
    image = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(InputError, match="an image of 30 x 20 has no pixel in the region$"):
        as_example((image, np.zeros((20, 30), bool)))


def test_an_example_that_is_none_is_refused(tmp_path, pixels):
    (tmp_path / "text.jpg").write_text("no image")
    forms = [
        str(tmp_path / "text.jpg"),
        "none.jpg#1,2,3,4",
        3,
        ("a", None, 3),
        (pixels[..., 0], None),
        ("", None),
    ]
    for form in [*forms, (pixels.astype(float), [1, 2, 3, 4])]:
        with pytest.raises(InputError):
            as_example(form)
    for text in ("ref.jpg", "=ref.jpg", "screw=", ""):
        with pytest.raises(InputError, match="NAME=IMAGE#REGION"):
            read_example(text)
    assert read_example("screw = a=b.jpg#1,2,3,4") == ("screw", "a=b.jpg#1,2,3,4")


def test_a_name_of_the_words_is_mixed_with_them_and_another_one_is_a_class(path):
    words = Vocabulary.of("dog|puppy, grass")
    box, other = f"{path}#10,20,40,30", f"{path}#1,2,30,30"
    given = words.with_examples({"Puppy": [box], "screw|bolt": [box, other, box]})
    assert given.first_names == ("dog", "grass", "screw") and given != words
    assert [entry.dataset_id for entry in given.classes] == [0, 1, 2]
    assert [entry.names for entry in given.worded] == [("dog", "puppy"), ("grass",)]
    mixed, alone = given.examples
    assert mixed.names == ("dog", "puppy") and mixed.weight == 0.75 and len(mixed.examples) == 1
    assert alone.names == ("screw", "bolt") and alone.weight == 1 and len(alone.examples) == 2
    more = given.with_examples({"bolt": [path]})
    assert len(more.classes) == 3 and len(more.examples[1].examples) == 3
    assert more.examples[1].weight == 1
    assert words.with_examples({"dog": [box]}, weight=0.5).examples[0].weight == 0.5
    assert given == words.with_examples({"puppy": [box], "screw|bolt": [box, other]})
    alone = Vocabulary("custom", ()).with_examples({"screw": [box]})
    assert alone.first_names == ("screw",) and alone.classes[0].dataset_id == 0


@pytest.mark.parametrize(
    "examples, weight, said",
    [
        ({"dog": []}, 1, "needs a list"),
        ({"dog": "a.jpg"}, 1, "needs a list"),
        ({"dog": ["none.jpg#1,2,3,4"]}, 1, "dog.: image none.jpg is missing: .* or leave it out$"),
    ],
)
def test_examples_that_are_none_are_refused(examples, weight, said):
    with pytest.raises(InputError, match=said):
        Vocabulary.of("dog, grass").with_examples(examples, weight)


def test_no_vocabulary_file_has_examples(tmp_path, path):
    text = f"screw={path}#10,20,40,30"
    (tmp_path / "words.txt").write_text(text.partition("#")[0])
    words = Vocabulary.of(str(tmp_path / "words.txt"))
    assert words.first_names == (text.partition("#")[0],) and not words.examples
    content = {"classes": [{"names": ["screw"]}], "examples": [["screw", [text]]]}
    for wrong in (content, {"classes": [{"names": ["screw"], "examples": [text]}]}):
        (tmp_path / "words.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match='unknown key "examples"'):
            Vocabulary.load(tmp_path / "words.json")
