"""Tar files as Python writes them, and those that say what is not so."""

from __future__ import annotations

import io
import tarfile

import pytest

from clipself_seg.data.shards import Bytes, DamagedTar, members

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
            with pytest.raises(DamagedTar, match="in the middle of a"):
                for member in members(Bytes(kind(data[:end]))):
                    names.append(member.name)
            assert names[0] == "1.jpg"


def header(**fields):
    """One header of tarfile's with some fields replaced, and the right checksum."""
    data = bytearray(tar([("1.jpg", b"")])[:512])
    places = {"size": (124, 12), "kind": (156, 1)}
    for name, value in fields.items():
        start, length = places[name]
        data[start : start + length] = value.ljust(length, b"\0")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"x" * 600, "wrong checksum|no number"),
        (b"\x1f\x8b" + b"\1" * 600, "wrong checksum|no number"),
        (header()[:300], "in the middle of a header"),
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
