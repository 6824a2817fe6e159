"""CAT-Seg: the cosines between CLIP's dense features and class names, refined to a segmentation.

(CAT-Seg, arXiv 2303.11797.) The presets below configs/semseg say which of its versions this is.

Shapes: B images, T classes, P prompts of a class, E embedding, S side of a window in pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor, nn

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.class_texts import ClassTexts, Names, class_names
from clipself_seg.clip.layers import split_attention
from clipself_seg.clip.model import hash_tensors
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.files import atomic_path
from clipself_seg.heads.cost_aggregator import ClassLogits, CostAggregator, Guidance
from clipself_seg.heads.sigmoid_loss import sigmoid_loss
from clipself_seg.heads.windows import WindowLayout, resize
from clipself_seg.models.cat_seg_config import parts_from_config
from clipself_seg.models.cat_seg_weights import read_state, to_official
from clipself_seg.models.region_reader import Sample, autocast

logger = logging.getLogger(__name__)

CLASSES_AT_ONCE = 32  # maps of the size of the picture that are in memory together
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@META_ARCH_REGISTRY.register()
class CATSeg(nn.Module):
    """Open-vocabulary semantic segmentation; `set_vocabulary` gives the classes.

    Attributes:
        output: "scores" gives (T, height, width) probabilities for each image, "labels" only the
            best class of every pixel, in memory that does not grow with the classes.
    """

    @configurable
    def __init__(
        self,
        *,
        clip: DenseCLIP,
        aggregator: CostAggregator,
        guidance_blocks: Sequence[int] = (),
        backbone: Backbone | None = None,
        class_residual: bool = True,
        all_synonyms: bool = False,
        templates: str = "cat_seg",
        finetune: str = "attention",
        sliding: bool = False,
        layout: WindowLayout = WindowLayout(),
        size_divisibility: int = 32,
        ignore_label: int = 255,
        mask_ignored: bool = False,
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            clip: both towers; a ViT.
            aggregator: sizes that fit.
            guidance_blocks: two blocks of the image tower that guide the decoder, unless there is
                a `backbone`.
            backbone: guides in CLIP's place, with features res4, res3 and res2 (version 1).
            class_residual: see `TransformerTower`.
            all_synonyms: see `class_names`.
            templates: of the prompts, a name in `prompts.TEMPLATES`.
            finetune: see `clip_parameters`.
            sliding: windows and a whole view in evaluation, else the whole picture at once.
            layout: of the windows.
            size_divisibility: of the padding in plain evaluation.
            ignore_label: of pixels without a class.
            mask_ignored: see `sigmoid_loss`.
            precision: of autocast, or None.
        """
        super().__init__()
        self.clip, self.aggregator, self.backbone = clip, aggregator, backbone
        self.guidance_blocks = tuple(f"block{i}" for i in guidance_blocks)
        clip.visual.class_residual = class_residual
        if backbone is None:
            width, (first, second) = (
                clip.visual.width,
                aggregator.sizes.decoder_guidance,
            )
            self.upsample1 = nn.ConvTranspose2d(width, first, 2, stride=2)
            self.upsample2 = nn.ConvTranspose2d(width, second, 4, stride=4)
        if finetune == "attention":
            split_attention(clip)
        clip.requires_grad_(False)
        for parameter in clip_parameters(clip, finetune):
            parameter.requires_grad_(True)
        self.all_synonyms, self.sliding, self.layout = all_synonyms, sliding, layout
        self.size_divisibility, self.ignore_label = size_divisibility, ignore_label
        self.mask_ignored, self.precision = mask_ignored, precision
        self.texts = ClassTexts(clip, templates, aggregator.checkpointing)
        self.names: Names = ()
        self.output = "scores"

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """See `parts_from_config`."""
        return parts_from_config(cfg)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.logit_scale.device

    @property
    def clip_size(self) -> int:
        """Side in pixels of what CLIP sees, R."""
        return self.aggregator.sizes.grid[0] * self.clip.patch_size

    def set_vocabulary(self, words: Vocabulary | Sequence[str]) -> None:
        """Give the classes; scores have one map for each, in this order.

        Args:
            words: a vocabulary, or names; "dog|puppy" and "dog, puppy" are synonyms.

        Raises:
            InputError: no class, or an empty name.
        """
        self.names = class_names(words, self.all_synonyms)
        twice = sorted({n[0] for n in self.names if sum(n[0] == m[0] for m in self.names) > 1})
        if twice:
            logger.warning(
                "classes of the same name cannot be told apart, the first one wins: %s; "
                "MODEL.CAT_SEG.SYNONYMS mean reads all their synonyms",
                ", ".join(twice),
            )

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, a segmentation for each image in evaluation.

        Args:
            samples: "image" (3, h, w) RGB in 0..255; in training "sem_seg" (S, S) labels; in
                evaluation "height" and "width" of the result, by default those of the image.

        Returns:
            {"loss_sem_seg": scalar}, or for each image {"sem_seg": (T, height, width)}
            probabilities, or {"sem_seg_labels": (height, width)} int64 if `output` is "labels".
        """
        if not self.names:
            raise RuntimeError("call set_vocabulary before the model")
        if self.training:
            return self.losses(samples)
        with torch.no_grad():
            return [self._segment(sample) for sample in samples]

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The loss of a batch of crops of one size; see `sigmoid_loss`."""
        windows = torch.stack([sample["image"] for sample in samples]).to(self.device)
        labels = torch.stack([sample["sem_seg"] for sample in samples]).to(self.device)
        logits = resize(self.window_logits(windows), tuple(labels.shape[1:]))
        loss = sigmoid_loss(logits, labels, self.ignore_label, self.mask_ignored)
        return {"loss_sem_seg": loss}

    def window_logits(self, windows: Tensor) -> Tensor:
        """Logits (B, T, 4 h, 4 w) of RGB windows (B, 3, S, S) in 0..255, before the sigmoid.

        Classes that a window leaves out have -100.
        """
        found = self._window_logits(self._normalise(windows.to(self.device).float()))
        return torch.stack([one.all_classes(len(self.names)) for one in found])

    def _normalise(self, images: Tensor) -> Tensor:
        mean, std = (_channels(values, images) for values in (self.clip.mean, self.clip.std))
        return (images - 255 * mean) / (255 * std)

    def _window_logits(self, windows: Tensor) -> list[ClassLogits]:
        """Of normalised windows (B, 3, S, S), resized to what CLIP expects."""
        with autocast(self.device, self.precision):
            text_TPE = self.texts.embed(self.names)
            inputs = resize(windows, self.clip_size)
            features = self.clip.visual.features(inputs, ("dense", *self.guidance_blocks))
            guidance = self._guidance(windows, features)
            return [
                self.aggregator.aggregate(dense, parts, text_TPE)
                for dense, parts in zip(features["dense"], guidance)
            ]

    def _guidance(self, windows: Tensor, features: Mapping[str, Tensor]) -> list[Guidance]:
        if self.backbone is None:
            first, second = (features[name] for name in self.guidance_blocks)
            maps = (features["dense"], self.upsample1(first), self.upsample2(second))
        else:
            mean, std = (_channels(v, windows) for v in (self.clip.mean, self.clip.std))
            pixels = (windows * std + mean) * 255
            shift, scale = (_channels(v, windows) for v in (IMAGENET_MEAN, IMAGENET_STD))
            found = self.backbone((pixels - shift) / scale)
            maps = (found["res4"], found["res3"], found["res2"])
        return [Guidance(a, (b, c)) for a, b, c in zip(*maps)]

    def _segment(self, sample: Sample) -> dict[str, Tensor]:
        image = sample["image"].to(self.device)
        size = (
            sample.get("height", image.shape[1]),
            sample.get("width", image.shape[2]),
        )
        parts = self._sliding(image) if self.sliding else self._plain(image)
        maps = ((classes, resize(probs[None], size)[0]) for classes, probs in parts)
        if self.output == "labels":
            return {"sem_seg_labels": _best_class(maps, size, self.device)}
        scores = torch.zeros(len(self.names), *size, device=self.device)
        for classes, probs in maps:
            scores[classes] = probs.float()
        return {"sem_seg": scores}

    def _plain(self, image_3hw: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Class indices and probabilities at the size of the logits, some classes at a time."""
        normalised = self._normalise(image_3hw.float()[None])
        d, (height, width) = self.size_divisibility, image_3hw.shape[1:]
        padded = F.pad(normalised, (0, -width % d, 0, -height % d))
        (found,) = self._window_logits(padded)
        classes = self._indices(found.classes)
        for part, logits in zip(
            classes.split(CLASSES_AT_ONCE), found.logits.split(CLASSES_AT_ONCE)
        ):
            yield part, logits.sigmoid()

    def _sliding(self, image_3hw: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Class indices and probabilities on the canvas, some classes at a time.

        A class that a view leaves out is 0 there; one that all leave out is 0 and is not made.
        """
        views = self._window_logits(self._normalise(self.layout.views(image_3hw)))
        kept = torch.cat([self._indices(view.classes) for view in views]).unique()
        for part in kept.split(CLASSES_AT_ONCE):
            logits = torch.stack([_of_classes(view, part) for view in views])
            yield part, self.layout.merge(logits.float())

    def _indices(self, classes: Tensor | None) -> Tensor:
        return torch.arange(len(self.names), device=self.device) if classes is None else classes

    def after_optimizer_step(self) -> None:
        """Nothing to put right: every trained weight is in the loss."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load this project's or CAT-Seg's names, always strictly, and log a report.

        Raises:
            InputError: missing, unexpected or misshapen tensors, or another version's checkpoint.
        """
        tensors, report = read_state(self, state_dict)
        logger.info("%s", report)
        return super().load_state_dict(tensors, strict=True, assign=assign)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the weights under CAT-Seg's own names, as its code loads them, atomically."""
        with atomic_path(path) as temporary:
            torch.save({"model": to_official(self)}, temporary)

    def weights_hash(self) -> str:
        """Identity of the weights."""
        return hash_tensors(self.state_dict())

    def original_hash(self) -> str:
        """Identity of what does not train, which a resumed run has to share."""
        frozen = {name: p for name, p in self.named_parameters() if not p.requires_grad}
        return hash_tensors(frozen)


def clip_parameters(clip: DenseCLIP, finetune: str) -> list[nn.Parameter]:
    """What of CLIP trains, by its structure.

    Args:
        clip: both towers.
        finetune: "attention" is query and value matrices of all blocks of both towers,
            "visual_attention" everything of the image tower's attention and its positions, "full"
            all blocks of both towers, "none" nothing.
    """
    visual = [block.attn for block in clip.visual.blocks]
    if finetune == "none":
        return []
    if finetune == "full":
        blocks = [*clip.visual.blocks, *clip.text.transformer.resblocks]
        return [p for block in blocks for p in block.parameters()]
    if finetune == "visual_attention":
        positions = clip.visual.layer_groups()["positions"]
        return [p for attention in visual for p in attention.parameters()] + positions
    text = [block.attn for block in clip.text.transformer.resblocks]
    names = ("q_proj_weight", "v_proj_weight", "q_proj.weight", "v_proj.weight")
    return [p for a in visual + text for name, p in a.named_parameters() if name in names]


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)[:, None, None]


def _of_classes(view: ClassLogits, wanted: Tensor) -> Tensor:
    """Logits (k, s, s) of some classes; -100, which is 0 as a probability, where left out."""
    if view.classes is None:
        return view.logits[wanted]
    position = torch.searchsorted(view.classes, wanted).clamp(max=len(view.classes) - 1)
    there = view.classes[position] == wanted
    return torch.where(there[:, None, None], view.logits[position], -100.0)


def _best_class(
    maps: Iterator[tuple[Tensor, Tensor]], size: tuple[int, int], device: torch.device
) -> Tensor:
    """Index of the highest probability of every pixel; of equal ones the lowest index."""
    best = torch.zeros(size, device=device)
    labels = torch.zeros(size, dtype=torch.long, device=device)
    for classes, probs in maps:
        value, index = probs.float().max(dim=0)
        better = value > best
        best = torch.where(better, value, best)
        labels = torch.where(better, classes[index], labels)
    return labels
