"""Runs the mask generator over a data set and keeps what it says, one file an image.

What is there already is not made again, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from safetensors import SafetensorError
from tqdm import tqdm

from clipself_seg.checkpoints.bounds import OutOfBounds, open_safetensors
from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.data.annotations import Record
from clipself_seg.data.datasets.records import find_dataset, panoptic_set_records
from clipself_seg.data.datasets.table import PanopticSet
from clipself_seg.data.generator_outputs import (
    hash_classes,
    output_path,
    save_output,
    settings_text,
)
from clipself_seg.data.images import read_image
from clipself_seg.data.loader import dead_workers_named, evaluation_batches
from clipself_seg.data.mappers.panoptic import PanopticTestMapper
from clipself_seg.data.mappers.samples import stated_size
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.panoptic.ground_truth import is_semantic_only, read_semantic_only
from clipself_seg.files import alone_in, remove_leftovers
from clipself_seg.models import OpenPanoptic
from clipself_seg.models.build import build_model
from clipself_seg.prediction.predictor import require_architecture

# What a file that is there may be of, by the key that tells.
OTHERS = {
    "weights": "other weights",
    "settings": "other settings",
    "classes": "another vocabulary",
    "file_name": "another image",
    "image_size": "another size",
}


class Written(NamedTuple):
    """How many images' outputs were written, and how many were there already."""

    written: int
    kept: int


def write_dataset_outputs(
    cfg: CfgNode, dataset: str, folder: str | Path, overwrite: bool = False
) -> Written:
    """Write the outputs of the configured generator for the images and the vocabulary of a data set.

    Args:
        cfg: of an `OpenPanoptic` with its weights.
        dataset: for panoptic segmentation or with label maps alone, see `data.datasets.table`.
        folder: for the files.
        overwrite: write what is there already again.

    Raises:
        InputError: another kind of model, or one without a generator; an unknown or incomplete data
            set; and as `write_outputs`.
    """
    require_architecture(
        cfg.MODEL.META_ARCHITECTURE, ("OpenPanoptic",), "has no mask generator", "configs/panoptic"
    )
    if (source := cfg.MODEL.MASK_GENERATOR.SOURCE) in ("disk", "masks"):
        raise InputError(
            f"MODEL.MASK_GENERATOR.SOURCE {source} reads outputs, it makes none: give that of a generator"
        )
    if is_semantic_only(dataset):
        truth = read_semantic_only(dataset, ("semantic",), "")
        words, records = truth.vocabulary, truth.records
    else:
        words = load_vocabulary(find_dataset(dataset, PanopticSet).vocabulary)
        records = panoptic_set_records(dataset)
    mapper, model = PanopticTestMapper(cfg), build_model(cfg).eval()
    assert isinstance(model, OpenPanoptic)  # `require_architecture`
    model.set_vocabulary(words)
    return write_outputs(
        model=model,
        records=records,
        mapper=mapper,
        folder=folder,
        workers=cfg.DATALOADER.NUM_WORKERS,
        overwrite=overwrite,
    )


@dead_workers_named()
def write_outputs(
    *,
    model: OpenPanoptic,
    records: Sequence[Record],
    mapper: PanopticTestMapper,
    folder: str | Path,
    workers: int = 0,
    overwrite: bool = False,
) -> Written:
    """Write the outputs of a generator for some images, with a progress bar.

    A file that is damaged is written again.

    Args:
        model: an `OpenPanoptic` in evaluation mode with the vocabulary of the images.
        records: with "file_name" and "image_id".
        mapper: resizes the images.
        folder: for the files, see `outputs.output_path`.
        workers: of the loader.
        overwrite: write what is there already again.

    Raises:
        InputError: an image cannot be read; a file that is there is of other weights, settings,
            vocabulary or images; two images would have one file; the files cannot be written, or
            another process writes there.
    """
    _check_paths(folder, records)
    weights, settings = generator_hash(model), _generator_settings(model)
    metadata = {
        "weights": weights,
        "settings": settings_text(settings),
        "classes": hash_classes(model.names),
    }
    waiting = list(records)
    try:
        with alone_in(folder), torch.no_grad():
            remove_leftovers(folder)
            if not overwrite:
                bar = tqdm(records, "files that are there", leave=False)
                waiting = [
                    record for record in bar if not _is_there(folder, record, metadata, mapper)
                ]
            batches = evaluation_batches(waiting, mapper, workers) if waiting else ()
            for (sample,) in tqdm(batches, "images", unit="image", disable=not waiting):
                save_output(
                    folder,
                    model.generate(sample),
                    image_id=sample["image_id"],
                    file_name=sample["file_name"],
                    names=model.names,
                    weights=weights,
                    settings=settings,
                )
    except OSError as error:
        raise InputError(f"outputs cannot be written to {folder}: {error}") from None
    return Written(len(waiting), len(records) - len(waiting))


def generator_hash(model: OpenPanoptic) -> str:
    """Identity of the weights that outputs depend on: all but the CLIP branch's."""
    state = model.state_dict()
    return hash_tensors({n: t for n, t in state.items() if not n.startswith("branch_clip.")})


def _generator_settings(model: OpenPanoptic) -> dict[str, object]:
    """What outputs depend on beside the weights, and beside what every file tells of its image."""
    assert model.backbone is not None  # without one there is no generator
    return {
        "size_divisibility": model.settings.size_divisibility,
        "padding": model.settings.padding,
        "precision": str(model.test_precision or torch.float32),
        **model.backbone.settings(),
    }


def _is_there(
    folder: str | Path,
    record: Record,
    metadata: dict[str, str],
    mapper: PanopticTestMapper,
) -> bool:
    """Whether an image has its file, of these weights and this vocabulary."""
    path = output_path(folder, record["image_id"])
    if not path.is_file():
        return False
    try:
        # Opening reads the header alone, but sees that nothing is cut off.
        with open_safetensors(path) as file:
            stored = file.metadata() or {}
    except (SafetensorError, OSError, OutOfBounds):
        return False
    size = json.dumps(_input_size(record, mapper))
    expected = metadata | {"file_name": Path(record["file_name"]).name, "image_size": size}
    for key, value in expected.items():
        if stored.get(key) != value:
            raise InputError(
                f"{path} is there already, of {OTHERS[key]} ({str(stored.get(key))[:300]}, not {value}): give "
                "another folder, or overwrite it"
            )
    return True


def _input_size(record: Record, mapper: PanopticTestMapper) -> tuple[int, int]:
    """Rows and columns of an image as the generator is given it."""
    if size := stated_size(record):
        image = np.broadcast_to(np.uint8(0), (size[1], size[0], 3))
    else:
        image = read_image(record["file_name"], max_pixels=mapper.max_pixels)
    resize = mapper.resize.get_transform(image)
    resized = isinstance(resize, T.ResizeTransform)
    return (resize.new_h, resize.new_w) if resized else image.shape[:2]


def _check_paths(folder: str | Path, records: Sequence[Record]) -> None:
    """Two images must not share a file."""
    owners = dict[Path, object]()
    for record in records:
        path, number = output_path(folder, record["image_id"]), record["image_id"]
        if path in owners:
            raise InputError(
                f"the images {owners[path]!r} and {number!r} would share the file {path}: give them "
                "ids that differ in letters and digits"
            )
        owners[path] = number
