"""FC-CLIP's lists of names: the classes stay the data set's, their names are the file's, letter by letter."""

from __future__ import annotations

import pytest

from clipself_seg.data.vocabulary import (
    Vocabulary,
    VocabularyClass,
    load_vocabulary,
    read_label_file,
)
from clipself_seg.errors import InputError

OWN = Vocabulary(
    "own",
    (
        VocabularyClass(("cat",), 5, isthing=True, catseg_name="a cat"),
        VocabularyClass(("sky",), 7, isthing=False),
    ),
)


def read(folder, text, vocabulary=OWN):
    path = folder / "words_with_prompt_eng.txt"
    path.write_text(text)
    return read_label_file(path, vocabulary)


def test_as_many_rows_as_classes_are_in_order(tmp_path):
    words = read(tmp_path, "0:invalid_class_id\n1:Cat, kitty\n\n2:sky,clouds,sky-other\n")
    assert [entry.names for entry in words.classes] == [
        ("Cat", "kitty"),
        ("sky", "clouds", "sky-other"),
    ]
    assert words.name == "words_with_prompt_eng" and words.thing.tolist() == [True, False]
    assert words.dataset_id_to_index == {5: 0, 7: 1} and words.classes[0].catseg_name is None


def test_of_more_rows_that_of_the_class_counts(tmp_path):
    words = read(tmp_path, "7:clouds\n6:dog\n5:kitty\n8:grass\n")
    assert words.names == ("kitty", "clouds")


@pytest.mark.parametrize(
    "text, message",
    [
        ("1:cat\n", "has 1 classes, which are not the 2 of own"),
        ("1:cat\n2:sky\n7:clouds\n", r"not the 2 of own \(there is none of number 5\)"),
        ("1:cat\n2 sky\n", 'line 2: "2 sky" is not of the form "7:dog,puppy"'),
        ("1:cat\n2:sky,,blue\n", "line 2"),
        ("1:cat\n1234567890:sky\n", "line 2"),
        ("1:cat\n1:sky\n", "line 2: the number 1 is there already"),
        ("0:invalid_class_id\n", "has no class"),
    ],
)
def test_other_files_are_refused_by_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)
    with pytest.raises(InputError, match="label file .*none.txt is missing"):
        read_label_file(tmp_path / "none.txt", OWN)


def test_a_built_in_list_written_as_a_label_file_comes_back(tmp_path):
    own = load_vocabulary("openseg_cityscapes_19")
    lines = [f"{index}:{','.join(entry.names)}" for index, entry in enumerate(own.classes)]
    assert read(tmp_path, "\n".join(lines), own).classes == own.classes
