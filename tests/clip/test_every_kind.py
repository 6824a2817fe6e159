"""What holds of the towers of every kind: features by name, gradients, groups of parameters, and their own files."""

import os
import pickle

import pytest
import torch

from clipself_seg.clip import eva, find_kind, load_clip, save_clip
from tests.small_towers import SMALL, small_towers

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
EVA = {"image_size": 32, "timm_model_name": "small_eva"}
RESNET = {"image_size": 64, "layers": [1, 1, 2, 1], "width": 16, "patch_size": None}
MORE = {
    "small-EVA": {"embed_dim": 24, "vision_cfg": EVA, "text_cfg": TEXT},
    "small-RN": {"embed_dim": 24, "vision_cfg": RESNET, "text_cfg": TEXT},
}
NAMES = ("ViT-Mini-8", "ConvNeXt-Mini-32", *MORE, *SMALL)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    with small_towers(tmp_path_factory.mktemp("weights")), pytest.MonkeyPatch.context() as patch:
        patch.setitem(eva.SHAPES, "small_eva", (64, 3, 2, 8))
        for name, config in MORE.items():
            patch.setitem(find_kind._configs(), name, config)
        yield


@pytest.fixture(scope="module", params=NAMES)
def clip(known, request):
    """A small model whose parameters are all random, those that start at 0 or 1 too."""
    torch.manual_seed(0)
    clip = load_clip(request.param, None)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return clip


@pytest.mark.parametrize("size", [(4, 4), (2, 5)])
@torch.no_grad()
def test_named_features_are_one_pass_and_have_the_announced_shapes(clip, size):
    tower, height, width = clip.visual, *(clip.patch_size * cells for cells in size)
    images, shapes = torch.rand(2, 3, height, width), tower.feature_shapes()
    maps = tower.features(images, shapes)
    assert maps.keys() == shapes.keys()
    for name, (channels, stride) in shapes.items():
        assert maps[name].shape == (2, channels, height // stride, width // stride), name
        alone = tower.features(images, [name])
        assert set(alone) == {name}
        torch.testing.assert_close(alone[name], maps[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("read", ["dense", "masked_attention"])
def test_checkpointing_changes_no_gradient(clip, read):
    tower, images = clip.visual, torch.rand(1, 3, 3 * clip.patch_size, 3 * clip.patch_size)
    if read == "masked_attention" and not tower.readouts.masked_attention:
        return
    masks = ([torch.rand(3, 3, 3) > 0.5],) if read == "masked_attention" else ()
    gradients = []
    for tower.checkpointing in (False, True):
        tower.zero_grad()
        getattr(tower, read)(images, *masks).square().sum().backward()
        trained = {n: p.grad for n, p in tower.named_parameters() if p.grad is not None}
        gradients.append({name: gradient.clone() for name, gradient in trained.items()})
    tower.checkpointing = False
    tower.zero_grad()
    torch.testing.assert_close(*gradients)


def test_layer_groups_are_a_partition_of_the_parameters(clip):
    grouped = [id(p) for group in clip.visual.layer_groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in clip.visual.parameters())


def test_a_clip_can_be_sent_to_another_process(clip):
    again = pickle.loads(pickle.dumps(clip))
    assert again.architecture.signature == clip.architecture.signature
    assert all(map(torch.equal, again.state_dict().values(), clip.state_dict().values()))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("layout", ["official", "open_clip"])
def test_saved_models_load_back(clip, tmp_path, suffix, layout):
    if not getattr(clip.architecture.kind.layouts.get(layout), "write", None):
        return
    path = tmp_path / f"saved.{suffix}"
    save_clip(clip, path, layout)
    loaded = load_clip(clip.name, path)
    if clip.name != "small-TIPSv2":  # whose files have a temperature
        assert loaded.weights_hash() == clip.weights_hash()
    torch.testing.assert_close(loaded.state_dict(), clip.state_dict())
    assert (loaded.mean, loaded.std) == (clip.mean, clip.std) and os.listdir(tmp_path) == [
        path.name
    ]
    assert "0 missing, 0 unexpected" in str(loaded.report)
    kind = clip.architecture.kind
    assert (loaded.mean, loaded.std) == (kind.mean, kind.std)
    assert (loaded.logit_bias is None) == (clip.name != "small-SigLIP")
