"""Enters methods of somebody else's in the tables of this project, one function for each kind of method.

    from clipself_seg.extend import register_attention

    @register_attention("mine")
    def attend(q, k, v, grid): ...

A module that ``--import`` names calls them, and configurations name what it registers (docs/add_your_own.md). Backbones
and models are entries of Detectron2's ``BACKBONE_REGISTRY`` and ``META_ARCH_REGISTRY``, data sets of its
``DatasetCatalog``; `register_hook` is of `clipself_seg.training`. All but that one refuse a taken name: `InputError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from clipself_seg.clip.find_kind import register_kind
from clipself_seg.clip.tower import DENSE
from clipself_seg.clip.training_free import ATTENTIONS, Attend, Attention, Grid
from clipself_seg.config.declare import EVERY, KEYS, NOT_NEGATIVE, Check, Section
from clipself_seg.config.keys import default_config, objectives, sections
from clipself_seg.config.relations import RELATIONS, of_crops
from clipself_seg.errors import InputError
from clipself_seg.evaluation.evaluation_base import METRICS
from clipself_seg.models.distillation import Step, enter_objective
from clipself_seg.training import register_hook
from clipself_seg.training.tasks import TASKS
from clipself_seg.yaml_files import leaves

__all__ = [
    "register_attention",
    "register_hook",
    "register_key",
    "register_kind",
    "register_metric",
    "register_objective",
    "register_task",
]

AnyTask = TypeVar("AnyTask", bound=Callable[..., Any])
Metric = Callable[[Mapping[str, float], np.ndarray | None], float | None]
Value = Callable[[Step], Tensor]


def register_attention(name: str, *, keep: bool = False) -> Callable[[Attend], Attend]:
    """Decorates an attention of a ViT's last block that needs no training, which ``MODEL.CLIP.ATTENTION`` names.

    The function is given queries, keys and values (B, H, L, C) of B images, H heads and L tokens, of which the last
    h * w are the patches in rows, and the grid (h, w). It returns values (B, H, M, C) of M places, and their grid.

    Args:
        name: value of the key.
        keep: True if the block's residual and MLP are kept; the places have to be the patches then.

    Raises:
        InputError: when a ViT uses it, values of another shape; names both shapes.
    """

    def register(attend: Attend) -> Attend:
        def checked(
            queries: Tensor, keys: Tensor, values: Tensor, grid: Grid
        ) -> tuple[Tensor, Grid]:
            attended, cells = attend(queries, keys, values, grid)
            wanted = (*values.shape[:2], cells[0] * cells[1], values.shape[3])
            if attended.shape != wanted:
                raise InputError(
                    f'attention "{name}" returns {tuple(attended.shape)}: return (B, H, h w, C) without class '
                    f"token, which is {wanted} for the grid {cells}"
                )
            return attended, cells

        ATTENTIONS.enter(name, Attention(checked, keep))
        key = KEYS["MODEL.CLIP.ATTENTION"]
        KEYS[key.name] = dataclasses.replace(key, choices=(*key.choices, name))
        return attend

    return register


def register_objective(name: str, *, reads: Sequence[str] = (DENSE,)) -> Callable[[Value], Value]:
    """Decorates a loss of distillation, whose weight is ``MODEL.CLIPSELF.OBJECTIVES.{name}``, 0 by default.

    The function is given a `models.distillation.Step`, and returns a scalar with its gradient, which is logged as
    ``loss_{name}`` times the weight. Its mean over the processes is the loss of the batch.

    Args:
        name: last part of the key.
        reads: features of the student that it reads, out of "dense", "queries", "keys" and "image".

    Raises:
        InputError: when a training uses it, a value of another shape.
    """

    def register(value: Value) -> Value:
        key = f"{objectives.name}.{name}"

        @enter_objective(name, reads)
        def checked(step: Step, objectives: object) -> Tensor:
            if (loss := value(step)).ndim:
                raise InputError(f'objective "{name}" returns {tuple(loss.shape)}: return a scalar')
            return loss

        register_key(key, 0.0, NOT_NEGATIVE, of=["CLIPSelf"])
        RELATIONS.append(of_crops(key))
        return value

    return register


def register_task(name: str) -> Callable[[AnyTask], AnyTask]:
    """Decorates a class with the members of `training.tasks.Task`: the data and the evaluation of models of a task.

    Args:
        name: name of the task, which `task()` of the models returns.
    """
    return lambda task: TASKS.enter(name, task)


def register_metric(name: str) -> Callable[[Metric], Metric]:
    """Decorates a number of evaluations, which results.json, the printed tables and ``reproduce`` have under its name.

    The function is given the numbers of a data set by the names that results.json has for them (of a size, fusion or
    kind of objects, where there are several), and of label maps the pixels of each true class (rows) by predicted class
    (K, K), else None. It returns the number, or None where it does not apply.
    """
    return lambda metric: METRICS.enter(name, metric)


def register_key(
    key: str,
    default: bool | int | float | str | tuple[Any, ...],
    check: Check | None = None,
    *,
    of: Sequence[str] = EVERY,
    **about: Any,
) -> None:
    """Adds a key to all configurations, for whatever of yours reads it; its values have the type of the default.

    Args:
        key: full name, such as "MODEL.MINE.TEMPERATURE".
        default: value where nothing sets it.
        check: values that it may have, such as `config.declare.at_least(1)`; None for all of its type.
        of: models of this package that it is for, whose runs may set it.
        **about: further attributes of `config.declare.Key`, such as ``choices``, or ``free`` of a key that a resumed
            run may change.
    """
    known = dict(leaves(default_config()))
    if key in sections(known) or sections([key]) & known.keys():
        raise InputError(f"{key} is a section, or in a key that is none: name yours otherwise")
    if key in known:
        raise InputError(f'there is a "{key}" already: register yours by another name')
    Section().key(key, default, check, of=of, **about)
