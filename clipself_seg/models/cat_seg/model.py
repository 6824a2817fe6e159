"""CAT-Seg: the cosines between CLIP's dense features and class names, refined to a segmentation.

The method is that of CAT-Seg (arXiv 2303.11797), in the versions of the configurations in configs/semseg.

First the model, then how its checkpoints are read and written: under CAT-Seg's names or those of this project.

Shapes: B images, T classes, P prompts of a class, E embedding, S side of a window in pixels.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor, nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.read import name_problem
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, untrained
from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.layers import SplitAttention, split_attention
from clipself_seg.clip.runtime import QUEUES, autocast, chunk_size, constant, on_device
from clipself_seg.clip.text_bank import ClassTexts, check_lengths, templates_text
from clipself_seg.clip.tower import DENSE, TransformerTower
from clipself_seg.clip.weights import to_native as clip_names
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import (
    Names,
    Vocabulary,
    Words,
    class_names,
    examples_of,
    read_given,
)
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg.attention import COPIES
from clipself_seg.heads.cat_seg.cost_aggregator import (
    ClassLogits,
    CostAggregator,
    Guidance,
    check_labels,
    kept_classes,
    plain_probabilities,
    sigmoid_loss,
    sliding_probabilities,
)
from clipself_seg.heads.windows import WindowLayout, resize, segmentation
from clipself_seg.models.base import (
    ModelBase,
    by_rate_and_kind,
    chosen_classes,
    on_host,
    save_atomically,
    sizes_of,
)
from clipself_seg.models.cat_seg.config import (
    GUIDES,
    clip_parameters,
    parts_from_config,
    training_config,
)
from clipself_seg.models.preservation import draw_words, frozen_copy, other_words, score_divergence
from clipself_seg.models.protocol import FIRST_NAME, MEAN_OF_NAMES, MIRRORED, Group, Memory, Reading

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# Beginnings of names of CAT-Seg's checkpoints, and parts of names that say what a tensor is.
CLIP = "sem_seg_head.predictor.clip_model."
AGGREGATOR = "sem_seg_head.predictor.transformer."
BLOCK = re.compile(r"clip\.visual\.(?:transformer\.resblocks|blocks)\.(\d+)\.")
PACKED = "in_proj_weight"
MATRICES = SplitAttention.MATRICES


@META_ARCH_REGISTRY.register()
class CATSeg(ModelBase):
    """Open-vocabulary semantic segmentation; `set_vocabulary` gives the classes."""

    purpose = "open-vocabulary semantic segmentation (CAT-Seg)"
    memory = Memory(weights=(0.9, 2.4), step=(2.4, 3.3), recomputed=(2.0, 2.0))

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
        trainable_blocks: int = -1,
        sliding: bool = False,
        size_divisibility: int = 32,
        ignore_label: int = 255,
        mask_ignored: bool = False,
        precision: torch.dtype | None = None,
        test_precision: torch.dtype | None = None,
        preservation: float = 0.0,
        preserved_words: tuple[str, int] = ("", 0),
        flip: bool = False,
    ) -> None:
        """
        Args:
            clip: CLIP with both towers, whose blocks that guide have the grid of its dense features.
            aggregator: cost aggregation whose sizes fit the CLIP and the guidance.
            guidance_blocks: indices of two blocks of the image tower that guide the decoder, unless
                there is a `backbone`.
            backbone: guides in CLIP's place, with features res4, res3 and res2 (version 1).
            class_residual: whether the last block of a ViT's dense features adds the class token, see
                `TransformerTower`.
            all_synonyms: whether all names of a class go into its prompts, or the first alone.
            templates: prompts around a class name, a name in `text_bank.TEMPLATES`.
            finetune: which parameters of CLIP train, see `clip_parameters`.
            trainable_blocks: number of last blocks of its image tower that they are of; -1 for both towers.
            sliding: whether evaluation slides windows and adds a whole view, or takes the whole
                image at once.
            size_divisibility: pixels to multiples of which plain evaluation pads the image.
            ignore_label: label of pixels without a class in training.
            mask_ignored: whether these pixels are left out of the loss, see `sigmoid_loss`.
            precision: dtype of autocast in training, or None.
            test_precision: dtype of autocast in evaluation, or None.
            preservation: weight in training of the scores of further words, which stay those of the start.
            preserved_words: these words, as `read_words` takes them, and how many of them a step takes.
            flip: whether evaluation averages the probabilities of an image and of its mirrored version.
        """
        super().__init__()
        self.clip = clip
        self.aggregator = aggregator
        self.backbone = backbone
        self.guidance_blocks = tuple(f"block{i}" for i in guidance_blocks)
        if isinstance(clip.visual, TransformerTower):
            clip.visual.class_residual = class_residual
        if backbone is None:
            shapes = clip.visual.feature_shapes()
            widths = [shapes[name].channels for name in self.guidance_blocks]
            first, second = aggregator.sizes.decoder_guidance
            self.upsample1 = nn.ConvTranspose2d(widths[0], first, 2, stride=2)
            self.upsample2 = nn.ConvTranspose2d(widths[1], second, 4, stride=4)
        self.tower_features = (DENSE, *self.guidance_blocks)
        _choose_trained(clip, finetune, trainable_blocks)
        self.all_synonyms = all_synonyms
        self.sliding = sliding
        self.layout = WindowLayout()
        self.size_divisibility = size_divisibility
        self.ignore_label = ignore_label
        self.mask_ignored = mask_ignored
        self.precision = precision
        self.test_precision = test_precision
        self.preservation = preservation
        self.preserved_words = preserved_words
        self.flip = flip
        self._start: tuple[CATSeg, Names] | None = None
        self.texts = ClassTexts(clip, templates, aggregator.checkpointing)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Builds the parts from configuration keys, see `parts_from_config`."""
        return parts_from_config(cfg)

    @classmethod
    def task(cls) -> str:
        """Returns "semantic"."""
        return "semantic"

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuse a random cost aggregation, which is evaluated as slowly as a trained one."""
        if not cfg.MODEL.WEIGHTS:
            raise untrained(
                "cost aggregation",
                folder="semseg/",
                shipped="mini-cat-seg",
                clip=cfg.MODEL.CLIP.NAME,
            )

    @classmethod
    def training_config(cls, cfg: CfgNode) -> CfgNode:
        """The configuration with the weights that training starts from, see `config.training_config`."""
        return training_config(cfg)

    def train(self, mode: bool = True) -> CATSeg:
        """Switches the training mode as in every module; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.backbone is not None and not any(
            p.requires_grad for p in self.backbone.parameters()
        ):
            self.backbone.eval()  # its batch norms would go on counting
        return self

    @property
    def clip_size(self) -> int:
        """Side in pixels of the square images that CLIP is given."""
        return self.aggregator.sizes.grid[0] * self.clip.patch_size

    def set_vocabulary(self, words: Words, all_synonyms: bool | None = None) -> None:
        """Give the classes; scores have one map for each, in this order.

        Args:
            words: text, a file or a built-in name, see `read_words`; a list, where "dog|puppy" and "dog, puppy" are
                synonyms; or a vocabulary.
            all_synonyms: whether all names of a class count, or the first alone; None takes the value
                that the model was built with.

        Raises:
            InputError: no class, an empty name, or one with more tokens than CLIP reads.
        """
        if all_synonyms is None:
            all_synonyms = self.all_synonyms
        words = read_given(words)
        names = class_names(words, all_synonyms=all_synonyms, catseg_names=True)
        check_lengths(self.clip, names, self.texts.templates)
        self.give_classes(names, None, examples=examples_of(words))
        # CLIP's tokens are the same where case and spaces alone differ.
        read = (", ".join(" ".join(n.casefold().split()) for n in names) for names in self.names)
        twice = sorted(name for name, count in Counter(read).items() if count > 1)
        if twice:
            logger.warning(
                "classes of the same name cannot be told apart, the first one wins: %s%s",
                "; ".join(twice),
                "" if all_synonyms else ". MODEL.CAT_SEG.SYNONYMS mean reads all synonyms",
            )

    def reading(self) -> Reading:
        """How it reads names and images, for the protocol of its numbers."""
        layout = self.layout
        windows = f"{layout.size} px, stride {layout.stride} px, of a canvas of {layout.canvas} px, and the whole image"
        return Reading(
            f"{MEAN_OF_NAMES if self.all_synonyms else FIRST_NAME} (of CAT-Seg's entry, where there is one)",
            templates_text(self.texts.templates),
            windows if self.sliding else "none",
            features=self.clip.visual.description(),
            size=f"read at {self.clip_size} x {self.clip_size} px"
            + (f"; {MIRRORED}" if self.flip else ""),
            precision=self.test_precision,
        )

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Give the training vocabulary.

        Raises:
            InputError: there is no vocabulary, or it has with the preserved words as many classes as the aggregator
                pads to; as `other_words`.
        """
        if vocabulary is None:
            raise InputError(
                "CAT-Seg trains on classes: DATASETS.TRAIN has to name data sets with a vocabulary"
            )
        others: Names = ()
        if self.preservation:
            others = other_words(self.preserved_words[0], vocabulary)
            check_lengths(self.clip, others, self.texts.templates)
        pad_len, sample = self.aggregator.sizes.pad_len, min(self.preserved_words[1], len(others))
        if 0 < pad_len <= len(vocabulary) + sample:
            # No padding is left to learn from, and classes that a window leaves out have no gradient.
            further = f" and MODEL.PRESERVATION.SAMPLE adds {sample}" if sample else ""
            raise InputError(
                f"MODEL.CAT_SEG.PAD_LEN is {pad_len}, DATASETS.TRAIN has {len(vocabulary)} classes{further}: raise "
                "PAD_LEN above the number of classes or set it to 0"
            )
        self.set_vocabulary(vocabulary)
        if others:
            self._start = *frozen_copy(self.eval()), others

    def optimizer_groups(self, solver: CfgNode) -> list[Group]:
        """Parameter groups: CLIP and backbone learn at their multiples of ``SOLVER.BASE_LR``; norms and
        embeddings have weight decays of their own, all others, biases and padding tokens too, the common one.
        """
        return by_rate_and_kind(
            self,
            multipliers=(
                (self.clip, solver.CLIP_MULTIPLIER),
                (self.backbone, solver.BACKBONE_MULTIPLIER),
            ),
            weight_decay=solver.WEIGHT_DECAY,
            norm_decay=solver.WEIGHT_DECAY_NORM,
            embedding_decay=0.0,
        )

    def forward(
        self, samples: Sequence[Sample], *, output: str = "scores"
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, a segmentation for each image in evaluation.

        Args:
            samples: for each image "image" (3, h, w) RGB in 0..255; in training "sem_seg" (S, S)
                labels; in evaluation "height" and "width" of the result, by default the image's, and "classes" if
                those alone are to be told apart, indices in [0, T).
            output: in evaluation, "scores" for (T, height, width) probabilities, or "labels" for the
                best class of every pixel alone, in memory that does not grow with the classes.

        Returns:
            {"loss_sem_seg": scalar}, or for each image {"sem_seg": (T, height, width)}
            probabilities, or if `output` is "labels" {"sem_seg_labels": (height, width) int64,
            "sem_seg_best": their probabilities}.
        """
        self.require_vocabulary()
        if self.training:
            return self.losses(samples)
        with torch.no_grad():
            alone = any("classes" in sample for sample in samples)
            together = 1 if alone else chunk_size(self.device, 1, self._elements_per_image)
            parts = (samples[i : i + together] for i in range(0, len(samples), together))
            return [result for part in parts for result in self._segment(part, output)]

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The losses of a batch of crops of one size, scalars by name; see `sigmoid_loss` and `score_divergence`."""
        for sample in samples:
            check_labels(sample["sem_seg"], len(self.names), self.ignore_label)
        windows = torch.stack(on_device(samples, "image", self.device))
        labels = torch.stack(on_device(samples, "sem_seg", self.device))
        names, count = self.names, len(self.names)
        if self._start is not None:
            start, words = self._start
            names = (*names, *draw_words(words, self.preserved_words[1]))
        all_logits = self.window_logits(windows, names)
        logits = resize(all_logits[:, :count], (labels.shape[1], labels.shape[2]))
        losses = {
            "loss_sem_seg": sigmoid_loss(logits, labels, self.ignore_label, self.mask_ignored)
        }
        if self._start is not None:
            with torch.no_grad():
                kept = start.window_logits(windows, names)
            divergence = score_divergence(all_logits[:, count:], kept[:, count:]).mean()
            losses["loss_preserved"] = self.preservation * divergence
        return losses

    def window_logits(self, windows: Tensor, names: Names = ()) -> Tensor:
        """Logits (B, T, 4 h, 4 w) of RGB windows (B, 3, S, S) in 0..255, before the sigmoid, in training's precision.

        Classes that a window leaves out have -100.

        Args:
            windows: RGB.
            names: names of each class; () for those that `set_vocabulary` gave.
        """
        self.require_vocabulary()
        names = names or self.names
        inputs = self._inputs(windows.to(self.device, non_blocking=QUEUES).float())
        with autocast(self.device, self.precision):
            logits = self._window_logits(inputs, names)
        return torch.stack([one.all_classes(len(names)) for one in logits])

    def _inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """RGB images (B, 3, H, W) in 0..255, normalised for CLIP, and normalised for the backbone."""
        mean, std = (constant(v, images)[:, None, None] for v in (self.clip.mean, self.clip.std))
        normalised = (images - 255 * mean) / (255 * std)
        if self.backbone is None:
            return normalised, normalised
        shift, scale = (constant(v, images)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return normalised, (images - shift) / scale

    def _window_logits(
        self, inputs: tuple[Tensor, Tensor], names: Names = (), classes: Tensor | None = None
    ) -> list[ClassLogits]:
        """Logits of windows (B, 3, S, S), which `_inputs` has normalised for CLIP and for the backbone."""
        windows, for_backbone = inputs
        text_TPE = self.texts.embed(names or self.names, self.classes.examples)
        text_TPE = text_TPE if classes is None else text_TPE[classes]
        resized = resize(windows, self.clip_size)
        features = self.clip.visual.features(resized, self.tower_features)
        guidance = self._guidance(for_backbone, features)
        return self.aggregator.of_images(features["dense"], guidance, text_TPE)

    @property
    def _backbone_size(self) -> tuple[int, int]:
        """Rows and columns that the backbone is given.

        Its strides are 16, 8 and 4, whatever the side of CLIP's patches: an input of 16 pixels a cell gives
        a res4 of CLIP's grid.
        """
        height, width = self.aggregator.sizes.grid
        return 16 * height, 16 * width

    def _guidance(self, for_backbone: Tensor, features: Mapping[str, Tensor]) -> list[Guidance]:
        if self.backbone is None:
            first, second = (features[name] for name in self.guidance_blocks)
            maps = (features["dense"], self.upsample1(first), self.upsample2(second))
        else:
            named = self.backbone(resize(for_backbone, self._backbone_size))
            maps = tuple(named[name] for name in GUIDES)
        return [Guidance(appearance, (first, second)) for appearance, first, second in zip(*maps)]

    @property
    def _elements_per_image(self) -> int:
        """Number of elements in memory for an image: tokens of its views in a block of CLIP, and their logits."""
        views = len(self.layout.corners) + 1 if self.sliding else 1
        kept = min(self.aggregator.sizes.pad_len or len(self.names), len(self.names))
        width: int = self.clip.visual.width  # type: ignore[assignment]
        return views * math.prod(self.aggregator.sizes.grid) * (COPIES * width + 16 * kept)

    def _segment(self, samples: Sequence[Sample], output: str) -> list[dict[str, Tensor]]:
        """Results of images whose views pass CLIP together."""
        images = on_device(samples, "image", self.device)
        classes = chosen_classes(samples[0], self.device)
        with autocast(self.device, self.test_precision):
            passes = [self._logits_of_views(images, classes)]
            if self.flip:
                passes.append(self._logits_of_views([image.flip(-1) for image in images], classes))
        return [
            self._result(sample, views, output)
            for sample, *views in zip(samples, *passes, strict=True)
        ]

    def _logits_of_views(
        self, images: Sequence[Tensor], classes: Tensor | None
    ) -> list[list[ClassLogits]]:
        """Of each image the logits of its views, which pass CLIP together; of one image of some classes alone."""
        inputs = [self._views(image) for image in images]
        if len(inputs) == 1:
            return [self._window_logits(inputs[0], classes=classes)]
        # Views of whole images have sizes of their own.
        windows = torch.cat([resize(views, self.clip_size) for views, _ in inputs])
        for_backbone = windows
        if self.backbone is not None:
            for_backbone = torch.cat([resize(views, self._backbone_size) for _, views in inputs])
        logits = iter(self._window_logits((windows, for_backbone)))
        return [list(itertools.islice(logits, len(views))) for views, _ in inputs]

    def _views(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The windows of an image, or the whole one with padding, normalised as by `_inputs`."""
        if self.sliding:
            return self._inputs(self.layout.views(image))
        height, width = image.shape[1:]
        divisor = max(1, self.size_divisibility)
        padding = (0, -width % divisor, 0, -height % divisor)
        # Padded after the normalisation, so that the border is the mean colour.
        windows, for_backbone = (
            F.pad(views, padding) for views in self._inputs(image.float()[None])
        )
        return windows, for_backbone

    def _result(
        self, sample: Sample, passes: Sequence[Sequence[ClassLogits]], output: str
    ) -> dict[str, Tensor]:
        """Labels or scores of an image from the logits of its views, and of those of the mirrored image, if any."""
        image_size, size = sizes_of(sample)
        chosen = chosen_classes(sample, self.device)
        count = len(self.names) if chosen is None else len(chosen)
        kept = kept_classes([view for views in passes for view in views], count)
        if self.sliding:
            parts = [sliding_probabilities(views, kept, self.layout, size) for views in passes]
        else:
            parts = [plain_probabilities(views[0], kept, image_size, size) for views in passes]
        return segmentation(parts, size, len(self.names), output, chosen)

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS``; shipped weights hold what training changed, the rest is the CLIP here."""
        # Attention is apart where the file has it so, and `read_state` packs it if nothing of it trains here.
        state = _with_attention_like(dict(self.state_dict()), tensors)
        # Those of another model are left to the check, which says what they are not.
        shipped = source in SHIPPED_MODELS and tensors.keys() <= state.keys()
        self.load_state_dict({**state, **tensors} if shipped else tensors)

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> object:
        """Load a state dict under this project's or CAT-Seg's names, always strictly, and log a report.

        Raises:
            InputError: missing, unexpected or misshapen tensors, or another version's checkpoint.
        """
        tensors, report = read_state(self, state_dict)
        logger.info("%s", report)
        return super().load_state_dict(tensors, strict=True, assign=assign)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights under CAT-Seg's own names, as its code loads them, atomically."""
        dense = self.clip.visual.dense_feature.entries_but_of_token()
        save_atomically(path, {"model": to_official(self), **dense})

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""
        frozen = {name: p for name, p in self.named_parameters() if not p.requires_grad}
        return hash_tensors(frozen)


