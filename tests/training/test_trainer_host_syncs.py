"""What a training step of each task makes Python wait for on a GPU: an allowance for each place, and nothing else."""

import pytest

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.models import CLIPSelf
from clipself_seg.models.clipself import DistillationTraining
from clipself_seg.models.distillation import (
    CONTEXTS,
    OBJECTIVES,
    Original,
    TimmBackbone,
    WeightedObjectives,
)
from tests.host_syncs import HostSyncs, on_accelerator
from tests.models.fvit import test_model as fvit
from tests.models.panoptic import test_model as panoptic
from tests.models.test_distillation import (
    NOUNS,
    captioned,
    text_samples,
    tiny_region_text,
    weighted_samples,
)
from tests.tiny import random_clip, tiny_clipself, tiny_samples
from tests.training import test_trainer_cat_seg as cat_seg
from tests.training.test_trainer import trainer


def crops(**how):
    return tiny_clipself(trainable_blocks=2, **how), tiny_samples(2, 2)


def all_terms(teacher):
    model = tiny_clipself(
        target=WeightedObjectives(dict.fromkeys(OBJECTIVES, 1.0), teacher, CONTEXTS["qk"])
    )
    model = on_accelerator(model)
    with HostSyncs():
        model.setup_training(None)
        on_accelerator(getattr(teacher, "_network", model))
    return model, weighted_samples()


def gated_crops():
    clip = random_clip(dense=DenseFeature("gated_multi_value", 2))
    return CLIPSelf(clip=clip, training=DistillationTraining(2)), tiny_samples(2, 2)


def texts(loss):
    model = on_accelerator(tiny_region_text(loss))
    with HostSyncs():
        model.setup_training(NOUNS)
    return model, text_samples()


def segmentation(*opts):
    return cat_seg.model_of(cat_seg.configuration(*opts)), cat_seg.SAMPLES[:1]


def masks(*opts):
    return panoptic.model_of(*opts), panoptic.training_samples()


def boxes(with_masks):
    model = fvit.training(fvit.tiny(MASKS=with_masks, RPN_NORM=with_masks))
    return model, [fvit.sample(0), fvit.sample(1)]


CHECKPOINTING = ("MODEL.CAT_SEG.CHECKPOINTING", True, "MODEL.CLIP.CHECKPOINTING", True)
# The assignment of queries to targets is solved on the CPU: the costs of all layers and images go there once.
MATCHING = {"heads/panoptic/mask_losses.py match_queries": 1}
DETECTION = {
    # Which anchors and RoIs a loss sees is drawn on the CPU, as on every device: one copy of all images for each.
    "heads/fvit/boxes.py sample_boxes": 2,
    # How many boxes of an image are none, and how many survive, decides shapes: twice for each of two images.
    "heads/fvit/rpn.py propose": 2,
    "heads/fvit/boxes.py suppress": 2,
    # How many RoIs read which level of the pyramid decides shapes.
    "heads/fvit/roi_heads.py _by_level": 1,
}
# Task -> model and samples, and where a step waits how many times: "FILE FUNCTION", below clipself_seg.
TASKS = {
    "crops": (crops, {}),
    "crops, gated values": (gated_crops, {}),
    "crops, each image alike": (lambda: crops(loss_average="images"), {}),
    "crops with all further terms": (lambda: all_terms(Original()), {}),
    "crops with a backbone of timm": (lambda: all_terms(TimmBackbone("test_vit", False)), {}),
    "texts": (lambda: texts("bce"), {}),
    "texts, softmax": (lambda: texts("softmax"), {}),
    "texts, RegionCLIP": (lambda: texts("regionclip"), {}),
    "captions": (captioned, {}),
    "CAT-Seg": (segmentation, {}),
    "CAT-Seg, checkpointed": (lambda: segmentation(*CHECKPOINTING), {}),
    "panoptic, label": (lambda: masks("MODEL.MASK_GENERATOR.VARIANT", "label"), MATCHING),
    "panoptic, caption": (lambda: masks("MODEL.MASK_GENERATOR.VARIANT", "caption"), MATCHING),
    "panoptic, FC-CLIP": (lambda: masks(*panoptic.FCCLIP), MATCHING),
    "F-ViT": (lambda: boxes(False), DETECTION),
    "F-ViT with masks": (lambda: boxes(True), DETECTION | {"heads/fvit/roi_heads.py _by_level": 2}),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_step_waits_for_the_gpu_where_it_has_to_and_nowhere_else(task):
    make, allowed = TASKS[task]
    model, samples = make()
    model = on_accelerator(model.train())
    for _ in range(2):  # the first step makes what later ones keep, such as texts
        with HostSyncs() as syncs:
            sum(model(samples).values()).backward()
    syncs.expect({f"clipself_seg/{place}": times for place, times in allowed.items()})


def test_the_loop_itself_waits_for_nothing_the_device_has_still_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.training.test_trainer.tiny_clipself", accelerated)
    with HostSyncs():
        run = trainer(tmp_path, log_period=3, checkpoint_period=100)
    run._save = lambda done: None
    with HostSyncs() as syncs:
        run.train()
    syncs.expect({})
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert len(lines) == 3 and all("loss_clipself" in line for line in lines)


def accelerated(**how):
    return on_accelerator(tiny_clipself(**how))
