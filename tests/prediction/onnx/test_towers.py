"""ONNX of both towers: what is traced holds for every size, and onnxruntime computes what torch does."""

import errno
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.export import Dim

from clipself_seg.checkpoints.dense_feature import GATED, DenseFeature
from clipself_seg.clip import load_clip
from clipself_seg.clip.eva import EvaTransformer
from clipself_seg.clip.openai import VisionTransformer
from clipself_seg.clip.resnet import ResNetTower
from clipself_seg.errors import InputError, MissingPackage
from clipself_seg.prediction.onnx import graph, towers
from tests.conftest import ROOT
from tests.small_towers import SMALL, small_towers

SIZES = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2, "embed_dim": 128}
TOWERS = {
    "OpenAI ViT": lambda: VisionTransformer(**SIZES, quick_gelu=True),
    "EVA ViT": lambda: EvaTransformer(**SIZES, hidden=48),
}


@pytest.fixture(params=TOWERS)
def small_clip(request):
    """A random CLIP with a tower of each kind; its position table is of 4 x 4 cells."""
    clip = load_clip("ViT-Mini-8", None)
    clip.visual = TOWERS[request.param]()
    return clip.eval()


@pytest.fixture(scope="module")
def mini():
    """The shipped CLIP."""
    return load_clip("mini")


def test_a_full_disk_is_told_with_the_name_of_the_file_and_nothing_stays(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(graph, "export_graph", full)
    with pytest.raises(OSError, match="x.onnx"):
        graph.write_model(graph.Export(None, {}), tmp_path / "x.onnx")
    assert not any(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize("small_clip", ["EVA ViT"], indirect=True)
def test_what_is_traced_at_one_size_holds_for_others(small_clip):
    sizes = {0: Dim("n"), 2: 8 * Dim("h"), 3: 8 * Dim("w")}
    module = towers.DenseGraph(small_clip)
    with graph.plain(module):
        traced = torch.export.export(module, (torch.rand(2, 3, 40, 56),), dynamic_shapes=(sizes,))
    assert not any(node.meta["val"].is_complex() for node in tensors(traced.graph))
    for shape in ((1, 3, 32, 32), (3, 3, 16, 72)):
        images = torch.randn(shape)
        torch.testing.assert_close(traced.module()(images), small_clip.encode_dense(images))


def tensors(graph):
    """Nodes of a graph whose values are tensors."""
    return [node for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]


@torch.no_grad()
def test_texts_are_traced_for_any_number_of_them(mini):
    tokens, module = mini.tokenize(towers.TEXTS), towers.TextGraph(mini)
    with graph.plain(module):
        traced = torch.export.export(module, (tokens,), dynamic_shapes=({0: Dim("texts")},))
    many = tokens.repeat(75, 1)  # of more than `block_calls.FEWEST_ELEMENTS`
    torch.testing.assert_close(traced.module()(many)[-3:], mini.encode_text(tokens))


def test_an_export_says_and_computes_the_chosen_feature(tmp_path):
    pytest.importorskip("onnxruntime")
    clip = load_clip("ViT-Mini-8", "mini", dense=DenseFeature(GATED, 2))
    nn.init.normal_(clip.visual.dense_gate.weight, std=0.1)
    # With the gate's blocks alone, and one for texts, the export takes less time.
    del clip.visual.blocks[:-2], clip.text.blocks[1:]
    towers.export_towers(clip, tmp_path / "onnx")  # compares with torch
    assert '"dense_feature": "gated_multi_value"' in (tmp_path / "onnx/export.json").read_text()


def test_a_missing_package_is_named_with_what_brings_it(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "PACKAGES", ("no_such_package",))
    with pytest.raises(
        MissingPackage, match=r'no_such_package .* pip install "clipself_seg\[export\]"'
    ):
        towers.export_towers(mini, tmp_path / "onnx")
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "PACKAGES", ())
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="is there already: give another name"):
        towers.export_towers(mini, tmp_path)


@pytest.mark.heavy
def test_onnxruntime_computes_what_torch_does_at_other_sizes(small_clip, tmp_path):
    differences = towers.export_towers(small_clip, tmp_path / "onnx")
    assert list(differences) == ["dense.onnx", "text.onnx"]
    assert "1x3x32x32" in differences["dense.onnx"] and "1x77" in differences["text.onnx"]
    assert all(0 <= d <= 1e-5 for of_file in differences.values() for d in of_file.values())
    metadata = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert metadata["provenance"]["weights_hash"] == small_clip.weights_hash()
    assert metadata["tower"] in ("VisionTransformer", "EvaTransformer")
    assert metadata["patch_size"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


@pytest.mark.heavy
@pytest.mark.parametrize("name", [*SMALL, "ConvNeXt-Mini-32", "ResNet"])
def test_onnxruntime_computes_what_torch_does_for_every_other_kind(name, tmp_path):
    torch.manual_seed(0)
    with small_towers(tmp_path / "weights"):
        clip = load_clip("ViT-Mini-8" if name == "ResNet" else name, None)
        if name == "ResNet":
            clip.visual = ResNetTower(image_size=64, width=8, layers=(1, 1, 1, 1), embed_dim=128)
        differences = towers.export_towers(clip.eval(), tmp_path / "onnx")
    assert [len(of_file) for of_file in differences.values()] == [4, 3]
    assert all(0 <= d <= 1e-5 for of_file in differences.values() for d in of_file.values())
    metadata = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert metadata["mean"] == list(clip.mean) and metadata["context_length"] == clip.context_length
    assert (metadata["logit_bias"] is None) == (name != "small-SigLIP")


@pytest.mark.heavy
def test_what_differs_too_much_is_not_written(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "TOLERANCE", 0.0)
    with pytest.raises(
        InputError, match="features of dense.onnx differs from torch by .* nothing is written"
    ):
        towers.export_towers(mini, tmp_path / "onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.heavy
def test_the_example_of_the_page_runs_without_torch_and_agrees_with_it(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "export.md").read_text()
    (example,) = re.findall(r"^```python\n(import html.*?)^```", page, re.M | re.S)
    clip = load_clip("ViT-Mini-8", "mini-clipself")
    towers.export_towers(clip, tmp_path / "onnx")
    pixels = np.random.default_rng(0).integers(256, size=(45, 62, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, np.ndarray] = {}
    exec(example, names)
    with torch.no_grad():
        dense = clip.encode_dense(torch.from_numpy(names["pixels"]))
        texts = clip.encode_text(["a photo of a red star.", "a photo of grass."])
        expected = torch.einsum("bdhw,kd->bkhw", dense, texts)
    torch.testing.assert_close(torch.from_numpy(names["cosines"]), expected, atol=1e-5, rtol=0)
    assert names["labels"].shape == (15, 20)
