"""Shards: tar files are read safely, and their images in an order that the seed decides."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter

import numpy as np
import pytest

from clipself_seg.data import shards as shard_reader
from clipself_seg.data.images import decode_image
from clipself_seg.data.shards import (
    Bytes,
    DamagedTar,
    ShardImage,
    ShardStream,
    members,
    require_shards,
    shard_images,
)
from clipself_seg.errors import InputError
from tests.shards import encoded, samples, write_shard, write_shards

LONG = "folder/" * 30 + "image.jpg"


class Pipe(io.BytesIO):
    """Bytes that can only be read."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise AssertionError


def tar(files, style=tarfile.USTAR_FORMAT, **changes):
    """A tar file of names and contents."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=style) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in changes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def contents(data, kind=io.BytesIO):
    source = Bytes(kind(data))
    return [(member.name, source.read(member.size)) for member in members(source)]


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
@pytest.mark.parametrize(
    "style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_members_are_those_that_were_written(kind, style):
    files = [("a/1.jpg", b"one"), ("2.txt", b""), (LONG, b"3" * 1500), ("ä.jpg", b"four")]
    assert contents(tar(files, style), kind) == files


def test_members_may_be_passed_over_unread():
    data = tar([("1", b"1" * 700), ("2", b"2"), ("3", b"3" * 513)])
    for kind in (io.BytesIO, Pipe):
        places = [(m.name, m.start, m.size) for m in members(Bytes(kind(data)))]
        assert places == [("1", 512, 700), ("2", 2048, 1), ("3", 3072, 513)]
        assert data[3072:3585] == b"3" * 513


def test_links_folders_and_devices_are_passed_over():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("link.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("own.jpg")
        archive.addfile(member)
    assert contents(content.getvalue()) == [("own.jpg", b"")]


def test_what_ends_too_early_gives_what_is_whole_first():
    data = tar([("1.jpg", b"1" * 600), ("2.jpg", b"2" * 600)])
    for kind in (io.BytesIO, Pipe):
        for end in (1536 + 512 + 100, 1536 + 100):
            names = []
            with pytest.raises(DamagedTar, match="in the middle of a file|is cut off"):
                for member in members(Bytes(kind(data[:end]))):
                    names.append(member.name)
            assert names[0] == "1.jpg"


def header(**fields):
    """One header of tarfile's with some fields replaced, and the right checksum."""
    data = bytearray(tar([("1.jpg", b"")])[:512])
    places = {"size": (124, 12), "kind": (156, 1), "magic": (257, 8), "after": (345, 24)}
    for name, value in fields.items():
        start, length = places[name]
        data[start : start + length] = value.ljust(length, b"\0")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def test_gnus_times_of_access_are_no_folder_of_a_name():
    times = b"14500000000\0" * 2
    assert contents(header(magic=b"ustar  \0", after=times)) == [("1.jpg", b"")]
    assert contents(header(after=b"folder")) == [("folder/1.jpg", b"")]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"x" * 600, "wrong checksum|no number"),
        (b"\x1f\x8b" + b"\1" * 600, "wrong checksum|no number"),
        (header()[:300], "a header is cut off"),
        (header(size=b"-1"), "no number where one should be"),
        (header(size=b"77777777777"), "ends after 512 bytes"),
        (header(size=b"\x80" + b"\xff" * 11), "ends after 512 bytes"),
        (header(kind=b"L", size=b"77777777777"), "a header of 8589934591 bytes"),
        (header(kind=b"L") * 20, "too many in a row"),
        (
            header(kind=b"x", size=b"00000000004") + b"1 a=" + bytes(508),
            "pax header cannot be read",
        ),
        (header(kind=b"x", size=b"12") + b"10 size=-1" + bytes(502), "no number where one"),
    ],
)
def test_what_a_header_claims_is_bounded(data, message):
    for kind in (io.BytesIO, Pipe):
        with pytest.raises(DamagedTar, match=message):
            list(members(Bytes(kind(data))))


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


def image_contents(shard):
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
    assert image_contents(shard) == [b"1", b"2", b"in another folder", b"twice", b"4"]
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
    assert image_contents(str(tmp_path / "t.tar")) == [content for _, content in theirs]


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


def test_an_epoch_has_each_image_once_and_the_next_another_order(shards):
    batches = read(stream(shards), stop=12)
    first, second = names(batches[:6]), names(batches[6:])
    every = {f"{n:04d}.jpg" for n in range(12)}
    assert set(first) == set(second) == every and first != second
    assert names(read(stream(shards, seed=1))) != first
    assert [s["draw"] for batch in batches for s in batch] == list(range(24))
    assert [batch[0]["iteration"] for batch in batches] == list(range(12))


def test_two_processes_have_disjoint_parts_of_what_one_has(shards):
    one = read(stream(shards))
    parts = [read(stream(shards), rank=rank, processes=2) for rank in (0, 1)]
    assert not set(names(parts[0])) & set(names(parts[1]))
    assert [left + right for left, right in zip(*parts)] == one


@pytest.mark.parametrize("pipe", [False, True])
def test_workers_and_pipes_change_nothing(shards, pipe):
    given = [f"pipe:cat {shard}" for shard in shards] if pipe else shards
    assert read(stream(given), workers=2 if not pipe else 1) == read(stream(shards))


@pytest.mark.parametrize("done", [1, 2, 3, 7])
def test_a_resumed_stream_goes_on_where_the_first_one_stopped(shards, done):
    whole = read(stream(shards, batch_size=4), stop=9)
    parts = [stream(shards, batch_size=4) for _ in range(2)]
    for rank, part in enumerate(parts):
        read(part, stop=done, rank=rank, processes=2)
    states = json.loads(json.dumps([part.state(done) for part in parts]))
    resumed = stream(shards, batch_size=4)
    resumed.load_states(states, rank=0)
    assert read(resumed, start=done, stop=9) == whole[done:]


