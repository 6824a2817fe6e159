"""Plain data come back from a pickle, and a few bytes do not become many."""

from __future__ import annotations

import pickle
import tracemalloc
from collections import OrderedDict

import pytest

from clipself_seg.checkpoints import pickles
from clipself_seg.checkpoints.bounds import ForeignName, OutOfBounds
from clipself_seg.checkpoints.pickles import PlainUnpickler, Stream


def load(content):
    return PlainUnpickler(Stream(content)).load()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_come_back(protocol):
    content = {
        "a": [1, -(10**30), 2.5, None, True, "é", b"\xff\x00", (), (1, (2, 3))],
        3: {"b": {}},
    }
    content["ordered"] = OrderedDict(b=1, a=2)
    content["ordered"]._metadata = {"version": 1}
    content["again"] = content["a"]
    result = load(pickle.dumps(content, protocol))
    assert result == content and result["again"] is result["a"]


def test_sets_become_lists():
    for values in ({1, 2}, frozenset((1, 2))):
        assert load(pickle.dumps({"s": values}, 4)) == {"s": [1, 2]}


HUGE = (1 << 24).to_bytes(4, "little")
TEXT = b"\x8c\x64" + b"x" * 100
HUNDRED = b"(" + b"K\x01K\x02\x86" * 100 + b"l"  # a hundred pairs
TUPLES = b"K\x01" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(100))  # each twice in the next


@pytest.mark.parametrize(
    "content, error",
    {
        "memo": (b"\x80\x02Nr" + HUGE + b".", None),
        "bytes": (b"\x80\x02B" + HUGE + b"x.", EOFError),
        "bytes of 8": (b"\x80\x04\x8e" + HUGE + b"\x00" * 4 + b"x.", EOFError),
        "bytearray": (b"\x80\x05\x96" + HUGE + b"\x00" * 4 + b"x.", EOFError),
        "frame": (b"\x80\x04\x95" + HUGE + b"\x00" * 4 + b"N.", None),
        "number": (b"\x80\x02\x8b" + HUGE + b"x.", EOFError),
        "line": (b"I12", EOFError),
        "nothing": (b"", EOFError),
        "no opcode": (b"\xff", pickle.UnpicklingError),
        "a key of a billion parts": (b"\x80\x02}" + TUPLES + b"Ns.", pickle.UnpicklingError),
        "an entry without a stack": (b"\x80\x02s.", pickle.UnpicklingError),
        "attributes of a function": (
            b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aNsb.",
            pickle.UnpicklingError,
        ),
        "another name": (b"\x80\x02cbuiltins\nbytearray\nK\x09\x85R.", ForeignName),
    }.values(),
)
def test_a_few_bytes_do_not_become_many(content, error):
    tracemalloc.start()
    try:
        if error is None:
            assert load(content) is None
        else:
            with pytest.raises(error):
                load(content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_copies_of_copies_are_refused():
    encode = b"\x80\x02c_codecs\nencode\nq\x00" + TEXT + b"\x8c\x06latin1\x86q\x01"
    once = encode.replace(b"q\x01", b"R.")
    assert load(once) == b"x" * 100
    many = encode + b"h\x00h\x01R" * 40 + b"."
    with pytest.raises(OutOfBounds, match="copies its contents again and again"):
        load(many)
    pairs = b"\x80\x02ccollections\nOrderedDict\nq\x00" + HUNDRED + b"\x85q\x01"
    with pytest.raises(OutOfBounds, match="copies its contents again and again"):
        load(pairs + b"h\x00h\x01R" * 40 + b".")


def test_a_pickle_of_endless_steps_is_refused(monkeypatch):
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    with pytest.raises(OutOfBounds, match="it takes more than 1000 steps"):
        load(b"\x80\x02" + b"]" * 1001 + b".")
