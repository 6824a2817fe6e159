"""Open-vocabulary panoptic segmentation: a mask generator's scores of its masks, fused with CLIP's.

The method is that of ODISE (arXiv 2303.04803); with CLIPSelf's dense features in the CLIP branch it is that of
CLIPSelf's Table 6.

Shapes: Q queries, K classes, S texts (all synonyms of all classes), E embedding, H x W pixels of the result.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.zoo import untrained
from clipself_seg.clip import DenseCLIP, TextBank
from clipself_seg.clip.precision import autocast
from clipself_seg.data.given_masks import MaskFolder, image_name
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary, class_names
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path
from clipself_seg.heads.fusion import Fusion
from clipself_seg.heads.panoptic.class_logits import only_classes
from clipself_seg.heads.panoptic.clip_branches import ClipBranch
from clipself_seg.heads.panoptic.mask_generator import MaskGenerator
from clipself_seg.heads.panoptic.mask_generator.clip_stages import LAST, CLIPStages
from clipself_seg.heads.panoptic.mask_generator.outputs import (
    GeneratorOutput,
    check_outputs,
    read_output,
)
from clipself_seg.heads.panoptic.mask_losses import MaskCriterion
from clipself_seg.heads.panoptic.mask_pieces import resize_masks
from clipself_seg.models.inputs import on_device
from clipself_seg.models.panoptic.config import panoptic_parts
from clipself_seg.models.panoptic.losses import panoptic_losses
from clipself_seg.models.panoptic.outputs import (
    NO_MASKS,
    FusionSettings,
    MergeSettings,
    UnnamedMasks,
    class_probabilities,
    make_labelled_outputs,
    make_outputs,
    padded_canvas,
)
from clipself_seg.models.panoptic.reading import PanopticReading
from clipself_seg.models.panoptic.weights import (
    carried_exponents,
    frozen_hashes,
    full_state,
    own_checkpoint,
)
from clipself_seg.models.parameter_groups import Group, by_rate_and_kind, norms_and_biases_apart
from clipself_seg.models.protocol import Classes, FeatureSource

logger = logging.getLogger(__name__)

# Variant of the generator -> prompts around its class names, a name in `prompts.TEMPLATES`; FC-CLIP's reads the texts
# of the CLIP branch.
GENERATOR_TEMPLATES = {"caption": "odise", "label": "bare"}


@META_ARCH_REGISTRY.register()
class OpenPanoptic(PanopticReading, nn.Module):
    """Panoptic, instance and semantic segmentation; `set_vocabulary` gives the classes.

    Attributes:
        classes: the classes that `set_vocabulary` gave.
        fusion: the fusion of both scores; a checkpoint that carries exponents puts them there.
    """

    @configurable
    def __init__(
        self,
        *,
        clip: DenseCLIP,
        branch: ClipBranch,
        backbone: FeatureSource | None = None,
        generator: MaskGenerator | None = None,
        criterion: MaskCriterion | None = None,
        outputs: str = "",
        masks_given: bool = False,
        branch_templates: str = "odise",
        fusion: FusionSettings | None = None,
        grounding_weight: float = 0.0,
        settings: MergeSettings | None = None,
        precision: torch.dtype | None = None,
        test_precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            clip: CLIP with both towers, frozen; embeds the texts, and gives the features of a pyramid.
            branch: CLIP branch that scores masks, with a CLIP of its own or with `clip`.
            backbone: turns images in [0, 1] into maps s2, s3, s4, s5; has `channels` and `frozen_prefixes`.
            generator: turns the maps into masks.
            criterion: losses of the generator; None for a model that does not train.
            outputs: folder of generator outputs (`outputs.save_output`), in place of backbone and generator.
            masks_given: whether samples bring masks, which CLIP names, in place of a generator; `outputs` is then the
                folder that they are from, or "".
            branch_templates: prompts of the CLIP branch, a name in `prompts.TEMPLATES`.
            fusion: whose scores are returned, and how both are fused.
            grounding_weight: weight of the caption model's grounding loss, 0 for none.
            settings: settings by which images are padded and outputs are made.
            precision: dtype of autocast in training, or None.
            test_precision: dtype of autocast in evaluation, or None.

        Raises:
            InputError: neither a generator nor its outputs.
        """
        super().__init__()
        if generator is None and not outputs and not masks_given:
            raise InputError("MODEL.MASK_GENERATOR.OUTPUTS is empty: SOURCE disk reads it")
        self.clip = clip.eval().requires_grad_(False)
        self.branch = branch
        # Registered, so that it moves to the model's device; it may be `clip` itself.
        self.branch_clip = branch.clip.eval().requires_grad_(False)
        self.backbone = backbone
        self.generator = generator
        self.criterion = criterion
        self.outputs = outputs
        self.masks_given = masks_given
        self.fusion = fusion or FusionSettings()
        self.grounding_weight = grounding_weight
        self.settings = settings or MergeSettings()
        self.precision = precision
        self.test_precision = test_precision
        self.branch_bank = TextBank(branch.clip, branch_templates)
        self.generator_bank = self._generator_bank(branch_templates)
        self.classes = Classes()

    def _generator_bank(self, branch_templates: str) -> TextBank:
        """Texts of the generator; where it reads those of the CLIP branch they are encoded once."""
        variant = "label" if self.generator is None else self.generator.variant
        templates = GENERATOR_TEMPLATES.get(variant, branch_templates)
        if variant not in GENERATOR_TEMPLATES and self.branch.clip is self.clip:
            return self.branch_bank
        return TextBank(self.clip, templates)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts from configuration keys, see `panoptic_parts`."""
        return panoptic_parts(cfg)

    @classmethod
    def task(cls) -> str:
        """Returns "panoptic": panoptic segmentation."""
        return "panoptic"

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuse a random mask generator, which is evaluated as slowly as a trained one."""
        if not cfg.MODEL.WEIGHTS and cfg.MODEL.MASK_GENERATOR.SOURCE not in ("disk", "masks"):
            raise untrained(
                "mask generator",
                folder="panoptic/",
                shipped="mini-open-panoptic",
                clip=cfg.MODEL.CLIP.NAME,
            )

    @classmethod
    def training_config(cls, cfg: CfgNode) -> CfgNode:
        """The configuration as it is: CLIP and feature source have keys of their own."""
        return cfg

    @property
    def branch_on_backbone(self) -> bool:
        """Whether the CLIP branch reads the map of the generator's backbone, which is then not computed twice."""
        return self.branch.reads_backbone and isinstance(self.backbone, CLIPStages)

    @property
    def exponents(self) -> tuple[float, float]:
        """CLIP's exponents of seen and of all other classes where both scores are fused."""
        return self.fusion.alpha, self.fusion.beta

    @property
    def alpha(self) -> float:
        """Exponent of CLIP's scores of seen classes in what the model returns."""
        return self.fusion.returned().alpha

    @property
    def beta(self) -> float:
        """Exponent of CLIP's scores of all other classes in what the model returns."""
        return self.fusion.returned().beta

    @property
    def void_discount(self) -> float:
        """Weight by which CLIP's best class lowers void where both scores are fused."""
        return self.fusion.void_discount

    @property
    def needs_captions(self) -> bool:
        """Whether training needs the noun phrases of captions."""
        return self.generator is not None and self.generator.variant == "caption"

    @property
    def source(self) -> str:
        """Source of the masks where there is no generator, as MODEL.MASK_GENERATOR.SOURCE has it."""
        return "masks" if self.masks_given else "disk"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.clip.logit_scale.device

    def train(self, mode: bool = True) -> OpenPanoptic:
        """Switches the training mode as in every module; the frozen CLIPs stay in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        self.branch_clip.eval()
        return self

    def set_vocabulary(
        self, words: Vocabulary | Sequence[str], seen: np.ndarray | None = None
    ) -> None:
        """Give the classes; labels are positions in them.

        Args:
            words: a vocabulary, or names with synonyms, "dog|puppy". Classes that are not marked as stuff are things.
            seen: (K,) bool, classes of the training vocabulary; None stands for all of them.

        Raises:
            InputError: as `class_names`.
            ValueError: `seen` is of another number of classes.
        """
        names = class_names(words, catseg_names=True)
        if seen is not None and len(seen) != len(names):
            raise ValueError(f"seen has {len(seen)} classes, there are {len(names)}")
        stuff: set[int] = set()
        if isinstance(words, Vocabulary):
            stuff = {i for i, entry in enumerate(words.classes) if entry.isthing is False}
        self.classes = Classes(
            names=names,
            things=tuple(i for i in range(len(names)) if i not in stuff),
            seen=None if seen is None else np.asarray(seen, dtype=bool),
        )

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Give the training vocabulary.

        Raises:
            InputError: the generator's outputs come from disk, there are no classes, or the caption model
                would learn no class names.
        """
        if self.generator is None:
            raise InputError(
                f"MODEL.MASK_GENERATOR.SOURCE {self.source} does not train: add --eval-only"
            )
        if vocabulary is None:
            raise InputError(
                "OpenPanoptic trains on classes: DATASETS.TRAIN has to name panoptic data sets"
            )
        if self.needs_captions and self.grounding_weight <= 0:
            raise InputError(
                "MODEL.MASK_GENERATOR.GROUNDING_WEIGHT 0 leaves the caption model's class scores untrained: give "
                "it a weight above 0 and captions, or train MODEL.MASK_GENERATOR.VARIANT label"
            )
        self.set_vocabulary(vocabulary)

    def optimizer_groups(self, solver: CfgNode) -> list[Group]:
        """Parameter groups: norms and biases without weight decay, all others with it; FC-CLIP's are Detectron2's,
        which decay biases, and norms and embeddings by keys of their own."""
        if self.generator is None or self.generator.variant != "fcclip":
            return norms_and_biases_apart(self, solver.WEIGHT_DECAY)
        return by_rate_and_kind(
            self,
            multipliers=(),
            weight_decay=solver.WEIGHT_DECAY,
            norm_decay=solver.WEIGHT_DECAY_NORM,
            embedding_decay=solver.WEIGHT_DECAY_EMBED,
        )

    def evaluation_metadata(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> dict[str, Any]:
        """Settings that decide the numbers beside weights and configuration: those of the CLIP branch, and
        the provenance of the generator outputs on disk.

        Args:
            records: name of a data set -> its records, with "image_id".

        Raises:
            InputError: an image has no generator output, or no masks.
        """
        metadata: dict[str, Any] = {"CLIP branch": self.branch.settings()}
        if self.masks_given and records:
            folder = MaskFolder(self.outputs)
            metadata["masks given"] = {
                name: folder.check(name, [image_name(record["file_name"]) for record in own])
                for name, own in records.items()
            }
        elif self.outputs and records:
            metadata["generator on disk"] = {
                name: check_outputs(self.outputs, name, [record["image_id"] for record in own])
                for name, own in records.items()
            }
        return metadata

    def forward(
        self, samples: Sequence[Sample], *, fusions: Mapping[str, Fusion] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, outputs for each image in evaluation.

        Args:
            samples: for each image "image" (3, h, w) RGB in 0..255. In training all of one size, with "labels" (T,) and
                "masks" (T, h, w), and for grounding "words", noun phrases. In evaluation "height" and
                "width" of the result, by default those of the image; with `outputs` "image_id" and "file_name"; with
                `masks_given` "given_masks" (Q, H, W) bool at the size of the result, and "given_scores" (Q,); and
                "classes" if those alone are to be told apart (oracle words), indices in [0, K).
            fusions: in evaluation, name -> fusion; all are made from one pass of generator and CLIP. None
                makes one with the model's own alpha and beta.

        Returns:
            Losses by name; or for each image "panoptic_seg": (ids (H, W) int64, segments), "instances",
            "sem_seg": (K, H, W) scores, as `panoptic_merge` gives them; or with `fusions` {"fusions": {name:
            the same, but "sem_seg_labels" (H, W) int64 in place of the scores}}.
        """
        if not self.names:
            raise RuntimeError("call set_vocabulary before the model")
        if self.training:
            return panoptic_losses(self, samples)
        with torch.no_grad():
            return [self._segment(sample, fusions) for sample in samples]

    def generate(self, sample: Sample) -> GeneratorOutput:
        """Masks of an image and the generator's scores of them, for the current vocabulary.

        Args:
            sample: a sample of evaluation, see `forward`.

        Raises:
            InputError: generator outputs are missing or do not fit; or masks are given, and nothing generates them.
        """
        height, width = sample["image"].shape[1:]
        if self.masks_given:
            raise InputError(NO_MASKS)
        if self.backbone is None or self.generator is None:
            identity = {"image_id": sample["image_id"], "file_name": sample["file_name"]}
            output = read_output(
                self.outputs, **identity, image_size=(height, width), names=self.names
            )
            return output.to(self.device)
        (image,) = on_device([sample], "image", self.device)
        canvas = padded_canvas(image, self.settings, self.clip.mean)
        with autocast(self.device, self.test_precision):
            maps = self.backbone(canvas)
            (prediction,) = self.generator(maps)
            scores = self.generator.scores(prediction, self.generator_texts(), self.synonyms)
        return GeneratorOutput(
            prediction.mask_logits[0].float(),
            scores.class_logits[0].float(),
            scores.void_prob[0],
            (canvas.shape[2], canvas.shape[3]),
            (height, width),
            maps[LAST] if self.branch_on_backbone else None,
        )

    def _segment(self, sample: Sample, fusions: Mapping[str, Fusion] | None) -> dict[str, Any]:
        given = UnnamedMasks.of_sample(sample, self.device) if self.masks_given else None
        generated = given or self.generate(sample)
        wanted = fusions or {"": self.fusion.returned()}
        clip_logits = generated.mask_logits.new_zeros(
            len(generated.mask_logits), len(self.names), dtype=torch.float32
        )
        valid = None
        asked = any(one[:2] != (0, 0) or one.void_discount for one in wanted.values())
        if asked and len(clip_logits):
            clip_logits, valid = self.clip_scores(sample, generated)
        height, width = generated.image_size
        size = (sample.get("height", height), sample.get("width", width))
        names, things, known = self.classes
        seen = torch.ones(len(names)) if known is None else torch.from_numpy(known)
        seen = seen.to(self.device, non_blocking=True).bool()
        if not self.fusion.valid_mask:
            valid = None
        if "classes" in sample:
            clip_logits = only_classes(clip_logits, sample["classes"])
            generated = generated.of_classes(sample["classes"])
        probs = {
            name: (fusion, class_probabilities(generated, clip_logits, valid, seen, fusion))
            for name, fusion in wanted.items()
        }
        if fusions:
            labelled = make_labelled_outputs(generated, probs, size, things, self.settings)
            return {"fusions": labelled}
        masks = resize_masks(generated.mask_logits, generated.canvas, generated.image_size, size)
        return make_outputs(probs[""][1], masks, things, self.settings)

    def after_optimizer_step(self) -> None:
        """Does nothing: the loss reaches every trained weight."""

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS``, see `load_state_dict`."""
        self.load_state_dict(tensors)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a checkpoint of this project or of ODISE, always strictly, with the exponents that it carries,
        and log a report.

        Raises:
            InputError: missing, unexpected or misshapen tensors, another variant or source, or a
                generator that was trained on another CLIP; exponents out of [0, 1].
        """
        loaded = super().load_state_dict(full_state(self, state_dict), assign=assign)
        carried = carried_exponents(state_dict)
        own: dict[str, Any] = {
            name: carried[name] for name in self.fusion.of_weights if name in carried
        }
        if own:
            logger.info("exponents of the fusion that the checkpoint carries: %s", own)
            self.fusion = replace(self.fusion, **own)
        return loaded

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights that are not frozen under ODISE's names, and the exponents, atomically."""
        # A file, not its path: torch would write the random temporary name into the archive.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            dense = self.clip.visual.dense_feature.entries_but_of_token()
            torch.save({"model": own_checkpoint(self), **dense}, file)

    def weights_hash(self) -> str:
        """Hash of all weights, those of the CLIP branch included."""
        return hash_tensors(self.state_dict())

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""
        return "-".join(frozen_hashes(self).values())
