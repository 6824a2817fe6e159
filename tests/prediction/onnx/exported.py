"""What stands beside an exported model, with and without the export itself."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_seg.prediction.onnx.graph import PACKAGES
from lab.mini.concepts import WORLDS
from lab.mini.scenes import draw_scene


class Session:
    """Runs the module that is traced, as onnxruntime runs the file that it becomes."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module.eval()

    @torch.no_grad()
    def run(self, names, inputs) -> list[np.ndarray]:
        outputs = self.module(**{name: torch.from_numpy(own) for name, own in inputs.items()})
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return [output.numpy() for output in outputs[: len(names) if names else None]]


def scene(seed: int) -> np.ndarray:
    """An image of the mini world."""
    return draw_scene(np.random.default_rng(seed), WORLDS["mini"]).image


def script_of(export, folder: Path) -> dict:
    """What the script of an export defines, beside its JSON."""
    pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed: make test-all brings it"
    )
    (folder / "model.py").write_text(export.beside[".py"])
    (folder / "model.json").write_text(json.dumps(export.metadata))
    return runpy.run_path(str(folder / "model.py"))


def texts_of(export, folder: Path, words: list[str], monkeypatch) -> dict[str, np.ndarray]:
    """What the script of a text tower makes of words beside `script_of`, with torch in place of the tower's file."""
    pytest.importorskip("tokenizers")
    tower = Session(export.further["_text.onnx"].module)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_: tower)
    (folder / "model_tokenizer.json").write_text(export.beside["_tokenizer.json"])
    (folder / "model_texts.py").write_text(export.beside["_texts.py"])
    texts = runpy.run_path(str(folder / "model_texts.py"))["Texts"]
    return texts(folder / "model").inputs(words)


def run_without_torch(script: Path, image: np.ndarray, *words: str) -> list[list[str]]:
    """Words of each line that a script prints about an image, in a Python that cannot import torch."""
    (script.parent / "torch.py").write_text('raise ImportError("no torch here")\n')
    Image.fromarray(image).save(script.parent / "photo.png")
    environment = os.environ | {"PYTHONPATH": str(script.parent)}
    command = [sys.executable, script.name, "photo.png", *words]
    done = subprocess.run(
        command, cwd=script.parent, env=environment, capture_output=True, text=True, check=True
    )
    return [line.split() for line in done.stdout.splitlines()]


def require_packages() -> None:
    """Skips a test where one of the packages is not installed."""
    for name in PACKAGES:
        pytest.importorskip(name, reason=f"{name} is not installed: make test-all brings it")
