"""The predictors of semantic segmentation, panoptic segmentation and detection.

Shapes: H, W pixels of the image as it is meant to be seen, K classes, N names of labels.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from clipself_seg.data.datasets.records import find_dataset, train_vocabulary_name
from clipself_seg.data.datasets.table import DetectionSet, PanopticSet
from clipself_seg.data.given_masks import given_masks
from clipself_seg.data.mappers.detection import DetectionTestMapper
from clipself_seg.data.mappers.panoptic import PanopticTestMapper, mask_entries
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.data.masks import MASK_BYTES, EncodedMasks, encode_masks, mask_arrays
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass, Words
from clipself_seg.errors import InputError, nearest
from clipself_seg.models import CATSeg, FViT, OpenPanoptic, ZeroShotSegmenter
from clipself_seg.prediction import results
from clipself_seg.prediction.predictor import GivenImage, GivenImages, GivenWords, ImagePredictor

logger = logging.getLogger(__name__)

# Keys by which masks are lost.
OVERLAP = "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD"
SCORE = "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"
BACKGROUND_SCORE = 0.5  # below it every word is more likely to be absent from a pixel than there


class SemanticPredictor(ImagePredictor[results.Segmentation]):
    """Segments images into classes; a call gives a `Segmentation`, with `scores=True` its scores too."""

    task = "semantic"
    model: CATSeg | ZeroShotSegmenter
    mapper: SemSegTestMapper

    @configurable
    def __init__(self, *, threshold: float = BACKGROUND_SCORE, **common: Any) -> None:
        """`SemanticPredictor(cfg)` builds the configured model with its weights.

        Args:
            threshold: score that a class has to reach to win against a background that has no words, where
                `set_vocabulary` is given none.
            common: see `ImagePredictor`.
        """
        super().__init__(**common)
        self.default_threshold = threshold

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Reads what the model and `SemSegTestMapper` do, and ``TEST.BACKGROUND.THRESHOLD``.

        Raises:
            InputError: weights that do not fit.
        """
        return super().from_config(cfg, model=model) | {
            "mapper": SemSegTestMapper(cfg),
            "threshold": cfg.TEST.BACKGROUND.THRESHOLD or BACKGROUND_SCORE,
        }

    def read(
        self, words: Words, background: str | None = None, threshold: float | None = None
    ) -> GivenWords:
        """Words as the model reads them.

        Every synonym of your own class names counts (CAT-Seg averages their embeddings); a built-in
        vocabulary is read as the model's key SYNONYMS says, as in evaluation.

        Args:
            words: "dog|puppy, grass", a file or a built-in name; a list; or a
                vocabulary.
            background: name of what is none of the classes; without one every pixel gets the best
                class. "background|wall|floor" adds words that compete for pixels but are not told
                apart. A class of that name, in whatever case, plays the background itself.
            threshold: score, 0 to 1, that a class has to reach to win against the background;
                by default that of the predictor, which is 0.5 if the configuration says nothing, or 0 where words
                compete for the background.

        Raises:
            InputError: no words, an empty one, one word twice, a background that is a synonym of a
                class, or a threshold outside 0 to 1.
        """
        words = Vocabulary.of(words)
        names = list(words.first_names)
        further: tuple[VocabularyClass, ...] = ()
        place: int | None = None
        if background is not None:
            name, *others = Vocabulary.of([background], origin="the background").classes[0].names
            place = _background_class(name, others, words)
            if place is None:
                place = len(names)
                names.append(name)
            further = Vocabulary.of(others).classes if others else ()
            if threshold is None:
                threshold = 0.0 if others else self.default_threshold
        elif threshold is not None:
            raise InputError("a threshold needs a background to fall back to: name one")
        if not 0 <= (threshold or 0) <= 1:
            raise InputError(f"the threshold of the background must be in [0, 1], got {threshold}")
        if len(names) == 1:
            logger.warning(
                '"%s" is the only class, so every pixel gets it: name others beside it, or a background',
                names[0],
            )
        # Own words count with every synonym; those of a benchmark as the model was built to read them.
        classes = self.model.classes_of(
            dataclasses.replace(words, classes=(*words.classes, *further)),
            all_synonyms=None if words.name in Vocabulary.available() else True,
        )
        return self._given(
            words,
            classes,
            further,
            names=tuple(names),
            asked={"background": background, "threshold": threshold},
            seen=None,
            label_of_class=(*range(len(words)), *[place] * len(further)),
            background=place,
            threshold=threshold or 0.0,
        )

    def outputs(
        self, samples: list[Any], given: GivenWords, *, scores: bool = False
    ) -> Sequence[Mapping[str, Any]]:
        """The outputs of the model for samples of the mapper.

        Args:
            samples, given: see `ImagePredictor.outputs`.
            scores: keep the scores, which take 4 N H W bytes; else memory does not grow with N.
        """
        if self.absent and self.absent.what == "drop" and given.background is None:
            raise InputError(
                'absent words are dropped, and their pixels need a class: name the background, as in background="wall"'
            )
        output = "scores" if scores else "labels"
        outputs: Sequence[Mapping[str, Any]]
        outputs = self.model(samples, output=output, classes=given.classes)
        return outputs

    def result(
        self, output: Mapping[str, Any], given: GivenWords, nothing: bool, **common: Any
    ) -> results.Segmentation:
        """The segmentation from the model's scores, or from the best class of every pixel."""
        maps, count = None, len(given.names)
        if nothing:  # dropped words have no score
            output = {name: torch.zeros_like(values) for name, values in output.items()}
        if "sem_seg" in output:
            maps = _label_scores(output["sem_seg"], given)
            labels, best = maps.argmax(dim=0), maps.amax(dim=0)
        else:
            best = output["sem_seg_best"]
            of_class = torch.tensor(given.label_of_class, device=best.device)
            labels = of_class[output["sem_seg_labels"]]
            if given.background is not None:
                labels = labels.masked_fill(best < given.threshold, given.background)
            best = best.clamp(min=given.threshold)
        if nothing and given.background is not None:
            labels = torch.full_like(labels, given.background)
        positions = labels.cpu().numpy().astype(results.label_type(count))
        flat = positions.ravel()
        pixels = np.bincount(flat, minlength=count)
        sums = np.bincount(flat, best.cpu().numpy().ravel(), minlength=count)
        results.require_finite(sums)
        return results.Segmentation(
            labels=positions,
            scores=None if maps is None else maps.cpu().numpy(),
            class_scores=sums / np.maximum(pixels, 1),
            background=given.background,
            **common,
        )

    def about(self) -> dict[str, Any]:
        given = self.require_words()
        colours = results.colours_of(given.names)
        return {
            "names": {str(label): name for label, name in enumerate(given.names)},
            "category_ids": {str(label): n for label, n in enumerate(given.category_ids)},
            "colours": {str(n): f"#{bytes(rgb).hex()}" for n, rgb in enumerate(colours)},
            **super().about(),
            "background": given.background,
            "threshold": given.threshold,
        }


