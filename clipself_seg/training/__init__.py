"""Trains and evaluates models, as train_net.py does: tasks, trainer, optimiser, logs. Open run.py first.

Detectron2's own engine is not used for this, because three of its parts are not what a run here promises: its
sampler restarts on resume, its checkpointer unpickles what it is given, and its loop turns every error into a
traceback. Its hooks, event storage, log writers, samplers for evaluation and `launch` are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from detectron2.engine import HookBase

HOOKS: list[Callable[[CfgNode], HookBase]] = []
Make = TypeVar("Make", bound=Callable[..., object])


def register_hook(make: Make) -> Make:
    """Adds a hook to every training of this process; a module of ``--import`` calls it, or decorates a class with it.

    Args:
        make: (configuration of the run) -> a hook of Detectron2.
    """
    HOOKS.append(make)
    return make
