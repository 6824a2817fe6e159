"""Labels proposals with nouns by CLIP's embeddings of their crops, for region-text training (CLIPSelf, A.4).

Shapes: R proposals of some images, K nouns, E embedding width, S0 side of a crop.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from detectron2.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from clipself_seg.clip import TextBank, VisionLanguageBackbone
from clipself_seg.clip.backbone import build_clip
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.runtime import QUEUES
from clipself_seg.clip.templates import NOUN_TEMPLATES
from clipself_seg.config.load import evaluation_precision
from clipself_seg.data.annotations import Record, proposal_records, read_coco_json, require_files
from clipself_seg.data.datasets.records import find_annotated
from clipself_seg.data.datasets.table import SHIPPED_WORLD
from clipself_seg.data.images import MAX_PIXELS, letterbox_crops, read_image
from clipself_seg.data.loader import dead_workers_named, evaluation_batches
from clipself_seg.data.mappers.samples import Sample, chw, stated_size
from clipself_seg.data.regions import enlarge_boxes
from clipself_seg.errors import InputError, known
from clipself_seg.files import alone_in, atomic_path, remove_leftovers
from clipself_seg.heads.distillation_losses import noun_logits
from clipself_seg.prediction.journal import Json
from clipself_seg.provenance import provenance
from lab.precompute.proposals import CocoStream
from lab.prepare.nouns import (
    ImageCaptions,
    NounsOfCaptions,
    frequent_nouns,
    head_nouns,
    read_captions,
    read_nouns,
    single_phrases,
    tagged_captions,
)

logger = logging.getLogger(__name__)

ImageId = int | str
Captions = Mapping[ImageId, Sequence[str]]
# Index of the noun, -1 for none, and its score in [0, 1], for each proposal of an image.
ImageLabels = list[tuple[int, float]]
DIGITS = 4  # of a score, after the point


class Request(NamedTuple):
    """The settings of a labelling of proposals.

    Attributes:
        proposals: file of boxes in COCO's format, such as `lab.precompute.proposals` writes.
        captions: file of captions in COCO's format; None needs `nouns` and `candidates` "pool".
        nouns: file with a noun a line; None takes the `top` most frequent nouns of the captions.
        top: see `nouns`.
        candidates: "image" gives a box one of the nouns in its image's captions, "pool" any.
        threshold: a box is kept if the probability of its noun among all nouns is above, in [0, 1].
        output: file to write; None for that of DATASETS.TRAIN.
        batch: number of crops that are embedded together.
        processes: to tag captions in, where they have no phrases.
        overwrite: replace a file that is there.
    """

    proposals: str
    captions: str | None = None
    nouns: str | None = None
    top: int = 4764
    candidates: Literal["image", "pool"] = "image"
    threshold: float = 0.1
    output: str | None = None
    batch: int = 256
    processes: int = 1
    overwrite: bool = False


def label_proposals(cfg: CfgNode, request: Request) -> str:
    """Write a file of proposals with their nouns, with a progress bar; returns what it says of them.

    Args:
        cfg: of a `CLIPSelf`: its CLIP embeds crops and nouns, DATASETS.TRAIN names the data set.
        request: see `Request`.

    Raises:
        InputError: a value that cannot be; a file that is there already; files that are missing or broken;
            captions of other images, where a box takes a noun of its own image's; another process at work in
            the folder.
        OSError: the file cannot be written.
    """
    origin = "MODEL.META_ARCHITECTURE"
    known(cfg.MODEL.META_ARCHITECTURE, ["CLIPSelf"], "model of nouns", origin=origin)
    if len(cfg.DATASETS.TRAIN) != 1:
        raise InputError(
            f"DATASETS.TRAIN is {tuple(cfg.DATASETS.TRAIN)}: give the one data set whose images are labelled"
        )
    (dataset,) = cfg.DATASETS.TRAIN
    entry = find_annotated(dataset, "nouns")
    target = Path(request.output or entry.path(entry.annotations))
    if target.is_relative_to(SHIPPED_WORLD):
        raise InputError(
            f"{target} would lie in the package, whose small worlds are read here: give --output, or draw worlds "
            "(python tools/mini.py world)"
        )
    _check(request, target)
    content = read_coco_json(request.proposals)
    records = proposal_records(request.proposals, str(entry.path(entry.images)), content)
    require_files(dataset, records, "restore them: each image needs its labels")
    captions = _captions(request, records)
    texts = {image_id: image.texts for image_id, image in captions.items()}
    nouns = _nouns(request, captions)
    torch.manual_seed(cfg.SEED)  # of a CLIP without weights
    labeller = Labeller(cfg, build_clip(cfg).to(cfg.MODEL.DEVICE).eval(), nouns, request)
    with alone_in(target.parent):
        remove_leftovers(target.parent)
        labels = list(labeller.label(records, texts))
        made_by = provenance(config=cfg.dump(), weights_hash=labeller.clip.weights_hash())
        info = {**made_by, **labeller.settings, "threshold": request.threshold}
        labelled = list(zip(records, labels, strict=True))
        return _write(target, info, content, labelled, nouns, texts, request.threshold)


def _check(request: Request, target: Path) -> None:
    if target.exists() and not request.overwrite:
        raise InputError(f"{target} is there already: give another --output, or --overwrite")
    if request.captions is None and (request.nouns is None or request.candidates == "image"):
        raise InputError(
            "--captions is missing: nouns come from captions; without any, give a list (--nouns FILE) "
            "that all boxes may take (--candidates pool)"
        )


def _captions(request: Request, records: Sequence[Record]) -> dict[ImageId, ImageCaptions]:
    if request.captions is None:
        return {}
    captions = read_captions(request.captions)
    without = sum(record["image_id"] not in captions for record in records)
    if without == len(records) and request.candidates == "image":
        raise InputError(
            f"{request.captions} has no caption of any image of {request.proposals}: give the captions of "
            "these images, whose ids they name, or let all boxes take any noun (--candidates pool)"
        )
    logger.info("%s: %d of %d images have no caption", request.captions, without, len(records))
    return captions


def _nouns(request: Request, captions: Mapping[ImageId, ImageCaptions]) -> list[str]:
    """The listed nouns, or the most frequent ones of the captions, which are tagged where they have no phrases."""
    if request.nouns is not None:
        return read_nouns(request.nouns)
    listed, untagged = [], []
    for image in captions.values():
        for text, phrases in zip(image.texts, image.phrases):
            if phrases is None:
                untagged.append(text)
            else:
                listed.append(single_phrases(phrases))
    if untagged:
        label = "nouns of captions"
        listed += tagged_captions(head_nouns, untagged, request.processes, label)
    if not (nouns := frequent_nouns(listed, request.top)):
        raise InputError(
            f"{request.captions}: no caption has a noun: give captions, or --nouns FILE"
        )
    return nouns


class Labeller:
    """Labels crops by CLIP's embeddings of them and of the nouns.

    Attributes:
        settings: what labels depend on besides the boxes; JSON.
    """

    def __init__(
        self, cfg: CfgNode, clip: VisionLanguageBackbone, nouns: Sequence[str], request: Request
    ) -> None:
        """
        Args:
            cfg: as for `label_proposals`.
            clip: the model, in evaluation mode.
            nouns: K.
            request: see `Request`.
        """
        self.clip = clip
        self.request = request
        self.precision = evaluation_precision(cfg)
        self.workers = cfg.DATALOADER.NUM_WORKERS
        self.mapper = ProposalCropMapper(
            crop_size=clip.image_size,
            crop_scale=cfg.INPUT.REGIONS.CROP_SCALE,
            max_pixels=cfg.INPUT.MAX_PIXELS,
        )
        self.settings: Json = {
            "weights": clip.weights_hash(),
            "nouns": hashlib.blake2b(json.dumps(list(nouns)).encode(), digest_size=16).hexdigest(),
            "templates": NOUN_TEMPLATES,
            "candidates": request.candidates,
            "crop_scale": cfg.INPUT.REGIONS.CROP_SCALE,
            "precision": str(self.precision or torch.float32),
        }
        self.nouns_KE = TextBank(clip, NOUN_TEMPLATES).embed(nouns)
        self.find = NounsOfCaptions(nouns)

    @dead_workers_named()
    def label(self, records: Sequence[Record], captions: Captions) -> Iterator[ImageLabels]:
        """Labels of the proposals of each image, in their order; crops of several images are embedded together."""
        waiting: list[Sample] = []
        batches = evaluation_batches(records, self.mapper, self.workers)
        for (sample,) in tqdm(batches, "images", unit="image"):
            waiting.append(sample)
            if sum(len(other["crops"]) for other in waiting) >= self.request.batch:
                yield from self._label_samples(waiting, captions)
                waiting = []
        if waiting:
            yield from self._label_samples(waiting, captions)

    @torch.no_grad()
    def _label_samples(
        self, samples: Sequence[Sample], captions: Captions
    ) -> Iterator[ImageLabels]:
        crops = torch.cat([sample["crops"] for sample in samples])
        allowed_RK = self._allowed(samples, captions)
        labels: ImageLabels = []
        for start in range(0, len(crops), self.request.batch):
            rows = slice(start, start + self.request.batch)
            regions_RE = self._embed(crops[rows])
            logits_RK = noun_logits(regions_RE, self.nouns_KE, self.clip.logit_scale.exp())
            allowed = None if allowed_RK is None else allowed_RK[rows].to(logits_RK.device)
            numbers_R, scores_R = pseudo_labels(logits_RK, allowed)
            labels += zip(numbers_R.tolist(), scores_R.tolist())
        for sample in samples:
            count = len(sample["crops"])
            yield labels[:count]
            labels = labels[count:]

    def _embed(self, crops: Tensor) -> Tensor:
        device = self.nouns_KE.device
        with autocast(device, self.precision):
            return self.clip.embed_images(
                self.clip.preprocess(crops.to(device, non_blocking=QUEUES))
            )

    def _allowed(self, samples: Sequence[Sample], captions: Captions) -> Tensor | None:
        """(R, K) bool, the nouns that each crop may have; None for all."""
        if self.request.candidates == "pool":
            return None
        rows = []
        for sample in samples:
            row = torch.zeros(len(self.nouns_KE), dtype=torch.bool)
            row[self.find(captions.get(sample["image_id"], []))] = True
            rows.append(row.expand(len(sample["crops"]), -1))
        return torch.cat(rows)


def pseudo_labels(logits_RK: Tensor, candidates_RK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nouns that the teacher gives to regions: labels (R,) int64 and their scores (R,).

    A label is the candidate with the largest logit, the first of equals; -1 where there is none. Its score
    is its probability among all nouns, in [0, 1]; 0 where there is none.

    Args:
        logits_RK: see `noun_logits`, of embeddings of the regions' crops.
        candidates_RK: bool, the nouns that a region may have; None for all.
    """
    chances_RK = logits_RK.softmax(1)
    if candidates_RK is None:
        candidates_RK = torch.ones_like(logits_RK, dtype=torch.bool)
    allowed_RK = logits_RK.masked_fill(~candidates_RK, -torch.inf)
    best_RK = candidates_RK & (allowed_RK == allowed_RK.amax(1, keepdim=True))
    number = torch.arange(logits_RK.shape[1], device=logits_RK.device)
    first_R = number.where(best_RK, len(number)).amin(1)
    none_R = first_R == len(number)
    labels_R = first_R.masked_fill(none_R, 0)
    scores_R = chances_RK.gather(1, labels_R[:, None])[:, 0].masked_fill(none_R, 0)
    return labels_R.masked_fill(none_R, -1), scores_R