def _background_class(name: str, others: Sequence[str], words: Vocabulary) -> int | None:
    """The class that is called like the background, whatever case, if there is one.

    Raises:
        InputError: the background has a word that stands in the vocabulary for something else.
    """
    called = [class_name.strip().casefold() for class_name in words.first_names]
    alike = name.casefold() in called
    known = {word.strip().casefold() for entry in words.classes for word in entry.names}
    for word in others if alike else (name, *others):
        if word.casefold() in known:
            raise InputError(
                f'"{word}" is a word of the vocabulary and one of the background: remove one'
            )
    return called.index(name.casefold()) if alike else None


def _label_scores(scores: Tensor, given: GivenWords) -> Tensor:
    """(N, H, W) from the model's: the background's is that of its best word or the threshold."""
    if given.background is None:
        return scores
    kept = scores.new_zeros(len(given.names), *scores.shape[1:])
    kept[given.background] = given.threshold
    for label, class_scores in zip(given.label_of_class, scores):
        kept[label] = torch.maximum(kept[label], class_scores)
    return kept


class PanopticPredictor(ImagePredictor[results.PanopticSegmentation]):
    """Finds the segments of images; a call gives a `PanopticSegmentation`.

    Masks that somebody else made, such as SAM's, are named by CLIP alone:

        model = clipself_seg.load(config_file="panoptic/masks+openai_vitb16")
        result = model("photo.jpg", "dog, grass", stuff="grass", masks="masks/photo.json")

    With opts=["MODEL.MASK_GENERATOR.OUTPUTS", "sam2"] for `load` the masks are SAM 2's, and no argument.

    Attributes:
        trained: the training vocabulary; its classes are seen, the model's alpha is for them, and beta belongs to the
            others.
    """

    task = "panoptic"
    model: OpenPanoptic
    mapper: PanopticTestMapper
    trained: Vocabulary

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Reads what `OpenPanoptic` and `PanopticTestMapper` do, TEST.TRAIN_VOCABULARY and
        DATASETS.TRAIN.

        Raises:
            InputError: weights that do not fit, or no training vocabulary.
        """
        common = super().from_config(cfg, model=model)
        trained = train_vocabulary_name(cfg, PanopticSet)
        if not trained:
            raise InputError(
                "DATASETS.TRAIN is empty: which classes are seen? Name the training vocabulary, such as "
                "openseg_coco_panoptic_133 (TEST.TRAIN_VOCABULARY)"
            )
        return common | {"mapper": PanopticTestMapper(cfg), "trained": Vocabulary.load(trained)}

    def read(self, words: Words, stuff: Words | None = None) -> GivenWords:
        """Words as the model reads them; every synonym counts.

        Args:
            words: see `panoptic_words`.
            stuff: the classes among them that are stuff, in the same form; see `panoptic_words`.

        Raises:
            InputError: as `panoptic_words`.
        """
        words = panoptic_words(words, stuff)
        seen = words.seen_in(self.trained, exact=True)
        return self._given(words, self.model.classes_of(words, seen))

    def predict(  # type: ignore[override]
        self,
        image: GivenImage | GivenImages,
        words: Words | None = None,
        *,
        stuff: Words | None = None,
        masks: Any = None,
        batch_size: int = 1,
    ) -> Any:
        """The segments of an image, or of each of a list, see `ImagePredictor.predict`.

        Args:
            image, batch_size: as there.
            words: words of the call, which stay set; None for those that are set.
            stuff: the words that are stuff, see `panoptic_words`.
            masks: for a model of MODEL.MASK_GENERATOR.SOURCE masks, and only for it: those of the image, in one of the
                forms of `given_masks`; of a list of images a list of them. None where MODEL.MASK_GENERATOR.OUTPUTS
                is a model that finds them.

        Raises:
            InputError: as there. Masks that do not fit, are missing, or are given to a model that generates its own;
                stuff, where boxes of segments are asked for.
        """
        if masks is not None and self.model.masks.generates:
            raise InputError(
                "masks are given to a model that generates its own: take MODEL.MASK_GENERATOR.SOURCE masks, as "
                "configs/panoptic/masks+openai_vitb16.yaml has it"
            )
        if masks is not None and not isinstance(image, list | tuple):
            masks = [masks]
        if stuff is not None and self.task != "panoptic":
            raise InputError("stuff is given, and boxes are found of all words: leave it out")
        if words is not None or stuff is not None:
            words = panoptic_words(
                self.require_words().vocabulary if words is None else words, stuff
            )
        return super().predict(image, words, batch_size=batch_size, masks=masks)

    __call__ = predict  # type: ignore[assignment]

    def outputs(
        self, samples: list[Any], given: GivenWords, *, masks: Sequence[object] = ()
    ) -> Sequence[Mapping[str, Any]]:
        """The outputs of the model for samples of the mapper.

        Args:
            samples, given: see `ImagePredictor.outputs`.
            masks: of each image, see `predict`.
        """
        for sample, one in zip(samples, masks):
            if one is not None:
                sample |= mask_entries(given_masks(one, (sample["height"], sample["width"])))
        # Instances and class maps, which nobody asks for here, cost time and memory.
        fusions = {"own": self.model.fusion.returned(("panoptic",))}
        outputs = self.model(samples, fusions=fusions, classes=given.classes)
        own = [output["fusions"]["own"] for output in outputs]
        for output, sample in zip(own, samples):
            if "given_masks" not in sample:
                output.pop("mask_scores", None)  # of masks that were found
        return own

    def result(
        self, output: Mapping[str, Any], given: GivenWords, nothing: bool, **common: Any
    ) -> results.PanopticSegmentation:
        """The segments, measured."""
        ids, segments = output["panoptic_seg"]
        if nothing:
            ids, segments = torch.zeros_like(ids), []
        if "mask_scores" in output:
            common["given"] = self._given_regions(output, segments, nothing)
        return results.PanopticSegmentation.of_segments(ids.cpu().numpy(), segments, **common)

    def _given_regions(
        self, output: Mapping[str, Any], segments: Sequence[Mapping[str, Any]], nothing: bool
    ) -> results.GivenRegions:
        """The masks that somebody gave of an image, with the reason of each that is in no segment."""
        least, part = self.model.settings.object_threshold, self.model.settings.overlap_threshold
        scores, labels = (output[key].cpu().numpy() for key in ("mask_scores", "mask_classes"))
        drawn = {query for segment in segments for query in segment["queries"]}
        lost = {}
        for place in sorted(set(range(len(scores))) - drawn):
            lost[place] = f"surer masks leave less than {part:.0%} of it, or nothing ({OVERLAP})"
            if nothing:
                lost[place] = "none of the words is in the image"
            elif not scores[place]:
                lost[place] = "CLIP sees nothing in it: it is empty, too small, or has a score of 0"
            elif scores[place] <= least:
                lost[place] = f"its score is {scores[place]:.3g}, at most {least:g} ({SCORE})"
        return results.GivenRegions(labels, scores, lost)

    def predict_files(
        self, images: Sequence[np.ndarray], names: Sequence[str]
    ) -> list[results.PanopticSegmentation]:
        """`predict_batch` of images whose results have these names; a model that is given masks finds them by
        these names in its folder.

        Raises:
            InputError: an image has none in it.
        """
        folder = self.mapper.masks
        if folder is None:
            return self.predict_batch(images)
        masks = [folder.required(name) for name in names]
        # One after another: masks take more memory than images.
        return [self.predict_batch([image], masks=[own])[0] for image, own in zip(images, masks)]

    def about(self) -> dict[str, Any]:
        model, fusion, given = self.model, self.model.fusion.returned(), self.require_words()
        return {
            "description": "panoptic segmentation by clipself_seg",
            **super().about(),
            "trained": self.trained.name,
            "seen": [name for name, seen in zip(given.names, given.seen) if seen],
            "alpha": fusion.alpha,
            "beta": fusion.beta,
            **({"void_discount": fusion.void_discount} if fusion.void_discount else {}),
            **({"masks": model.masks.model_settings} if model.masks.model_settings else {}),
        }

    def categories(self) -> list[dict[str, Any]]:
        kinds = zip(self.require_words().vocabulary.classes, results.colours_of(self.names))
        return [
            category | {"isthing": int(entry.isthing is not False), "color": colour.tolist()}
            for category, (entry, colour) in zip(super().categories(), kinds)
        ]


def panoptic_words(words: Words, stuff: Words | None = None) -> Vocabulary:
    """A vocabulary that tells things from stuff.

    Args:
        words: "dog|puppy, grass", a file or a built-in name; a list; or a
            vocabulary.
        stuff: classes that are stuff, by any synonym in any case, in the same forms; "" for none; others are things.
            None: as the vocabulary says; of one's own words all are things.

    Raises:
        InputError: no words, an empty one, or one word twice; stuff that is none of them; a
            built-in vocabulary that does not tell things from stuff.
    """
    words = Vocabulary.of(words)
    if stuff is None:
        if words.name in Vocabulary.available() and words.classes[0].isthing is None:
            raise InputError(
                f'vocabulary "{words.name}" does not tell things from stuff: say which words are stuff, '
                'or that none is (--stuff "")'
            )
        return words
    named = (
        [name for entry in Vocabulary.of(stuff).classes for name in entry.names] if stuff else []
    )
    keys = [{name.strip().casefold() for name in entry.names} for entry in words.classes]
    for name in named:
        if not any(name.casefold() in own for own in keys):
            others = nearest(name, {n for entry in words.classes for n in entry.names})
            raise InputError(f'stuff "{name}" is not in the vocabulary; {others}')
    folded = {name.casefold() for name in named}
    classes = tuple(
        dataclasses.replace(entry, isthing=own.isdisjoint(folded))
        for entry, own in zip(words.classes, keys)
    )
    return dataclasses.replace(words, classes=classes)


class DetectionPredictor(ImagePredictor[results.Detections]):
    """Detects objects in images; a call gives `Detections`: those with a score above MODEL.FVIT.SCORE_THRESHOLD, and of
    them the best TEST.DETECTIONS_PER_IMAGE.

    Attributes:
        trained: the training vocabulary, whose classes are seen; None: the one that is stored in the model's
            checkpoint.
    """

    task = "detection"
    model: FViT
    mapper: DetectionTestMapper

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Reads what `FViT` and `DetectionTestMapper` do, TEST.TRAIN_VOCABULARY, and, of weights that
        do not know their classes, as the released ones, DATASETS.TRAIN.

        Raises:
            InputError: weights that do not fit, or no training vocabulary.
        """
        common = super().from_config(cfg, model=model)
        trained = cfg.TEST.TRAIN_VOCABULARY
        if not trained and not common["model"].trained_names:
            if not cfg.DATASETS.TRAIN:
                raise InputError(
                    "neither the weights nor DATASETS.TRAIN say which classes are seen: name the training "
                    "vocabulary, such as ov_coco_65 (TEST.TRAIN_VOCABULARY)"
                )
            trained = find_dataset(cfg.DATASETS.TRAIN[0], DetectionSet).vocabulary
        return common | {
            "mapper": DetectionTestMapper(cfg),
            "trained": Vocabulary.load(trained) if trained else None,
        }

    def read(self, words: Words) -> GivenWords:
        """Words as the model reads them.

        Every synonym of your own class names counts (the text embeddings are averaged); a built-in
        vocabulary by the first name of each class, as in evaluation.

        Args:
            words: "dog|puppy, cat", a file or a built-in name; a list; or a
                vocabulary.

        Raises:
            InputError: no words, an empty one, one word twice, or one that CLIP cannot read whole.
        """
        words = Vocabulary.of(words)
        seen = None if self.trained is None else words.seen_in(self.trained)
        built_in = words.name in Vocabulary.available()
        classes = self.model.classes_of(words, seen, all_synonyms=not built_in)
        known = np.ones(len(words), bool) if classes.seen is None else classes.seen
        return self._given(words, classes, seen=known)

    def outputs(self, samples: list[Any], given: GivenWords) -> Sequence[Mapping[str, Any]]:
        """The outputs of the model for samples of the mapper."""
        outputs: Sequence[Mapping[str, Any]] = self.model(samples, classes=given.classes)
        return outputs

    def result(
        self, output: Mapping[str, Any], given: GivenWords, nothing: bool, **common: Any
    ) -> results.Detections:
        """The detections as arrays."""
        instances = output["instances"].to("cpu")
        if nothing:
            instances = instances[:0]
        boxes = instances.pred_boxes.tensor.float().numpy()
        scores = instances.scores.float().numpy()
        results.require_finite(boxes, scores)
        return results.Detections(
            boxes=boxes,
            scores=scores,
            labels=instances.pred_classes.numpy(),
            masks=mask_arrays(instances.pred_masks) if instances.has("pred_masks") else None,
            seen=given.seen,
            **common,
        )

    def about(self) -> dict[str, Any]:
        settings = self.model.settings
        return {
            "description": "open-vocabulary detection by clipself_seg",
            **super().about(),
            "trained": "named by the weights" if self.trained is None else self.trained.name,
            "score threshold": settings.rule.threshold,
            "alpha": settings.alpha,
            "beta": settings.beta,
        }

    def categories(self) -> list[dict[str, Any]]:
        own = zip(super().categories(), self.require_words().seen)
        return [category | {"seen": bool(known)} for category, known in own]