def _choose_trained(clip: DenseCLIP, finetune: str, trainable_blocks: int) -> None:
    """Freezes all of CLIP but the parameters of `clip_parameters`."""
    if finetune == "attention":
        split_attention(clip)
    clip.requires_grad_(False)
    for parameter in clip_parameters(clip, finetune, trainable_blocks):
        parameter.requires_grad_(True)


def read_state(model: CATSeg, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Reads the tensors of `model` from a state dict under CAT-Seg's names or those of this project.

    Args:
        model: a `CATSeg`.
        state: name -> tensor.

    Returns:
        A complete state dict of the model, and a line for the log.

    Raises:
        InputError: missing, unexpected or misshapen tensors; another version or size of CAT-Seg.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    official = any(name.startswith(("sem_seg_head.", "upsample")) for name in state) and not any(
        name.startswith("aggregator.") for name in state
    )
    tensors = _from_official(state) if official else dict(state)
    wanted = model.state_dict()
    tensors = _with_attention_like(tensors, wanted)
    _check_version(tensors, wanted)
    if problem := name_problem(wanted, tensors):
        raise InputError(
            f"the CAT-Seg checkpoint {problem.what}: {problem.names}; "
            + (
                "is it one of another CLIP (MODEL.CLIP.NAME)? Detectron2's checkpointer leaves out tensors of another "
                "shape"
                if "clip.logit_scale" in tensors
                else "it has only a part of its CLIP: give the name of the model, such as clipself://mini-cat-seg"
            )
        )
    for name, target in wanted.items():
        tensors[name] = _fitting(name, tensors[name], target)
    layout = "CAT-Seg's names" if official else "own names"
    line = (
        f"CATSeg <- checkpoint ({layout}): {len(wanted)} loaded, {len(state) - len(wanted)} "
        "rebuilt or repacked, 0 missing, 0 unexpected"
    )
    return tensors, line


def to_official(model: CATSeg) -> dict[str, Tensor]:
    """The model's weights under the names of CAT-Seg's checkpoints, masks included."""
    named: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "clip":
            official = CLIP + rest.removeprefix("text.")
            if official.endswith(PACKED) and model.backbone is None:
                # The CVPR version has query, key and value apart, whatever trains.
                prefix = official.removesuffix(PACKED)
                named |= {prefix + m: t for m, t in zip(MATRICES, tensor.chunk(3))}
            else:
                named[official] = tensor
        elif part == "aggregator":
            named[AGGREGATOR + rest] = tensor
        else:
            named[name] = tensor
    for name, buffer in model.aggregator.named_buffers():
        if name.endswith(".mask"):
            named[f"{AGGREGATOR}{name.removesuffix('mask')}attn_mask"] = buffer
    return on_host(named)


def _from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    clip = {n.removeprefix(CLIP): t for n, t in state.items() if n.startswith(CLIP)}
    tensors = {f"clip.{name}": tensor for name, tensor in clip_names(clip).items()}
    for name, tensor in state.items():
        if name.startswith(CLIP) or name.endswith("attn_mask"):
            continue
        if name.startswith(AGGREGATOR):
            name = f"aggregator.{name.removeprefix(AGGREGATOR)}"
        tensors[name] = tensor
    return tensors


def _with_attention_like(
    tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Query, key and value packed or apart, as the model has them."""
    converted = dict(tensors)
    for name in tensors:
        prefix, _, leaf = name.rpartition(".")
        parts = [f"{prefix}.{matrix}" for matrix in MATRICES]
        if leaf == PACKED and parts[0] in wanted:
            converted |= dict(zip(parts, converted.pop(name).chunk(3)))
        elif (
            leaf == MATRICES[0] and f"{prefix}.{PACKED}" in wanted and set(parts) <= tensors.keys()
        ):
            converted[f"{prefix}.{PACKED}"] = torch.cat([converted.pop(part) for part in parts])
    return converted


def _check_version(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    depths = [_clip_depth(names) for names in (tensors, wanted)]
    if depths[0] and depths[0] != depths[1]:
        raise InputError(
            f"this is a CAT-Seg checkpoint of a CLIP with {depths[0]} blocks, the model's has {depths[1]}: "
            'load_config("semseg/catseg+openai_vitb16") has 12, "semseg/catseg+openai_vitl14_336" 24'
        )
    first = "aggregator.conv1.weight"
    if not any(name.startswith("aggregator.") for name in tensors):
        raise InputError(
            "this is no CAT-Seg checkpoint: it has no aggregator; a CLIP alone belongs in "
            "MODEL.CLIP.WEIGHTS, a distilled image tower in MODEL.CLIP.VISUAL_INIT"
        )
    # Detectron2's checkpointer leaves out what has another shape.
    needs = wanted[first].shape[1]
    shape = tensors.get(first, wanted[first]).shape
    has = shape[1] if len(shape) > 1 else needs  # no matrix at all is refused with the other shapes
    if has != needs:
        raise InputError(
            f"this is a CAT-Seg checkpoint with {has} prompts as channels of the cost volume, the "
            f"model has {needs}: "
            + (
                "version 1 (80) belongs to semseg/catseg_v1_r101_vitb16 or semseg/catseg_v1_swinb_vitl14_336"
                if has > needs
                else "the CVPR version (1) belongs to semseg/catseg+openai_vitb16 or semseg/catseg+openai_vitl14_336"
            )
        )
    backbones = [any(n.startswith("backbone.") for n in names) for names in (tensors, wanted)]
    if backbones[0] != backbones[1]:
        raise InputError(
            "the checkpoint is guided by "
            + ("a backbone, the model by CLIP" if backbones[0] else "CLIP, the model by a backbone")
            + ": MODEL.CAT_SEG.GUIDANCE chooses between version 1 and the CVPR version"
        )


def _clip_depth(names: Iterable[str]) -> int:
    matches = (BLOCK.match(name) for name in names)
    return max((1 + int(match[1]) for match in matches if match), default=0)


def _fitting(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    if tensor.shape != target.shape and tensor.numel() == target.numel() == 1:
        tensor = tensor.reshape(target.shape)
    if tensor.shape != target.shape:
        raise InputError(
            f"the CAT-Seg checkpoint has {name} of shape {tuple(tensor.shape)}, the model needs "
            f"{tuple(target.shape)}: is it one of another CLIP? (MODEL.CLIP.NAME)"
        )
    return tensor.to(target.dtype)
