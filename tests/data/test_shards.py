"""Shards: tar files are read safely, and their images in an order that seed and readers decide."""

import io
import json
import os
import pickle
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest

from clipself_seg.data import shards as shard_reader
from clipself_seg.data.images import decode_image
from clipself_seg.data.shards import ShardStream, is_shards, shard_images, shards_of
from clipself_seg.errors import InputError, MissingPackage
from tests.shards import encoded, samples, write_shard, write_shards


@pytest.mark.parametrize(
    "name, paths",
    [
        ("wds:/a/{08..10}.tar", ["/a/08.tar", "/a/09.tar", "/a/10.tar"]),
        ("wds:a{1..2}x{9..10}", ["a1x9", "a1x10", "a2x9", "a2x10"]),
        ("wds:a.tar", ["a.tar"]),
    ],
)
def test_braces_count_as_those_of_webdataset(name, paths):
    assert shards_of([name, "wds:b"]) == [*paths, "b"]
    assert is_shards(name) and not is_shards("coco_2017_train") and not is_shards(3)


@pytest.mark.parametrize(
    "name, message",
    [
        ("wds:", "'wds:': give 1 to"),
        ("wds:a{0..99999}{0..99999}", "give 1 to 2000000 files"),
        ("wds:a{0..9.tar", "give 1 to"),
        ("wds:https://a/{0..1}.tar", "give .* files on this machine"),
        ("wds:pipe:touch ran", "has 'wds:pipe:touch ran': .* no address and no command"),
    ],
)
def test_what_stands_for_no_files_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        shards_of([name])


def test_without_the_package_one_sentence_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(MissingPackage, match=r'needs it: pip install "clipself_seg\[webdataset\]"'):
        ShardStream([write_shard(tmp_path / "s.tar", samples(range(1)))], batch_size=1, seed=0)


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
    ("folder/" * 30 + "ä.webp", b"4"),
]