@dataclass(kw_only=True)
class ProposalCropMapper:
    """Mapper from a record to crops of all its proposals, as the teacher of distillation sees them.

    Attributes:
        crop_size: S0, in pixels.
        crop_scale: enlargement of a crop about the centre of its box.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    crop_size: int
    crop_scale: float = 1.5
    max_pixels: int = MAX_PIXELS

    def __call__(self, record: Record) -> Sample:
        """Make the sample of an image.

        Args:
            record: record of `data.annotations.proposal_records`.

        Returns:
            "image_id" and "crops" uint8 (n, 3, S0, S0).

        Raises:
            InputError: the image cannot be read, or the proposals were made for another image size.
        """
        image = read_image(record["file_name"], stated_size(record), self.max_pixels)
        height, width = image.shape[:2]
        boxes = enlarge_boxes(record["proposals"], self.crop_scale, width, height)
        crops = letterbox_crops(image, boxes, self.crop_size)
        return {"image_id": record["image_id"], "crops": chw(crops)}


def _write(
    path: Path,
    info: Json,
    content: Json,
    labelled: Sequence[tuple[Record, ImageLabels]],
    nouns: Sequence[str],
    captions: Captions,
    threshold: float,
) -> str:
    """Write the proposals whose score is above the threshold, those of an image by falling score, atomically.

    Args:
        path: the file.
        info: what it says of itself.
        content: of the file of proposals.
        labelled: its images, and the labels of the proposals of each.
        nouns: what labels number; the id of a category is its label and 1.
        captions: they are written where an image has some.
        threshold: see `Request`.

    Raises:
        InputError: no proposal is above the threshold.
        OSError: the file cannot be written.
    """
    images = {image["id"]: image for image in cast(list[Record], content["images"])}
    boxes: dict[ImageId, list[Record]] = {}
    for annotation in cast(list[Record], content["annotations"]):
        boxes.setdefault(annotation["image_id"], []).append(annotation)
    categories = [{"id": number, "name": noun} for number, noun in enumerate(nouns, 1)]
    listed, empty, used = list[Json](), 0, set[object]()
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        stream = CocoStream(file, info, categories)
        for record, labels in labelled:
            image_id = record["image_id"]
            before = stream.count
            for annotation in _annotations(boxes.get(image_id, []), labels, threshold):
                stream.add(annotation)
                used.add(annotation["category_id"])
            empty += stream.count == before
            texts = captions.get(image_id)
            listed.append(images[image_id] | ({} if texts is None else {"captions": texts}))
        if not stream.count:
            raise InputError(
                f"no proposal has a noun with a probability above --threshold {threshold}: lower it"
            )
        stream.finish(listed)
    proposals = sum(len(labels) for _, labels in labelled)
    return (
        f"{path}: {stream.count} of {proposals} proposals are kept ({stream.count / proposals:.1%}) with {len(used)} "
        f"of {len(nouns)} nouns; {empty} of {len(labelled)} images have none"
    )


def _annotations(boxes: Sequence[Record], labels: ImageLabels, threshold: float) -> Iterator[Json]:
    for box, (label, score) in sorted(zip(boxes, labels), key=lambda pair: -pair[1][1]):
        if label < 0 or score <= threshold:
            continue
        x, y, width, height = box["bbox"]
        objectness = {"objectness": box["score"]} if "score" in box else {}
        yield {
            "image_id": box["image_id"],
            "category_id": label + 1,
            "bbox": [x, y, width, height],
            "area": round(width * height, 2),
            "iscrowd": 0,
            "score": round(score, DIGITS),
            **objectness,
        }
