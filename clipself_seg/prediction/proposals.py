"""Writes the proposals of a detector's RPN for a data set, as distillation reads them.

The file is COCO's format of instances with one category, `data.records.proposal_records` reads it. It has
millions of boxes, so it is written image by image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from detectron2.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from clipself_seg.data.datasets.coco import distillation_records, image_folder
from clipself_seg.data.loader import dead_workers_named, evaluation_batches
from clipself_seg.data.mappers.detection import DetectionTestMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.records import require_images
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in, atomic_path, remove_leftovers
from clipself_seg.models import FViT
from clipself_seg.models.build import build_model
from clipself_seg.prediction.common import require_architecture
from clipself_seg.provenance import provenance

CATEGORY = {"id": 1, "name": "object"}
DIGITS = 2  # of a pixel, after the point


class Written(NamedTuple):
    """How many proposals were written, and of how many images."""

    boxes: int
    images: int


def write_dataset_proposals(
    cfg: CfgNode,
    dataset: str,
    path: str | os.PathLike[str],
    per_image: int = 100,
    overwrite: bool = False,
) -> Written:
    """Write the best proposals of the configured detector for every image of a data set, with a progress bar.

    Args:
        cfg: of an `FViT` with its weights.
        dataset: data set of `data.datasets.coco` or of Detectron2's catalogue; of its annotations only the
            list of images is read.
        path: JSON file to write.
        per_image: largest number of proposals of an image, the best after non-maximum suppression.
        overwrite: replace a file that is there already.

    Raises:
        InputError: another kind of model; a number that the detector does not give; a file that is there
            already; an unknown or incomplete data set, or an image that cannot be read; no proposal at
            all; another process is at work in the folder.
        OSError: the file cannot be written.
    """
    require_architecture(cfg, "FViT", "proposes no boxes", "configs/detection")
    _check(cfg, Path(path), per_image, overwrite)
    folder = image_folder(dataset)
    records = distillation_records([dataset], "grid")
    require_images(dataset, records, "restore them: each image needs its proposals")
    mapper, model = DetectionTestMapper(cfg), build_model(cfg).eval()
    info = {
        "description": f"the best {per_image} proposals of each image of {dataset}",
        **provenance(config=cfg.dump(), seed=cfg.SEED, weights_hash=model.weights_hash()),
    }
    batches = evaluation_batches(records, mapper, cfg.DATALOADER.NUM_WORKERS)
    with alone_in(Path(path).parent):
        remove_leftovers(Path(path).parent)
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            return _write(file, info, _proposed(model, batches, per_image), folder)


def _check(cfg: CfgNode, path: Path, per_image: int, overwrite: bool) -> None:
    most = cfg.MODEL.FVIT.PROPOSALS_AFTER
    if not 1 <= per_image <= most:
        raise InputError(
            f"{per_image} proposals of an image: give 1 to MODEL.FVIT.PROPOSALS_AFTER, {most}"
        )
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already: give another --output, or --overwrite")


@dead_workers_named()
def _proposed(model: FViT, batches: Any, per_image: int) -> Iterator[tuple[Sample, Tensor, Tensor]]:
    """Sample, boxes and scores of each image."""
    for (sample,) in tqdm(batches, "images", unit="image"):
        ((boxes, scores),) = model.propose([sample])
        yield sample, boxes[:per_image].cpu(), scores[:per_image].cpu()


def _write(
    file: TextIO,
    info: dict[str, Any],
    proposed: Iterator[tuple[Sample, Tensor, Tensor]],
    folder: str,
) -> Written:
    """Write the file's parts in the order in which they are known: the list of images comes last."""
    begin = json.dumps({"info": info, "categories": [CATEGORY]}).removesuffix("}")
    file.write(f'{begin},\n"annotations": [')
    images: list[dict[str, Any]] = []
    count = 0
    for sample, boxes, scores in proposed:
        for annotation in _annotations(sample["image_id"], boxes, scores):
            count += 1
            comma = "," if count > 1 else ""
            file.write(f"{comma}\n{json.dumps(annotation | {'id': count})}")
        images.append(_image(sample, folder))
    if not count:
        raise InputError("the detector proposes no box in any image: are its weights broken?")
    file.write(f'\n],\n"images": {json.dumps(images)}}}\n')
    return Written(count, len(images))


def _image(sample: Sample, folder: str) -> dict[str, Any]:
    return {
        "id": sample["image_id"],
        "file_name": os.path.relpath(sample["file_name"], folder),
        "width": sample["width"],
        "height": sample["height"],
    }


def _annotations(image_id: Any, boxes: Tensor, scores: Tensor) -> Iterator[dict[str, Any]]:
    # Corners are rounded before sizes are taken, so that no box leaves its image.
    for corners, score in zip(boxes.double().round(decimals=DIGITS).tolist(), scores.tolist()):
        left, top, right, bottom = corners
        width, height = round(right - left, DIGITS), round(bottom - top, DIGITS)
        yield {
            "image_id": image_id,
            "category_id": CATEGORY["id"],
            "bbox": [left, top, width, height],
            "area": round(width * height, DIGITS),
            "iscrowd": 0,
            "score": round(score, 4),
        }