class BoxesOfSegments(PanopticPredictor):
    """Detection by a panoptic model: the segments of an image as `Detections`, each with its box, name and score."""

    task = "detection"

    def read(self, words: Words) -> GivenWords:  # type: ignore[override]
        """Words as the model reads them; all are things, and nothing tells seen from unseen ones.

        Args:
            words: as for `PanopticPredictor.read`.
        """
        words = panoptic_words(words, "")
        return self._given(words, self.model.classes_of(words), seen=np.ones(len(words), bool))

    def result(  # type: ignore[override]
        self, output: Mapping[str, Any], given: GivenWords, nothing: bool, **common: Any
    ) -> results.Detections:
        """The segments, the best first."""
        regions = super().result(output, given, nothing, **common).streamed_regions()
        order = np.argsort(-regions.scores, kind="stable")
        boxes, labels, scores = (values[order] for values in regions[:3])
        masks = results.MapMasks(regions.masks.numbers, regions.masks.values[order])
        large = len(order) * masks.numbers.size > MASK_BYTES
        kept = EncodedMasks(encode_masks(masks)) if large else masks.all()
        return results.Detections(boxes, scores, labels, kept, seen=given.seen, **common)

    def about(self) -> dict[str, Any]:
        return {
            "description": "open-vocabulary detection by clipself_seg: boxes of segments",
            **ImagePredictor.about(self),
            "score threshold": self.model.settings.object_threshold,
            "masks": self.model.masks.model_settings,
        }

    def categories(self) -> list[dict[str, Any]]:
        return ImagePredictor.categories(self)


PREDICTORS: dict[str, type[ImagePredictor[Any]]] = {
    predictor.task: predictor
    for predictor in (SemanticPredictor, PanopticPredictor, DetectionPredictor)
}
