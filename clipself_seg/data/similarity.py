"""Similarity of the classes of a vocabulary by distances in WordNet, shipped as small JSON files.

A file has "distances": those of each pair of classes (0, 1), (0, 2) ... (1, 2) ..., a byte each, compressed by
xz and written in base 85. They are of `wordnet.class_distances`, and a similarity is 1 / (1 + distance).

Legend: K classes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from clipself_seg.data.vocabulary import FOLDER as VOCABULARIES
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.data.wordnet import UNKNOWN
from clipself_seg.errors import InputError
from clipself_seg.files import read_json, write_json

FOLDER = VOCABULARIES / "similarity"
SHIPPED = "wordnet"  # stands for the table that is shipped for a vocabulary
KEYS = {"vocabulary", "classes", "names", "source", "licence", "distances"}
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20}]
MEMORY = 16 << 20  # bytes that unpacking may take beside what it gives
LICENCE = "WordNet 3.0 license, Copyright 2006 by Princeton University"


def similarity_of(distances: np.ndarray) -> np.ndarray:
    """Path similarity 1 / (1 + distance), float64 (K, K) in [0, 1]; 0 where nothing connects two classes."""
    return np.where(distances == UNKNOWN, 0.0, 1 / (1 + distances.astype(np.float64)))


def load_similarity(source: str, vocabulary: Vocabulary) -> np.ndarray:
    """Similarity of each pair of classes, float64 (K, K) in [0, 1] and 1 on the diagonal.

    Args:
        source: `SHIPPED`, or a file of `write_similarity`.
        vocabulary: the classes.

    Raises:
        InputError: there is no table for the vocabulary, or the file is none of these classes.
    """
    path = FOLDER / f"{vocabulary.name}.json" if source == SHIPPED else Path(source)
    make = f"make one: clipself-seg data similarity {vocabulary.name} --wordnet FOLDER --output FILE.json"
    if source == SHIPPED and not path.is_file():
        raise InputError(
            f'no table of similarities is shipped for vocabulary "{vocabulary.name}": {make}, and give it as '
            "TEST.NUMBERS.SIMILARITY"
        )
    content = read_json(path, "table of similarities")
    if not isinstance(content, dict) or not KEYS <= content.keys():
        raise InputError(f"{path} is no table of similarities: {make}")
    if (content["classes"], content["names"]) != (len(vocabulary), names_hash(vocabulary)):
        raise InputError(
            f'{path} is of other classes than vocabulary "{vocabulary.name}" has now: {make}'
        )
    return similarity_of(_unpacked(content["distances"], len(vocabulary), path))


def write_similarity(
    path: str | Path, vocabulary: Vocabulary, distances: np.ndarray, source: str
) -> None:
    """Write a table, atomically; equal tables give equal bytes.

    Args:
        path: the JSON file.
        vocabulary: the K classes.
        distances: uint8 (K, K), symmetric, 0 on the diagonal.
        source: what the distances are of, such as "WordNet 3.0, Debian's wordnet-base 1:3.0-37".
    """
    upper = distances[np.triu_indices(len(vocabulary), 1)].astype(np.uint8)
    content = {
        "vocabulary": vocabulary.name,
        "classes": len(vocabulary),
        "names": names_hash(vocabulary),
        "source": source,
        "licence": LICENCE,
        "distances": base64.b85encode(lzma.compress(upper.tobytes(), filters=FILTERS)).decode(),
    }
    write_json(path, content)


def names_hash(vocabulary: Vocabulary) -> str:
    """Hash of the names of all classes, 12 hexadecimal digits."""
    text = json.dumps([list(entry.names) for entry in vocabulary.classes])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _unpacked(packed: Any, num_classes: int, path: Path) -> np.ndarray:
    """Distances (K, K) of the text in a file, of which no more is unpacked than the classes need."""
    rows, columns = np.triu_indices(num_classes, 1)
    try:
        reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
        content = reader.decompress(base64.b85decode(packed), len(rows) + 1)
    except (ValueError, TypeError, EOFError, lzma.LZMAError):
        content = b""
    if len(content) != len(rows):
        raise InputError(
            f"{path}: its distances are not those of {num_classes} classes: make the table again"
        )
    distances = np.zeros((num_classes, num_classes), dtype=np.uint8)
    distances[rows, columns] = np.frombuffer(content, dtype=np.uint8)
    return np.maximum(distances, distances.T)
