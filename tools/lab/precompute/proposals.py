"""Writes the proposals of a detector's RPN for a data set, as distillation reads them.

The file is COCO's format of instances with one category, `data.annotations.proposal_records` reads it. It has
millions of boxes, so it is written image by image, as `region_text` writes those that have nouns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from detectron2.config import CfgNode
from torch import Tensor
from torchvision.ops import nms
from tqdm import tqdm

from clipself_seg.data.annotations import Record, listed_records, read_coco_json, require_files
from clipself_seg.data.datasets.records import annotated_dataset
from clipself_seg.data.loader import Batches, dead_workers_named, evaluation_batches
from clipself_seg.data.mappers.detection import DetectionTestMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.errors import InputError, known
from clipself_seg.files import alone_in, atomic_path, remove_leftovers
from clipself_seg.models.build import build_model
from clipself_seg.provenance import provenance

CATEGORY = {"id": 1, "name": "object"}
DIGITS = 2  # of a pixel, after the point
PROPOSING = ("FViT", "StockRPN")  # models with `propose(samples)`


class ProposalSelection(NamedTuple):
    """Settings that choose the proposals of an image that are written.

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


class CocoStream:
    """A file in COCO's format that is written annotation by annotation; the list of images comes last.

    Attributes:
        count: number of annotations so far, which is the id of the last one.
    """

    def __init__(
        self, file: TextIO, info: Mapping[str, object], categories: Sequence[Mapping[str, object]]
    ) -> None:
        """
        Args:
            file: open to be written, and empty.
            info: what the file says of itself; JSON.
            categories: with "id" and "name".
        """
        self.file = file
        self.count = 0
        begin = json.dumps({"info": info, "categories": categories}).removesuffix("}")
        file.write(f'{begin},\n"annotations": [')

    def add(self, annotation: Mapping[str, object]) -> None:
        """Write an annotation; its id is its number, from 1."""
        self.count += 1
        comma = "," if self.count > 1 else ""
        self.file.write(f"{comma}\n{json.dumps({**annotation, 'id': self.count})}")

    def finish(self, images: Sequence[Mapping[str, object]]) -> None:
        """Write the list of images, after which the file is whole."""
        self.file.write(f'\n],\n"images": {json.dumps(images)}}}\n')


def write_dataset_proposals(
    cfg: CfgNode,
    dataset: str,
    path: str | os.PathLike[str],
    selection: ProposalSelection,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write the best proposals of the configured detector for every image of a data set, with a progress bar.

    Returns their number, and that of the images, those without proposals too.

    Args:
        cfg: of a model of `PROPOSING` with its weights.
        dataset: data set of `data.datasets.table` or of Detectron2's catalogue.
        path: JSON file to write.
        selection: which proposals are written.
        overwrite: replace a file that is there already.

    Raises:
        InputError: as `check_writing`; an image that cannot be read; no proposal at all; another process is at
            work in the folder.
        OSError: the file cannot be written.
    """
    records = check_writing(cfg, dataset, path, overwrite)
    mapper = DetectionTestMapper(cfg)
    model = build_model(cfg).eval()
    origin = {"seed": cfg.SEED, "weights_hash": model.weights_hash(), "device": cfg.MODEL.DEVICE}
    info = {
        "description": f"proposals of each image of {dataset}: {selection._asdict()}",
        **provenance(config=cfg.dump(), **origin),
    }
    files = annotated_dataset(dataset)
    folder = str(files.path(files.images))
    images = list[dict[str, object]]()
    with alone_in(Path(path).parent):
        remove_leftovers(Path(path).parent)
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            stream = CocoStream(file, info, [CATEGORY])
            batches = evaluation_batches(records, mapper, cfg.DATALOADER.NUM_WORKERS)
            for sample, boxes, scores in _proposed(model, batches, selection):
                for annotation in _annotations(sample["image_id"], boxes, scores):
                    stream.add(annotation)
                image = {key: sample[key] for key in ("width", "height")}
                name = os.path.relpath(sample["file_name"], folder)
                images.append({"id": sample["image_id"], "file_name": name, **image})
            if not stream.count:
                raise InputError(
                    "no box of any image passes: are the weights trained? A lower --score and --min-side let more pass"
                )
            stream.finish(images)
    return stream.count, len(images)


def check_writing(
    cfg: CfgNode, dataset: str, path: str | os.PathLike[str], overwrite: bool
) -> list[Record]:
    """Records of the data set's images, once it is known that their proposals can be written.

    Raises:
        InputError: another kind of model; a file that is there already; an unknown or incomplete data set.
    """
    known(
        cfg.MODEL.META_ARCHITECTURE, PROPOSING, "model of boxes", origin="MODEL.META_ARCHITECTURE"
    )
    if Path(path).exists() and not overwrite:
        raise InputError(f"{path} is there already: give another --output, or --overwrite")
    files = annotated_dataset(dataset)
    source = files.path(files.annotations)
    records = listed_records(read_coco_json(source), source, files.path(files.images))
    require_files(dataset, records, "restore them: each image needs its proposals")
    return records


@dead_workers_named()
def _proposed(
    model: Any, batches: Batches, selection: ProposalSelection
) -> Iterator[tuple[Sample, Tensor, Tensor]]:
    """Sample, boxes and scores of each image; corners are rounded as they are written."""
    for (sample,) in tqdm(batches, "images", unit="image"):
        ((boxes, scores),) = model.propose([sample])
        boxes, scores = selection.of(boxes.cpu().float(), scores.cpu().float())
        yield sample, boxes.double().round(decimals=DIGITS), scores


def _annotations(image_id: object, boxes: Tensor, scores: Tensor) -> Iterator[dict[str, object]]:
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
