"""Captions and their noun phrases are read for training."""

from __future__ import annotations

import json

import pytest

from clipself_seg.data.captions import caption_records, read_phrases
from clipself_seg.errors import InputError


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_id": [3], "phrases": ["a dog"]},
        {"image_id": 3, "phrases": ["a dog", 7]},
        {"image_id": 3, "phrases": "a dog"},
    ],
)
def test_phrases_are_lists_of_texts_by_image(tmp_path, wrong):
    path = tmp_path / "captions.json"
    phrases = [(3, ["a dog"]), (4, []), (3, ["grass", "sky"])]
    entries = [{"image_id": image, "phrases": listed} for image, listed in phrases]
    path.write_text(json.dumps({"annotations": entries}))
    assert read_phrases(path) == {3: [["a dog"], ["grass", "sky"]], 4: [[]]}
    path.write_text(json.dumps({"annotations": [*entries, wrong]}))
    with pytest.raises(InputError, match="captions.json.*prepare.py coco_captions") as caught:
        read_phrases(path)
    assert repr(wrong) in str(caught.value)


def write_captions(path, *annotations):
    images = [{"id": index, "file_name": f"{index}.jpg"} for index in (1, 2)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_records_have_all_captions_of_their_image_and_images_without_are_left_out(tmp_path, caplog):
    captions = [{"image_id": 2, "caption": text} for text in ("A dog. \n", " ", "Grass")]
    (record,) = caption_records(write_captions(tmp_path / "c.json", *captions), "train")
    assert record == {"file_name": "train/2.jpg", "image_id": 2, "captions": ["A dog.", "Grass"]}
    assert "1 of 2 images have no caption and are left out" in caplog.text


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            {"image_id": 1, "bbox": [0, 0, 1, 1]},
            'has no "caption", or of another type than str: give',
        ),
        ({"image_id": 1, "caption": ["a dog"]}, 'has no "caption"'),
        ({"image_id": 9, "caption": "a dog"}, 'image 9, which is not in "images"'),
        ({"image_id": 1, "caption": ""}, "no image has a caption"),
    ],
)
def test_files_without_captions_are_refused(tmp_path, annotation, message):
    with pytest.raises(InputError, match=f"c.json.*{message}"):
        caption_records(write_captions(tmp_path / "c.json", annotation), "train")
