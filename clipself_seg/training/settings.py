"""The settings of a training run, and which of them a resumed run must share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from clipself_seg.config.declare import is_free
from clipself_seg.errors import InputError
from clipself_seg.training.optimizer import learning_rates
from clipself_seg.yaml_files import leaves

# Steps of a run. Under a schedule of steps the rate of a step does not depend on how many follow, and it may go on,
# unless masked attention is annealed in shares of them.
TOTAL = "SOLVER.MAX_ITER"


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The numbers of a run; `clipself_seg.config` explains each under its key.

    Attributes:
        clip_norm: largest norm of all gradients together; None leaves them as they are.
        loss_scaling: float16 gradients need it.
        accumulate: passes that the process's part of a step's batch is divided into.
        rate: learning rate of a step, counted from 0.
        shared: full keys and values that a resumed run has to share.
    """

    output_dir: Path
    seed: int
    batch_size: int
    iterations: int
    rate: Callable[[int], float]
    betas: tuple[float, float]
    eps: float
    clip_norm: float | None = None
    loss_scaling: bool = False
    accumulate: int = 1
    sync_gradients: bool = True
    workers: int = 0
    checkpoint_period: int
    checkpoint_keep: int = 2
    log_period: int = 20
    evaluation_period: int = 0
    shared: Mapping[str, object]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TrainingSettings:
        """Reads ``SOLVER``, ``DATALOADER``, ``TEST.EVAL_PERIOD``, ``SEED`` and ``OUTPUT_DIR``."""
        solver = cfg.SOLVER
        open_ended = solver.SCHEDULE == "steps" and not cfg.MODEL.PLAIN_DECODER.MASKED_ATTENTION
        return cls(
            output_dir=Path(cfg.OUTPUT_DIR),
            seed=cfg.SEED,
            batch_size=solver.IMS_PER_BATCH,
            iterations=solver.MAX_ITER,
            rate=learning_rates(cfg),
            betas=(float(solver.BETAS[0]), float(solver.BETAS[1])),
            eps=solver.EPS,
            clip_norm=(solver.CLIP_GRADIENTS.CLIP_VALUE if solver.CLIP_GRADIENTS.ENABLED else None),
            loss_scaling=solver.AMP.ENABLED and solver.AMP.DTYPE == "float16",
            accumulate=solver.ACCUMULATE,
            sync_gradients=solver.SYNC_GRADIENTS,
            workers=cfg.DATALOADER.NUM_WORKERS,
            checkpoint_period=solver.CHECKPOINT_PERIOD,
            checkpoint_keep=solver.CHECKPOINT_KEEP,
            log_period=solver.LOG_PERIOD,
            evaluation_period=cfg.TEST.EVAL_PERIOD,
            shared={
                key: value
                for key, value in leaves(cfg)
                if not (is_free(key) or (key == TOTAL and open_ended))
            },
        )


def check_same_run(stored: Mapping[str, object], current: Mapping[str, object]) -> None:
    """Refuses to resume a run under other metadata than it was started with.

    Args:
        stored: metadata of the checkpoint, as it came back from JSON.
        current: metadata of this run. Entries that only one of the two has are not compared.

    Raises:
        InputError: names what differs, with both values.
    """
    here = json.loads(json.dumps(current))
    differing = [
        f"{name} was {stored[name]!r:.200}, is {here[name]!r:.200}"
        for name in sorted(here.keys() & stored.keys())
        if here[name] != stored[name]
    ]
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        if TOTAL in here and here[TOTAL] != stored.get(TOTAL, here[TOTAL]):
            more += " (the cosine of the learning rate ends there; under SOLVER.SCHEDULE steps a run may go on)"
        raise InputError(
            f"cannot resume: {'; '.join(differing[:3])}{more}. "
            "Restore that, or start a new run in another OUTPUT_DIR"
        )
