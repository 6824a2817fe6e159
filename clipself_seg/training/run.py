"""A run in one process of ``train_net.py``: set up, train or evaluate, write the result."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import CallbackHook, HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from clipself_seg.checkpoints.training_state import CheckpointFolder, unpack_model
from clipself_seg.checkpoints.zoo import SCHEME, entry_of
from clipself_seg.clip.low_rank import merge_low_rank
from clipself_seg.clip.precision import tf32
from clipself_seg.clip.training_free import refuse_training
from clipself_seg.data.datasets.own_file import forget_files
from clipself_seg.data.loader import dead_workers_named
from clipself_seg.errors import InputError, MissingFiles
from clipself_seg.evaluation.evaluation_base import Evaluation, Results, innermost
from clipself_seg.files import alone_in, naming_path, remove_leftovers, write_text
from clipself_seg.memory import keep_freed_memory
from clipself_seg.models.build import architecture, build_model, require_run_feature
from clipself_seg.models.model_protocols import Model, TrainableModel
from clipself_seg.training import HOOKS
from clipself_seg.training.final_evaluation import RunOutputs, evaluate_run
from clipself_seg.training.mixing import changed_tensors, fractions_of, start_of_run
from clipself_seg.training.settings import TrainingSettings
from clipself_seg.training.tasks import task_of
from clipself_seg.training.trainer import Trainer

logger = logging.getLogger(__name__)
LOGGERS = ("clipself_seg", "detectron2")
# Detectron2 logs at every loader how it packs its records.
QUIET = "detectron2.data.common"


class OutputInUse(InputError):
    """Another run is at work in OUTPUT_DIR; all processes of a run raise it together."""


@contextlib.contextmanager
def alone_in_output(cfg: CfgNode) -> Iterator[None]:
    """Keeps other runs out of ``OUTPUT_DIR``, and removes the half-written files of a killed one.

    The first process takes the lock for all processes of the run. Runs in folders below ``OUTPUT_DIR``, such as those
    of several seeds, have locks of their own and may go on at the same time.

    Raises:
        OutputInUse: in every process of this run.
    """
    folder = Path(cfg.OUTPUT_DIR)
    with contextlib.ExitStack() as held:
        refused = ""
        if comm.is_main_process():
            try:
                held.enter_context(alone_in(folder))
            except InputError as error:
                refused = f"OUTPUT_DIR {error}"
        if refused := comm.all_gather(refused)[0]:
            raise OutputInUse(refused)
        if comm.is_main_process():
            remove_leftovers(folder)
        yield


def setup(cfg: CfgNode) -> None:
    """Makes the output folder; sets up logs and threads."""
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    setup_logging(folder, comm.get_rank())
    model, device, processes = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, comm.get_world_size()
    if processes > 1:
        _divide_cores(device)
    logger.info("%s on %s, %d process(es), output in %s", model, device, processes, folder)


def _divide_cores(device: str) -> None:
    """Shares the cores among this machine's processes where the CPU computes; each has a GPU of its own elsewhere.

    Raises:
        InputError: another device than the processes communicate through.
    """
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if device != wanted:
        raise InputError(
            f"MODEL.DEVICE {device}: several processes train on {wanted} here. Take that; the CPU does where "
            "CUDA_VISIBLE_DEVICES=-1 hides the GPUs"
        )
    if wanted == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))


def _write_config(cfg: CfgNode, suffix: str = "") -> None:
    """Writes the full configuration into OUTPUT_DIR."""
    if comm.is_main_process():
        write_text(Path(cfg.OUTPUT_DIR) / f"config{suffix}.yaml", cfg.dump())


@dead_workers_named()
def train(cfg: CfgNode, resume: bool = False, hooks: Sequence[HookBase] = ()) -> None:
    """Trains to the end, writes the result, and evaluates it.

    Args:
        cfg: configuration of the run.
        resume: go on from the newest checkpoint in ``OUTPUT_DIR``, if there is one.
        hooks: hooks of Detectron2 beside those of `register_hook`.

    Raises:
        InputError: a model that does not train, or ``MODEL.CLIP.ATTENTION``, which is for evaluation.
    """
    refuse_training(cfg.MODEL.CLIP.ATTENTION)
    fractions = fractions_of(cfg, trains=True)
    cfg = _trainable(cfg).training_config(cfg)
    model = cast(TrainableModel, _built(cfg, trains=True))
    task = task_of(cfg)
    evaluation = _with_files(task.evaluation(), model)
    data = task.training_data(model)
    forget_files()
    model.setup_training(data.vocabulary)
    # Once nothing speaks against the run.
    written = CallbackHook(before_train=lambda trainer: _write_config(cfg))
    trainer = Trainer(
        model=model,
        records=data.records,
        mapper=data.mapper,
        settings=TrainingSettings.from_config(cfg),
        # In the precision of --eval-only and of clipself-seg predict.
        evaluate=tf32(False)(evaluation),
        groups=model.optimizer_groups(cfg.SOLVER),
        hooks=[written, *hooks, *(make(cfg) for make in HOOKS)],
        vocabulary=data.vocabulary,
    )
    with tf32(True):  # as the official code
        trainer.train(resume)
    merge_low_rank(cast(nn.Module, model))
    if comm.is_main_process():
        path = Path(cfg.OUTPUT_DIR) / task.result_file
        model.export(path)
        logger.info("result of the training written to %s", path)
    outputs = RunOutputs(cfg, Path(cfg.OUTPUT_DIR), max(cfg.SOLVER.MAX_ITER, trainer.start_iter))
    start = changed_tensors(cfg, model, cfg.MODEL.WEIGHTS) if fractions else {}
    evaluate_run(evaluation, model, outputs, start, fractions)


def _with_files(evaluation: Evaluation[Any, Any], model: Model) -> Evaluation[Any, Any]:
    """The evaluation on the data sets that have their files, and a warning about the others: a training needs none.

    Raises:
        InputError: a data set cannot be evaluated for another reason than missing files.
    """
    present, missing = [], []
    for name in evaluation.datasets:
        try:
            evaluation.changed(datasets=(name,)).check(model)
            present.append(name)
        except MissingFiles as error:
            missing.append(str(error))
    if missing:
        logger.warning("DATASETS.TEST is evaluated without:\n%s", "\n".join(missing))
    evaluation = evaluation.changed(datasets=tuple(present))
    evaluation.check(model)
    return evaluation


@dead_workers_named()
def evaluate(cfg: CfgNode, resume: bool) -> None:
    """Evaluates the configured weights as they are, or those of the newest checkpoint.

    Args:
        cfg: configuration of the run.
        resume: read the newest training checkpoint in ``OUTPUT_DIR``.

    Raises:
        InputError: nothing to evaluate, or a model that is not trained.
    """
    if resume:
        cfg = _trainable(cfg).training_config(cfg)
    else:
        architecture(cfg).require_trained(cfg)
    fractions = fractions_of(cfg)
    model = _built(cfg, trains=resume)
    task = task_of(cfg)
    evaluation = task.evaluation()
    evaluation.check(model)
    forget_files()
    if not evaluation.datasets:
        alone = cfg.DATASETS.DATA and ": name panoptic data there, --data has images to train on"
        raise InputError(f"nothing to evaluate: DATASETS.TEST is empty{alone}")
    iterations = _load_trained(cfg, model) if resume else None
    start = dict[str, Tensor]()
    if fractions:
        weights = cfg.MODEL.WEIGHTS if resume else start_of_run(cfg)
        start = changed_tensors(cfg, model, weights)
    # What a training wrote about itself stays.
    folder = Path(cfg.OUTPUT_DIR)
    trained = _checkpoints(cfg).paths() or (folder / task.result_file).exists()
    suffix = "_eval" if trained else ""
    _write_config(cfg, suffix)
    outputs = RunOutputs(cfg, folder, iterations, suffix=suffix)
    results = evaluate_run(evaluation, model, outputs, start, fractions)
    if not resume and comm.is_main_process():
        _say_published(cfg, results)


def _say_published(cfg: CfgNode, results: Results) -> None:
    """Logs the numbers that others have published of weights of the zoo, beside those that the results have."""
    weights = cfg.MODEL.WEIGHTS or cfg.MODEL.CLIP.WEIGHTS
    entry = entry_of(weights.removeprefix(SCHEME), cfg.MODEL.CLIP.NAME)
    if entry is None or not entry.published:
        return
    logger.info("published of %s: %s (%s)", entry.name, entry.published, entry.source)
    ours = dict(innermost(results))
    for place, numbers in innermost(entry.numbers):
        for key in sorted(numbers.keys() & ours.get(place, {}).keys()):
            said = (place, key, ours[place][key], numbers[key])
            logger.info("%s, %s: %.1f here, %s published", *said)


def _built(cfg: CfgNode, trains: bool) -> Model:
    """Builds the model with its weights, and lets the process keep memory that is freed, see `keep_freed_memory`."""
    model = build_model(cfg, trains)
    keep_freed_memory(cfg.MODEL.DEVICE)
    return model


def _trainable(cfg: CfgNode) -> type[TrainableModel]:
    """The class of the configured meta-architecture, if it trains."""
    cls = architecture(cfg)
    if not issubclass(cls, TrainableModel):
        name = cfg.MODEL.META_ARCHITECTURE
        raise InputError(f"{name} does not train: evaluate it (eval), or train another (--task)")
    return cls


def _checkpoints(cfg: CfgNode) -> CheckpointFolder:
    return CheckpointFolder(Path(cfg.OUTPUT_DIR) / "checkpoints", cfg.SOLVER.CHECKPOINT_KEEP)


def _load_trained(cfg: CfgNode, model: Model) -> int:
    checkpoints = _checkpoints(cfg)
    state = checkpoints.newest()
    if state is None:
        raise InputError(f"no training checkpoint in {checkpoints.folder}: leave --resume out")
    tensors, metadata = state
    require_run_feature(cfg, checkpoints.paths()[-1], metadata["run"])
    unpack_model(tensors, cast(nn.Module, model))
    merge_low_rank(cast(nn.Module, model))
    return metadata["iteration"]


class _Terminal(logging.StreamHandler):
    """Writes to the ``sys.stdout`` of the moment, so that it may be redirected."""

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


class _File(logging.FileHandler):
    """A file of log lines. If a line cannot be written, the run ends with an error that names the file."""

    def handleError(self, record: logging.LogRecord) -> None:
        with naming_path(self.baseFilename):
            if isinstance(sys.exc_info()[1], OSError):
                raise
        super().handleError(record)


def setup_logging(folder: Path, rank: int) -> None:
    """Writes the log lines of the project and of Detectron2 to the terminal and to a file in `folder`.

    A second call closes the first file, and further lines go to the file in the new folder.

    Args:
        folder: folder of the file, ``log.txt`` of the first process and ``log.rank1.txt`` and so on of others.
        rank: number of this process; only the first one writes to the terminal.

    Raises:
        OSError: the file cannot be opened. Where a line cannot be written later, such as on a full disk, the call that
            logs it raises.
    """
    name = f"log.rank{rank}.txt" if rank else "log.txt"
    handlers: list[logging.Handler] = [_File(folder / name), *([] if rank else [_Terminal()])]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%m/%d %H:%M:%S"))
    for logger in map(logging.getLogger, LOGGERS):
        logger.setLevel(logging.INFO)
        for old in list(logger.handlers):
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            logger.addHandler(handler)
    logging.getLogger(QUIET).setLevel(logging.WARNING)
