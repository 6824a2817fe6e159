"""Sources of an image's masks, a class each: a generator makes them, somebody gives them, or another model finds them.

Shapes: Q queries, K classes, S names of all classes together, E embedding.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from clipself_seg.clip import TextBank
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.runtime import chunk_size, on_device
from clipself_seg.data.annotations import Record
from clipself_seg.data.given_masks import MaskFolder, image_name
from clipself_seg.data.mappers.panoptic import mask_entries
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.feature_sources import Canvas, FeatureSource
from clipself_seg.heads.panoptic.generator import Generator
from clipself_seg.heads.panoptic.mask_losses import MaskCriterion, MaskTargets
from clipself_seg.models.model_protocols import Classes, Group
from clipself_seg.models.panoptic.mask_models import OtherMasks
from clipself_seg.models.panoptic.panoptic_outputs import GeneratorOutput, Masks, UnnamedMasks

# Numbers of the generator's maps that are in memory at once, for a pixel of its canvas: a map of stride 4 has 16.
NUMBERS_OF_PIXEL = 64
TAKE_ANOTHER = (
    "take a model with a mask generator, such as mini-open-panoptic, or leave MODEL.WEIGHTS empty and give masks with "
    "the images"
)


Groups = Callable[[nn.Module, CfgNode], list[Group]]


class MaskSource(abc.ABC):
    """Source of the masks of images, and what a model has to know of it.

    It is no `nn.Module`: the model registers its parts under their own names.

    Attributes:
        generates: True if a generator makes the masks, which has to be trained, so that none can be given.
        needs_captions: True if training needs the noun phrases of captions.
        banks: texts that it reads beside those of the CLIP branch.
        branch_map: name of the map of its pass that the CLIP branch reads, "" if that reads the image once more.
        model_settings: settings of the model that finds masks, JSON; {} if none does.
    """

    generates = False
    needs_captions = False
    banks: tuple[TextBank, ...] = ()
    branch_map = ""
    model_settings: Mapping[str, object] = {}

    def require_generator(self, remedy: str = TAKE_ANOTHER) -> Generated:
        """Gives the source itself if it generates masks.

        Args:
            remedy: the way out if it does not.

        Raises:
            InputError: masks are given or found.
        """
        raise InputError(
            f"MODEL.MASK_GENERATOR.SOURCE is masks, so that nothing generates any: {remedy}"
        )

    def parts(self) -> dict[str, nn.Module]:
        """Modules by the name under which the model registers them."""
        return {}

    def frozen_prefixes(self) -> tuple[str, ...]:
        """Beginnings of the model's state entries that belong to the source and never train."""
        return ()

    @abc.abstractmethod
    def masks_of(
        self, samples: Sequence[Sample], classes: Classes, device: torch.device
    ) -> Iterator[tuple[int, Masks]]:
        """Yields for each sample, in any order, its place and the masks of its image.

        Raises:
            InputError: a sample brings no masks where nothing else makes them.
        """

    def settings(self, records: Mapping[str, Sequence[Record]]) -> dict[str, object]:
        """Settings that decide the masks beside weights and configuration.

        Args:
            records: name of a data set -> its records.

        Raises:
            InputError: an image has no masks.
        """
        return {}

    @abc.abstractmethod
    def void_text(self, discount: float) -> str:
        """Says in words what stands for pixels without a class.

        Args:
            discount: weight by which CLIP's best class lowers void.
        """


class Given(MaskSource):
    """Masks that samples bring, see `data.given_masks`.

    Attributes:
        folder: folder that they are from, or "".
    """

    def __init__(self, folder: str = "") -> None:
        self.folder = folder

    def masks_of(
        self, samples: Sequence[Sample], classes: Classes, device: torch.device
    ) -> Iterator[tuple[int, Masks]]:
        for place, sample in enumerate(samples):
            yield place, UnnamedMasks.of_sample(sample, device)

    def settings(self, records: Mapping[str, Sequence[Record]]) -> dict[str, object]:
        if not records:
            return {}
        folder = MaskFolder(self.folder)
        checked = {
            name: folder.check([image_name(record["file_name"]) for record in own])
            for name, own in records.items()
        }
        return {"masks given": checked}

    def void_text(self, discount: float) -> str:
        return "none: masks from elsewhere are named by CLIP alone"


class Predicted(Given):
    """Masks that a model of transformers' finds, but for samples that bring some.

    Attributes:
        finder: the model.
    """

    def __init__(self, finder: OtherMasks) -> None:
        super().__init__()
        self.finder = finder
        self.model_settings = finder.settings()

    def parts(self) -> dict[str, nn.Module]:
        return {"mask_model": self.finder}

    def masks_of(
        self, samples: Sequence[Sample], classes: Classes, device: torch.device
    ) -> Iterator[tuple[int, Masks]]:
        for place, sample in enumerate(samples):
            if "given_masks" not in sample:
                (original,) = on_device([sample], "original", device)
                sample = sample | mask_entries(self.finder(original))
            yield place, UnnamedMasks.of_sample(sample, device)

    def settings(self, records: Mapping[str, Sequence[Record]]) -> dict[str, object]:
        return {"masks found": self.model_settings}


