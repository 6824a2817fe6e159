"""Writes a WebDataset shard of synthetic JPEGs that take as long to decode as COCO's."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

IMAGES = 16
# Cells of the noise, coarse to fine, the fraction of each, and a quality with which a JPEG is as large as COCO's
# are on average, 160 kB.
CELLS, FRACTIONS = (8, 60, 480), (0.4, 0.15, 0.45)
QUALITY = 88


def image_like_pixels(size: tuple[int, int]) -> list[np.ndarray]:
    """`IMAGES` images of noise at several scales, uint8 (H, W, 3).

    Args:
        size: rows H and columns W.
    """
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(IMAGES):
        layers = [torch.rand(1, 3, n, n, generator=generator) for n in CELLS]
        scaled = [F.interpolate(layer, size, mode="bilinear") for layer in layers]
        parts = [fraction * layer for fraction, layer in zip(FRACTIONS, scaled)]
        image = torch.stack(parts).sum(dim=0)
        images.append((255 * image[0].permute(1, 2, 0)).to(torch.uint8).numpy())
    return images


def encode_jpeg(image: np.ndarray) -> bytes:
    """A JPEG of an image uint8 (H, W, 3)."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="JPEG", quality=QUALITY)
    return content.getvalue()


def write_shard(path: Path, images: list[np.ndarray]) -> Path:
    """Write JPEGs into a tar file, in WebDataset's naming.

    Args:
        path: of the tar file.
        images: uint8 (H, W, 3).
    """
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(images):
            content = encode_jpeg(image)
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
