"""Damage to the bytes of a file, decided by a random generator alone.

Half of the mutants are damaged as bytes, whatever they mean; the other half keep the form of their
layout (lengths, checksums, syntax), so that what is wrong comes further into a reader.
"""

import copy
import functools
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

NUMBERS = (0, 1, -1, 127, 128, 255, 32767, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, 2**63 - 1)
# Errors of what reads a layout where the bytes have lost it already.
LOST_FORM = (ValueError, KeyError, struct.error, zipfile.BadZipFile, RecursionError)
LOST_FORM += (yaml.YAMLError, zlib.error, EOFError, RuntimeError)
# Stand for text that the writers of JSON and YAML would not write.
RAW = "@raw{}@"
RAW_VALUES = (
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5000,  # more digits than Python converts
    "[" * 3000 + "]" * 3000,
    "[" * 100_000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    '{"id": 1, "id": 2}',
    '"\\ud800"',
    '"\\u0000"',
    "nul",
)
RAW_YAML = (
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "&a [*a]",
    "[&b [x, x, x, x, x, x, x, x], &c [*b, *b, *b, *b], &d [*c, *c, *c, *c], [*d, *d, *d, *d]]",
    "*nowhere",
    "!!binary '===='",
    "2001-13-45",
    "1:2:3",
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, -0.0, 1e308, 10**30, -(10**30), 2**63, 10**400),
    *("", "x", "x" * 100_000, "\0", "..", "/", "/nowhere/at/all", "1", "nan", "\U0001f9ff" * 50),
    *([], {}, [[]], [0], [1, 2, 3, 4, 5], [None], ["", ""], {"": 0}, {"id": {"id": {}}}),
)


def mutate(data: bytes, donors: Sequence[bytes], layout: str, rng: random.Random) -> bytes:
    """Damaged bytes of a file.

    Args:
        data: content of a valid file.
        donors: contents of other files, for splices.
        layout: a key of `LAYOUTS`.
        rng: decides everything.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if rng.random() < 0.5:
            data = mutate_bytes(data, donors, rng)
        else:
            try:
                data = LAYOUTS[layout](data, donors, rng)
            except LOST_FORM:
                data = mutate_bytes(data, donors, rng)
    return data


def mutate_bytes(data: bytes, donors: Sequence[bytes], rng: random.Random) -> bytes:
    """One change of bytes: flips, deletions, insertions, repetitions, cuts, splices or numbers."""
    return rng.choice(BYTE_MUTATIONS)(bytearray(data), donors, rng)


def _place(data: bytearray | bytes, rng: random.Random) -> int:
    """A position: anywhere, or in the first or last bytes, where headers and tables are."""
    size = max(1, len(data))
    kind = rng.random()
    near = min(size, 2 ** rng.randrange(4, 10))
    if kind < 0.4:
        return rng.randrange(near)
    return size - 1 - rng.randrange(near) if kind < 0.5 else rng.randrange(size)


def _length(rng: random.Random) -> int:
    return rng.randrange(1, 2 ** rng.randrange(1, 14))


def _flip(data: bytearray, donors: Sequence[bytes], rng: random.Random) -> bytes:
    for _ in range(2 ** rng.randrange(4)):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _delete(data: bytearray, donors: Sequence[bytes], rng: random.Random) -> bytes:
    start = _place(data, rng)
    del data[start : start + _length(rng)]
    return bytes(data)


def _insert(data: bytearray, donors: Sequence[bytes], rng: random.Random) -> bytes:
    start = _place(data, rng)
    data[start:start] = rng.randbytes(_length(rng))
    return bytes(data)


def _repeat(data: bytearray, donors: Sequence[bytes], rng: random.Random) -> bytes:
    start = _place(data, rng)
    data[start:start] = data[start : start + _length(rng)] * rng.randrange(1, 4)
    return bytes(data)


def _cut(data: bytearray, donors: Sequence[bytes], rng: random.Random) -> bytes:
    return bytes(data[: _place(data, rng)])


def _splice(data: bytearray, donors: Sequence[bytes], rng: random.Random) -> bytes:
    donor = rng.choice(donors) if donors else bytes(data)
    return bytes(data[: _place(data, rng)]) + donor[_place(donor, rng) :]


def _overwrite(data: bytearray, donors: Sequence[bytes], rng: random.Random) -> bytes:
    donor = rng.choice(donors) if donors else bytes(data)
    start, count = _place(donor, rng), _length(rng)
    to = _place(data, rng)
    data[to : to + count] = donor[start : start + count]
    return bytes(data)


def _number(data: bytearray, donors: Sequence[bytes], rng: random.Random) -> bytes:
    """A number such as a length, of 1 to 8 bytes in either order."""
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(NUMBERS) % 256**size
    start = _place(data, rng)
    data[start : start + size] = number.to_bytes(size, rng.choice(("little", "big")))
    return bytes(data)


def _zeros(data: bytearray, donors: Sequence[bytes], rng: random.Random) -> bytes:
    start, count = _place(data, rng), _length(rng)
    data[start : start + count] = bytes(len(data[start : start + count]))
    return bytes(data)


BYTE_MUTATIONS: tuple[Callable[[bytearray, Sequence[bytes], random.Random], bytes], ...] = (
    *(_flip, _flip, _delete, _insert, _repeat, _cut, _splice, _overwrite, _number, _number, _zeros),
)


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a tree of dicts and lists."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from nodes(tree[key])


def mutate_tree(tree: Any, raw: Sequence[str], rng: random.Random) -> Any:
    """A tree of dicts, lists and values with a type, key or value that is another one.

    Args:
        tree: what JSON or YAML holds.
        raw: texts that may come in place of a value, as `RAW` with their index.
        rng: decides everything.
    """
    holder = {"": copy.deepcopy(tree)}
    places = list(nodes(holder))
    container, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        container[key] = RAW.format(rng.randrange(len(raw)))
    elif kind == 1 and key != "":
        del container[key]
    elif kind == 2 and isinstance(container, dict) and key != "":
        container[rng.choice(("", "id", f"{key}x", key.upper(), "_BASE_"))] = container.pop(key)
    elif kind == 3 and isinstance(container, list):
        container[key:key] = [copy.deepcopy(container[key]) for _ in range(rng.choice((1, 2, 50)))]
    elif kind == 4:
        other, place = rng.choice(places)
        container[key] = copy.deepcopy(other[place])
    elif kind == 5 and isinstance(container[key], str):
        container[key] = _mutate_text(container[key], rng)
    elif kind == 6 and isinstance(container[key], int | float):
        container[key] = rng.choice((-container[key], container[key] * 10**9, 1e-300, 2**31, "7"))
    else:
        container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return holder[""]


def _mutate_text(text: str, rng: random.Random) -> str:
    """Another string; of JSON in a string, as metadata has it, JSON in which something is another."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return rng.choice((text * 2, text[: len(text) // 2], text + "\0", text.upper(), ""))
    return _with_raw(json.dumps(mutate_tree(tree, RAW_VALUES, rng)), RAW_VALUES)


