"""Text embeddings of classes with examples: on the scale of words, whatever image and vocabulary they are from."""

import numpy as np
import pytest
import torch

import clipself_seg
from clipself_seg.clip import TextBank, load_clip
from clipself_seg.clip.example_embeddings import _reading
from clipself_seg.clip.text_bank import ClassTexts
from clipself_seg.data.examples import as_example
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from lab.mini.concepts import WORLDS
from lab.mini.writer import scene_of

WORDS = "lawn, sea, marble, road, red heart"


def scenes(split, count):
    """Images with lava, and where it is."""
    found = []
    for index in range(30):
        scene = scene_of(WORLDS["mini2"], split, index, 0)
        lava = [one.id for one in scene.segments if one.concept.names == ("lava",)]
        if lava and (mask := scene.segment_map == lava[0]).mean() > 0.1:
            found.append((scene.image, mask))
    return found[:count]


@pytest.fixture(scope="module")
def examples():
    return [as_example(scene) for scene in scenes("train", 2)]


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini-clipself")


def test_an_example_alone_finds_its_class_in_other_images_and_leaves_others_to_their_words(
    examples,
):
    model = clipself_seg.load("mini-clipself")
    words = Vocabulary.of(WORDS).with_examples({"part 17": examples})
    found = []
    for image, mask in scenes("val", 3):
        labelled = model(image, words).labels == len(words) - 1
        found.append((labelled & mask).sum() / (labelled | mask).sum())
    assert np.mean(found) > 0.35
    with pytest.raises(InputError, match="words alone"):
        model.save_pretrained("nowhere")


def test_masks_of_an_example_and_of_places_are_positive_inside_and_negative_outside(examples):
    given = []

    def read(image, masks):
        given.append(masks.flatten(1))
        return torch.ones(len(masks), 4)

    _reading(examples[0], 64, torch.device("cpu"), read)
    assert all((sign * given[0] > 0).any(dim=1).all() for sign in (1, -1)) and given[0].all()


def test_classes_without_examples_keep_their_embedding_and_others_are_between_word_and_example(
    clip, examples
):
    words, bank = Vocabulary.of(WORDS), TextBank(clip)
    rows = {
        weight: bank.embed(words.with_examples({"sea": examples}, weight))
        for weight in (0.25, 0.75, 1.0)
    }
    plain = bank.embed(words)
    for embedded in rows.values():
        assert (embedded[[0, 2, 3, 4]] == plain[[0, 2, 3, 4]]).all()
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(5))
    to_word = [float(rows[weight][1] @ plain[1]) for weight in (0.25, 0.75, 1.0)]
    assert 1 > to_word[0] > to_word[1] > to_word[2]


def test_a_class_of_examples_alone_does_not_depend_on_its_name_much_nor_on_their_order(
    clip, examples
):
    bank, words = TextBank(clip), Vocabulary.of(WORDS)
    first = bank.embed(words.with_examples({"part 17": examples}))[-1]
    assert first @ bank.embed(words.with_examples({"dog": examples}))[-1] > 0.99
    torch.testing.assert_close(
        first, bank.embed(words.with_examples({"part 17": examples[::-1]}))[-1]
    )


def test_one_class_and_an_example_that_fills_its_image_have_an_embedding(clip, examples):
    image, mask = examples[0].pixels[..., :3], examples[0].pixels[..., 3]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for given in (crop, crop[:1, :1], np.tile(crop, (1, 20, 1))):
        words = Vocabulary("custom", ()).with_examples({"part 17": [(given, None)]})
        (row,) = TextBank(clip).embed(words)
        assert row.isfinite().all() and row @ TextBank(clip).embed(["part 17"])[0] < 0.99
    colour = np.full((50, 50, 3), np.array(clip.mean) * 255, np.uint8)
    words = Vocabulary("custom", ()).with_examples({"grey": [(colour, None)]})
    with pytest.raises(InputError, match='"grey" look as a plain image'):
        TextBank(clip).embed(words)


def test_all_templates_are_mixed_and_what_is_kept_is_of_these_examples_and_weights(clip, examples):
    texts = ClassTexts(load_clip("mini"), "single")
    words = Vocabulary.of(WORDS)
    names, given = words.names(), words.with_examples({"sea": examples[:1]}).examples
    plain, mixed = texts.embed(names).detach(), texts.embed(names, given)
    assert mixed.shape == plain.shape and (mixed[1] != plain[1]).any()
    assert (texts.embed(names) == plain).all() and (texts.embed(names, given) == mixed).all()
    more = words.with_examples({"sea": examples}).examples
    assert (texts.embed(names, more)[1] != mixed[1]).any()
    with torch.no_grad():
        texts.clip.visual.load_state_dict(clip.visual.state_dict())
    assert (texts.embed(names, given)[1] != mixed[1]).any()
    assert (texts.embed(names) == plain).all()