def test_processes_that_are_resumed_twice_say_where_their_own_lanes_are(shards):
    whole = read(stream(shards, batch_size=4), stop=9)
    states = []
    for start in (0, 2, 5):
        parts = [stream(shards, batch_size=4) for _ in range(2)]
        for rank, part in enumerate(parts):
            if states:
                part.load_states(states, rank)
            stop = {0: 2, 2: 5, 5: 9}[start]
            last = read(part, start=start, stop=stop, rank=rank, processes=2)
            assert names(last[-1:]) == names(whole[stop - 1 : stop])[2 * rank : 2 * rank + 2]
        states = [part.state(stop) for part in parts]


@pytest.mark.parametrize("done", [2, 3])
def test_the_states_in_front_of_the_latest_two_steps_are_kept(shards, done):
    whole = read(stream(shards), stop=6)
    stopped = stream(shards)
    assert names(read(stopped, stop=4)) == names(whole[:4])
    again = stream(shards)
    again.load_states([stopped.state(done)], rank=0)
    assert read(again, start=done) == whole[done:]


def test_a_resumed_stream_reads_no_shard_that_is_behind_it(shards, monkeypatch):
    opened = []
    images = shard_reader.shard_images
    monkeypatch.setattr(
        shard_reader, "shard_images", lambda shard: opened.append(shard) or images(shard)
    )
    first = stream(shards, batch_size=1)
    read(first, stop=10)  # each of four shards has three
    resumed = stream(shards, batch_size=1)
    resumed.load_states([first.state(10)], rank=0)
    count = len(opened)
    read(resumed, start=10, stop=12)
    assert len(opened) == count + 1


def test_blocks_are_permuted_and_no_image_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_reader, "BLOCK", 4)
    shard = write_shard(tmp_path / "a.tar", samples(range(11)))
    order = [int(name[:4]) for name in names(read(stream([shard], batch_size=1), stop=11))]
    assert sorted(order[:4]) == list(range(4)) and sorted(order[4:]) == list(range(4, 11))
    assert order != sorted(order)


def broken(tmp_path):
    """Three shards, four images of which cannot be used."""
    cut = encoded(1)[:300]
    write_shard(tmp_path / "0.tar", [*samples(range(4)), ("bad.jpg", cut), ("none.txt", b"")])
    write_shard(tmp_path / "1.tar", [*samples(range(4, 8)), ("small.jpg", encoded(2, side=9))])
    path = tmp_path / "2.tar"
    write_shard(path, samples(range(8, 12)))
    path.write_bytes(path.read_bytes()[:-8000])
    return [str(tmp_path / f"{n}.tar") for n in range(3)]


def test_what_cannot_be_used_is_replaced_named_and_counted(tmp_path, caplog):
    shards = broken(tmp_path)
    source = stream(shards, batch_size=1)
    # Thirteen draws of an epoch: 11 whole images, and two in whose place others stand.
    one = read(source, stop=13)
    assert source.unusable == 4
    assert {"bad.jpg", "small.jpg"} & set(names(one)) == set()
    counts = Counter(names(one))
    assert set(counts) == {f"{n:04d}.jpg" for n in range(11)} and max(counts.values()) == 2
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "bad.jpg cannot be decoded" in said and "small.jpg is tiny" in said
    assert "0.tar/none: it has no image" in said and "what follows in it is left out" in said
    assert read(stream(shards, batch_size=1), stop=13, workers=1) == one


def test_names_are_bounded_and_the_count_goes_on(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(shard_reader, "MOST_NAMED", 2)
    shards = broken(tmp_path)
    source = stream(shards, batch_size=1)
    read(source, stop=13)
    assert sum("left out: " in record.getMessage() for record in caplog.records) == 2
    other = stream(shards, batch_size=1)
    other.load_states([source.state(13), {"positions": {}, "unusable": 3}], rank=0)
    assert other.unusable == 7
    other.load_states([source.state(13)], rank=1)
    assert other.unusable == 0


def test_shards_without_any_image_end_with_an_error(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [("a.txt", b"")])
    with pytest.raises(InputError, match="no image in the 1 shards of a lane, such as .*a.tar"):
        read(stream([shard], batch_size=1))
    shard = write_shard(tmp_path / "b.tar", [(f"{n}.jpg", b"x") for n in range(3)])
    with pytest.raises(InputError, match="3 images of the shard .*b.tar in a row cannot be used"):
        read(stream([shard], batch_size=1))


def test_lanes_are_as_many_as_the_batch_has_images_or_its_largest_part(shards):
    assert [stream(shards, batch_size=n).lanes for n in (1, 2, 6, 8, 7)] == [1, 2, 3, 4, 1]
    with pytest.raises(InputError, match="4 shards .* in 4 lanes, which 3 processes cannot share"):
        read(stream(shards, batch_size=8), processes=3)


@pytest.mark.parametrize(
    "states",
    [
        None,
        3,
        [{}],
        [{"positions": {"0": [0, 0]}}],
        [{"positions": {"0": [0, -1, 0], "1": [0, 0, 0]}, "unusable": 0}],
        [{"positions": {"1": [0, 0, 0]}, "unusable": 0}],
    ],
)
def test_a_checkpoint_that_does_not_say_where_it_was_is_refused(shards, states):
    with pytest.raises(InputError, match="does not say how far the shards were read"):
        stream(shards).load_states(states, rank=0)


def test_the_global_generators_are_left_alone(shards):
    before = np.random.get_state()[1].tolist()
    read(stream(shards))
    assert np.random.get_state()[1].tolist() == before