def _with_raw(text: str, raw: Sequence[str]) -> str:
    for index, value in enumerate(raw):
        name = RAW.format(index)
        for quoted in (f'"{name}"', f"'{name}'", name):
            text = text.replace(quoted, value)
    return text


def mutate_json(data: bytes, donors: Sequence[bytes], rng: random.Random) -> bytes:
    """JSON of another structure."""
    tree = mutate_tree(json.loads(data), RAW_VALUES, rng)
    return _with_raw(json.dumps(tree), RAW_VALUES).encode()


def _mutate_yaml(data: bytes, donors: Sequence[bytes], rng: random.Random) -> bytes:
    raw = RAW_VALUES + RAW_YAML * 2
    tree = mutate_tree(yaml.safe_load(data), raw, rng)
    return _with_raw(yaml.safe_dump(tree, width=10**6), raw).encode()


def _mutate_lines(data: bytes, donors: Sequence[bytes], rng: random.Random) -> bytes:
    """Lines that are missing, long, twice, without words, or in another encoding."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines[place] = lines[place][:1000] * rng.choice(
            (2, 10_000)
        )  # that of another damage is long
    elif kind == 2:
        lines[place:place] = [lines[place]]
    elif kind == 3:
        odd = (b"", b"|", b",,,", b" ", b"\xff\xfe", b"#", b"\0", b"-1 x", b"\r")
        lines[place] = rng.choice(odd)
    elif kind == 4:
        return data.decode("latin1").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
    else:
        rng.shuffle(lines)
    return b"\n".join(lines)


def _mutate_json_lines(data: bytes, donors: Sequence[bytes], rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = mutate_json(lines[place], donors, rng)
    return b"\n".join(lines)


def _mutate_safetensors(data: bytes, donors: Sequence[bytes], rng: random.Random) -> bytes:
    """A header of another structure, or other bytes of tensors; the header's length is right."""
    count = int.from_bytes(data[:8], "little")
    header, payload = data[8 : 8 + count], data[8 + count :]
    if rng.random() < 0.8:
        header = mutate_json(header, donors, rng)
    else:
        payload = mutate_bytes(payload, donors, rng)
    return len(header).to_bytes(8, "little") + header + payload


