"""The first losses of two processes (gloo), and those of one on the same batch."""

import pytest
import torch

from clipself_seg.heads.panoptic import mask_losses
from clipself_seg.heads.panoptic.mask_losses import RandomPoints, draw_points
from tests.models.fvit.test_model import sample, tiny, training
from tests.models.panoptic.small import model_of as panoptic_model
from tests.models.panoptic.small import training_samples
from tests.models.test_distillation import text_samples, tiny_region_text
from tests.tiny import tiny_clipself, tiny_samples
from tests.training.test_trainer_cat_seg import SAMPLES, configuration
from tests.training.test_trainer_cat_seg import model_of as cat_seg_model
from tests.training.test_trainer_panoptic import VARIANTS
from tests.two_processes import in_two_processes


def detector():
    # 8 RoIs of each image, a quarter of them positive, and scores that rounding does not reorder.
    model = training(tiny(RPN_NORM=True, MASKS=True, ROIS_PER_IMAGE=8))
    for layer in (model.rpn_head.rpn_cls, *(x.conv for x in model.rpn_head.rpn_conv)):
        torch.nn.init.kaiming_normal_(layer.weight)
    return model


def panoptic(variant):
    first, second, third = training_samples(3)
    fewer = third | {"labels": third["labels"][:1], "masks": third["masks"][:1]}
    return lambda: panoptic_model(*VARIANTS[variant]).train(), [first, second, second, fewer]


def partly_ignored():
    labels = [sample["sem_seg"].clone() for sample in SAMPLES]
    labels[0][:48] = labels[1][:20] = 255
    samples = [sample | {"sem_seg": own} for sample, own in zip(SAMPLES, labels)]
    return lambda: cat_seg_model(configuration()), samples


def same_points(masks, targets, points):
    """The points of the first image and mask for all: how many others a process has moves none."""
    torch.manual_seed(0)
    drawn = draw_points(masks[:1], targets[:1], points)
    count = sum(len(target.labels) for target in targets)
    shared = (own[:1].expand(count, -1, -1) for own in (drawn.candidates, drawn.others))
    return RandomPoints(drawn.matching * len(targets), *shared)


# Task -> the function that makes its model, and a batch whose halves have unlike numbers of objects.
TASKS = {
    "F-ViT with masks": lambda: (detector, [sample(seed) for seed in range(10, 14)]),
    "CAT-Seg that leaves pixels out": partly_ignored,
    "CLIPSelf": lambda: (tiny_clipself, [tiny_samples(4)[index] for index in (3, 2, 0, 1)]),
    "region text": lambda: (tiny_region_text, text_samples(4)),
    "panoptic fcclip": lambda: panoptic("fcclip"),
    "panoptic plain": lambda: panoptic("plain"),
}
OF_A_PROCESS = ("loss_class",)  # weighted means over queries, in the official code too


@pytest.mark.parametrize("task", TASKS)
def test_the_first_losses_of_two_processes_are_those_of_one(tmp_path, monkeypatch, task):
    monkeypatch.setattr(mask_losses, "draw_points", same_points)
    make, samples = TASKS[task]()

    def losses(rank, folder):
        own = samples if rank is None else samples[2 * rank : 2 * rank + 2]
        return {name: float(loss.detach()) for name, loss in make()(own).items()}

    first, second = in_two_processes(losses, tmp_path)
    whole = losses(None, None)
    shared = [name for name in whole if not name.startswith(OF_A_PROCESS)]
    mean = {name: (first[name] + second[name]) / 2 for name in shared}
    assert shared and mean == pytest.approx({name: whole[name] for name in shared}, rel=1e-5)
