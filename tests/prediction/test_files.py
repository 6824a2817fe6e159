"""Images below files and folders: their names, and the ids that COCO's files give them."""

import pytest

from clipself_seg.errors import InputError
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


def test_images_of_one_folder_have_results_of_different_names(tmp_path):
    names = ("a.jpg", "a.png", "a.png.jpg", "a.png.jpg.bmp", "b.png.jpg", "c.jpg")
    for name in names:
        (tmp_path / name).touch()
    named = [image.name for image in find_images([tmp_path], tmp_path / "out").images]
    assert sorted(named) == [*names[:4], "b.png", "c"]


def test_an_output_that_is_a_link_to_itself_is_left_to_who_writes(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.jpg").touch()
    assert len(find_images([tmp_path / "a.jpg"], tmp_path / "loop").images) == 1


def test_folders_are_searched_and_nothing_is_taken_twice(tmp_path):
    for name in ("b.jpg", "sub/b.jpg", "b.png", "note.txt", ".hidden.jpg", "out/overlays/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path, tmp_path / "b.jpg", tmp_path / "gone"], tmp_path / "out")
    assert sorted(image.name for image in found.images) == ["b.jpg", "b.png", "sub/b"]
    assert found.failed == {str(tmp_path / "gone"): "no such file or folder"}


def test_results_of_an_earlier_call_are_no_images_and_are_named(tmp_path, caplog):
    for name in ("a.jpg", "old/overlays/a.png", "old/.predict.jsonl", "out/.predict.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(folder):
        return [image.name for image in find_images([folder], tmp_path / "out").images]

    assert names(tmp_path) == ["a"]
    assert caplog.messages == [f"{tmp_path / 'old'} holds results of predict, and is left out"]
    assert names(tmp_path / "old") == ["overlays/a"]  # it is named


def test_links_to_nothing_are_failures(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").touch()
    for name, target in (("dead.jpg", "gone"), ("loop.jpg", "loop.jpg"), ("dead.txt", "gone")):
        (tmp_path / "in" / name).symlink_to(target)
    found = find_images([tmp_path / "in"], tmp_path / "out")
    assert [image.name for image in found.images] == ["a"]
    failed = {str(tmp_path / "in" / name) for name in ("dead.jpg", "loop.jpg")}
    assert set(found.failed) == failed and set(found.failed.values()) == {"a link to nothing"}


@pytest.mark.parametrize(
    "inputs, output, message",
    [
        (["empty"], "out", "no images: "),
        (["x"], "x", "is both input and output"),
        (["x/a.jpg", "y/a.jpg"], "out", "x/a.jpg and .*y/a.jpg would write results under"),
    ],
)
def test_inputs_without_clear_results_are_refused(tmp_path, inputs, output, message):
    for name in ("empty", "x", "y"):
        (tmp_path / name).mkdir()
    for name in ("x/a.jpg", "y/a.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        find_images([tmp_path / name for name in inputs], tmp_path / output)


def test_videos_are_taken_by_name_and_not_out_of_folders(tmp_path):
    for name in ("in/a.mp4", "in/b.png", "a.MOV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    given = ([tmp_path / "in", tmp_path / "a.MOV"], tmp_path / "out")
    files = find_images(*given, videos=True)
    assert [image.name for image in files.images] == ["b"]
    assert [(video.name, video.file_name) for video in files.videos] == [("a", "a.MOV")]
    assert [image.name for image in find_images(*given).images] == ["b", "a"]
