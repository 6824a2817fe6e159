"""Semantic segmentation without training: CLIP's dense features against the texts of class names.

The method is what MaskCLIP (arXiv 2112.01071), SCLIP, ClearCLIP and NACLIP have in common; they differ in the dense
feature, which is the CLIP's (``MODEL.CLIP``). With masks that somebody made it is CorrCLIP's form (`masks.py`).

Shapes: K classes, N names of all classes, V windows of an image, E embedding, h x w cells of a window.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.backbone import build_clip
from clipself_seg.clip.runtime import autocast, chunk_size, on_device, send
from clipself_seg.clip.text_bank import check_lengths, templates_text
from clipself_seg.clip.tower import ImageTower, TransformerTower
from clipself_seg.clip.training_free import (
    FINER,
    NONE,
    dense_in_masks,
    mask_class_tokens,
    with_class_tokens,
)
from clipself_seg.config.load import evaluation_precision
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Words, class_names, examples_of, read_given
from clipself_seg.errors import InputError
from clipself_seg.heads.text_scores import class_probabilities, members_of
from clipself_seg.heads.windows import (
    StridedWindows,
    mask_cells,
    segmentation,
    vote_in_masks,
    window_parts,
)
from clipself_seg.models.base import FrozenCLIP, chosen_classes, given_masks, sizes_of
from clipself_seg.models.protocol import MIRRORED, SYNONYM_TEXTS, Reading
from clipself_seg.models.timm_backbone import TimmMaps

OWN = "clip"  # value of MODEL.ZERO_SHOT.CORRELATION for CLIP's own features
KEY = "MODEL.ZERO_SHOT.CORRELATION"
COPIES = 32  # numbers that a token of CLIP's blocks takes, as a multiple of the embedding
NO_MASKS = "MODEL.ZERO_SHOT.MASKS is for data sets, whose mapper reads the masks of each image: leave it empty"


class DenseInMasks(nn.Module):
    """Makes dense features of a window within its masks, see `training_free.dense_in_masks`.

    Attributes:
        correlation: name of the model whose features say how alike places are.
    """

    def __init__(self, clip: DenseCLIP, correlation: str = OWN, pretrained: bool = True) -> None:
        """
        Args:
            clip: CLIP with a ViT, whose attention is its own.
            correlation: see the attribute; "clip" for its own dense feature, or a backbone of timm by name.
            pretrained: False is a backbone of random weights, from torch's current seed.

        Raises:
            InputError: a tower that is no ViT, has an attention pool, or a patch with an odd side; an attention without
                training beside this one; a backbone that timm does not have.
        """
        super().__init__()
        tower = clip.visual
        alone = isinstance(tower, TransformerTower) and not tower.pooled
        if not alone or tower.patch_size % FINER:
            raise InputError(
                "MODEL.ZERO_SHOT.MASKS needs a ViT whose last block makes the embedding, and a patch of an even side, "
                f"which {clip.name} has not: leave it empty, or take another CLIP"
            )
        if tower.attention != NONE:
            raise InputError(
                f"MODEL.CLIP.ATTENTION {tower.attention} and MODEL.ZERO_SHOT.MASKS both say where the last block "
                f"attends: leave the one at {NONE}, or the other empty"
            )
        self.correlation = correlation
        self.network: nn.Module | None = None
        self._backbone: TimmMaps | None = None
        if correlation != OWN:
            self._backbone = TimmMaps(correlation, pretrained, key=KEY, others=OWN)
            self._backbone.setup(torch.device("cpu"))
            self.network = self._backbone.network

    def text(self, tower: ImageTower) -> str:
        """What the features are, for the protocol of a table, with CLIP's image tower."""
        whose = self.correlation if self._backbone else tower.description()
        return f"CorrCLIP's form in given masks, correlations of {whose}"

    def dense(
        self,
        tower: ImageTower,
        pixels: Tensor,
        normalised: Tensor,
        cells_nhw: Tensor,
        precision: contextlib.AbstractContextManager,
    ) -> Tensor:
        """Dense features (E, h, w) of a window.

        Args:
            tower: CLIP's image tower, a ViT.
            pixels: (1, 3, H, W), RGB in [0, 1].
            normalised: the same, normalised for CLIP.
            cells_nhw: boolean masks; those without a cell count nowhere.
            precision: context in which networks compute.
        """
        assert isinstance(tower, TransformerTower)
        cells_nhw = cells_nhw[cells_nhw.flatten(1).any(dim=1)]
        with precision:
            grid = (cells_nhw.shape[1], cells_nhw.shape[2])
            features = self._features(tower, pixels, normalised, grid)
            dense_Ehw = dense_in_masks(tower, normalised, features, cells_nhw[None])[0].float()
            tokens_nE = mask_class_tokens(tower, normalised, cells_nhw)
        return with_class_tokens(dense_Ehw, tokens_nE, cells_nhw)

    def _features(
        self, tower: ImageTower, pixels: Tensor, normalised: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        if self._backbone is not None:
            return self._backbone.maps(pixels, grid, contextlib.nullcontext())
        own = tower.dense(normalised).float()
        return F.interpolate(own, grid, mode="bilinear", align_corners=False)


@META_ARCH_REGISTRY.register()
class ZeroShotSegmenter(FrozenCLIP):
    """Gives every pixel the class whose name is most like CLIP's dense feature there; nothing is trained.

    Attributes:
        ignore_label: label of pixels without a class in training, which there is none of.
    """

    @configurable
    def __init__(
        self,
        *,
        clip: DenseCLIP,
        templates: str = "openai80",
        synonyms: str = "max",
        scale: float = 40.0,
        windows: StridedWindows | None = None,
        ignore_label: int = 255,
        precision: torch.dtype | None = None,
        masks: DenseInMasks | None = None,
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
            masks: makes dense features within the masks that samples bring; None for CLIP's own.
            flip: whether the probabilities of an image and of its mirrored version are averaged; without masks.

        Raises:
            InputError: a side of the windows that is no multiple of the patch.
        """
        super().__init__(clip=clip, templates=templates, precision=precision)
        self.synonyms = synonyms
        self.scale = scale
        self.windows = windows or StridedWindows()
        self.ignore_label = ignore_label
        self.masks = masks
        self.flip = flip
        if self.windows.size:
            clip.check_side(self.windows.size, "MODEL.ZERO_SHOT.WINDOW")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``MODEL.{CLIP, ZERO_SHOT, SEM_SEG_HEAD.IGNORE_VALUE}``, ``TEST.{PRECISION, AUG}``."""
        given = cfg.MODEL.ZERO_SHOT
        clip = build_clip(cfg)
        return {
            "clip": clip,
            "masks": DenseInMasks(clip, given.CORRELATION) if given.MASKS else None,
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
        """Returns "sem_seg": semantic segmentation."""
        return "sem_seg"

    def reading(self) -> Reading:
        """How it reads names and images, for the protocol of its numbers."""
        windows = self.windows
        return Reading(
            SYNONYM_TEXTS[self.synonyms],
            templates_text(self.bank.templates),
            f"{windows.size} px, stride {windows.stride} px" if windows.size else "none",
            features=(
                self.masks.text(self.clip.visual) if self.masks else self.clip.visual.description()
            ),
            scale=f"{self.scale:g}",
            size=MIRRORED if self.flip else "",
            precision=self.precision,
        )

    def weights_hash(self) -> str:
        """Hash of the weights that are evaluated, those of a backbone for correlations included."""
        network = self.masks.network if self.masks is not None else None
        own = super().weights_hash()
        return own if network is None else f"{own}-{hash_tensors(network.state_dict())}"

    def set_vocabulary(self, words: Words, all_synonyms: bool | None = None) -> None:
        """Give the classes; scores have one map for each, in this order.

        Args:
            words: text, a file or a built-in name, see `read_words`; a list, where "dog|puppy" and "dog, puppy" are
                synonyms; or a vocabulary.
            all_synonyms: whether all names of a class count, or the first alone; None takes what the model
                was built with.

        Raises:
            InputError: no class, an empty name, or one with more tokens than CLIP reads.
        """
        if all_synonyms is None:
            all_synonyms = self.synonyms != "first"
        words = read_given(words)
        names = class_names(words, all_synonyms=all_synonyms)
        check_lengths(self.clip, names, self.bank.templates)
        self.give_classes(names, None, examples=examples_of(words))

    @torch.no_grad()
    def forward(
        self, samples: Sequence[Sample], *, output: str = "scores"
    ) -> list[dict[str, Tensor]]:
        """A segmentation for each image.

        Args:
            samples: for each image "image" (3, H, W) RGB in 0..255, and "height" and "width" of the result, by
                default the image's; without masks "classes" if those alone are to be told apart, indices in [0, K).
            output: "scores" for (K, height, width) probabilities, or "labels" for the best class of every
                pixel alone, in memory that does not grow with all maps of all classes. With masks there are labels
                alone, since the last step is a vote on them, and samples have "given_masks" (n, height, width) bool.

        Returns:
            For each image {"sem_seg": (K, height, width)} probabilities, or if `output` is "labels"
            {"sem_seg_labels": (height, width) int64, "sem_seg_best": their probabilities}. The first of equal
            classes wins. With masks "sem_seg_best" of a mask's pixels is the mean of theirs, see `vote_in_masks`.

        Raises:
            InputError: masks are missing, or of another size; or scores are wanted where there are masks.
        """
        self.require_vocabulary()
        texts = self._texts()
        results = []
        for sample, image in zip(samples, on_device(samples, "image", self.device)):
            if self.masks is None:
                images = [image, image.flip(-1)] if self.flip else [image]
                text_NE, members_KS = texts
                if (classes := chosen_classes(sample, self.device)) is not None:
                    rows, members_KS = members_KS[classes].unique(return_inverse=True)
                    text_NE = text_NE[rows]
                cells = [self._window_cells(one, text_NE, members_KS) for one in images]
                results.append(self._result(sample, cells, output))
            else:
                results.append(self._in_masks(sample, image, texts, output))
        return results

    def _texts(self) -> tuple[Tensor, Tensor]:
        """Embeddings (N, E) of all that compete, and of each class (K, S) which of them are its own."""
        examples = self.classes.examples
        if self.synonyms == "mean":
            # A class is one embedding, as if it had one name.
            members_KS = members_of(tuple(synonyms[:1] for synonyms in self.names))
            return self.bank.embed(self.names, examples), send(members_KS, self.device)
        alone = tuple((name,) for synonyms in self.names for name in synonyms)
        return self.bank.embed(alone, examples), send(members_of(self.names), self.device)

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
            windows = self._padded_windows(normalised, corners[start : start + together])
            with autocast(self.device, self.precision):
                dense_VEhw = self.clip.visual.dense(windows)
            cells += [
                class_probabilities(one, text_NE, members_KS, self.scale) for one in dense_VEhw
            ]
        return torch.stack(cells)

    def _padded_windows(self, image_3HW: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
        """Windows (V, 3, r, c) of an image, padded with 0 to whole patches."""
        windows = self.windows.cut(image_3HW, corners)
        patch = self.clip.patch_size
        return F.pad(windows, (0, -windows.shape[3] % patch, 0, -windows.shape[2] % patch))

    def _in_masks(
        self, sample: Sample, image_3HW: Tensor, texts: tuple[Tensor, Tensor], output: str
    ) -> dict[str, Tensor]:
        """Labels of an image in CorrCLIP's form: a window at a time, then a vote in each mask."""
        assert self.masks is not None
        if output != "labels":
            raise InputError(
                f'no output "{output}" with MODEL.ZERO_SHOT.MASKS, whose last step is a vote: ask for "labels"'
            )
        masks_nHW = given_masks(sample, self.device, NO_MASKS)
        size = (image_3HW.shape[1], image_3HW.shape[2])
        patch = self.clip.patch_size
        cells_Vnhw = mask_cells(masks_nHW, size, self.windows, patch, FINER)
        pixels = image_3HW.float() / 255
        normalised = self.clip.normalise(pixels)
        probabilities = []
        for corner, cells_nhw in zip(self.windows.corners(size), cells_Vnhw):
            window, normalised_window = (
                self._padded_windows(one, [corner]) for one in (pixels, normalised)
            )
            precision = autocast(self.device, self.precision)
            dense_Ehw = self.masks.dense(
                self.clip.visual, window, normalised_window, cells_nhw, precision
            )
            probabilities.append(class_probabilities(dense_Ehw, *texts, self.scale))
        result = self._result(sample, [torch.stack(probabilities)], output, FINER)
        own = (result["sem_seg_labels"], result["sem_seg_best"])
        labels, best = vote_in_masks(*own, masks_nHW, len(self.names))
        return {"sem_seg_labels": labels, "sem_seg_best": best}

    def _result(
        self, sample: Sample, cells: Sequence[Tensor], output: str, finer: int = 1
    ) -> dict[str, Tensor]:
        """Labels or scores of an image from its cells (V, K, h, w), and those of the mirrored image if there are any.

        A side of a patch has `finer` cells.
        """
        image_size, size = sizes_of(sample)
        patch = self.clip.patch_size // finer
        parts = [window_parts(one, self.windows, patch, image_size, size) for one in cells]
        classes = chosen_classes(sample, self.device)
        return segmentation(parts, size, len(self.names), output, classes)
