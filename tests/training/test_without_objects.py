"""Training in two processes (gloo) where batches have nothing to learn from: of one process, and of both."""

import pytest
import torch

from tests.models.fvit.test_model import sample as boxes_sample
from tests.models.fvit.test_model import tiny as tiny_detector
from tests.models.fvit.test_model import training
from tests.models.panoptic.small import model_of as panoptic_model
from tests.models.panoptic.small import training_samples
from tests.models.test_distillation import text_samples, tiny_region_text
from tests.tiny import tiny_clipself, tiny_samples
from tests.training.test_trainer_cat_seg import SAMPLES, configuration
from tests.training.test_trainer_cat_seg import model_of as cat_seg_model
from tests.training.test_trainer_data_parallel import gradients
from tests.training.test_trainer_panoptic import VARIANTS
from tests.two_processes import in_two_processes

IGNORED = 255
REGIONS = ("boxes", "crops", "labels")


def detector(**keys):
    def make():
        return training(tiny_detector(RPN_NORM=True, **keys))

    return make, boxes_sample(), boxes_sample(boxes=(), labels=())


def panoptic(variant):
    def make():
        return panoptic_model(*VARIANTS[variant]).train()

    (whole,) = training_samples(1)
    return make, whole, whole | {"labels": whole["labels"][:0], "masks": whole["masks"][:0]}


def distilled(make, whole):
    return make, whole, whole | {key: whole[key][:0] for key in REGIONS if key in whole}


def cat_seg():
    ignored = torch.full_like(SAMPLES[0]["sem_seg"], IGNORED)
    return lambda: cat_seg_model(configuration()), SAMPLES[0], SAMPLES[0] | {"sem_seg": ignored}


# Task -> function that makes the model, a sample, and one without objects.
TASKS = {
    "F-ViT": detector,
    "F-ViT with masks": lambda: detector(MASKS=True),
    **{
        f"panoptic {variant}": lambda v=variant: panoptic(v)
        for variant in ("caption", "fcclip", "plain")
    },
    "CAT-Seg": cat_seg,
    "CLIPSelf": lambda: distilled(tiny_clipself, tiny_samples(1)[0]),
    "region text": lambda: distilled(tiny_region_text, text_samples(1)[0]),
}


@pytest.mark.parametrize("objects", [(True, False), (False, False)], ids=["one", "both"])
@pytest.mark.parametrize("task", TASKS)
def test_processes_without_objects_share_finite_gradients_with_those_that_have_some(
    tmp_path, task, objects
):
    make, whole, empty = TASKS[task]()

    def work(rank, folder):
        model = make()
        learned = gradients(model, [whole if objects[rank] else empty], earlier=[whole])
        floats = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        assert all(buffer.isfinite().all() for buffer in floats)
        return learned

    first, second = in_two_processes(work, tmp_path)
    # Numbers that are none would not be equal.
    assert first and all(torch.equal(first[name], second[name]) for name in first)
    assert not any(objects) or any(value.any() for value in first.values())
