"""Semantic segmentation without training: CLIP's dense features against the texts of class names.

The method is what MaskCLIP (arXiv 2112.01071), SCLIP, ClearCLIP and NACLIP have in common; they differ in the dense
feature, which is the CLIP's (``MODEL.CLIP``).

Shapes: K classes, N names of all classes, V windows of an image, E embedding, h x w cells of a window.
"""

from __future__ import annotations

import math
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
from clipself_seg.clip.runtime import chunk_size, on_device, send
from clipself_seg.clip.templates import templates_text
from clipself_seg.clip.text_bank import check_lengths
from clipself_seg.config.load import evaluation_precision
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary, Words
from clipself_seg.heads.text_scores import class_probabilities, members_of
from clipself_seg.heads.windows import StridedWindows, segmentation, window_parts
from clipself_seg.models.model_base import FrozenCLIP, chosen_classes, sizes_of
from clipself_seg.models.model_protocols import MIRRORED, SYNONYM_TEXTS, Classes, Reading

COPIES = 32  # numbers that a token of CLIP's blocks takes, as a multiple of the embedding


@META_ARCH_REGISTRY.register()
class ZeroShotSegmenter(FrozenCLIP):
    """Gives every pixel the class whose name is most like CLIP's dense feature there; nothing is trained.

    Attributes:
        ignore_label: label of pixels without a class in training, which there is none of.
    """

    purpose = "open-vocabulary semantic segmentation by CLIP as it is, without training"

    @configurable
    def __init__(
        self,
        *,
        clip: VisionLanguageBackbone,
        templates: str = "openai80",
        synonyms: str = "max",
        scale: float = 40.0,
        windows: StridedWindows | None = None,
        ignore_label: int = 255,
        precision: torch.dtype | None = None,
        flip: bool = False,
    ) -> None:
        """
        Args:
            clip: CLIP with both towers, of any kind.
            templates: prompts around a class name, see `TextBank`.
            synonyms: names of a class that count, and how: "max", "mean" or "first", see the key
                ``MODEL.ZERO_SHOT.SYNONYMS``.
            scale: factor of the cosines before the softmax over all names.
            windows: sizes of the windows; None is the published layout.
            ignore_label: see the attribute.
            precision: dtype of autocast, or None.
            flip: True if the probabilities of an image and of its mirrored version are averaged.

        Raises:
            InputError: a side of the windows that is no multiple of the patch.
        """
        super().__init__(clip=clip, templates=templates, precision=precision)
        self.synonyms = synonyms
        self.scale = scale
        self.windows = windows or StridedWindows()
        self.ignore_label = ignore_label
        self.flip = flip
        if self.windows.size:
            clip.check_side(self.windows.size, "MODEL.ZERO_SHOT.WINDOW")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``MODEL.{CLIP, ZERO_SHOT, SEM_SEG_HEAD.IGNORE_VALUE}``, ``TEST.{PRECISION, AUG}``."""
        given = cfg.MODEL.ZERO_SHOT
        return {
            "clip": build_clip(cfg),
            "templates": given.TEMPLATES,
            "synonyms": given.SYNONYMS,
            "scale": given.SCALE,
            "windows": StridedWindows(given.WINDOW, given.STRIDE),
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "precision": evaluation_precision(cfg),
            "flip": cfg.TEST.AUG.ENABLED,
        }

    @classmethod
    def task(cls) -> str:
        """Returns "semantic"."""
        return "semantic"

    def reading(self) -> Reading:
        """Describes the way from names and images to scores, for the protocol of the numbers."""
        windows = self.windows
        return Reading(
            SYNONYM_TEXTS[self.synonyms],
            templates_text(self.bank.templates),
            f"{windows.size} px, stride {windows.stride} px" if windows.size else "none",
            features=self.clip.visual.description(),
            scale=f"{self.scale:g}",
            size=MIRRORED if self.flip else "",
            precision=self.precision,
        )

    def classes_of(
        self, words: Words, seen: np.ndarray | None = None, all_synonyms: bool | None = None
    ) -> Classes:
        """Reads and checks class names, see `ModelBase.classes_of`.

        Args:
            words: class names; scores have one map for each, in this order.
            seen: as there; scores do not depend on it.
            all_synonyms: True if all names of a class count, False if the first alone does; None takes what the model
                was built with.
        """
        if all_synonyms is None:
            all_synonyms = self.synonyms != "first"
        words = Vocabulary.of(words)
        names = words.names(all_synonyms=all_synonyms)
        check_lengths(self.clip, names, self.bank.templates)
        return Classes(names, seen=seen, examples=words.examples)

    @torch.no_grad()
    def forward(
        self, samples: Sequence[Sample], *, classes: Classes | None = None, output: str = "scores"
    ) -> list[dict[str, Tensor]]:
        """A segmentation for each image.

        Args:
            samples: for each image "image" (3, H, W) RGB in 0..255, and "height" and "width" of the result, by
                default the image's; and "classes" if those alone are to be told apart, indices in [0, K).
            classes: the result of `classes_of`; None for those that `set_vocabulary` gave.
            output: "scores" for (K, height, width) probabilities, or "labels" for the best class of every
                pixel alone, in memory that does not grow with all maps of all classes.

        Returns:
            For each image {"sem_seg": (K, height, width)} probabilities, or if `output` is "labels"
            {"sem_seg_labels": (height, width) int64, "sem_seg_best": their probabilities}. The first of equal
            classes wins.
        """
        classes = self.given_classes(classes)
        all_NE, all_KS = self._texts(classes)
        patch, results = self.clip.patch_size, []
        for sample, image in zip(samples, on_device(samples, "image", self.device)):
            images = [image, image.flip(-1)] if self.flip else [image]
            text_NE, members_KS = all_NE, all_KS
            chosen = chosen_classes(sample, self.device)
            if chosen is not None:
                rows, members_KS = all_KS[chosen].unique(return_inverse=True)
                text_NE = all_NE[rows]
            cells = [self._window_cells(one, text_NE, members_KS) for one in images]
            image_size, size = sizes_of(sample)
            parts = [window_parts(one, self.windows, patch, image_size, size) for one in cells]
            results.append(segmentation(parts, size, len(classes.names), output, chosen))
        return results

    def _texts(self, classes: Classes) -> tuple[Tensor, Tensor]:
        """Embeddings (N, E) of all that compete, and of each class (K, S) which of them are its own."""
        names, examples = classes.names, classes.examples
        if self.synonyms == "mean":
            # A class is one embedding, as if it had one name.
            members_KS = members_of(tuple(synonyms[:1] for synonyms in names))
            return self.bank.embed_names(names, examples), send(members_KS, self.device)
        alone = tuple((name,) for synonyms in names for name in synonyms)
        return self.bank.embed_names(alone, examples), send(members_of(names), self.device)

    def _window_cells(self, image_3HW: Tensor, text_NE: Tensor, members_KS: Tensor) -> Tensor:
        """Probabilities (V, K, h, w) of every cell of every window.

        Windows are padded to whole cells after the normalisation, with the mean colour.
        """
        size = (image_3HW.shape[1], image_3HW.shape[2])
        rows, columns = self.windows.extent(size)
        patch = self.clip.patch_size
        tokens = math.ceil(rows / patch) * math.ceil(columns / patch)
        numbers = tokens * (COPIES * self.clip.embed_dim + len(text_NE))
        together = chunk_size(self.device, 1, numbers)
        normalised = self.clip.normalise(image_3HW.float() / 255)
        corners = self.windows.corners(size)
        cells = []
        for start in range(0, len(corners), together):
            windows = self.windows.cut(normalised, corners[start : start + together])
            windows = F.pad(windows, (0, -columns % patch, 0, -rows % patch))
            with autocast(self.device, self.precision):
                dense_VEhw = self.clip.dense(windows)
            cells += [
                class_probabilities(one, text_NE, members_KS, self.scale) for one in dense_VEhw
            ]
        return torch.stack(cells)
