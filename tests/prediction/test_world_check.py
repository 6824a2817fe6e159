"""The mini models say what they do not know: no false alarm in their worlds, none missed on real images."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.config import load_config
from clipself_seg.data.images import open_image
from clipself_seg.data.vocabulary import load_vocabulary, own_words
from clipself_seg.mini.concepts import WORLDS
from clipself_seg.mini.scenes import draw_scene
from clipself_seg.prediction.semantic import load_predictor
from clipself_seg.prediction.world_check import WorldCheck, sizes

CONFIGS = ("semseg", "panoptic", "detection")


@pytest.fixture
def warnings(caplog):
    """Messages so far; asking for them forgets them."""

    def messages():
        texts = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return texts

    with caplog.at_level(logging.WARNING):
        yield messages


def check(mini=True):
    return WorldCheck(mini=mini, folder="semseg")


@pytest.mark.parametrize("name", ["mini", "mini2", "mini_base", "mini_things", "mini2_things"])
def test_words_of_the_worlds_are_known(name, warnings):
    check().look_at_classes(load_vocabulary(name).classes)
    own = ["Red  Star", "star", "crescent", "blue ring|hoop", "lawn|meadow", "polka dots"]
    check().look_at_classes(own_words(own).classes)
    assert warnings() == []


def test_other_words_are_named_once(warnings):
    strict = check()
    for _ in range(2):
        strict.look_at_classes(own_words(["red star", "dog|puppy", "orange ring"]).classes)
    strict.look_at_images([np.zeros((480, 640, 3), np.uint8)])
    (message,) = warnings()
    assert 'have no "dog", "orange ring":' in message
    assert "--config-file semseg/catseg_cvpr_vitb16.yaml --weights catseg-base" in message
    check().look_at_classes(own_words(["red sttar", "red bus", "rink"]).classes)
    (message,) = warnings()
    assert 'have no "red sttar" (did you mean "red star"?), "red bus", "rink":' in message
    check().look_at_classes(load_vocabulary("ade20k_150").classes)
    (message,) = warnings()
    assert '"wall", "building", "sky", "floor", "tree" and 140 more' in message


def test_no_image_of_the_worlds_is_strange(warnings):
    for name, spec in WORLDS.items():
        scenes = [draw_scene(np.random.default_rng([ord(name[-1]), n]), spec) for n in range(4)]
        check().look_at_images([scene.image for scene in scenes])
    assert warnings() == []


def test_every_real_image_is_strange(data_dir, warnings):
    images = sorted(data_dir.rglob("*.jpg"))
    assert len(images) > 150
    for path in images:
        with open_image(path) as image:
            assert image.size not in sizes(), path
    check().look_at_images([np.zeros((480, 640, 3), np.uint8)])
    (message,) = warnings()
    assert "than the 640 x 480 pixels of one here" in message


def test_models_of_other_clips_are_not_checked(warnings):
    silent = check(mini=False)
    silent.look_at_classes(own_words(["dog"]).classes)
    silent.look_at_images([np.zeros((480, 640, 3), np.uint8)])
    assert warnings() == []


@pytest.mark.parametrize("name", CONFIGS)
def test_models_on_the_mini_clip_are_recognised_whatever_their_weights_are_called(name):
    for weights in ("", "output/mini/model_final.pth", "my_model/model.safetensors"):
        cfg = load_config(f"mini/{name}.yaml", ["MODEL.WEIGHTS", weights])
        assert WorldCheck.of_config(cfg, f"{name}/").mini
        other = load_config(f"mini/{name}.yaml", ["MODEL.CLIP.NAME", "ViT-B-16"])
        assert not WorldCheck.of_config(other, f"{name}/").mini


@pytest.mark.parametrize("name", CONFIGS)
def test_each_task_names_official_weights_of_its_own(name, warnings):
    WorldCheck(mini=True, folder=name).look_at_classes(own_words(["dog"]).classes)
    (message,) = warnings()
    weights = message.split("--weights ")[1]
    assert f"{zoo()[weights].configs[0]}.yaml" in message and f" {name}/" in message


def test_a_predictor_warns_once_of_words_or_image(warnings):
    predictor = load_predictor("mini/semseg.yaml", "mini-cat-seg", ["MODEL.DEVICE", "cpu"])
    predictor.set_vocabulary("red star, grass", background="background")
    scene = draw_scene(np.random.default_rng(0), WORLDS["mini"])
    predictor(scene.image)
    assert warnings() == []
    for _ in range(2):
        predictor(scene.image[:100, :100])
    assert len(warnings()) == 1
    predictor.set_vocabulary("dog")
    assert warnings() == []
