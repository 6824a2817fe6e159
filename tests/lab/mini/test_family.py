"""The family of mini CLIPs: one text tower, image towers of several kinds that name things, and their training."""

import re

import numpy as np
import pytest
import safetensors.torch
import torch

from clipself_seg.checkpoints.dense_feature import ANY
from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.zoo import MINI_CLIPS, SHIPPED, SHIPPED_TAGS
from clipself_seg.clip import load_clip, save_clip
from clipself_seg.data.images import letterbox_crops
from lab.mini import train_clip
from lab.mini.concepts import WORLDS
from lab.mini.scenes import draw_scene
from lab.mini.train_clip import TrainSettings
from mini import mini_clip

CARD = SHIPPED.parent / "CARD.md"


@pytest.fixture(scope="module")
def things():
    """Pixels of things of ten scenes with half their size around them, (n, 64, 64, 3), and numbers of their classes."""
    rng, names = np.random.default_rng(99), WORLDS["mini"].concepts
    crops, numbers = [], []
    for scene in (draw_scene(rng, WORLDS["mini"]) for _ in range(10)):
        segments = [segment for segment in scene.segments if segment.concept.isthing]
        boxes = np.array([segment.box for segment in segments], np.float64)
        crops.append(letterbox_crops(scene.image, boxes, 64))
        numbers += [names.index(segment.concept) for segment in segments]
    return torch.from_numpy(np.concatenate(crops)).permute(0, 3, 1, 2), torch.tensor(numbers)


@pytest.fixture(scope="module")
def mini():
    return load_clip("mini")


@pytest.mark.parametrize("tag", MINI_CLIPS)
def test_an_image_tower_names_things_by_the_text_tower_of_mini(tag, mini, things):
    clip, (pixels, numbers) = load_clip(tag), things
    assert (clip.name, clip.distilled) == (MINI_CLIPS[tag], ANY)
    assert hash_tensors(clip.text.state_dict()) == hash_tensors(mini.text.state_dict())
    assert torch.equal(clip.logit_scale, mini.logit_scale)
    names = [f"a photo of a {concept.names[0]}" for concept in WORLDS["mini"].concepts]
    with torch.no_grad():
        cosines = clip.encode_image(clip.preprocess(pixels)) @ clip.encode_text(names).T
    assert (cosines.argmax(1) == numbers).float().mean() > 0.8
    (said,) = re.findall(rf"\| `{tag}` \| .* \| ([\d,]+) \|", CARD.read_text())
    weights = clip.visual.state_dict().values()
    assert int(said.replace(",", "")) == sum(tensor.numel() for tensor in weights)


def test_a_resnet_is_trained_with_batch_norms_for_texts_that_stay(mini, tmp_path):
    crops = train_clip.render_crops(scenes=2, side=64, seed=3, processes=1)
    clip = train_clip.untrained_clip("mini-resnet", 0)
    settings = TrainSettings(steps=6, warmup=2, batch=8)
    losses = [loss for _, loss in train_clip.train(clip, crops, settings)]
    assert losses[-1] < losses[0]
    assert hash_tensors(clip.text.state_dict()) == hash_tensors(mini.text.state_dict())
    save_clip(clip, tmp_path / "whole.safetensors")
    read = load_clip("RN-Mini", tmp_path / "whole.safetensors")
    means = read.visual.state_dict()["bn1.running_mean"]
    assert means.abs().max() > 0 and torch.equal(means, clip.visual.bn1.running_mean)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(read.encode_image(images), clip.eval().encode_image(images))


@pytest.mark.parametrize(("tag", "flag"), [("mini-eva", []), ("mini-resnet", ["--image-tower"])])
def test_the_command_writes_what_load_clip_reads(tag, flag, mini, tmp_path, monkeypatch):
    monkeypatch.setattr(train_clip, "run_in_parallel", lambda of, jobs, **_: list(map(of, jobs)))
    monkeypatch.setattr("clipself_seg.memory.keep_freed_memory", lambda: None)
    path = tmp_path / "new" / "clip.safetensors"
    words = ["--model", tag, "--scenes", "1", "--steps", "1", "--output", str(path), *flag]
    assert mini_clip(words) == 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if flag:
        shipped = safetensors.torch.load_file(SHIPPED / f"{SHIPPED_TAGS[tag][-1]}.safetensors")
        assert safetensors.torch.load_file(path).keys() == shipped.keys()
    else:
        clip = load_clip(MINI_CLIPS[tag], path)
        assert hash_tensors(clip.text.state_dict()) == hash_tensors(mini.text.state_dict())
