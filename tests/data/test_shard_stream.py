"""The order of shards: from the seed alone, whoever reads and wherever it begins."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from clipself_seg.data import shards as shard_reader
from clipself_seg.data.images import decode_image
from clipself_seg.data.shards import ShardStream
from clipself_seg.errors import InputError
from tests.shards import encoded, samples, write_shard, write_shards


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