@functools.cache
def _zip_bomb() -> bytes:
    """Compressed zeros, a thousand times as many as bytes."""
    return bytes(1 << 28)


def _mutate_zip(data: bytes, donors: Sequence[bytes], rng: random.Random) -> bytes:
    """Members that are missing, twice, renamed, empty, compressed or damaged; their checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = rng.randrange(len(members))
    if rng.random() < 0.5:  # the pickle, which decides about all others
        place = next((i for i, (n, _) in enumerate(members) if n.endswith("data.pkl")), place)
    name, content = members[place]
    kind = rng.randrange(8)
    compression = zipfile.ZIP_STORED
    if kind == 0:
        del members[place]
    elif kind == 1:
        members.append((name, mutate_bytes(content, donors, rng)))
    elif kind == 2:
        members[place] = rng.choice(("../x", "/x", name.upper(), "a/constants.pkl", "")), content
    elif kind == 3:
        members[place] = name, b""
    elif kind == 4 and rng.random() < 0.05:
        members[place] = name, _zip_bomb()
        compression = zipfile.ZIP_DEFLATED
    else:
        members[place] = name, mutate_bytes(content, donors, rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression, 1)
    return buffer.getvalue()


def _mutate_png(data: bytes, donors: Sequence[bytes], rng: random.Random) -> bytes:
    """Chunks that are missing, twice or of other content; their checksums are right."""
    chunks = []
    place = 8
    while place + 12 <= len(data):
        count = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + count]))
        place += 12 + count
    index = rng.randrange(len(chunks))
    name, content = chunks[index]
    kind = rng.randrange(6)
    if kind == 0:
        del chunks[index]
    elif kind == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), (name, content))
    elif kind == 2:
        name, content = chunks[0]  # sizes, bits and kind of the pixels
        chunks[0] = name, _number(bytearray(content), donors, rng)[:13].ljust(13, b"\0")
    elif kind == 3:
        extra = rng.choice((b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"fcTL"))
        text = b"x\0\0" + zlib.compress(bytes(2 ** rng.randrange(1, 24)), 9)
        chunks.insert(1, (extra, rng.choice((text, rng.randbytes(26), b""))))
    elif name == b"IDAT" and kind == 4:
        chunks[index] = name, zlib.compress(mutate_bytes(zlib.decompress(content), donors, rng))
    else:
        chunks[index] = name, mutate_bytes(content, donors, rng)
    out = data[:8]
    for name, content in chunks:
        check = zlib.crc32(name + content)
        out += len(content).to_bytes(4, "big") + name + content + check.to_bytes(4, "big")
    return out


def _mutate_tar(data: bytes, donors: Sequence[bytes], rng: random.Random) -> bytes:
    """A header of another kind, size or name, or with bytes changed; its checksum is right."""
    places = [
        place for place in range(0, len(data) - 511, 512) if data[place + 257 :][:5] == b"ustar"
    ]
    if not places:
        raise ValueError  # it has lost its form
    place = rng.choice(places)
    header = bytearray(data[place : place + 512])
    kind = rng.randrange(4)
    if kind == 0:
        header[156:157] = rng.choice([b"%c" % flag for flag in b"xgLK12357Sz"])
    elif kind == 1:
        binary = b"\x80" + rng.randbytes(11)
        sizes = (b"0" * 11, b"7" * 11, b"-1", binary, b"%011o" % rng.randrange(9999))
        header[124:136] = rng.choice(sizes).ljust(12, b"\0")
    elif kind == 2:
        name = rng.choice((b"../../a.jpg", b"/etc/passwd", b"", b".", b"a.jpg"))
        header[:100] = name.ljust(100, b"\0")
    else:
        header = bytearray(mutate_bytes(bytes(header), donors, rng)[:512].ljust(512, b"\0"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + 512 :]


# Layout of a file -> a mutation that keeps its form.
LAYOUTS: dict[str, Callable[[bytes, Sequence[bytes], random.Random], bytes]] = {
    "bytes": mutate_bytes,
    "json": mutate_json,
    "json lines": _mutate_json_lines,
    "lines": _mutate_lines,
    "png": _mutate_png,
    "safetensors": _mutate_safetensors,
    "tar": _mutate_tar,
    "yaml": _mutate_yaml,
    "zip": _mutate_zip,
}
