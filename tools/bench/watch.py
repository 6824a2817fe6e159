"""Watches a training of the project's own command, and the images of the evaluation behind it; see `bench.first_hour`.

    clipself-seg train --import tools/bench/watch.py --config-file mini/patches

Writes figures.json into OUTPUT_DIR: "runs" as in the files of the benchmark, and "loss", that of the first step.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from bench.measure import watched
from clipself_seg.files import write_json
from clipself_seg.training import register_hook


@register_hook
class Watch(HookBase):
    """Seconds, memory and waits of steps, of images and of the loader; the first of each warms up."""

    def __init__(self, cfg: CfgNode) -> None:
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.folder = Path(cfg.OUTPUT_DIR)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.figures: dict[str, Any] = {"runs": {}}
        self.opened = ExitStack()

    def before_train(self) -> None:
        """Watch the first samples, and images later on."""
        model: Any = self.trainer.model
        model.register_forward_pre_hook(lambda *_: None if model.training else self._begin())
        model.register_forward_hook(lambda *_: None if model.training else self._done("image"))
        self._begin()

    def before_step(self) -> None:
        """The samples are there."""
        self._done("waiting for samples")

    def after_step(self) -> None:
        """The step is done."""
        latest = self.trainer.storage.latest().items()
        loss = sum(value for name, (value, _) in latest if name.startswith("loss"))
        self.figures.setdefault("loss", loss)
        self._done("step")

    def _begin(self) -> None:
        self.opened.close()
        self.watched = self.opened.enter_context(watched(self.device))

    def _done(self, name: str) -> None:
        self.opened.close()
        taken = self.seconds[name]
        taken.append(self.watched.pop("seconds"))
        seconds = {"seconds": statistics.median(taken[1:] or taken), "first_seconds": taken[0]}
        self.figures["runs"][name] = seconds | self.watched
        if comm.is_main_process():
            write_json(self.folder / "figures.json", self.figures)
        self._begin()
