"""`clipself_seg.load`, and the names that a version number promises."""

import re

import pytest
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image

import clipself_seg
from clipself_seg.choice import TASKS
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.models import CATSeg
from clipself_seg.prediction import load as loading
from tests.conftest import ROOT
from tests.faults import run_python
from tests.tiny import equal_results, noise

PUBLIC = {
    *("load", "load_clip", "save_clip", "export", "list_models", "TextBank", "Vocabulary"),
    *("Segmentation", "PanopticSegmentation", "Detections", "InputError", "__version__"),
}
WORDS = "red star, blue ring, grass"


def test_the_public_names_are_these_and_nothing_heavy_is_imported_for_them():
    assert set(clipself_seg.__all__) == PUBLIC == set(clipself_seg.__dir__())
    assert all(getattr(clipself_seg, name) for name in PUBLIC)
    section = (ROOT / "docs/index.md").read_text().partition("## Public names")[2]
    section = section.partition("| extension point |")[0]
    named = re.findall(r"^\| (`.*`) \|", section, re.M)
    assert set(re.findall(r"\w+", " ".join(named))) == PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        clipself_seg.lod
    lines = [
        "import clipself_seg, sys",
        "assert clipself_seg.InputError and clipself_seg.list_models()",
        "assert not {'torch', 'detectron2', 'numpy'} & {*sys.modules}",
    ]
    done = run_python("\n".join(lines))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", TASKS)
def test_an_image_and_words_give_a_result_with_the_same_members(task):
    model = clipself_seg.load("mini", task=task, device="cpu")
    assert type(model) is loading.PREDICTORS[task]
    image = noise(64, 96)
    result = model(image, WORDS)
    assert result.names == ("red star", "blue ring", "grass") and result.image is image
    assert isinstance(result.overlay(), Image.Image) and result.to_coco() is not None
    assert len(result.regions().labels) == len(result.regions().boxes)
    assert model.predict([image], list(model.names))[0].names == result.names
    assert result.labels.dtype.kind in "iu"
    model.model.set_vocabulary("mini")
    assert len(model.model.names) == len(Vocabulary.load("mini"))
    with pytest.raises(clipself_seg.InputError, match="2 is no text and no list of words"):
        model(image, 2)


def test_stuff_of_a_call_is_that_of_its_words():
    model = clipself_seg.load("mini-open-panoptic", device="cpu")
    model(noise(64, 96), WORDS, stuff="grass")
    assert [entry.isthing for entry in model.vocabulary.classes] == [True, True, False]
    model(noise(64, 96), stuff="")
    assert all(entry.isthing for entry in model.vocabulary.classes)


def test_the_names_of_models_are_listed_by_task():
    names = clipself_seg.list_models()
    assert sorted(name for task in TASKS for name in clipself_seg.list_models(task)) == sorted(
        names
    )
    assert "mini-fvit" in clipself_seg.list_models("detection")
    assert "catseg-base" in names and "sd-v1-3" not in names


def test_data_of_a_training_may_be_gone_but_not_damaged(tmp_path, caplog):
    file = tmp_path / "screws.yaml"
    how = {"config_file": "mini/semseg", "opts": ["DATASETS.DATA", str(file)], "device": "cpu"}
    clipself_seg.load("mini-cat-seg", **how)
    assert "the data of the training are not here" in caplog.text
    file.write_text("train: gone\nnames: [bolt]\n")
    clipself_seg.load("mini-cat-seg", **how)
    file.write_text("trian: images\n")
    with pytest.raises(clipself_seg.InputError, match='unknown key "trian"'):
        clipself_seg.load("mini-cat-seg", **how)


class MySeg(CATSeg):
    """A model of somebody else's, which changes nothing."""


def test_a_model_of_somebody_elses_is_loaded_by_what_its_class_says(tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text("_BASE_: mini/semseg\nMODEL: {META_ARCHITECTURE: MySeg}\n")
    with pytest.raises(clipself_seg.InputError, match='"MySeg"; .*--import'):
        clipself_seg.load("mini-cat-seg", config_file=config)
    META_ARCH_REGISTRY.register(MySeg)
    try:
        mine = clipself_seg.load("mini-cat-seg", config_file=config, device="cpu")
        assert type(mine.model) is MySeg and mine.task == "semantic"
        theirs = clipself_seg.load("mini-cat-seg", device="cpu")
        assert equal_results(mine(noise(64, 96), WORDS), theirs(noise(64, 96), WORDS))
        with pytest.raises(clipself_seg.InputError, match="does semantic: leave out the"):
            clipself_seg.load("mini-cat-seg", config_file=config, task="detection")
        mine.save_pretrained(tmp_path / "saved")
        assert type(clipself_seg.load(tmp_path / "saved").model) is MySeg
    finally:
        del META_ARCH_REGISTRY._obj_map["MySeg"]