@dataclasses.dataclass(kw_only=True, eq=False)
class Generated(MaskSource):
    """Masks that a generator makes of the feature maps of a backbone, with class scores; it trains.

    Attributes:
        backbone: turns images in [0, 1] into the maps that the generator reads.
        generator: turns the maps into masks.
        bank: embeds the names of classes for the generator.
        canvas: padding of images in evaluation.
        criterion: losses of the generator.
        groups: partition of a model's parameters into the optimiser's groups, by the section ``SOLVER``.
        branch_map: see `MaskSource`.
        precision: dtype of autocast in training, or None.
        test_precision: dtype of autocast in evaluation, or None.
        untrained: random void of a released decoder for fixed classes; a generator that still has it was not trained
            on texts, and is not evaluated.
    """

    generates = True
    backbone: FeatureSource
    generator: Generator
    bank: TextBank
    canvas: Canvas
    criterion: MaskCriterion
    groups: Groups
    branch_map: str = ""
    precision: torch.dtype | None = None
    test_precision: torch.dtype | None = None
    untrained: Tensor | None = None

    def __post_init__(self) -> None:
        self.banks = (self.bank,)
        self.needs_captions = self.generator.needs_captions

    def require_generator(self, remedy: str = TAKE_ANOTHER) -> Generated:
        return self

    def parts(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "generator": self.generator}

    def frozen_prefixes(self) -> tuple[str, ...]:
        return tuple(f"backbone.{prefix}" for prefix in self.backbone.frozen_prefixes)

    def texts(self, classes: Classes) -> Tensor:
        """Embeddings (S, E) of all names of all classes, of unit length where the generator wants them so."""
        names = [name for names in classes.names for name in names]
        if self.generator.in_clip_space:
            return self.bank.embed_names(tuple((name,) for name in names))
        return self.bank.embed_raw(names)

    def masks_of(
        self, samples: Sequence[Sample], classes: Classes, device: torch.device
    ) -> Iterator[tuple[int, Masks]]:
        # Images of one canvas pass the generator together, as many as memory allows.
        sizes = [self.canvas.size(sample["image"]) for sample in samples]
        for size in dict.fromkeys(sizes):
            places = [place for place, own in enumerate(sizes) if own == size]
            count = chunk_size(device, 1, NUMBERS_OF_PIXEL * math.prod(size))
            for start in range(0, len(places), count):
                together = places[start : start + count]
                made = self.generate([samples[place] for place in together], classes, device)
                yield from zip(together, made, strict=True)

    def generate(
        self, samples: Sequence[Sample], classes: Classes, device: torch.device
    ) -> list[GeneratorOutput]:
        """Masks of images that have one canvas, and the generator's scores of them.

        Raises:
            InputError: the head that compares masks with texts is not trained.
        """
        if self.untrained is not None and torch.equal(self.untrained, self.void()):
            raise InputError(
                "MODEL.WEIGHTS is a decoder of fixed classes: what compares its masks with words is random, and has to "
                "be trained"
            )
        images = on_device(samples, "image", device)
        mean = self.backbone.clip.mean
        canvas = torch.cat([self.canvas.padded(image, mean) for image in images])
        with autocast(device, self.test_precision):
            maps = self.backbone(canvas)
            (prediction,) = self.generator(maps)
            scores = self.generator.scores(prediction, self.texts(classes), classes.synonyms)
        shared = maps[self.branch_map].split(1) if self.branch_map else [None] * len(images)
        return [
            GeneratorOutput(
                prediction.mask_logits[place].float(),
                scores.class_logits[place].float(),
                scores.void_prob[place],
                (canvas.shape[2], canvas.shape[3]),
                (image.shape[1], image.shape[2]),
                backbone_map,
                None if self.generator.class_agnostic else scores.void_logits[place, :, -1],
            )
            for place, (image, backbone_map) in enumerate(zip(images, shared))
        ]

    def losses(
        self, samples: Sequence[Sample], classes: Classes, device: torch.device
    ) -> dict[str, Tensor]:
        """Losses of every prediction by name: `MaskCriterion.losses`, and the caption model's grounding loss.

        Mask2Former's decoder predicts before and behind each layer, a plain one too with masked attention, else once.

        Args:
            samples: of training, see `OpenPanoptic.forward`.
            classes: that "labels" of the samples number.
            device: device of the weights.
        """
        images = torch.stack(on_device(samples, "image", device))
        labels, masks = (on_device(samples, key, device) for key in ("labels", "masks"))
        targets = [MaskTargets(*pair) for pair in zip(labels, masks)]
        with autocast(device, self.precision):
            features = self.backbone(images.float() / 255)
            predictions = self.generator(features, every_layer=True)
            # The caption model's classifier needs no class logits.
            void_logits = [p.object_logits for p in predictions if p.object_logits is not None]
            if not void_logits:
                named = self.texts(classes), classes.synonyms
                void_logits = [self.generator.scores(p, *named).void_logits for p in predictions]
            pairs = [(void, p.mask_logits) for void, p in zip(void_logits, predictions)]
            losses = self.criterion.losses(pairs, targets)
            if self.needs_captions:
                captions = [sample["words"] for sample in samples]
                embed = functools.partial(self.bank.embed_raw, keep=False)
                losses |= self.generator.grounding(predictions, captions, embed)
        return losses

    def void_text(self, discount: float) -> str:
        text = "void, scored by the generator"
        return f"{text}, less {discount:g} times CLIP's best class" if discount else text

    def void(self) -> Tensor:
        """A copy on the CPU of the vector of void, for a generator that compares in CLIP's space."""
        return self.generator.get_parameter("void_embedding.weight").detach().cpu().clone()
