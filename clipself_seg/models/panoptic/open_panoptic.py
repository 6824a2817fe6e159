"""Open-vocabulary panoptic segmentation: a mask generator's scores of its masks, fused with CLIP's.

The method is that of ODISE (arXiv 2303.04803); with CLIPSelf's dense features in the CLIP branch it is that of
CLIPSelf's Table 6. Where masks come from is a `MaskSource`; checkpoints are read by `panoptic_checkpoint`.

Shapes: Q queries, K classes, S texts (all synonyms of all classes), E embedding, H x W pixels of the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from clipself_seg.checkpoints.zoo import untrained
from clipself_seg.clip import TextBank, VisionLanguageBackbone
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.runtime import on_device
from clipself_seg.clip.templates import templates_text
from clipself_seg.clip.text_bank import check_lengths
from clipself_seg.data.annotations import Record
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary, Words
from clipself_seg.heads.fusion import Fusion
from clipself_seg.heads.panoptic.clip_branches import ClipBranch
from clipself_seg.heads.text_scores import class_logits, only_classes
from clipself_seg.models import model_protocols
from clipself_seg.models.model_base import ModelBase, save_atomically, sizes_of
from clipself_seg.models.panoptic import panoptic_checkpoint, panoptic_outputs
from clipself_seg.models.panoptic.mask_sources import MaskSource
from clipself_seg.models.panoptic.panoptic_config import panoptic_parts


@META_ARCH_REGISTRY.register()
class OpenPanoptic(ModelBase):
    """Panoptic, instance and semantic segmentation; `set_vocabulary` gives the classes.

    Attributes:
        masks: source of the masks.
        fusion: the fusion of both scores; a checkpoint that carries exponents puts them there.
    """

    purpose = "open-vocabulary panoptic segmentation (ODISE's method)"
    epochs = 30
    memory = model_protocols.Memory(weights=(1.2, 1.5), step=(4.9, 5.0), recomputed=(4.9, 5.0))

    @configurable
    def __init__(
        self,
        *,
        clip: VisionLanguageBackbone,
        masks: MaskSource,
        branch: ClipBranch,
        branch_bank: TextBank,
        fusion: panoptic_outputs.FusionSettings,
        settings: panoptic_outputs.MergeSettings,
        test_precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            clip: CLIP with both towers, frozen; embeds the texts, and gives the features of a pyramid.
            masks: source of the masks.
            branch: CLIP branch that scores masks, with a CLIP of its own or with `clip`.
            branch_bank: embeds the names of classes for the CLIP branch.
            fusion: whose scores are returned, and how both are fused.
            settings: settings by which outputs are made.
            test_precision: dtype of autocast in evaluation, or None.
        """
        super().__init__()
        self.register_load_state_dict_pre_hook(panoptic_checkpoint.rename)
        self.clip = clip.eval().requires_grad_(False)
        self.branch = branch
        # Registered, so that it moves to the model's device; it may be `clip` itself.
        self.branch_clip = branch.clip.eval().requires_grad_(False)
        self.masks = masks
        for name, part in masks.parts().items():
            self.add_module(name, part)
        self.branch_bank = branch_bank
        self.branch_bank.read = self._read_regions
        self.fusion = fusion
        self.settings = settings
        self.test_precision = test_precision

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
        """Refuses a random mask generator, which is evaluated as slowly as a trained one."""
        if cfg.MODEL.MASK_GENERATOR.SOURCE != "masks" and not cfg.MODEL.WEIGHTS:
            raise untrained(
                "mask generator",
                folder="panoptic/",
                shipped="mini-open-panoptic",
                clip=cfg.MODEL.CLIP.NAME,
            )

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
        """True if training needs the noun phrases of captions."""
        return self.masks.needs_captions

    def stays_frozen(self) -> Iterable[nn.Module]:
        return self.clip, self.branch_clip

    def classes_of(self, words: Words, seen: np.ndarray | None = None) -> model_protocols.Classes:
        """Reads and checks class names, and sets nothing; classes that are not marked as stuff are things.

        Args:
            words: see `Vocabulary.of`.
            seen: (K,) bool, classes of the training vocabulary; None stands for all of them.

        Raises:
            InputError: no class, an empty name, or one that CLIP cannot read whole.
            ValueError: `seen` is of another number of classes.
        """
        words = Vocabulary.of(words)
        names = words.names(catseg_names=True)
        for bank in (self.branch_bank, *self.masks.banks):
            check_lengths(bank.clip, names, bank.templates)
        things = tuple(i for i, entry in enumerate(words.classes) if entry.isthing is not False)
        return model_protocols.Classes(names, things, seen, words.examples)

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Gives the training vocabulary.

        Raises:
            InputError: the masks are given, or there are no classes.
        """
        masks = self.masks.require_generator("add --eval-only")
        self.set_vocabulary(self.training_vocabulary(vocabulary))
        masks.untrained = None

    def optimizer_groups(self, solver: CfgNode) -> list[model_protocols.Group]:
        """Parameter groups, those of the mask generator's authors: `GROUPS` or `pmts_groups` of `panoptic_config`."""
        return self.masks.require_generator().groups(self, solver)

    def before_optimizer_step(self, step: int, steps: int) -> None:
        """Says how far training is, see `SteppedModel`: masked attention of a plain decoder is annealed."""
        self.masks.require_generator().generator.set_step(step, steps)

    def evaluation_metadata(self, records: Mapping[str, Sequence[Record]]) -> dict[str, object]:
        """Settings that decide the numbers beside weights and configuration: those of the CLIP branch, and whose
        masks it names where these are given or found.

        Args:
            records: name of a data set -> its records.

        Raises:
            InputError: an image has no masks.
        """
        return {"CLIP branch": self.branch.settings()} | self.masks.settings(records)

    def forward(
        self,
        samples: Sequence[Sample],
        *,
        classes: model_protocols.Classes | None = None,
        fusions: Mapping[str, Fusion] | None = None,
    ) -> dict[str, Tensor] | list[model_protocols.Outputs]:
        """Losses in training, outputs for each image in evaluation.

        Args:
            samples: for each image "image" (3, h, w) RGB in 0..255. In training all of one size, with "labels" (T,) and
                "masks" (T, h, w), and for grounding "words", noun phrases. In evaluation "height" and
                "width" of the result, by default those of the image; where masks are given "given_masks" (Q, H, W)
                bool at the size of the result, and "given_scores" (Q,), where they are found
                "original" (3, H, W) uint8, the image at that size; and "classes" if those alone are to be
                told apart, at least one index in [0, K): void is then computed without the other classes.
            classes: the classes of this call, see `classes_of`; None: those that `set_vocabulary` gave.
            fusions: in evaluation, name -> fusion; all are made from one pass of generator and CLIP. None
                makes one with the model's own alpha and beta.

        Returns:
            Losses by name; or for each image "panoptic_seg": (ids (H, W) int64, segments), "instances",
            "sem_seg": (K, H, W) scores, as `panoptic_merge` gives them; or with `fusions` {"fusions": {name:
            the same, but "sem_seg_labels" (H, W) int64 in place of the scores}}.
        """
        classes = self.given_classes(classes)
        if self.training:
            return self.masks.require_generator().losses(samples, classes, self.device)
        outputs = dict[int, model_protocols.Outputs]()
        with torch.no_grad():
            for place, masks in self.masks.masks_of(samples, classes, self.device):
                outputs[place] = self.name_masks(samples[place], masks, fusions, classes)
        return [outputs[place] for place in range(len(samples))]

    @torch.no_grad()
    def generate(
        self, sample: Sample, classes: model_protocols.Classes | None = None
    ) -> panoptic_outputs.GeneratorOutput:
        """Masks of an image and the generator's scores of them.

        Args:
            sample: a sample of evaluation, see `forward`.
            classes: see `forward`.

        Raises:
            InputError: masks are given, and nothing generates them.
        """
        masks = self.masks.require_generator()
        return masks.generate([sample], self.given_classes(classes), self.device)[0]

    @torch.no_grad()
    def name_masks(
        self,
        sample: Sample,
        masks: panoptic_outputs.Masks,
        fusions: Mapping[str, Fusion] | None = None,
        classes: model_protocols.Classes | None = None,
    ) -> model_protocols.Outputs:
        """Outputs of `forward` for an image whose masks are there already.

        With `generate` the features of an image (`GeneratorOutput.backbone_map`), masks, names and segments come from
        one pass, where CLIP branch and generator share a tower.

        Args:
            sample: of the image, a sample of evaluation, see `forward`.
            masks: its masks, as `generate` gives them, or given ones.
            fusions: as `forward` takes them.
            classes: see `forward`.
        """
        classes = self.given_classes(classes)
        asked = fusions or {"own": self.fusion.returned()}
        count = len(masks.mask_logits)
        clip_logits = torch.zeros(count, len(classes.names), device=self.device)
        valid = None
        asks_clip = any(f.alpha or f.beta or f.void_discount for f in asked.values())
        if asks_clip and count:
            clip_logits, seen_by_clip = self.clip_scores(sample, masks, classes)
            valid = seen_by_clip if self.fusion.valid_mask else None
        if "classes" in sample:
            clip_logits = only_classes(clip_logits, sample["classes"])
            masks = masks.only(sample["classes"])
        _, size = sizes_of(sample)
        seen = classes.seen_on(self.device)
        probs = {
            name: (fusion, masks.probabilities(clip_logits, valid, seen, fusion))
            for name, fusion in asked.items()
        }
        settings, labels = self.settings, bool(fusions)
        made = panoptic_outputs.make_outputs(masks, probs, size, classes.things, settings, labels)
        return {"fusions": made} if fusions else made["own"]

    def clip_scores(
        self,
        sample: Sample,
        masks: panoptic_outputs.Masks,
        classes: model_protocols.Classes | None = None,
    ) -> tuple[Tensor, Tensor]:
        """CLIP's class logits (Q, K) of masks, and (Q,) bool, True for masks that it can see.

        Args:
            sample: a sample of evaluation, see `forward`.
            masks: masks of its image, as `generate` gives them, or given ones.
            classes: see `forward`.
        """
        classes = self.given_classes(classes)
        # Masks of the image alone may have another resolution than the model's input.
        canvas = None if masks.canvas == masks.image_size else masks.canvas
        (image,) = on_device([sample], "image", self.device)
        pixels = image.float() / 255
        named = self.branch_texts(classes), classes.synonyms, self.branch.clip.similarity_scale
        with autocast(self.device, self.test_precision):
            regions_QE, valid = self.branch.embed(
                pixels, masks.mask_logits, canvas, masks.backbone_map
            )
            return class_logits(regions_QE, *named), valid

    def branch_texts(self, classes: model_protocols.Classes | None = None) -> Tensor:
        """Embeddings (S, E), unit length, of all names of all classes for the CLIP branch."""
        classes = self.given_classes(classes)
        names = tuple((name,) for names in classes.names for name in names)
        return self.branch_bank.embed_names(names, classes.examples)

    def _read_regions(self, image: Tensor, masks: Tensor) -> Tensor:
        """Embeddings (n, E) of regions of an example's image as CLIP reads those of any image."""
        regions, visible = self.branch.embed(image, masks)
        return regions * visible[:, None]

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS``, see `panoptic_checkpoint.read`."""
        panoptic_checkpoint.read(self, tensors, source)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights that are not frozen, see `panoptic_checkpoint.write`, atomically."""
        save_atomically(path, panoptic_checkpoint.write(self))

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""
        return "-".join(panoptic_checkpoint.frozen_hashes(self).values())

    def reading(self) -> model_protocols.Reading:
        """The model's way to read names and images, for the protocol of its numbers."""
        size = f"CLIP reads {self.branch.size_text()}"
        if not self.settings.masks_first:
            size += "; of semantic labels alone scores are resized, not masks"
        templates = f"{templates_text(self.branch_bank.templates)} for CLIP"
        for bank in self.masks.banks:
            templates += f", {templates_text(bank.templates)} for the generator"
        return model_protocols.Reading(
            model_protocols.BEST_OF_NAMES,
            templates,
            background=self.masks.void_text(self.fusion.void_discount),
            features=self.branch.features_text(same_pass=bool(self.masks.branch_map)),
            scale=f"{self.branch.clip.similarity_scale.item():.4g}",
            size=size,
            precision=self.test_precision,
        )
