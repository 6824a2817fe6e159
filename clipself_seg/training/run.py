"""What each process of ``train_net.py`` does: prepare, train or evaluate, write the result."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import Tensor

from clipself_seg import models
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.training_state import (
    CheckpointFolder,
    is_training_state,
    load_training_state,
    unpack_model,
)
from clipself_seg.clip.model import SHIPPED
from clipself_seg.clip.weights import name_problem, signature_of, to_native
from clipself_seg.errors import InputError, MissingFiles, last_line, nearest
from clipself_seg.evaluation.base import Evaluation, Results
from clipself_seg.evaluation.report import write_results
from clipself_seg.files import atomic_path
from clipself_seg.memory import keep_freed_memory
from clipself_seg.models import CLIPSelf, RegionReader
from clipself_seg.provenance import provenance
from clipself_seg.training.logs import setup_logging
from clipself_seg.training.settings import TrainingSettings
from clipself_seg.training.tasks import task_of
from clipself_seg.training.trainer import Trainer

RESULTS_FILE = "results.json"
# Tag for MODEL.WEIGHTS -> file.
SHIPPED_MODELS = {
    "mini-cat-seg": SHIPPED / "cat_seg_mini.safetensors",
    "mini-open-panoptic": SHIPPED / "open_panoptic_mini.safetensors",
}
logger = logging.getLogger(__name__)


def prepare(cfg: CfgNode) -> None:
    """Make the output folder; set up logs, threads and memory."""
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    setup_logging(folder, comm.get_rank())
    if not torch.cuda.is_available() and comm.get_world_size() > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_world_size()))
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    logger.info(
        "%s on %s, %d process(es), output in %s",
        cfg.MODEL.META_ARCHITECTURE,
        cfg.MODEL.DEVICE,
        comm.get_world_size(),
        folder,
    )


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round the factors of matrix products to TF32; no effect on the CPU."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _write_config(cfg: CfgNode, suffix: str = "") -> None:
    """The full configuration of a run that has begun."""
    if comm.is_main_process():
        with atomic_path(Path(cfg.OUTPUT_DIR) / f"config{suffix}.yaml") as temporary:
            temporary.write_text(cfg.dump())


def build_model(cfg: CfgNode) -> Any:
    """The configured meta-architecture with ``MODEL.WEIGHTS``, if given, on its device.

    Random weights follow from ``SEED``.

    Raises:
        InputError: an unknown meta-architecture or CLIP, or a checkpoint that does not fit.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in models.__all__:
        raise InputError(
            f'unknown MODEL.META_ARCHITECTURE "{name}"; {nearest(name, models.__all__)}'
        )
    torch.manual_seed(cfg.SEED)
    model = META_ARCH_REGISTRY.get(name)(cfg)
    if weights := cfg.MODEL.WEIGHTS:
        shipped = SHIPPED_MODELS.get(weights)
        tensors = read_checkpoint(shipped or weights).tensors
        if shipped and name == "CATSeg":
            # What is shipped holds what training changed; the rest is the CLIP that is there already.
            tensors = model.state_dict() | tensors
        if is_training_state(tensors):
            load_training_state(Path(weights), model)
        else:
            _load_weights(model, tensors, weights)
    return model.to(cfg.MODEL.DEVICE)


