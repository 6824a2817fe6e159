"""What segmentation refuses before it trains."""

import pytest
from detectron2.modeling import META_ARCH_REGISTRY

from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models import CATSeg
from clipself_seg.training.tasks import SemanticTask, task_of
from tests.conftest import ROOT

TRAIN = ("DATASETS.TRAIN", "('coco_2017_train_stuff_all_sem_seg',)")
PRESETS = ROOT / "configs/semseg"


def test_an_architecture_of_somebody_else_trains_and_evaluates_by_its_task():
    class Theirs(CATSeg):
        pass

    META_ARCH_REGISTRY._do_register("Theirs", Theirs)
    try:
        assert isinstance(task_of(config("Theirs")), SemanticTask)
    finally:
        del META_ARCH_REGISTRY._obj_map["Theirs"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("GuidanceSwin", 'unknown MODEL.META_ARCHITECTURE "GuidanceSwin"; .*CATSeg'),
        ("GeneralizedRCNN", "GeneralizedRCNN is registered, but has not all members of .*Model"),
    ],
)
def test_what_is_no_open_vocabulary_model_is_refused_by_name(name, message):
    with pytest.raises(InputError, match=message):
        task_of(config(name))


def test_a_task_that_there_is_not_is_refused_by_name():
    class Theirs(CATSeg):
        @classmethod
        def task(cls):
            return "depth"

    META_ARCH_REGISTRY._do_register("Theirs", Theirs)
    try:
        with pytest.raises(InputError, match='Theirs: unknown task "depth": choose from'):
            task_of(config("Theirs"))
    finally:
        del META_ARCH_REGISTRY._obj_map["Theirs"]


def config(architecture):
    return load_config(None, ["MODEL.META_ARCHITECTURE", architecture])
