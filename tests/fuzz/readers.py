"""Every format that the project reads, with a small valid file of it and the project's own reader.

Formats by where they are read:

    checkpoints/read.py, clip/          weights: .safetensors, .pt (zip), .pth (old pickles), TorchScript archives
    checkpoints/pickles.py              .pkl of Detectron2's backbones
    models/*/weights.py                 checkpoints of CAT-Seg, panoptic models, F-ViT and distillation
    heads/diffusion/                    Stable Diffusion in one file
    checkpoints/training_state.py       training states, from which a run is resumed
    clip/text_bank.py                   entries of the text cache
    clip/tokenizers.py                  tokenizer.json
    heads/panoptic/mask_generator/      outputs of a mask generator
    config/load.py                      YAML configurations
    data/vocabulary.py                  vocabularies (.txt, .json), CAT-Seg's class lists
    data/annotations.py                 COCO's and LVIS's instances, proposals, panoptic, nouns
    data/captions.py                    captions, phrases
    data/images.py, data/label_maps.py, data/panoptic_png.py
    data/given_masks.py                masks of anybody: JSON, PNG, tables of scores
    data/prepare/                       archives: label maps, instance maps, tables, lists, JSON, .mat
    data/shards.py, data/tar_stream.py  shards of images
    evaluation/panoptic/files.py        predictions; evaluation/coco_objects.py: objects with their masks
    mini/writer.py                      manifest of a mini world
    training/, quickstart/              results.json and metrics.json of earlier runs
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any


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

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    layout: str = "bytes"
    remake: Callable[[random.Random], bytes] | None = None
    weight: float = 1.0


def all_readers() -> dict[str, Reader]:
    """Format -> its reader; slow to import, so not at the top."""
    from tests.fuzz.readers_of_archives import ARCHIVE_READERS
    from tests.fuzz.readers_of_data import DATA_READERS
    from tests.fuzz.readers_of_images import IMAGE_READERS
    from tests.fuzz.readers_of_runs import RUN_READERS
    from tests.fuzz.readers_of_states import STATE_READERS
    from tests.fuzz.readers_of_weights import WEIGHT_READERS

    return {
        **WEIGHT_READERS,
        **STATE_READERS,
        **DATA_READERS,
        **IMAGE_READERS,
        **RUN_READERS,
        **ARCHIVE_READERS,
    }


def make_text(name: str, content: Any, folder: Path) -> Path:
    """Writes a text, or what JSON has of other content, into a folder; its path."""
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)
    return folder / name


def partial(make: Callable[..., Path], *arguments: Any) -> Callable[[Path], Path]:
    """`functools.partial` with the folder last."""
    return functools.partial(make, *arguments)
