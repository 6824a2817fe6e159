"""Open-vocabulary panoptic segmentation: a mask generator's scores of its masks, fused with CLIP's.

The method is that of ODISE (arXiv 2303.04803); with CLIPSelf's dense features in the CLIP branch it is that of
CLIPSelf's Table 6.

First the model, then what a checkpoint of it holds (`full_state` reads one), and last what becomes of a CLIP that a
checkpoint carries.

Shapes: Q queries, K classes, S texts (all synonyms of all classes), E embedding, H x W pixels of the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.read import name_problem, nearly_equal
from clipself_seg.checkpoints.zoo import untrained
from clipself_seg.clip import DenseCLIP, TextBank
from clipself_seg.clip.kinds import signature_of
from clipself_seg.clip.runtime import autocast, chunk_size, on_device
from clipself_seg.clip.text_bank import check_lengths, templates_text
from clipself_seg.clip.weights import to_native
from clipself_seg.data.annotations import Record
from clipself_seg.data.given_masks import MaskFolder, image_name
from clipself_seg.data.mappers.panoptic import mask_entries
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary, Words, class_names, examples_of, read_given
from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import Fusion, remaining_void
from clipself_seg.heads.panoptic.frozen_clip import (
    BackbonePooling,
    ClipBranch,
    CLIPStages,
    CLIPTaps,
    FeatureSource,
    MaskedAttention,
)
from clipself_seg.heads.panoptic.generator import MaskGenerator, QueryPrediction
from clipself_seg.heads.panoptic.mask_losses import (
    MaskCriterion,
    MaskTargets,
    caption_lengths,
    grounding_loss,
)
from clipself_seg.heads.panoptic.panoptic_merge import resize_masks
from clipself_seg.heads.panoptic.plain_decoder import (
    RELEASED,
    PlainDecoder,
    is_released,
    released_state,
)
from clipself_seg.heads.text_scores import only_classes
from clipself_seg.models.base import (
    ModelBase,
    as_bytes,
    on_host,
    save_atomically,
    sizes_of,
)
from clipself_seg.models.optimizer_groups import by_rate_and_kind, norms_and_biases_apart
from clipself_seg.models.panoptic.config import panoptic_parts
from clipself_seg.models.panoptic.mask_models import OtherMasks
from clipself_seg.models.panoptic.outputs import (
    NO_MASKS,
    FusionSettings,
    GeneratorOutput,
    MergeSettings,
    UnnamedMasks,
    class_probabilities,
    make_labelled_outputs,
    make_outputs,
    padded_canvas,
    padded_size,
)
from clipself_seg.models.protocol import (
    BEST_OF_NAMES,
    MIRRORED,
    Classes,
    Group,
    Memory,
    Outputs,
    Reading,
)

logger = logging.getLogger(__name__)

# Variant of the generator -> prompts around its class names, a name in `text_bank.TEMPLATES`; FC-CLIP's reads the texts
# of the CLIP branch.
GENERATOR_TEMPLATES = {"caption": "odise", "label": "bare"}

# Entries with the hash of what was frozen in training (bytes of its hexadecimal digits), and with the names of a plain
# decoder's taps, for tensors of other taps have the same names and shapes; and the key that gives others.
CLIP_HASH = "clip_hash"
SOURCE_HASH = "feature_source_hash"
TAPS = "feature_taps"
KEYS = {
    CLIP_HASH: "MODEL.CLIP.WEIGHTS (a distilled CLIP belongs in MODEL.CLIP_BRANCH.WEIGHTS)",
    SOURCE_HASH: "MODEL.DIFFUSION.WEIGHTS",
    TAPS: "MODEL.PLAIN_DECODER.TAPS",
}
# Entry with alpha and beta, of which official checkpoints have none.
EXPONENTS = "fusion_exponents"
# Parameters of the losses, which nothing here needs, and what ODISE freezes: CLIP and Stable Diffusion, which
# come from files of their own.
IGNORED: tuple[str, ...] = ("criterion.", "pixel_mean", "pixel_std", "clip_head.clip.")
IGNORED += ("category_head.clip.", "word_head.clip.", "backbone.feature_extractor.ldm_extractor.")
# Parts of names of tensors that are as wide as CLIP's embeddings.
OF_CLIP = ("text_proj", "null_embed", "clip_project", "time_embed_project", "void_embedding")
# Parts of names of tensors that are as wide as the stages of a convolutional CLIP, or as its embeddings.
OF_STAGES = ("pixel_decoder.input_proj", "pixel_decoder.adapter_1", "class_embed.layers.2")
GENERATOR = "generator."
CLIP = "backbone.clip_model."
# First part of a name -> the kind, the variant and the source that have it.
KINDS = {"sem_seg_head.predictor.query_feat": "mask2former", "decoder.q.": "plain"}
VARIANTS = {"word_head": "caption", "category_head": "label", "void_embedding": "fcclip"}
SOURCES = {
    "backbone.feature_projections": "diffusion",
    "backbone.block_projections": "pyramid",
    "bn.": "blocks",
    CLIP: "clip",
}
# Numbers of the generator's maps that are in memory at once, for a pixel of its canvas: a map of stride 4 has 16.
NUMBERS_OF_PIXEL = 64


@META_ARCH_REGISTRY.register()
class OpenPanoptic(ModelBase):
    """Panoptic, instance and semantic segmentation; `set_vocabulary` gives the classes.

    Attributes:
        fusion: the fusion of both scores; a checkpoint that carries exponents puts them there.
    """

    purpose = "open-vocabulary panoptic segmentation (ODISE's method)"
    epochs = 30
    memory = Memory(weights=(1.2, 1.5), step=(4.9, 5.0), recomputed=(4.9, 5.0))

    @configurable
    def __init__(
        self,
        *,
        clip: DenseCLIP,
        branch: ClipBranch,
        backbone: FeatureSource | None = None,
        generator: MaskGenerator | PlainDecoder | None = None,
        criterion: MaskCriterion | None = None,
        masks_given: bool = False,
        masks_folder: str = "",
        mask_model: OtherMasks | None = None,
        branch_templates: str = "odise",
        fusion: FusionSettings | None = None,
        grounding_weight: float = 0.0,
        settings: MergeSettings | None = None,
        precision: torch.dtype | None = None,
        test_precision: torch.dtype | None = None,
        flip: bool = False,
    ) -> None:
        """
        Args:
            clip: CLIP with both towers, frozen; embeds the texts, and gives the features of a pyramid.
            branch: CLIP branch that scores masks, with a CLIP of its own or with `clip`.
            backbone: turns images in [0, 1] into the maps that the generator reads.
            generator: turns the maps into masks.
            criterion: losses of the generator; None for a model that does not train.
            masks_given: whether samples bring masks, which CLIP names, in place of a generator.
            masks_folder: folder that these masks are from, or "".
            mask_model: finds the masks of samples that bring none.
            branch_templates: prompts of the CLIP branch, a name in `text_bank.TEMPLATES`.
            fusion: whose scores are returned, and how both are fused.
            grounding_weight: weight of the caption model's grounding loss, 0 for none.
            settings: settings by which images are padded and outputs are made.
            precision: dtype of autocast in training, or None.
            test_precision: dtype of autocast in evaluation, or None.
            flip: whether CLIP's scores of masks are the mean of those in the image and in its mirrored version.
        """
        super().__init__()
        assert (generator is None) == masks_given, "masks are generated, or given"
        self.clip = clip.eval().requires_grad_(False)
        self.branch = branch
        # Registered, so that it moves to the model's device; it may be `clip` itself.
        self.branch_clip = branch.clip.eval().requires_grad_(False)
        self.backbone = backbone
        self.generator = generator
        self.criterion = criterion
        self.masks_given = masks_given
        self.masks_folder = masks_folder
        self.mask_model = mask_model
        self.fusion = fusion or FusionSettings()
        self.grounding_weight = grounding_weight
        self.settings = settings or MergeSettings()
        self.precision = precision
        self.test_precision = test_precision
        self.flip = flip
        self.branch_bank = TextBank(branch.clip, branch_templates)
        self.branch_bank.mixed.read = self._read_regions
        self.generator_bank = self._generator_bank(branch_templates)
        # Void of a released plain decoder, as random as all that compares its masks with texts.
        self._untrained: Tensor | None = None

    def _generator_bank(self, branch_templates: str) -> TextBank:
        """Texts of the generator; where it reads those of the CLIP branch they are encoded once."""
        variant = "label" if self.generator is None else self.generator.variant
        templates = GENERATOR_TEMPLATES.get(variant, branch_templates)
        if variant not in GENERATOR_TEMPLATES and self.branch.clip is self.clip:
            return self.branch_bank
        return TextBank(self.clip, templates)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Builds the parts from configuration keys, see `panoptic_parts`."""
        return panoptic_parts(cfg)

    @classmethod
    def task(cls) -> str:
        """Returns "panoptic": panoptic segmentation."""
        return "panoptic"

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuse a random mask generator, which is evaluated as slowly as a trained one."""
        if not cfg.MODEL.WEIGHTS and cfg.MODEL.MASK_GENERATOR.SOURCE != "masks":
            raise untrained(
                "mask generator",
                folder="panoptic/",
                shipped="mini-open-panoptic",
                clip=cfg.MODEL.CLIP.NAME,
            )

    @property
    def branch_on_backbone(self) -> bool:
        """Whether the CLIP branch reads the map of the generator's backbone, which is then not computed twice."""
        return self.branch.reads_backbone and bool(self.backbone and self.backbone.branch_map)

    @property
    def exponents(self) -> tuple[float, float]:
        """CLIP's exponents of seen and of all other classes where both scores are fused."""
        return self.fusion.alpha, self.fusion.beta

    @property
    def void_discount(self) -> float:
        """Weight by which CLIP's best class lowers void where both scores are fused."""
        return self.fusion.void_discount

    @property
    def needs_captions(self) -> bool:
        """Whether training needs the noun phrases of captions."""
        return self.generator is not None and self.generator.variant == "caption"

    def train(self, mode: bool = True) -> OpenPanoptic:
        """Switches the training mode as in every module; the frozen CLIPs stay in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        self.branch_clip.eval()
        return self

    def classes_of(self, words: Words, seen: np.ndarray | None = None) -> Classes:
        """Reads and checks class names; labels are positions in them.

        Args:
            words: text, a file or a built-in name, see `read_words`; a list of names with synonyms, "dog|puppy"; or a
                vocabulary. Classes that are not marked as stuff are things.
            seen: (K,) bool, classes of the training vocabulary; None stands for all of them.

        Raises:
            InputError: as `class_names`, or a name that CLIP cannot read whole.
            ValueError: `seen` is of another number of classes.
        """
        words = read_given(words)
        names = class_names(words, catseg_names=True)
        for bank in (self.branch_bank, self.generator_bank):
            check_lengths(bank.clip, names, bank.templates)
        stuff: set[int] = set()
        if isinstance(words, Vocabulary):
            stuff = {i for i, entry in enumerate(words.classes) if entry.isthing is False}
        things = tuple(i for i in range(len(names)) if i not in stuff)
        return Classes(names, things, seen, examples_of(words))

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Give the training vocabulary.

        Raises:
            InputError: the masks are given, there are no classes, or the caption model would learn no class names.
        """
        if self.generator is None:
            raise InputError("MODEL.MASK_GENERATOR.SOURCE masks does not train: add --eval-only")
        if vocabulary is None:
            raise InputError(
                "OpenPanoptic trains on classes: DATASETS.TRAIN has to name panoptic data sets"
            )
        self.set_vocabulary(vocabulary)
        self._untrained = None

    def optimizer_groups(self, solver: CfgNode) -> list[Group]:
        """Parameter groups: norms and biases without weight decay, all others with it; FC-CLIP's are Detectron2's,
        which decay biases, and norms and embeddings by keys of their own; of a plain decoder everything decays (PMT).
        """
        if isinstance(self.generator, PlainDecoder):
            trained = [p for p in self.parameters() if p.requires_grad]
            return [{"params": trained, "weight_decay": solver.WEIGHT_DECAY}]
        if self.generator is None or self.generator.variant != "fcclip":
            return norms_and_biases_apart(self, solver.WEIGHT_DECAY)
        return by_rate_and_kind(
            self,
            multipliers=(),
            weight_decay=solver.WEIGHT_DECAY,
            norm_decay=solver.WEIGHT_DECAY_NORM,
            embedding_decay=0.0,
        )

    def before_optimizer_step(self, step: int, steps: int) -> None:
        """As `SteppedModel`: masked attention of a plain decoder is annealed."""
        if isinstance(self.generator, PlainDecoder):
            self.generator.set_step(step, steps)

    def evaluation_metadata(self, records: Mapping[str, Sequence[Record]]) -> dict[str, object]:
        """Settings that decide the numbers beside weights and configuration: those of the CLIP branch, and whose
        masks it names where these are given.

        Args:
            records: name of a data set -> its records.

        Raises:
            InputError: an image has no masks.
        """
        metadata: dict[str, object] = {"CLIP branch": self.branch.settings()}
        if self.mask_model is not None:
            metadata["masks found"] = self.mask_model.settings()
        elif self.masks_given and records:
            folder = MaskFolder(self.masks_folder)
            metadata["masks given"] = {
                name: folder.check(name, [image_name(record["file_name"]) for record in own])
                for name, own in records.items()
            }
        return metadata

    def forward(
        self,
        samples: Sequence[Sample],
        *,
        fusions: Mapping[str, Fusion] | None = None,
        classes: Classes | None = None,
    ) -> dict[str, Tensor] | list[Outputs]:
        """Losses in training, outputs for each image in evaluation.

        Args:
            samples: for each image "image" (3, h, w) RGB in 0..255. In training all of one size, with "labels" (T,) and
                "masks" (T, h, w), and for grounding "words", noun phrases. In evaluation "height" and
                "width" of the result, by default those of the image; with
                `masks_given` "given_masks" (Q, H, W) bool at the size of the result, and "given_scores" (Q,), or with
                `mask_model` "original" (3, H, W) uint8, the image at that size; and "classes" if those alone are to be
                told apart, at least one index in [0, K): void is then what it is without the others, too.
            fusions: in evaluation, name -> fusion; all are made from one pass of generator and CLIP. None
                makes one with the model's own alpha and beta.

        Returns:
            Losses by name; or for each image "panoptic_seg": (ids (H, W) int64, segments), "instances",
            "sem_seg": (K, H, W) scores, as `panoptic_merge` gives them; or with `fusions` {"fusions": {name:
            the same, but "sem_seg_labels" (H, W) int64 in place of the scores}}.
        """
        self.classes = self.given_classes(classes)
        if self.training:
            return self.losses(samples)
        with torch.no_grad():
            outputs = dict[int, Outputs]()
            for places in self._places_together(samples):
                together = [samples[place] for place in places]
                for place, masks in zip(places, self._masks(together), strict=True):
                    outputs[place] = self.name_masks(samples[place], masks, fusions)
            return [outputs[place] for place in range(len(samples))]

    def _places_together(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Positions of samples that pass the generator together: of one canvas, and as many as memory allows."""
        if self.generator is None:
            return [[place] for place in range(len(samples))]
        sizes = [padded_size(sample["image"], self.settings) for sample in samples]
        groups = list[list[int]]()
        for canvas in dict.fromkeys(sizes):
            places = [place for place, size in enumerate(sizes) if size == canvas]
            count = chunk_size(self.device, 1, NUMBERS_OF_PIXEL * math.prod(canvas))
            groups += [places[start : start + count] for start in range(0, len(places), count)]
        return groups

    def _masks(self, samples: Sequence[Sample]) -> Sequence[GeneratorOutput | UnnamedMasks]:
        if self.masks_given:
            return [self._unnamed(sample) for sample in samples]
        if len(samples) == 1:
            return [self.generate(samples[0])]
        return self._generate(samples)

    def _unnamed(self, sample: Sample) -> UnnamedMasks:
        """The masks that a sample brings, or those that the mask model finds."""
        if self.mask_model is not None and "given_masks" not in sample:
            (original,) = on_device([sample], "original", self.device)
            sample = sample | mask_entries(self.mask_model(original))
        return UnnamedMasks.of_sample(sample, self.device)

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Losses of every prediction by name: `MaskCriterion.losses`, and the caption model's grounding loss.

        Mask2Former's decoder predicts before and behind each layer, a plain one too with masked attention, else once.

        Args:
            samples: of training, see `forward`.

        """
        assert self.backbone is not None and self.generator is not None, "setup_training refuses"
        assert self.criterion is not None, "the model was built to be evaluated"
        images = torch.stack(on_device(samples, "image", self.device))
        labels, masks = (on_device(samples, key, self.device) for key in ("labels", "masks"))
        targets = [MaskTargets(*pair) for pair in zip(labels, masks)]
        with autocast(self.device, self.precision):
            features = self.backbone(images.float() / 255)
            predictions = self.generator(features, every_layer=True)
            logits = self._void_logits(self.generator, predictions)
            pairs = [(void, p.mask_logits) for void, p in zip(logits, predictions)]
            losses = self.criterion.losses(pairs, targets)
            if self.grounding_weight and isinstance(self.generator, MaskGenerator):
                losses |= self._grounding(self.generator, predictions, samples)
        return losses

    def _void_logits(
        self, generator: MaskGenerator | PlainDecoder, predictions: Sequence[QueryPrediction]
    ) -> list[Tensor]:
        """Of each layer `GeneratorScores.void_logits`, for which the caption model needs no class logits."""
        own = [p.object_logits for p in predictions if p.object_logits is not None]
        if own:
            return own
        texts = self.generator_texts()
        return [generator.scores(p, texts, self.synonyms).void_logits for p in predictions]

    def _grounding(
        self,
        generator: MaskGenerator,
        predictions: Sequence[QueryPrediction],
        samples: Sequence[Sample],
    ) -> dict[str, Tensor]:
        lengths = caption_lengths([sample["words"] for sample in samples], self.device)
        valid, count = lengths > 0, max(1, int(lengths.max()))
        # A caption without noun phrases has padded words, and is a negative for the others (`valid`).
        phrases = [phrase for s in samples for phrase in (s["words"] or [""] * count)]
        texts = generator.text_head(self.generator_bank.embed_raw(phrases, keep=False))
        texts = texts.unflatten(0, (len(samples), -1))
        scale = generator.sem_seg_head.predictor.scale
        losses = [grounding_loss(p.embeddings, texts, valid, scale) for p in predictions]
        suffixes = [*(f"_{i}" for i in range(len(losses) - 1)), ""]
        return {
            f"loss_grounding{suffix}": self.grounding_weight * loss
            for suffix, loss in zip(suffixes, losses)
        }

    @torch.no_grad()
    def generate(self, sample: Sample) -> GeneratorOutput:
        """Masks of an image and the generator's scores of them, for the current vocabulary.

        Args:
            sample: a sample of evaluation, see `forward`.

        Raises:
            InputError: masks are given, and nothing generates them.
        """
        if self.masks_given:
            raise InputError(NO_MASKS)
        return self._generate([sample])[0]

    def _generate(self, samples: Sequence[Sample]) -> list[GeneratorOutput]:
        """What the generator makes of images that have one canvas; raises as `generate`."""
        if self._untrained is not None and torch.equal(self._untrained, self._void()):
            raise InputError(
                "MODEL.WEIGHTS is a decoder of fixed classes: what compares its masks with words is random, and has to "
                "be trained"
            )
        assert self.backbone is not None and self.generator is not None
        images = on_device(samples, "image", self.device)
        canvas = torch.cat([padded_canvas(one, self.settings, self.clip.mean) for one in images])
        with autocast(self.device, self.test_precision):
            maps = self.backbone(canvas)
            (prediction,) = self.generator(maps)
            scores = self.generator.scores(prediction, self.generator_texts(), self.synonyms)
        branch_map = maps[self.backbone.branch_map] if self.branch_on_backbone else None
        return [
            GeneratorOutput(
                prediction.mask_logits[place].float(),
                scores.class_logits[place].float(),
                scores.void_prob[place],
                (canvas.shape[2], canvas.shape[3]),
                (image.shape[1], image.shape[2]),
                None if branch_map is None else branch_map[place : place + 1],
            )
            for place, image in enumerate(images)
        ]

    @torch.no_grad()
    def name_masks(
        self,
        sample: Sample,
        generated: GeneratorOutput | UnnamedMasks,
        fusions: Mapping[str, Fusion] | None = None,
    ) -> Outputs:
        """What `forward` gives for an image whose masks are there already, for the current vocabulary.

        With `generate` the features of an image (`GeneratorOutput.backbone_map`), masks, names and segments come from
        one pass, where CLIP branch and generator share a tower.

        Args:
            sample: of the image, a sample of evaluation, see `forward`.
            generated: its masks, as `generate` gives them, or given ones.
            fusions: as `forward` takes them.
        """
        returned = self.fusion.returned()
        clip_logits = generated.mask_logits.new_zeros(
            len(generated.mask_logits), len(self.names), dtype=torch.float32
        )
        valid = None
        asks_clip = any(
            fusion.alpha or fusion.beta or fusion.void_discount
            for fusion in (fusions.values() if fusions else [returned])
        )
        if asks_clip and len(clip_logits):
            clip_logits, seen_by_clip = self.clip_scores(sample, generated)
            valid = seen_by_clip if self.fusion.valid_mask else None
        _, size = sizes_of(sample)
        things, seen = self.classes.things, self.seen()
        if "classes" in sample:
            clip_logits = only_classes(clip_logits, sample["classes"])
            if isinstance(generated, GeneratorOutput):
                generated = self._only_classes(generated, sample)
        if fusions:
            probs = {
                name: (fusion, class_probabilities(generated, clip_logits, valid, seen, fusion))
                for name, fusion in fusions.items()
            }
            labelled = make_labelled_outputs(generated, probs, size, things, self.settings)
            return {"fusions": labelled}
        returned_probs = class_probabilities(generated, clip_logits, valid, seen, returned)
        masks = resize_masks(generated.mask_logits, generated.canvas, generated.image_size, size)
        return make_outputs(returned_probs, masks, things, self.settings)

    def _only_classes(self, generated: GeneratorOutput, sample: Sample) -> GeneratorOutput:
        """What the generator says of the "classes" of a sample alone, see `forward`."""
        logits = only_classes(generated.class_logits, sample["classes"])
        void = generated.void_prob
        # Void of ODISE's generator does not compete with the classes.
        competes = self.generator is not None and self.generator.variant != "caption"
        if competes:
            void = remaining_void(void, generated.class_logits, logits)
        return dataclasses.replace(generated, class_logits=logits, void_prob=void)

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS``, see `load_state_dict`."""
        self.load_state_dict(tensors)

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> object:
        """Load a checkpoint of this project or of ODISE, always strictly, with the exponents that it carries,
        and log a report.

        Raises:
            InputError: missing, unexpected or misshapen tensors, another variant or source, or a
                generator that was trained on another CLIP; exponents out of [0, 1].
        """
        loaded = super().load_state_dict(full_state(self, state_dict), assign=assign)
        self._untrained = self._void() if is_released(state_dict) else None
        carried = carried_exponents(state_dict)
        own = {name: carried[name] for name in self.fusion.of_weights if name in carried}
        if own:
            logger.info("exponents of the fusion that the checkpoint carries: %s", own)
            exponents = {"alpha": self.fusion.alpha, "beta": self.fusion.beta} | own
            alpha, beta = exponents["alpha"], exponents["beta"]
            self.fusion = dataclasses.replace(self.fusion, alpha=alpha, beta=beta)
        return loaded

    def _void(self) -> Tensor:
        """A copy of the void vector of a plain decoder."""
        assert isinstance(self.generator, PlainDecoder), "others refuse a released decoder"
        return self.generator.void_embedding.weight.detach().cpu().clone()

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights that are not frozen under ODISE's names, and the exponents, atomically."""
        dense = self.clip.visual.dense_feature.entries_but_of_token()
        save_atomically(path, {"model": own_checkpoint(self), **dense})

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""
        return "-".join(frozen_hashes(self).values())

    @property
    def synonyms(self) -> list[int]:
        """Number of texts of each class."""
        return [len(names) for names in self.names]

    def generator_texts(self) -> Tensor:
        """Embeddings (S, E) of all names of all classes, not normalised, but of unit length for FC-CLIP."""
        if self.generator is not None and self.generator.variant == "fcclip":
            return self.generator_bank.embed([(name,) for names in self.names for name in names])
        return self.generator_bank.embed_raw([name for names in self.names for name in names])

    def branch_texts(self) -> Tensor:
        """Embeddings (S, E), unit length, of all names of all classes for the CLIP branch."""
        names = [(name,) for names in self.names for name in names]
        return self.branch_bank.embed(names, self.classes.examples)

    def _read_regions(self, image: Tensor, masks: Tensor) -> Tensor:
        """Embeddings (n, E) of regions of an example's image as CLIP reads those of any image."""
        regions, visible = self.branch.embed(image, masks)
        return regions * visible[:, None]

    def clip_scores(
        self, sample: Sample, generated: GeneratorOutput | UnnamedMasks
    ) -> tuple[Tensor, Tensor]:
        """CLIP's class logits (Q, K) of the generated masks, and (Q,) bool, True for masks that it can see.

        With `flip` the logits of a mask are the mean of those in the image and, mirrored with it, in its mirrored
        version; those of one where it can be seen in that alone.

        Args:
            sample: a sample of evaluation, see `forward`.
            generated: masks of its image, as `generate` gives them, or given ones.
        """
        # Masks of the image alone may have another resolution than the model's input.
        canvas = None if generated.canvas == generated.image_size else generated.canvas
        (image,) = on_device([sample], "image", self.device)
        pixels = image.float() / 255
        texts, synonyms = self.branch_texts(), self.synonyms
        masks, own_map = generated.mask_logits, generated.backbone_map
        with autocast(self.device, self.test_precision):
            logits, valid = self.branch.score(pixels, masks, texts, synonyms, canvas, own_map)
            if not self.flip:
                return logits, valid
            if canvas:  # without the padding, which would be at the left
                masks = resize_masks(masks, canvas, generated.image_size, generated.image_size)
            mirrored = pixels.flip(-1), masks.flip(-1)
            others, seen = self.branch.score(*mirrored, texts, synonyms)
        mean = torch.where((valid & seen)[:, None], (logits + others) / 2, logits)
        return torch.where((seen & ~valid)[:, None], others, mean), valid | seen

    def reading(self) -> Reading:
        """How it reads names and images, for the protocol of its numbers."""
        templates = f"{templates_text(self.branch_bank.templates)} for CLIP"
        void = "void, scored by the generator"
        if self.fusion.void_discount:
            void += f", less {self.fusion.void_discount:g} times CLIP's best class"
        if not self.masks_given:
            templates += f", {templates_text(self.generator_bank.templates)} for the generator"
        else:
            void = "none: masks from elsewhere are named by CLIP alone"
        return Reading(
            BEST_OF_NAMES,
            templates,
            background=void,
            features=self._features_text(),
            scale=f"{self.branch.clip.similarity_scale.item():.4g}",
            size=f"CLIP reads {self.branch.size_text()}{self._order_text()}"
            + (f"; of CLIP's scores {MIRRORED}" if self.flip else ""),
            precision=self.test_precision,
        )

    def _order_text(self) -> str:
        """What is resized to the original image, where that is not always masks."""
        if self.settings.masks_first:
            return ""
        return "; of semantic labels alone scores are resized, not masks"

    def _features_text(self) -> str:
        if isinstance(self.branch, MaskedAttention):
            return "masked attention"
        if isinstance(self.branch, BackbonePooling):
            if self.branch.clip.visual.plain:
                where = "pass" if self.branch_on_backbone else "canvas"
                return f"{self.branch.clip.visual.description()}, of the generator's {where}"
            return "the backbone's last stage, pooled as CLIP pools it"
        return self.branch.clip.visual.description()


def trained_state(model: OpenPanoptic) -> dict[str, Tensor]:
    """Tensors that a checkpoint of an `OpenPanoptic` holds, all but the frozen ones, under official names."""
    frozen = _frozen_prefixes(model)
    return {
        name.removeprefix(GENERATOR): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(frozen)
    }


def _frozen_names(model: OpenPanoptic) -> set[str]:
    prefixes = _frozen_prefixes(model)
    return {name for name in model.state_dict() if name.startswith(prefixes)}


def _frozen_prefixes(model: OpenPanoptic) -> tuple[str, ...]:
    inside = () if model.backbone is None else model.backbone.frozen_prefixes
    return ("clip.", "branch_clip.", *(f"backbone.{prefix}" for prefix in inside))


def frozen_hashes(model: OpenPanoptic) -> dict[str, str]:
    """Hashes of the weights that do not train, CLIP and the feature source's frozen part, by checkpoint entry."""
    hashes = {CLIP_HASH: model.clip.weights_hash()}
    state = model.state_dict()
    if source := {n: state[n] for n in _frozen_names(model) if n.startswith("backbone.")}:
        hashes[SOURCE_HASH] = hash_tensors(source)
    return hashes


def _taps(model: OpenPanoptic) -> dict[str, str]:
    if not isinstance(model.backbone, CLIPTaps):
        return {}
    return {TAPS: ", ".join(model.backbone.channels)}


def own_checkpoint(model: OpenPanoptic) -> dict[str, Tensor]:
    """`trained_state` on the CPU, hashes of the model's CLIP and frozen feature source, its taps and its exponents."""
    state = on_host(trained_state(model))
    hashes = {name: as_bytes(t) for name, t in (frozen_hashes(model) | _taps(model)).items()}
    # In float64, as a configuration has them: 0.35 stays 0.35.
    return state | hashes | {EXPONENTS: torch.tensor(model.exponents, dtype=torch.float64)}


def carried_exponents(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Exponents that a checkpoint carries, "alpha" and "beta"; nothing where it carries none, as the official ones.

    Args:
        state: tensors of a checkpoint, with or without ``module.``.

    Raises:
        InputError: they are not two numbers in [0, 1].
    """
    tensor = state.get(EXPONENTS, state.get(f"module.{EXPONENTS}"))
    if tensor is None:
        return {}
    if tensor.shape == (2,) and tensor.is_floating_point():
        alpha, beta = tensor.tolist()
        if 0 <= alpha <= 1 and 0 <= beta <= 1:
            return {"alpha": alpha, "beta": beta}
    raise InputError(
        f"{EXPONENTS} of the panoptic checkpoint, {str(tensor.dtype)[6:]} {tuple(tensor.shape)}, are not two "
        "numbers in [0, 1]: fetch the file again"
    )


def full_state(model: OpenPanoptic, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A complete state dict of the model: a checkpoint's tensors, and the frozen ones as they are in the model.

    Args:
        model: an `OpenPanoptic`.
        state: tensors of a checkpoint under official names, with or without ``module.``, or those of
            ``model.state_dict()``; or a decoder that PMT's authors released, whose words have to be trained.

    Raises:
        InputError: missing, unexpected or misshapen tensors; another variant or source; another CLIP.
    """
    if isinstance(model.generator, PlainDecoder) and is_released(state):
        decoder, report = released_state(model.generator, state, "the released decoder")
        logger.warning(report)
        return model.state_dict() | {GENERATOR + name: t for name, t in decoder.items()}
    given = dict(state)
    for beginning in ("module.", GENERATOR, RELEASED):
        given = {name.removeprefix(beginning): value for name, value in given.items()}
    wanted = trained_state(model)
    frozen = _frozen_names(model)
    _check_kind(model, given)
    _check_hashes(model, given)
    of_checkpoint, report = carried_clip(model.clip, given)
    places = ["clip."] + ["branch_clip."] * (model.branch_clip is model.clip)
    taken = {place + name: t for place in places for name, t in of_checkpoint.items()}
    read = {
        name: value
        for name, value in given.items()
        if name not in (*KEYS, EXPONENTS, *frozen) and not name.startswith((*IGNORED, CLIP))
    }
    if problem := name_problem(wanted, read):
        raise InputError(f"the panoptic checkpoint {problem.what}: {problem.names}")
    for name, target in wanted.items():
        if read[name].shape != target.shape:
            raise InputError(
                f"the panoptic checkpoint has {name} of shape {tuple(read[name].shape)}, the model needs "
                f"{tuple(target.shape)}: {_keys_of_size(model, name)}"
            )
    _check_numbers({n: t for n, t in read.items() if wanted[n].is_floating_point()})
    logger.info(
        "OpenPanoptic <- checkpoint: %d loaded, 0 missing, 0 unexpected, %d ignored; %d frozen tensors "
        "of CLIP and feature source are not in it and stay as they are",
        len(read),
        sum(name.startswith(IGNORED) for name in given),
        len(frozen) - len(taken),
    )
    if report:
        logger.info("CLIP of the checkpoint: %s", report)
    complete = dict(model.state_dict())
    for name, value in read.items():
        complete[name if name in complete else GENERATOR + name] = value
    return complete | taken


def _keys_of_size(model: OpenPanoptic, name: str) -> str:
    """Says which keys give the size of a tensor."""
    if isinstance(model.backbone, CLIPTaps):
        return "MODEL.CLIP.NAME gives the width, MODEL.MASK_FORMER the other sizes"
    of_clip = OF_CLIP + (OF_STAGES if isinstance(model.backbone, CLIPStages) else ())
    if any(part in name for part in of_clip):
        return "MODEL.CLIP.NAME gives the size"
    return "MODEL.MASK_FORMER and MODEL.PYRAMID give the sizes"


def _check_kind(model: OpenPanoptic, given: Mapping[str, Tensor]) -> None:
    """Refuses a checkpoint of another kind of panoptic model, or of no panoptic model, by its kind."""
    if model.generator is None:
        raise InputError(
            "MODEL.WEIGHTS is of no use with MODEL.MASK_GENERATOR.SOURCE masks: leave it empty"
        )
    if not any(name.startswith(tuple(KINDS)) for name in given):
        raise InputError(
            "this is no panoptic checkpoint: it has no mask generator; a CLIP belongs in "
            "MODEL.CLIP.WEIGHTS or MODEL.CLIP_BRANCH.WEIGHTS"
        )
    own = [*trained_state(model), *([CLIP] if isinstance(model.backbone, CLIPStages) else [])]
    for table, key in ((KINDS, "KIND"), (VARIANTS, "VARIANT"), (SOURCES, "SOURCE")):
        has, needs = (
            {k for p, k in table.items() if any(n.startswith(p) for n in names)}
            for names in (given, own)
        )
        if has and has != needs:
            raise InputError(
                f"this is a checkpoint of the {key} {'/'.join(sorted(has))}, the model's is "
                f"{'/'.join(sorted(needs))}: set MODEL.MASK_GENERATOR.{key} {min(has)}"
            )


def _check_hashes(model: OpenPanoptic, given: Mapping[str, Tensor]) -> None:
    for entry, own in (frozen_hashes(model) | _taps(model)).items():
        if entry in given and (trained_on := _text(entry, given[entry])) != own:
            what = "taps" if entry == TAPS else "weights"
            raise InputError(
                f"the panoptic checkpoint was trained on {what} {trained_on}, the model has {own}: give "
                f"the former as {KEYS[entry]}"
            )


def _text(entry: str, tensor: Tensor) -> str:
    """The hash or the names in an entry, which is stored as bytes of ASCII."""
    if tensor.dtype == torch.uint8 and tensor.dim() == 1:
        with contextlib.suppress(UnicodeDecodeError):
            return bytes(tensor.tolist()).decode("ascii")
    raise InputError(
        f"{entry} of the panoptic checkpoint, {str(tensor.dtype)[6:]} {tuple(tensor.shape)}, is no text: "
        "fetch the file again"
    )


def _check_numbers(read: Mapping[str, Tensor]) -> None:
    """Refuses weights of a generator that are no finite floating-point numbers."""
    for name, tensor in read.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            what = "NaN or infinite numbers" if tensor.is_floating_point() else "integers"
            raise InputError(
                f"the panoptic checkpoint has {what} in {name}: take one from before its training failed, or fetch "
                "it again"
            )


def carried_clip(clip: DenseCLIP, given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Compares the CLIP in a checkpoint, or the part of one, with a model's, which has to be the same.

    A model whose CLIP has no weights takes the checkpoint's, if that is whole.

    Args:
        clip: the model's CLIP.
        given: tensors of the checkpoint by name, without ``module.``.

    Returns:
        The tensors that the model takes, under native names; and what there was, in words, "" if there was nothing.

    Raises:
        InputError: it is another CLIP, or a part of one where the model has no weights.
    """
    own = clip.state_dict()
    carried = to_native(
        {name.removeprefix(CLIP): t for name, t in given.items() if name.startswith(CLIP)}
    )
    if not carried:
        return {}, ""
    signature = signature_of(carried)
    if signature is not None and signature != clip.architecture.signature:
        raise InputError(
            f"the panoptic checkpoint is of another CLIP: its image tower is {signature}, that of MODEL.CLIP.NAME "
            f"{clip.name} is {clip.architecture.signature}"
        )
    if wrong := [n for n, t in carried.items() if n not in own or own[n].shape != t.shape]:
        raise InputError(
            f"the panoptic checkpoint's CLIP is not {clip.name}: {_first(wrong)} unexpected or of another shape; "
            "MODEL.CLIP.NAME gives the sizes"
        )
    if clip.report is None:
        if absent := [name for name in own if name not in carried]:
            raise InputError(
                f"MODEL.CLIP.WEIGHTS is empty, and the panoptic checkpoint lacks {len(absent)} tensors of {clip.name} "
                f"({_first(absent)}): give the weights that it was trained on, such as open_clip's tag of them"
            )
        return carried, f"all {len(own)} tensors of CLIP are the checkpoint's"
    if other := [n for n, t in carried.items() if not nearly_equal(t.to(own[n]), own[n])]:
        raise InputError(
            f"MODEL.CLIP.WEIGHTS is not the {clip.name} that the panoptic checkpoint was trained on: {len(other)} "
            f"tensors differ ({_first(other)}); give the weights that it was trained on"
        )
    there = f"of which the checkpoint has {len(carried)} of {len(own)} tensors"
    return {}, f"that of MODEL.CLIP.WEIGHTS, {there}"


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
