"""The order of the data, and that nothing but seed and iteration decides it."""

import sys

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from clipself_seg.data.loader import (
    DrawOrder,
    MappedDraws,
    batches_of,
    dead_workers_named,
    draws_of_process,
    evaluation_batches,
)
from clipself_seg.data.shards import Position
from clipself_seg.errors import InputError
from tests.tiny import tiny_mapper, tiny_record

RECORDS = [tiny_record(index) for index in range(10)]


def train_batches(mapper, sampler, workers=0):
    return batches_of(MappedDraws(RECORDS, mapper), workers, batch_sampler=sampler)


def order(batch_size=4, seed=0):
    return DrawOrder(num_images=10, batch_size=batch_size, seed=seed)


def draws(start, stop, workers=0, **place):
    """(number, image) of every draw of a loader, in order."""
    sampler = draws_of_process(order(), range(start, stop), **place)
    record_of = tiny_mapper
    batches = train_batches(lambda r, d: record_of(r, d) | {"draw": d}, sampler, workers)
    return [[(s["draw"], s["image_id"]) for s in batch] for batch in batches]


def test_an_epoch_uses_each_image_at_most_once_and_drops_the_incomplete_batch():
    for epoch in range(3):
        used = [draw.image for step in (0, 1) for draw in order().batch(2 * epoch + step)]
        assert len(used) == len(set(used)) == 8


def test_epochs_and_seeds_differ_and_draws_are_numbered_through():
    first = [draw.image for draw in order().batch(0)]
    assert first != [draw.image for draw in order().batch(2)]
    assert first != [draw.image for draw in order(seed=1).batch(0)]
    assert [draw.number for draw in order().batch(5)] == [20, 21, 22, 23]


@pytest.mark.parametrize("start", [0, 3, 4])
def test_a_resumed_loader_goes_on_where_the_first_one_stopped(start):
    assert draws(start=0, stop=6)[start:] == draws(start=start, stop=6)


def test_workers_change_nothing():
    assert draws(start=0, stop=3, workers=2) == draws(start=0, stop=3)


def test_two_processes_see_together_what_one_sees():
    one = draws(start=0, stop=4)
    parts = [draws(start=0, stop=4, rank=rank, processes=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts)] == one


def test_a_loader_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draws(start=0, stop=2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_worker_whose_process_was_killed_prints_no_traceback_of_it(capfd):
    def said(error):
        def mapper(record):
            sys.excepthook(type(error), error, None)
            return record

        list(evaluation_batches(RECORDS[:1], mapper, 1))
        return capfd.readouterr().err

    assert said(ConnectionResetError()) == said(EOFError()) == ""
    assert "ValueError: a fault" in said(ValueError("a fault"))


class Unsent:
    """A sample that no process can hand to another, as where /dev/shm is full."""

    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory")


def test_a_sample_that_a_worker_cannot_hand_over_is_not_awaited_for_ever(capfd):
    sampler = draws_of_process(order(), range(2))
    dataset = MappedDraws(RECORDS, lambda record, draw: {"image": Unsent()})
    batches = batches_of(dataset, 1, batch_sampler=sampler, timeout=60)
    with pytest.raises(InputError, match="/dev/shm: .*NUM_WORKERS 0"), dead_workers_named():
        list(batches)
    assert capfd.readouterr().err == "unable to allocate shared memory\n"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_input_error_in_a_worker_arrives_as_itself(workers):
    def broken(record, draw):
        raise InputError(f"image {record['file_name']} is missing")

    sampler = draws_of_process(order(), range(2))
    with pytest.raises(InputError, match=r"^image \d.jpg is missing$"):
        list(train_batches(broken, sampler, workers))
    with pytest.raises(InputError, match=r"^image 0.jpg is missing$"):
        list(evaluation_batches(RECORDS, lambda record: broken(record, 0), workers))


def test_too_few_images_and_uneven_shares_are_refused():
    with pytest.raises(InputError, match="10 images.*IMS_PER_BATCH 16"):
        order(batch_size=16)
    with pytest.raises(InputError, match="IMS_PER_BATCH 4.*3"):
        draws_of_process(order(), range(1), processes=3)


def test_another_image_is_drawn_where_the_mapper_asks_for_one():
    def without_even_ones(record, draw):
        sample = tiny_mapper(record, draw)
        return None if int(record["image_id"]) % 2 == 0 else sample | {"draw": draw}

    def drawn(workers):
        sampler = draws_of_process(order(), range(4))
        batches = train_batches(without_even_ones, sampler, workers)
        return [(s["draw"], int(s["image_id"]), s["iteration"]) for batch in batches for s in batch]

    samples = drawn(workers=0)
    expected = [draw for step in range(4) for draw in order().batch(step)]
    replaced = 0
    for (number, image, iteration), draw in zip(samples, expected, strict=True):
        assert image % 2 == 1 and iteration == draw.iteration
        if draw.image % 2:
            assert (number, image) == (draw.number, draw.image)
        else:
            replaced += 1
            assert number > 2**47  # random choices of its own
    assert replaced > 5 and len({image for _, image, _ in samples}) == 5
    assert drawn(workers=1) == samples


def test_data_without_any_image_to_draw_end_with_an_error():
    sampler = draws_of_process(order(), range(1))
    batches = train_batches(lambda record, draw: None, sampler, workers=0)
    with pytest.raises(InputError, match="none of 100 training images"):
        list(batches)


@pytest.mark.parametrize("uses_gpu", [False, True])
def test_memory_is_pinned_where_the_process_uses_a_gpu(monkeypatch, uses_gpu):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: uses_gpu)
    assert evaluation_batches(RECORDS, tiny_mapper, 0).loader.pin_memory is uses_gpu


def test_pinning_leaves_samples_as_they_are(monkeypatch):
    """Torch replaces tensors in what it knows, and passes on the rest, errors and positions in shards among it."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: pinned.append(self) or self)
    sample = tiny_mapper(RECORDS[0], 0) | {"position": (3, Position(1, 2, 3))}
    batch = [sample, InputError("broken")]
    copied, error = pin_memory(batch)
    assert error is batch[1] and copied.keys() == sample.keys()
    lane, position = copied.pop("position")
    assert lane == 3 and position == Position(1, 2, 3) and type(position) is Position
    assert all(copied[key] is sample[key] for key in copied)
    assert len(pinned) == sum(isinstance(value, torch.Tensor) for value in sample.values()) > 1
