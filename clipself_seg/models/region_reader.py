"""Region recognition with a CLIP as it is: readouts of regions, scored against a vocabulary.

Shapes: n regions of an image, K classes, E embedding, h x w cells of the dense features, S0 side
    of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.backbone import build_clip
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.region_pooling import box_weights, mask_weights, pool
from clipself_seg.clip.runtime import QUEUES, on_device, send
from clipself_seg.clip.templates import templates_text
from clipself_seg.clip.text_bank import check_lengths
from clipself_seg.clip.tower import TransformerTower
from clipself_seg.config import WHOLE
from clipself_seg.config.load import evaluation_precision
from clipself_seg.data.mappers.regions import WholeImageMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary, Words
from clipself_seg.errors import InputError
from clipself_seg.models.model_base import FrozenCLIP
from clipself_seg.models.model_protocols import MEAN_OF_NAMES, Classes, Outputs, Reading

CROPS_AT_ONCE = 64


@META_ARCH_REGISTRY.register()
class RegionReader(FrozenCLIP):
    """Scores regions by the cosine of their embedding with the text embedding of every class.

    "boxes" and "masks" are pooled from one dense pass over the image, "crops" are image embeddings,
    "attention_boxes" and "attention_masks" come from masked attention (CLIPSelf, Tables 1, A1).
    """

    @configurable
    def __init__(
        self,
        *,
        clip: VisionLanguageBackbone,
        read: Sequence[str] = ("boxes", "masks", "crops"),
        templates: str = "vild63",
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            clip: CLIP with both towers.
            read: readouts, out of `clipself_seg.config.READOUTS`.
            templates: prompts around a class name, see `TextBank`.
            precision: dtype of autocast, or None.
        """
        super().__init__(clip=clip, templates=templates, precision=precision)
        self.read = tuple(read)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``MODEL.CLIP``, ``TEST.REGIONS.{READ, TEMPLATES}`` and ``TEST.PRECISION``."""
        return {
            "clip": build_clip(cfg),
            "read": cfg.TEST.REGIONS.READ,
            "templates": cfg.TEST.REGIONS.TEMPLATES,
            "precision": evaluation_precision(cfg),
        }

    @classmethod
    def task(cls) -> str:
        """Returns "regions": region recognition."""
        return "regions"

    @property
    def image_size(self) -> int:
        """S0, side in pixels of the crops."""
        return self.clip.image_size

    @property
    def patch_size(self) -> int:
        """Stride in pixels of the dense features; images must be multiples of it."""
        return self.clip.patch_size

    def reading(self) -> Reading:
        """Describes the way from names and images to scores, for the protocol of the numbers."""
        return Reading(
            MEAN_OF_NAMES,
            templates_text(self.bank.templates),
            features=self.clip.visual.description(),
            precision=self.precision,
        )

    def image_mapper(self, size: int, max_pixels: int) -> WholeImageMapper:
        """Mapper of whole images to squares of a size, as the authors of the tower prepare them."""
        clip = self.clip
        return WholeImageMapper(
            image_size=size, squash=clip.squash, filter=clip.filter, max_pixels=max_pixels
        )

    def check_readouts(self, sizes: Sequence[int], readouts: Sequence[str]) -> None:
        """Refuses sizes and readouts that `forward` could not work with.

        Args:
            sizes: sides in pixels of the square input.
            readouts: ways from regions to embeddings, out of `clipself_seg.config.READOUTS`.

        Raises:
            InputError: a side that the patch does not divide, or masked attention without a class token.
        """
        for size in sizes:
            self.clip.check_side(size)
        if {"crops", WHOLE} & {*readouts}:
            self.clip.visual.require_images()
        masked = [name for name in readouts if name.startswith("attention")]
        if masked and not isinstance(self.clip.visual, TransformerTower):
            raise InputError(
                f'TEST.REGIONS.READ has "{masked[0]}", but {self.clip.name} has no class token for masked '
                "attention: leave it out, or take a ViT"
            )

    def classes_of(self, words: Words, seen: np.ndarray | None = None) -> Classes:
        """Reads and checks the classes to choose from; scores have one column for each, in this order.

        Args:
            words: see `Vocabulary.of`.
            seen: as `ModelBase.classes_of`; scores do not depend on it.

        Raises:
            InputError: no class, an empty name, a class that comes twice, or a name that CLIP cannot read whole.
        """
        words = Vocabulary.of(words)
        names = words.names()
        check_lengths(self.clip, names, self.bank.templates)
        return Classes(names, seen=seen, examples=words.examples)

    @torch.no_grad()
    def forward(
        self,
        samples: Sequence[Sample],
        *,
        classes: Classes | None = None,
        read: Sequence[str] | None = None,
        dense: bool = False,
    ) -> list[Outputs]:
        """Score the regions of some images of one size.

        Args:
            samples: for each image "image" uint8 (3, S, S), "boxes" (n, 4) XYXY in [0, 1] of the padded
                square, and for their readouts "masks" (n, h, w) bool, "crops" uint8 (n, 3, S0, S0).
            classes: the result of `classes_of`; None for those that `set_vocabulary` gave.
            read: readouts; None stands for those that the model was made with.
            dense: True if the dense features are wanted as well.

        Returns:
            For each image {"scores": {readout: (n, K)}}, cosines in [-1, 1], and with `dense` "dense" (E, h, w),
            of length 1, too. An empty mask scores 0 for every class.
        """
        classes, read = self.given_classes(classes), self.read if read is None else read
        text_KE = self.bank.embed_names(classes.names, classes.examples)
        with autocast(self.device, self.precision):
            images = self.clip.preprocess(torch.stack(on_device(samples, "image", self.device)))
            dense_BEhw = None
            if dense or {"boxes", "masks"} & set(read):
                dense_BEhw = F.normalize(self.clip.dense(images).float(), dim=1)
            embeddings = self._embeddings(samples, read, images, dense_BEhw)
        outputs: list[Outputs] = [
            {"scores": {name: rows[index] @ text_KE.T for name, rows in embeddings.items()}}
            for index in range(len(samples))
        ]
        if dense and dense_BEhw is not None:
            for output, features_Ehw in zip(outputs, dense_BEhw, strict=True):
                output["dense"] = features_Ehw
        return outputs

    def _embeddings(
        self,
        samples: Sequence[Sample],
        read: Sequence[str],
        images: Tensor,
        dense_BEhw: Tensor | None,
    ) -> dict[str, list[Tensor]]:
        """Unit vectors (n, E), float32, for every readout and image."""
        boxes = [s["boxes"] for s in samples]
        masked = any(readout.endswith("masks") for readout in read)
        masks = [s["masks"] for s in samples] if masked else []
        embeddings = {}
        for readout in read:
            if readout == WHOLE:
                embeddings[readout] = _split(self.clip.embed_images(images), boxes)
            elif readout == "crops":
                embeddings[readout] = [self._embed_crops(s["crops"]) for s in samples]
            elif readout == "attention_boxes":
                embeddings[readout] = _split(self.clip.encode_boxes(images, boxes, True), boxes)
            elif readout == "attention_masks":
                embeddings[readout] = _split(self.clip.encode_masks(images, masks, True), masks)
        if dense_BEhw is not None:
            embeddings |= self._pooled(dense_BEhw, boxes, masks)
        return {
            readout: [F.normalize(rows.float(), dim=-1) for rows in embeddings[readout]]
            for readout in read
        }

    def _pooled(
        self, dense_BEhw: Tensor, boxes: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> dict[str, list[Tensor]]:
        """Embeddings of boxes and masks, both from one dense pass and one product an image."""
        grid = (dense_BEhw.shape[2], dense_BEhw.shape[3])
        pooled: dict[str, list[Tensor]] = {"boxes": [], "masks": []}
        for index, features_Ehw in enumerate(dense_BEhw):
            weights = {"boxes": box_weights(boxes[index], grid)}
            if masks:
                weights["masks"] = mask_weights(masks[index])
            rows = pool(features_Ehw, send(torch.cat(list(weights.values())), self.device))
            for readout, part in zip(weights, rows.split([len(w) for w in weights.values()])):
                pooled[readout].append(part)
        return pooled

    def _embed_crops(self, crops_nchw: Tensor) -> Tensor:
        if not len(crops_nchw):
            return torch.zeros(0, self.clip.embed_dim, device=self.device)
        chunks = crops_nchw.split(CROPS_AT_ONCE)
        return torch.cat(
            [
                self.clip.embed_images(self.clip.preprocess(c.to(self.device, non_blocking=QUEUES)))
                for c in chunks
            ]
        )


@META_ARCH_REGISTRY.register()
class ImageClassifier(RegionReader):
    """Scores whole images, and reads nothing else of them: classification without training."""

    @classmethod
    def task(cls) -> str:
        """Returns "whole_images"."""
        return "whole_images"


def _split(rows: Tensor, per_image: Sequence[Tensor]) -> list[Tensor]:
    return list(rows.split([len(regions) for regions in per_image]))
