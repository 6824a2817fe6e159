"""Every format that the project reads, with a small valid file of it and the project's own reader.

Formats by where they are read:

    checkpoints/read.py, clip/          weights: .safetensors, .pt (zip), .pth (old pickles)
    checkpoints/pickles.py              .pkl of Detectron2's backbones
    models/*/*_checkpoint.py            checkpoints of CAT-Seg, panoptic models, F-ViT and distillation
    heads/diffusion/                    Stable Diffusion in one file
    checkpoints/training_state.py       training states, from which a run is resumed
    clip/text_bank.py                   entries of the text cache
    clip/tokenizers.py                  tokenizer.json
    config/load.py                      YAML configurations
    data/vocabulary.py                  vocabularies (.txt, .json), CAT-Seg's class lists
    data/annotations.py                 COCO's and LVIS's instances, proposals, panoptic, nouns, captions, phrases
    data/images.py, data/masks.py       images, label maps, panoptic PNGs
    data/given_masks.py                 masks of anybody: JSON, PNG
    tools/lab/prepare/                  archives: label maps, instance maps, tables, lists, JSON, .mat
    data/shards.py                      shards of images
    commands/panoptic_quality.py        predictions; evaluation/coco_objects.py: objects with their masks
    tools/lab/mini/writer.py            manifest of a mini world
    prediction/                         folders of save_pretrained, the journal
    training/, tools/lab/quickstart/    results.json and metrics.json of earlier runs
"""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Make = Callable[[Path], Path]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A format.

    Attributes:
        make: writes a valid file, and what belongs to it, into an empty folder; returns its path.
        read: reads it as commands do. May write beside it, no place else.
        layout: of its bytes, see `mutations.LAYOUTS`.
        remake: content of a file that is well formed, of other values; None makes none.
        weight: how many mutants it gets, relative to other formats; less where reading is slow.
    """

    make: Make
    read: Callable[[Path], Any]
    layout: str = "bytes"
    remake: Callable[[random.Random], bytes] | None = None
    weight: float = 1.0


def all_readers() -> dict[str, Reader]:
    """Format -> its reader; slow to import, so not at the top."""
    from tests.fuzz.readers_of_data import ARCHIVES, DATA, IMAGES
    from tests.fuzz.readers_of_runs import RUNS
    from tests.fuzz.readers_of_weights import STATES, WEIGHTS

    return {**WEIGHTS, **STATES, **DATA, **IMAGES, **RUNS, **ARCHIVES}


def file(name: str, write: Callable[[Path], object]) -> Make:
    """Writes one file of a name."""

    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


def text(name: str, content: Any) -> Make:
    """Writes a text, or what JSON has of other content."""
    written = content if isinstance(content, str) else json.dumps(content)
    return file(name, lambda path: path.write_text(written))


def tree(name: str, write: Callable[[Path], object]) -> Make:
    """Writes a folder of many files, of which one has the name."""

    def make(folder: Path) -> Path:
        write(folder)
        return folder / name

    return make
