"""Benchmark workloads of CAT-Seg: inference with sliding windows, and a training step.

Legend: B images, T classes, S side of a window.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from bench import plain_cat_seg as plain
from bench.case import Case, Workload
from bench.flops import step_flops, text_flops, window_flops
from bench.measure import Run
from clipself_seg.clip.text_bank import ClassTexts
from clipself_seg.clip.tower import TransformerTower
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg.cost_aggregator import AggregatorSizes, CostAggregator
from clipself_seg.models import CATSeg
from clipself_seg.models.cat_seg.cat_seg_config import CATSegEvaluation, CATSegTraining
from clipself_seg.models.optimizer_groups import matrices_and_vectors
from clipself_seg.training.optimizer import build_adamw

WORDS = "ade20k_847"
SIZES = AggregatorSizes()


class SemSegWorkload(Workload):
    """The CVPR model, classes pooled two by two in training and not in inference."""

    def __init__(self, case: Case) -> None:
        """
        Raises:
            InputError: unknown model, one that is no ViT, or more classes than there are words.
        """
        super().__init__(case)
        if not isinstance(self.clip.visual, TransformerTower):
            raise InputError(
                f"--model {case.model}: CAT-Seg needs a ViT, of whose blocks two guide its decoder; give one, such as "
                "ViT-B-16-quickgelu"
            )
        names = [", ".join(c.catseg_names) for c in Vocabulary.load(WORDS).classes]
        if case.classes > len(names):
            raise InputError(
                f"--classes {case.classes}: the words are ADE20K's, of which there are {len(names)}"
            )
        width = self.clip.embed_dim
        sizes = dataclasses.replace(
            SIZES,
            text=width,
            appearance=width,
            pooling=(2 if case.training else 1,) * len(SIZES.pooling),
        )
        depth = len(self.clip.visual.blocks)
        self.clip.visual.class_residual = not self.clip.visual.pooled
        self.model = CATSeg(
            clip=self.clip,
            aggregator=CostAggregator(sizes, sizes.classes_in_cache),
            guidance_blocks=(depth // 3 - 1, 2 * depth // 3 - 1),
            training=CATSegTraining(precision=self.precision),
            evaluation=CATSegEvaluation(sliding=True, precision=self.precision),
        )
        if case.compile:
            self.model.aggregator.compile_blocks()
        self.model.to(self.device).train(case.training)
        self.model.set_vocabulary(Vocabulary.of(names[: case.classes], repeats=True))

    def runs(self) -> dict[str, Run]:
        """Timed runs by name; texts are encoded anew in "image", as for a first image, and in "step"."""
        return self._training_runs() if self.case.training else self._inference_runs()

    def _inference_runs(self) -> dict[str, Run]:
        model, views = self.model, len(self.model.layout.corners) + 1
        image = text_flops(model, self.device) + window_flops(model, views)
        return {
            "image": Run(self._image, image, self._forget_texts),
            "plain image": Run(self.with_stock_products(self._plain_image), image),
            "best class": Run(self._best_class, image, self._forget_texts),
        }

    @functools.cached_property
    def sample(self) -> Sample:
        """The image."""
        return {"image": torch.from_numpy(self.pixels).permute(2, 0, 1).contiguous()}

    def _forget_texts(self) -> None:
        self.model.texts = ClassTexts(self.clip, self.model.texts.templates)

    def _image(self, _: None) -> Tensor:
        return self.model([self.sample], output="scores")[0]["sem_seg"]

    def _best_class(self, _: None) -> Tensor:
        return self.model([self.sample], output="labels")[0]["sem_seg_labels"]

    def _plain_image(self, _: None) -> Tensor:
        return plain.scores(self.model, self.sample)

    def _training_runs(self) -> dict[str, Run]:
        batch = self.case.batch
        text = text_flops(self.model, self.device, training=True)
        step = step_flops(self.model, batch) + text
        return self.training_runs(
            self.model,
            self.optimizer,
            lambda: self.model(self.batch)["loss_sem_seg"],
            self._plain_loss,
            [self.model.aggregator, self.model.texts],
            step,
        )

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW with a rate of 0: weights stay as they are."""
        groups = matrices_and_vectors(self.model.parameters(), 1e-4)
        return build_adamw(groups, betas=(0.9, 0.999), eps=1e-8)

    @functools.cached_property
    def batch(self) -> list[Sample]:
        """Noise of the window's size, and labels of which a few are ignored."""
        side, generator = self.model.layout.size, torch.Generator().manual_seed(0)
        shape, count = (self.case.batch, 3, side, side), self.case.classes
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(count, (shape[0], side, side), generator=generator)
        labels[:, : side // 16] = self.model.ignore_label
        return [{"image": image, "sem_seg": label} for image, label in zip(images, labels)]

    def _plain_loss(self) -> Tensor:
        images, labels = (
            torch.stack([sample[key] for sample in self.batch]).to(self.device)
            for key in ("image", "sem_seg")
        )
        return plain.loss(self.model, images, labels)
