"""Formats of tensors that the project writes for itself: training states, cached texts, outputs of generators."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipself_seg.checkpoints.training_state import write_state
from clipself_seg.clip import DenseCLIP, TextBank, load_clip
from clipself_seg.data.generator_outputs import (
    GeneratorOutput,
    check_outputs,
    read_output,
    save_output,
)
from clipself_seg.training.settings import TrainingSettings
from clipself_seg.training.trainer import Trainer
from tests.fuzz.mutations import mutate_tree
from tests.fuzz.readers import Reader
from tests.fuzz.readers_of_weights import odd_tensors

NAMES = (("cat", "kitten"), ("dog",))

# Training states.


class Line(nn.Module):
    """The smallest model that trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Loss of some samples."""
        return {"loss": self.weight.square().sum()}

    def original_hash(self) -> str:
        """Of what does not train."""
        return "0123456789ab"

    def after_optimizer_step(self) -> None:
        """Nothing to do."""


def _train(output: Path, resume: bool) -> None:
    settings = TrainingSettings(
        output_dir=output,
        seed=0,
        batch_size=1,
        iterations=2,
        base_lr=0.1,
        warmup=0,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        eps=1e-8,
        checkpoint_period=1,
        shared={"SOLVER.BASE_LR": 0.1, "DATASETS.TRAIN": ["mini_train"]},
    )
    model = Line()
    trainer = Trainer(
        model=model,
        records=[{"file_name": "a.jpg", "image_id": 1}],
        mapper=lambda record, draw: dict(record),
        settings=settings,
        groups=[{"params": list(model.parameters()), "weight_decay": 0.0}],
    )
    trainer.train(resume)


def _make_training_state(folder: Path) -> Path:
    _train(folder, False)
    return max((folder / "checkpoints").glob("*.safetensors"))


def _read_training_state(path: Path) -> None:
    _train(path.parent.parent, True)


@functools.cache
def _packed() -> tuple[dict[str, Tensor], dict[str, Any]]:
    from clipself_seg.checkpoints.training_state import read_state

    with tempfile.TemporaryDirectory() as folder:
        return read_state(_make_training_state(Path(folder)))


def _remade_training_state(rng: random.Random) -> bytes:
    """A state whose digest is right, of other tensors or metadata."""
    tensors, metadata = _packed()
    if rng.random() < 0.5:
        tensors = odd_tensors(tensors, rng, only_tensors=True)
    else:
        metadata = json.loads(json.dumps(metadata))
        metadata = mutate_tree(metadata, ("NaN", "1e999", "{}"), rng)
    with tempfile.TemporaryDirectory() as folder:
        write_state(Path(folder) / "state.safetensors", tensors, metadata)
        return (Path(folder) / "state.safetensors").read_bytes()


# The text cache, and outputs of a mask generator.


@functools.cache
def _text_clip() -> tuple[DenseCLIP, Tensor]:
    torch.manual_seed(0)
    clip = load_clip("ViT-Mini-8", None)
    with tempfile.TemporaryDirectory() as folder:
        return clip, TextBank(clip, "single", folder).embed(NAMES)


def _make_text(folder: Path) -> Path:
    TextBank(_text_clip()[0], "single", folder).embed(NAMES)
    return next(folder.glob("*.safetensors"))


def _read_text(path: Path) -> None:
    clip, expected = _text_clip()
    text = TextBank(clip, "single", path.parent).embed(NAMES)
    assert torch.equal(text, expected), "embeddings of a damaged entry of the cache are used"


def _make_output(folder: Path) -> Path:
    output = GeneratorOutput(
        torch.zeros(3, 8, 8), torch.zeros(3, 2), torch.full((3,), 0.5), (32, 32), (30, 32)
    )
    save_output(
        folder, output, image_id=1, file_name="1.jpg", names=NAMES, weights="x", settings={"a": 1}
    )
    return folder / "1.safetensors"


def _read_output(path: Path) -> None:
    check_outputs(path.parent, "mini_val", [1])
    read_output(path.parent, image_id=1, file_name="1.jpg", image_size=(30, 32), names=NAMES)


STATE_READERS = {
    "training_state": Reader(
        _make_training_state, _read_training_state, "safetensors", _remade_training_state
    ),
    "text_cache": Reader(_make_text, _read_text, "safetensors"),
    "generator_output": Reader(_make_output, _read_output, "safetensors"),
}
