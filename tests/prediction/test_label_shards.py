"""Labels of a part come back, and a damaged file is made again."""

from __future__ import annotations

import json

import pytest

from clipself_seg.errors import InputError
from clipself_seg.prediction.label_shards import LabelShards


def test_labels_of_the_same_images_and_settings_come_back(tmp_path):
    shards = LabelShards(tmp_path / "parts", {"weights": "a"})
    assert shards.read(0, [3, "b"]) is None
    shards.write(0, [3, "b"], [[(1, 0.5)], []])
    assert shards.read(0, [3, "b"]) == [[(1, 0.5)], []] and shards.read(0, [3]) is None
    with pytest.raises(InputError, match="interrupted run with other weights"):
        LabelShards(tmp_path / "parts", {"weights": "b"}).read(0, [3, "b"])


@pytest.mark.parametrize("settings", [None, 3, "text", ["text"]])
def test_settings_of_another_type_are_damage(tmp_path, settings):
    content = {"settings": settings, "image_ids": [3], "labels": [[]]}
    (tmp_path / "000000.json").write_text(json.dumps(content))
    assert LabelShards(tmp_path, {"weights": "a"}).read(0, [3]) is None
