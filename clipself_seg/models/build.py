"""Builds a model with its weights from a configuration, for prediction and training alike."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

import clipself_seg.models  # noqa: F401  registers the models of this package
from clipself_seg.checkpoints.dense_feature import DenseFeature, feature_of_run, require_feature
from clipself_seg.checkpoints.locate import locate
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.training_state import is_training_state, load_training_state
from clipself_seg.checkpoints.zoo import SCHEME
from clipself_seg.clip.backbone import configured_options
from clipself_seg.clip.low_rank import merge_low_rank, train_low_rank
from clipself_seg.config.weight_checks import require_weights
from clipself_seg.data.datasets.own import KINDS, OwnData, register_data
from clipself_seg.errors import InputError, nearest
from clipself_seg.imports import OR_IMPORT, import_typed_modules
from clipself_seg.models.model_protocols import Model


def architecture(cfg: CfgNode) -> type[Model]:
    """The class that ``MODEL.META_ARCHITECTURE`` names, see `registered_model`."""
    return registered_model(cfg.MODEL.META_ARCHITECTURE)


def registered_model(name: str) -> type[Model]:
    """The class of a name, of this package or registered elsewhere.

    Raises:
        InputError: no class of that name is registered, or it lacks members of `Model`.
    """
    import_typed_modules()
    classes = dict(META_ARCH_REGISTRY)
    if name not in classes:
        known = [known for known, cls in classes.items() if issubclass(cls, Model)]
        hint = f"{nearest(name, known)}{OR_IMPORT}"
        raise InputError(f'unknown MODEL.META_ARCHITECTURE "{name}"; {hint}')
    if not issubclass(classes[name], Model):
        raise InputError(
            f"MODEL.META_ARCHITECTURE {name} is registered, but has not all members of "
            "clipself_seg.models.model_protocols.Model, by which this project trains and evaluates"
        )
    return classes[name]


def registered_data(cfg: CfgNode) -> OwnData | None:
    """Registers ``DATASETS.DATA`` for the task of the configured model; None where the key is empty.

    Raises:
        InputError: as `register_data`; a task without own data.
    """
    if not cfg.DATASETS.DATA:
        return None
    task = architecture(cfg).task()
    if task == "regions":
        task = "distillation"  # as files of data have it
    if task not in KINDS:
        raise InputError(f"DATASETS.DATA is for the tasks {', '.join(KINDS)}, not for {task}")
    return register_data(cfg.DATASETS.DATA, task)


def build_model(cfg: CfgNode, trains: bool = False) -> Model:
    """Builds the configured meta-architecture with ``MODEL.WEIGHTS``, if given, on ``MODEL.DEVICE``.

    Weights that no file gives are random and follow from ``SEED``.

    Args:
        cfg: configuration.
        trains: True if it gets the low-rank updates of ``MODEL.CLIP.LOW_RANK``, see `merge_low_rank`.

    Raises:
        InputError: an unknown meta-architecture or CLIP, or a checkpoint that does not fit, or was trained on another
            dense feature.
    """
    require_weights(cfg)
    build: Any = architecture(cfg)  # a Protocol says nothing about how its classes are made
    torch.manual_seed(cfg.SEED)
    model: Any = build(cfg)
    weights, goes_on = cfg.MODEL.WEIGHTS.removeprefix(SCHEME), False
    if weights:
        path = locate(weights)
        checkpoint = read_checkpoint(path)
        goes_on = is_training_state(checkpoint.tensors)
        if not goes_on:
            _require_feature(cfg, path, checkpoint.dense)
            model.load_checkpoint(checkpoint.tensors, weights)
    clip = cfg.MODEL.CLIP
    if clip.LOW_RANK and (trains or goes_on):
        tower = model.clip.visual
        train_low_rank(tower, clip.LOW_RANK, clip.TRAINABLE_BLOCKS, model.tower_features)
    if goes_on:  # the checkpoint has the updates beside their matrices
        check = functools.partial(require_run_feature, cfg, path)
        load_training_state(path, model, model.original_hash, check)
        if not trains:
            merge_low_rank(model)
    return model.to(cfg.MODEL.DEVICE)


def require_run_feature(cfg: CfgNode, path: Path, run: Mapping[str, Any]) -> None:
    """Refuses the checkpoint of a run with another dense feature than ``MODEL.CLIP.DENSE``, unless that is overridden.

    Args:
        cfg: configuration; ``MODEL.CLIP`` is read.
        path: the checkpoint.
        run: full keys of the run's configuration -> values, as its checkpoint has them.

    Raises:
        InputError: names both.
    """
    _require_feature(cfg, path, feature_of_run(run, path))


def _require_feature(cfg: CfgNode, path: Path, stated: DenseFeature) -> None:
    require_feature(configured_options(cfg).dense, stated, path, cfg.MODEL.CLIP.DENSE_OVERRIDE)