@pytest.mark.parametrize(
    "style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_the_first_image_of_files_that_follow_each_other_with_one_name_is_read(tmp_path, style):
    with tarfile.open(tmp_path / "s.tar", "w", format=style) as archive:
        for name, content in FILES:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    images = shard_images(str(tmp_path / "s.tar"))
    whole = [image.record() for image in images if not image.trouble]
    names = ["a/1.jpg", "2.JPG", "b/2.jpg", "folder/" * 30 + "ä.webp"]
    assert [record["image_id"] for record in whole] == names
    assert [record["content"] for record in whole] == [b"1", b"2", b"in another folder", b"4"]
    assert whole[0]["file_name"] == f"{tmp_path}/s.tar/a/1.jpg"
    assert [image.trouble for image in images if image.trouble] == [
        "it has no image (jpg, png, jpeg, webp)"
    ]


def test_links_folders_devices_and_sparse_files_are_passed_over_and_nothing_is_written(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
        for kind in (*kinds, tarfile.GNUTYPE_SPARSE):
            member = tarfile.TarInfo("link.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name in ("../up.jpg", "/root.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    assert [image.name for image in shard_images(str(tmp_path / "s.tar"))] == [
        "../up.jpg",
        "/root.jpg",
    ]
    assert os.listdir(tmp_path) == ["s.tar"] and not (tmp_path.parent / "up.jpg").exists()


class Trap:
    """What creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_beside_an_image_are_not_decoded(tmp_path):
    trap = pickle.dumps(Trap(str(tmp_path / "ran")))
    files = [(f"0000.{ending}", trap) for ending in ("pyd", "pickle", "pkl", "pth", "npy")]
    shard = write_shard(tmp_path / "s.tar", [*files, ("0000.jpg", encoded(0))])
    assert names(read(stream([shard], batch_size=1), stop=1)) == ["0000.jpg"]
    assert not (tmp_path / "ran").exists()


def header(**fields):
    """One header of tarfile's with some fields replaced, and the right checksum."""
    data = bytearray(tarfile.TarInfo("1.jpg").tobuf(tarfile.USTAR_FORMAT))
    places = {"size": (124, 12), "kind": (156, 1)}
    for name, value in fields.items():
        start, length = places[name]
        data[start : start + length] = value.ljust(length, b"\0")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


FIRST = tarfile.TarInfo("first.jpg").tobuf()


@pytest.mark.parametrize(
    "data",
    [
        header()[:300],
        header(size=b"-1"),
        header(size=b"77777777777"),
        header(kind=b"L", size=b"77777777777"),
        header(kind=b"L") * 5000,
        header(kind=b"x", size=b"12") + b"10 size=-9" + bytes(502),
    ],
)
def test_what_is_in_front_of_a_damaged_header_counts(tmp_path, data):
    (tmp_path / "s.tar").write_bytes(FIRST + data)
    first, *_, damage = shard_images(str(tmp_path / "s.tar"))
    assert (first.name, first.trouble) == ("first.jpg", "")
    with pytest.raises(InputError, match="s.tar: .*; what follows in it is left out"):
        damage.record()


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_header_of_any_size_is_not_read_into_memory(tmp_path, kind):
    (tmp_path / "s.tar").write_bytes(header(kind=kind, size=b"00000200001"))
    os.truncate(tmp_path / "s.tar", 2**20)
    assert "it has a header of 66048 bytes" in shard_images(str(tmp_path / "s.tar"))[0].trouble


def test_a_compressed_shard_is_not_unpacked_and_an_empty_one_has_no_samples(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.jpg"))
    (damage,) = shard_images(str(tmp_path / "s.tar"))
    assert "what follows in it is left out" in damage.trouble
    with tarfile.open(tmp_path / "e.tar", "w"):
        pass
    assert [image.trouble for image in shard_images(str(tmp_path / "e.tar"))] == [
        "it has no samples"
    ]


def test_large_images_long_names_and_shards_without_end_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_reader, "MAX_BYTES", 3)
    monkeypatch.setattr(shard_reader, "MAX_NAME", 9)
    monkeypatch.setattr(shard_reader, "MOST_MEMBERS", 5)
    files = [("1.jpg", b"1234"), ("2.jpg", b"123"), ("3456789.jpg", b""), *[("4.txt", b"")] * 9]
    large, small, none, damage = shard_images(write_shard(tmp_path / "s.tar", files))
    with pytest.raises(InputError, match="s.tar/1.jpg: it has 4 bytes, more than 3"):
        large.record()
    assert small.record()["content"] == b"123"
    assert "no image" in none.trouble and "more than 5 files; what" in damage.trouble


def test_a_file_that_is_missing_cut_off_or_no_file_is_refused(tmp_path):
    shard = tmp_path / "s.tar"
    write_shard(shard, [("1.jpg", b"1" * 600)])
    with pytest.raises(InputError, match="1 of 2 shards are missing, such as .*gone.tar"):
        ShardStream([str(shard), str(tmp_path / "gone.tar")], batch_size=1, seed=0)
    with pytest.raises(InputError, match="gone.tar cannot be read"):
        shard_images(str(tmp_path / "gone.tar"))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match="1.jpg ends too early: its shard is damaged"):
        shard_images(str(shard))[0].record()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="a pipe or a device"):
        shard_images(str(tmp_path / "fifo"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


def mapper(record, draw):
    pixels = decode_image(record["content"], record["file_name"])
    if len(pixels) < 10:
        raise InputError(f"{record['file_name']} is tiny")
    return {"name": record["image_id"], "draw": draw, "sum": int(pixels.sum())}


def stream(shards, batch_size=2, seed=0):
    return ShardStream(shards, batch_size=batch_size, seed=seed)


def read(source, start=0, stop=6, rank=0, processes=1, workers=0):
    """Samples of each step."""
    steps = range(start, stop)
    return list(source.batches(mapper, steps, rank=rank, processes=processes, workers=workers))


def names(batches):
    return [sample["name"] for batch in batches for sample in batch]


EVERY = {f"{n:04d}.jpg" for n in range(12)}


def test_an_epoch_has_each_image_once_and_the_next_another_order(shards):
    batches = read(stream(shards), stop=12)
    first, second = names(batches[:6]), names(batches[6:])
    assert set(first) == set(second) == EVERY and first != second
    assert names(read(stream(shards, seed=1))) != first
    assert [s["draw"] for batch in batches for s in batch] == list(range(24))
    assert [batch[0]["iteration"] for batch in batches] == list(range(12))
    inside = [[int(name[:4]) % 3 for name in first[n : n + 3]] for n in range(0, 12, 3)]
    assert any(order != sorted(order) for order in inside)  # images of a shard are permuted too


def test_readers_have_disjoint_parts_and_draws_of_their_own(shards):
    parts = [read(stream(shards, batch_size=6), stop=2, rank=rank, processes=2) for rank in (0, 1)]
    parts_of_workers = [
        read(stream(shards, batch_size=6), stop=2, rank=rank, processes=2, workers=2)
        for rank in (0, 1)
    ]
    for both in (parts, parts_of_workers):
        assert {*names(both[0]), *names(both[1])} == EVERY
        draws = [sample["draw"] for part in both for batch in part for sample in batch]
        assert sorted(draws) == list(range(12))
        assert [batch[0]["iteration"] for batch in both[1]] == [0, 1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 2, 5])
def test_a_resumed_stream_goes_on_where_the_first_one_stopped(shards, workers, done):
    for rank in (0, 1):
        how = {"rank": rank, "processes": 2, "workers": workers}
        whole = read(stream(shards, batch_size=4), stop=9, **how)
        source, at = stream(shards, batch_size=4), 0
        for stop in (done, 7, 9):  # resumed twice
            assert read(source, start=at, stop=stop, **how) == whole[at:stop]
            states = json.loads(json.dumps([source.state(stop)] * 2))
            source, at = stream(shards, batch_size=4), stop
            source.load_states(states, rank)
            assert source.state(stop) == states[rank]  # a checkpoint before the first of its steps


@pytest.mark.parametrize("done", [2, 3])
def test_the_states_in_front_of_the_latest_two_steps_are_kept(shards, done):
    whole = read(stream(shards), stop=6)
    stopped = stream(shards)
    assert names(read(stopped, stop=4)) == names(whole[:4])
    again = stream(shards)
    again.load_states([stopped.state(done)], rank=0)
    assert read(again, start=done) == whole[done:]


def test_a_resumed_stream_opens_no_shard_that_is_behind_it(shards, monkeypatch):
    opened = []
    images = shard_reader.shard_images
    monkeypatch.setattr(
        shard_reader, "shard_images", lambda shard: opened.append(shard) or images(shard)
    )
    first = stream(shards, batch_size=1)
    read(first, stop=10)  # each of four shards has three
    resumed = stream(shards, batch_size=1)
    resumed.load_states([first.state(10)], rank=0)
    opened.clear()
    read(resumed, start=10, stop=12)
    assert len(opened) == 1


def broken(tmp_path):
    """Three shards, some images of which cannot be used."""
    cut = encoded(1)[:300]
    write_shard(tmp_path / "0.tar", [*samples(range(4)), ("bad.jpg", cut), ("none.txt", b"")])
    write_shard(tmp_path / "1.tar", [*samples(range(4, 8)), ("small.jpg", encoded(2, side=9))])
    path = tmp_path / "2.tar"
    write_shard(path, samples(range(8, 12)))
    # Cut off in the last image.
    path.write_bytes(path.read_bytes()[: shard_images(str(path))[-1].start + 700])
    return [str(tmp_path / f"{n}.tar") for n in range(3)]


@pytest.mark.parametrize("named", [2, 20])
def test_what_cannot_be_used_is_passed_over_named_and_counted(tmp_path, caplog, monkeypatch, named):
    monkeypatch.setattr(shard_reader, "MOST_NAMED", named)
    shards = broken(tmp_path)
    source = stream(shards, batch_size=1)
    one = read(source, stop=22)  # two epochs of eleven
    assert set(Counter(names(one)).values()) == {2} and set(names(one)) == EVERY - {"0011.jpg"}
    said = [record.getMessage() for record in caplog.records if "left out: " in record.getMessage()]
    # Of the second epoch at least those in front of its last image.
    assert 5 <= source.unusable <= 10 and len(said) == min(named, source.unusable)
    for text in (
        "bad.jpg cannot be decoded",
        "small.jpg is tiny",
        "0.tar/none: it has no image",
        "0011.jpg ends too early",
        "2.tar: unexpected end of data; what follows in it is left out",
    ):
        assert named == 2 or any(text in line for line in said)
    assert read(stream(shards, batch_size=1), stop=22, workers=1) == one
    others = stream(shards, batch_size=1)
    others.load_states([source.state(22), {"positions": {}, "unusable": 3}], rank=0)
    assert others.unusable == source.unusable + 3
    others.load_states([{"positions": {}, "unusable": 3}] * 2, rank=1)
    assert others.unusable == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_without_any_image_end_with_an_error(tmp_path, workers):
    shard = write_shard(tmp_path / "a.tar", [("a.txt", b""), ("b.jpg", b"x")])
    with pytest.raises(InputError, match="1000 images of shards in a row .*leave .*a.tar out"):
        read(stream([shard], batch_size=1), workers=workers)


def test_more_readers_than_shards_and_batches_without_equal_parts_are_refused(shards):
    with pytest.raises(InputError, match=r"4 shards are too few for 6 readers \(2 processes with "):
        read(stream(shards, batch_size=4), processes=2, workers=3)
    with pytest.raises(InputError, match="IMS_PER_BATCH 8 cannot be divided equally among 3"):
        read(stream(shards, batch_size=8), processes=3)


@pytest.mark.parametrize(
    "states",
    [
        [],
        [{"positions": {"0": [0, -1, 0]}, "unusable": 0}],
        [{"positions": {"0": [0, 0, 0, 0]}, "unusable": 0}],
    ],
)
def test_a_checkpoint_that_does_not_say_where_it_was_is_refused(shards, states):
    with pytest.raises(InputError, match="the readers of shards in the checkpoint.* has to be"):
        stream(shards).load_states(states, rank=0)


def test_the_global_generators_are_left_alone(shards):
    before = np.random.get_state()[1].tolist()
    read(stream(shards))
    assert np.random.get_state()[1].tolist() == before
