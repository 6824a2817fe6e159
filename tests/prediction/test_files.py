"""Images below files and folders: their names, and the ids that COCO's files give them."""

from __future__ import annotations

from clipself_seg.prediction.files import ImageFile, find_images, image_ids
from tests.conftest import ROOT


def test_image_ids_are_the_numbers_of_the_files_or_count():
    def ids(*names):
        return image_ids([ImageFile(ROOT / name, name) for name in names])

    assert ids("000139.jpg", "a/000285.png") == [139, 285]
    assert ids("7.jpg", "dog.jpg") == [1, 2] == ids("7.jpg", "007.png")


def test_results_of_an_image_are_not_called_like_a_folder_of_others(tmp_path):
    (tmp_path / "x.png").mkdir()
    for name in ("x.jpg", "x.png/y.jpg", "z.jpg"):
        (tmp_path / name).touch()
    named = {image.name for image in find_images([tmp_path], tmp_path / "out").images}
    assert named == {"x.jpg", "x.png/y", "z"}


def test_an_output_that_is_a_link_to_itself_is_left_to_who_writes(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.jpg").touch()
    assert len(find_images([tmp_path / "a.jpg"], tmp_path / "loop").images) == 1
