"""Images below files and folders: the ids that COCO's files give them."""

from __future__ import annotations

from clipself_seg.prediction.files import ImageFile, image_ids
from tests.conftest import ROOT


def test_image_ids_are_the_numbers_of_the_files_or_count():
    def ids(*names):
        return image_ids([ImageFile(ROOT / name, name) for name in names])

    assert ids("000139.jpg", "a/000285.png") == [139, 285]
    assert ids("7.jpg", "dog.jpg") == [1, 2] == ids("7.jpg", "007.png")