def _load_weights(model: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Tensors of MODEL.WEIGHTS for a model; CAT-Seg and OpenPanoptic explain what does not fit themselves."""
    if isinstance(model, CLIPSelf | RegionReader):
        if signature_of(to_native(tensors)):
            raise InputError(
                f"MODEL.WEIGHTS {source} is a CLIP, which {type(model).__name__} takes as "
                "MODEL.CLIP.WEIGHTS: give it there and leave MODEL.WEIGHTS empty"
            )
        if problem := name_problem(model.state_dict(), tensors):
            raise InputError(
                f"MODEL.WEIGHTS {source} {problem.what} ({problem.names}): it is no checkpoint of "
                f"{type(model).__name__}, which needs none besides MODEL.CLIP.WEIGHTS"
            )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # of torch, several lines long
        raise InputError(
            f"MODEL.WEIGHTS {source} does not fit the model: {last_line(error)}"
        ) from None


def train(cfg: CfgNode, resume: bool) -> None:
    """Train to the end, write the result, and evaluate it.

    Args:
        cfg: of the run.
        resume: go on from the newest checkpoint in ``OUTPUT_DIR``, if there is one.
    """
    cfg = with_initial_weights(cfg)
    model, task = build_model(cfg), task_of(cfg)
    evaluation = task.evaluation()
    _leave_out_missing(evaluation, model)
    data = task.prepare(model)
    trainer = Trainer(
        model=model,
        records=data.records,
        mapper=data.mapper,
        settings=TrainingSettings.from_config(cfg),
        # In the precision of --eval-only and of tools/predict.py.
        evaluate=tf32(False)(evaluation),
        groups=task.groups(model),
        started=lambda: _write_config(cfg),
    )
    with tf32(True):  # as the official code
        trainer.train(resume)
    if comm.is_main_process():
        path = task.write(model, Path(cfg.OUTPUT_DIR))
        logger.info("result of the training written to %s", path)
    _report(cfg, model, evaluation, iterations=cfg.SOLVER.MAX_ITER)


def _leave_out_missing(evaluation: Evaluation, model: Any) -> None:
    """Keep the data sets that can be evaluated: a training needs none of them.

    Raises:
        InputError: what would fail late for another reason than files that are not here.
    """
    present, missing = [], []
    for name in evaluation.datasets:
        evaluation.datasets = (name,)
        try:
            evaluation.check(model)
            present.append(name)
        except MissingFiles as error:
            missing.append(str(error))
    evaluation.datasets = tuple(present)
    evaluation.check(model)
    if missing:
        logger.warning("DATASETS.TEST is evaluated without:\n%s", "\n".join(missing))


def evaluate(cfg: CfgNode, resume: bool) -> None:
    """Evaluate the configured weights as they are, or those of the newest checkpoint.

    Args:
        cfg: of the run.
        resume: read the newest training checkpoint in ``OUTPUT_DIR``.

    Raises:
        InputError: nothing to evaluate, or a mask generator that is not trained.
    """
    if resume:
        cfg = with_initial_weights(cfg)
    else:
        _require_head_weights(cfg)
    model, task = build_model(cfg), task_of(cfg)
    evaluation = task.evaluation()
    evaluation.check(model)
    if not evaluation.datasets:
        raise InputError("nothing to evaluate: DATASETS.TEST is empty")
    iterations = _load_trained(cfg, model) if resume else None
    # What a training wrote about itself stays.
    suffix = "_eval" if _checkpoints(cfg).paths() else ""
    _write_config(cfg, suffix)
    _report(cfg, model, evaluation, iterations=iterations, suffix=suffix)


def _require_head_weights(cfg: CfgNode) -> None:
    """A random head is evaluated as slowly as a trained one, and gives numbers as well."""
    heads = {"OpenPanoptic": "mask generator", "CATSeg": "cost aggregation"}
    head = heads.get(cfg.MODEL.META_ARCHITECTURE)
    if head is None or cfg.MODEL.WEIGHTS:
        return
    if head == "cost aggregation" or cfg.MODEL.MASK_GENERATOR.SOURCE != "disk":
        raise InputError(
            f"MODEL.WEIGHTS is empty, so the {head} is random: give a trained checkpoint, such as the "
            "model_final.pth of train_net.py, or --resume"
        )


def with_initial_weights(cfg: CfgNode) -> CfgNode:
    """The configuration with OpenAI's weights, where training CAT-Seg names none.

    ("" is enough to evaluate: a checkpoint of CAT-Seg holds its CLIP. "random" is taken literally.)
    """
    if cfg.MODEL.META_ARCHITECTURE != "CATSeg" or cfg.MODEL.WEIGHTS:
        return cfg
    given = cfg.MODEL.CLIP.WEIGHTS
    theirs = bool(cfg.MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED) and given == "mini"
    if given and given != "random" and not theirs:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.CLIP.WEIGHTS = "" if given == "random" else "openai"
    cfg.freeze()
    return cfg


def _checkpoints(cfg: CfgNode) -> CheckpointFolder:
    return CheckpointFolder(Path(cfg.OUTPUT_DIR) / "checkpoints", cfg.SOLVER.CHECKPOINT_KEEP)


def _load_trained(cfg: CfgNode, model: Any) -> int:
    checkpoints = _checkpoints(cfg)
    state = checkpoints.newest()
    if state is None:
        raise InputError(
            f"no training checkpoint in {checkpoints.folder}: leave --resume out or train first"
        )
    tensors, facts = state
    unpack_model(tensors, model)
    return facts["iteration"]


def _report(
    cfg: CfgNode, model: Any, evaluation: Evaluation, iterations: int | None, suffix: str = ""
) -> None:
    """Evaluate and write the numbers with where they come from, anew after each data set."""
    file = Path(RESULTS_FILE)
    path = Path(cfg.OUTPUT_DIR) / f"{file.stem}{suffix}{file.suffix}"
    weights = model.weights_hash() if comm.is_main_process() and evaluation.datasets else ""

    def write(results: Results) -> None:
        if not comm.is_main_process():
            return
        facts = provenance(
            config=cfg.dump(),
            seed=cfg.SEED,
            weights_hash=weights,
            processes=comm.get_world_size(),
            iterations=iterations,
            **evaluation.facts(),
        )
        # Where a later data set fails, the file says what it lacks.
        if waiting := [name for name in evaluation.datasets if name not in results]:
            facts["not evaluated"] = waiting
        write_results(path, results, facts)
        logger.info("results written to %s", path)

    evaluation.finished = write
    evaluation(model)
