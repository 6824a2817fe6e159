"""Small shards of noise for tests."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

Files = list[tuple[str, bytes]]


def encoded(number: int, side: int = 40) -> bytes:
    """A JPEG of noise."""
    content = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (side, side + 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(content, "JPEG")
    return content.getvalue()


def samples(numbers: range) -> Files:
    """Each number's image, as a whole, with a caption."""
    return [
        file
        for number in numbers
        for file in ((f"{number:04d}.jpg", encoded(number)), (f"{number:04d}.txt", b"noise"))
    ]


def write_shard(path: Path, files: Files) -> str:
    """Write a tar file and return its path."""
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def write_shards(folder: Path, count: int = 4, each: int = 3) -> list[str]:
    """Shards 00.tar, 01.tar ... of some samples each, numbered through."""
    return [
        write_shard(folder / f"{n:02d}.tar", samples(range(n * each, (n + 1) * each)))
        for n in range(count)
    ]
