"""Writes the proposals of a detector's RPN for a data set, as distillation reads them.

The file is COCO's format of instances with one category, `data.records.proposal_records` reads it. It has
millions of boxes, so it is written image by image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from detectron2.config import CfgNode
from torch import Tensor
from torchvision.ops import nms
from tqdm import tqdm

from clipself_seg.data.datasets.coco import annotation_file, image_folder
from clipself_seg.data.datasets.detection import detection_dataset
from clipself_seg.data.loader import dead_workers_named, evaluation_batches
from clipself_seg.data.mappers.detection import DetectionTestMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.records import Record, listed_records, read_coco_json, require_images
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in, atomic_path, remove_leftovers
from clipself_seg.models.build import architecture, build_model
from clipself_seg.models.protocol import ProposingModel
from clipself_seg.prediction.coco_stream import CocoStream
from clipself_seg.prediction.proposal_statistics import (
    Objects,
    ProposalStatistics,
    dataset_objects,
)
from clipself_seg.provenance import provenance

CATEGORY = {"id": 1, "name": "object"}
DIGITS = 2  # of a pixel, after the point


class ProposalSelection(NamedTuple):
    """Which proposals of an image are written.

    Distillation draws among all boxes of an image with equal chance, so what is no object should not be among them.

    Attributes:
        score: lowest score, in [0, 1].
        min_side: smallest width and height in pixels of the original image.
        iou: overlap above which the worse of two proposals goes, in [0, 1].
        per_image: largest number of proposals, the best.
    """

    score: float = 0.5
    min_side: float = 8.0
    iou: float = 0.5
    per_image: int = 50

    def of(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) and scores (n,) among those given (m, 4) and (m,), the best first."""
        large = (boxes[:, 2:] - boxes[:, :2] >= self.min_side).all(dim=1)
        kept = (large & (scores >= self.score)).nonzero()[:, 0]
        kept = kept[nms(boxes[kept], scores[kept], self.iou)[: self.per_image]]
        return boxes[kept], scores[kept]


class AnnotatedImages(NamedTuple):
    """A data set whose file is read.

    Attributes:
        path: path of the file.
        folder: folder to which its file names are relative.
        content: content of the file, see `records.read_coco_json`.
        records: records of the images.
    """

    path: str
    folder: str
    content: dict[str, Any]
    records: list[Record]


def write_dataset_proposals(
    cfg: CfgNode,
    dataset: str,
    path: str | os.PathLike[str],
    selection: ProposalSelection | None = None,
    overwrite: bool = False,
) -> ProposalStatistics:
    """Write the best proposals of the configured detector for every image of a data set, with a progress bar.

    Args:
        cfg: of a `ProposingModel` with its weights.
        dataset: data set of `data.datasets.coco` or of Detectron2's catalogue; its annotations, if it has
            any, are compared with the proposals and decide nothing.
        path: JSON file to write.
        selection: which proposals are written; None for the defaults.
        overwrite: replace a file that is there already.

    Returns:
        Numbers of boxes and images, and recall of the objects.

    Raises:
        InputError: as `check_writing`; an image that cannot be read; no proposal at all; another process is at
            work in the folder.
        OSError: the file cannot be written.
    """
    selection = selection or ProposalSelection()
    images = check_writing(cfg, dataset, path, selection, overwrite)
    folder = images.folder
    records = images.records
    statistics = ProposalStatistics(_objects(cfg, images))
    del images  # annotations can take gigabytes
    mapper = DetectionTestMapper(cfg)
    model = cast(ProposingModel, build_model(cfg).eval())
    info = {
        "description": f"proposals of each image of {dataset}: {selection._asdict()}",
        **provenance(config=cfg.dump(), seed=cfg.SEED, weights_hash=model.weights_hash()),
    }
    batches = evaluation_batches(records, mapper, cfg.DATALOADER.NUM_WORKERS)
    with alone_in(Path(path).parent):
        remove_leftovers(Path(path).parent)
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            proposed = _proposed(model, batches, selection)
            _write(file, info, proposed, folder, statistics)
    return statistics


def check_writing(
    cfg: CfgNode,
    dataset: str,
    path: str | os.PathLike[str],
    selection: ProposalSelection,
    overwrite: bool,
) -> AnnotatedImages:
    """The data set's images, once it is known that their proposals can be written.

    Raises:
        InputError: another kind of model; a selection that is none, or of more boxes than the detector
            gives; a file that is there already; an unknown or incomplete data set.
    """
    cls = architecture(cfg)
    if not issubclass(cls, ProposingModel):
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which proposes no boxes: take a "
            "configuration of FViT or StockRPN, such as those below configs/detection"
        )
    key, most = cls.most_proposals(cfg)
    if not 1 <= selection.per_image <= most:
        raise InputError(f"{selection.per_image} proposals of an image: give 1 to {key}, {most}")
    for name in ("score", "iou"):
        if not 0 <= getattr(selection, name) <= 1:
            raise InputError(f"{name} {getattr(selection, name)} of proposals: give 0 to 1")
    if not 0 <= selection.min_side < math.inf:
        raise InputError(f"min-side {selection.min_side} of proposals: give pixels, 0 or more")
    if Path(path).exists() and not overwrite:
        raise InputError(f"{path} is there already: give another --output, or --overwrite")
    source = annotation_file(dataset)
    folder = image_folder(dataset)
    content = read_coco_json(source)
    records = listed_records(content, source, folder)
    require_images(dataset, records, "restore them: each image needs its proposals")
    return AnnotatedImages(source, folder, content, records)


def _objects(cfg: CfgNode, images: AnnotatedImages) -> dict[Any, Objects]:
    """Objects of the classes of the detector's training data; none if those are not configured."""
    if not cfg.DATASETS.TRAIN:
        return {}
    vocabulary = load_vocabulary(detection_dataset(cfg.DATASETS.TRAIN[0]).vocabulary)
    return dataset_objects(images.content, images.path, images.folder, vocabulary)


@dead_workers_named()
def _proposed(
    model: ProposingModel, batches: Any, selection: ProposalSelection
) -> Iterator[tuple[Sample, Tensor, Tensor]]:
    """Sample, boxes and scores of each image; corners are rounded as they are written."""
    for (sample,) in tqdm(batches, "images", unit="image"):
        ((boxes, scores),) = model.propose([sample])
        boxes, scores = selection.of(boxes.cpu().float(), scores.cpu().float())
        yield sample, boxes.double().round(decimals=DIGITS), scores


def _write(
    file: TextIO,
    info: dict[str, Any],
    proposed: Iterator[tuple[Sample, Tensor, Tensor]],
    folder: str,
    statistics: ProposalStatistics,
) -> None:
    stream = CocoStream(file, info, [CATEGORY])
    images: list[dict[str, Any]] = []
    for sample, boxes, scores in proposed:
        for annotation in _annotations(sample["image_id"], boxes, scores):
            stream.add(annotation)
        images.append(_image(sample, folder))
        statistics.add(sample["image_id"], boxes.float())
    if not stream.count:
        raise InputError(
            "no box of any image passes: are the weights trained? A lower --score and --min-side let more pass"
        )
    stream.finish(images)


def _image(sample: Sample, folder: str) -> dict[str, Any]:
    return {
        "id": sample["image_id"],
        "file_name": os.path.relpath(sample["file_name"], folder),
        "width": sample["width"],
        "height": sample["height"],
    }


def _annotations(image_id: Any, boxes: Tensor, scores: Tensor) -> Iterator[dict[str, Any]]:
    # Corners were rounded before sizes are taken, so that no box leaves its image.
    for corners, score in zip(boxes.tolist(), scores.tolist()):
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
