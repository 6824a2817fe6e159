"""Samples of a shard as webdataset groups them, and what is wrong with some."""

from __future__ import annotations

import os

import pytest

from clipself_seg.data.shards import ShardImage, require_shards, shard_images
from clipself_seg.errors import InputError
from tests.shards import samples, write_shard

FILES = [
    ("a/1.txt", b"one"),
    ("a/1.jpg", b"1"),
    ("a/1.seg.png", b"not the image"),
    ("2.png", b"2png"),
    ("2.JPG", b"2"),
    ("b/2.jpg", b"in another folder"),
    ("b/2.jpg", b"twice"),
    ("README", b"no sample"),
    ("3.json", b"{}"),
    ("4.webp", b"4"),
]
NAMES = ["a/1.jpg", "2.JPG", "b/2.jpg", "b/2.jpg", "3", "4.webp"]


def contents(shard):
    return [i.record()["content"] for i in shard_images(shard) if not i.trouble]


@pytest.mark.parametrize("pipe", [False, True])
def test_files_that_follow_each_other_with_one_name_are_a_sample(tmp_path, pipe):
    shard = write_shard(tmp_path / "s.tar", FILES)
    shard = f"pipe:cat {shard}" if pipe else shard
    images = list(shard_images(shard))
    assert [image.name for image in images] == NAMES
    assert [image.trouble for image in images if image.trouble] == [
        "it has no image (jpg, png, jpeg, webp)"
    ]
    assert contents(shard) == [b"1", b"2", b"in another folder", b"twice", b"4"]
    record = images[0].record()
    assert record["file_name"] == f"{shard}/a/1.jpg" and record["image_id"] == "a/1.jpg"


def test_samples_are_those_of_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    shard = write_shard(tmp_path / "s.tar", samples(range(4)))
    theirs = [
        (sample["__key__"], sample["jpg"])
        for sample in webdataset.WebDataset(shard, shardshuffle=False)
    ]
    ours = [(i.name.removesuffix(".jpg"), i.record()["content"]) for i in shard_images(shard)]
    assert ours == theirs and len(ours) == 4
    with webdataset.TarWriter(str(tmp_path / "t.tar")) as writer:
        for key, content in theirs:
            writer.write({"__key__": key, "jpg": content, "json": b"{}"})
    assert contents(str(tmp_path / "t.tar")) == [content for _, content in theirs]


@pytest.mark.parametrize("pipe", [False, True])
def test_what_a_damaged_shard_has_in_front_counts(tmp_path, pipe):
    path = tmp_path / "s.tar"
    write_shard(path, [(f"{n}.jpg", b"x" * 600) for n in range(3)])
    path.write_bytes(path.read_bytes()[: 2 * 1536 + 512 + 100])
    images = list(shard_images(f"pipe:cat {path}" if pipe else str(path)))
    assert [image.name for image in images] == ["0.jpg", "1.jpg", ""][: len(images)]
    assert "in the middle of a file; what follows in it is left out" in images[-1].trouble
    path.write_bytes(b"")
    assert [image.trouble for image in shard_images(str(path))] == ["it has no samples"]


def test_an_image_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("clipself_seg.data.shards.MAX_BYTES", 3)
    path = write_shard(tmp_path / "s.tar", [("1.jpg", b"1234"), ("2.jpg", b"123")])
    for shard in (path, f"pipe:cat {path}"):
        first, second = shard_images(shard)
        assert first.trouble == "it has 4 bytes, more than 3" and first.content is None
        assert second.record()["content"] == b"123"


def test_a_sample_without_end_is_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("clipself_seg.data.shards.MOST_FILES", 3)
    files = [("1.jpg", b"1"), *((f"2.{number}", b"") for number in range(9))]
    first, left_out = shard_images(write_shard(tmp_path / "s.tar", files))
    assert first.name == "1.jpg" and "2' has more than 3 files; what follows" in left_out.trouble


def test_a_file_that_is_missing_or_changed_and_a_command_that_fails_are_refused(tmp_path):
    shard = write_shard(tmp_path / "s.tar", [("1.jpg", b"1")])
    require_shards([shard, "pipe:false"])
    gone = str(tmp_path / "gone.tar")
    with pytest.raises(InputError, match="1 of 2 shards are missing, such as .*gone.tar"):
        require_shards([shard, gone])
    with pytest.raises(InputError, match="gone.tar cannot be read"):
        list(shard_images(gone))
    for command in ("exit 3", f"cat {shard}; exit 3", f"head -c 600 {shard}; exit 3"):
        with pytest.raises(InputError, match="ended with status 3"):
            list(shard_images(f"pipe:{command}"))
    with pytest.raises(InputError, match="1.jpg ends too early: has its shard been replaced"):
        ShardImage(shard, "1.jpg", start=512, size=10**6).record()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="a pipe or a device"):
        list(shard_images(str(tmp_path / "fifo")))


def test_a_command_that_is_not_read_to_its_end_is_ended():
    images = shard_images("pipe:cat /dev/zero")
    assert "no samples" in next(shard_images("pipe:head -c 2000 /dev/zero")).trouble
    images.close()
