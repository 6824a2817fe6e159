"""The examples of docs/guests.md run as they stand, and leave no gradients in CLIP."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "guests.md").read_text()
TORCH, DETECTRON2, TRANSFORMERS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs an example in a folder with a `photo.jpg`, and returns its variables."""
    pixels = np.random.default_rng(0).integers(256, size=(45, 62, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)

    def variables(example):
        names = {}
        exec(example, names)
        return names

    return variables


def warnings_of(caplog):
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def without_gradients(module):
    return all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_plain_torch(run):
    names = run(TORCH)
    assert names["dense"].shape == (1, names["clip"].embed_dim, 20, 20)
    assert names["labels"].shape == (15, 20)  # 45 x 62 pixels are 116 x 160
    assert not names["dense"].requires_grad and not names["classes"].requires_grad
    assert without_gradients(names["clip"]) and names["head"].weight.grad is not None


def test_a_detectron2_head(run, caplog):
    names = run(DETECTRON2)
    assert names["scores"].shape == (3, 45, 62) and not names["scores"].requires_grad
    model = names["model"]
    assert without_gradients(model.backbone) and not warnings_of(caplog)
    assert all(p.grad is not None for p in model.sem_seg_head.parameters())


def test_beside_transformers(run):
    pytest.importorskip("transformers")
    names = run(TRANSFORMERS)
    torch.testing.assert_close(names["probabilities"].sum(-1), torch.ones(1))
    assert names["heat"].shape == (1, 2, 20, 20) and not names["heat"].requires_grad
    assert without_gradients(names["model"])


def test_pixel_values_of_transformers_are_what_preprocess_makes(run):
    pytest.importorskip("transformers")
    names = run(TRANSFORMERS)
    image = names["images"][0].resize((64, 64), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    theirs = names["processor"](64)(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs, names["model"].preprocess(pixels), atol=1e-5, rtol=0)
