"""Data sets and settings of a run on ``DATASETS.DATA``.

Recipes are written for thousands of images and eight GPUs. `settings_for` computes from the number of images and the
machine which values a training takes in their place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from tabulate import tabulate

from clipself_seg.checkpoints.training_state import CheckpointFolder
from clipself_seg.checkpoints.zoo import MINI_CLIPS
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.data.datasets.own import check_data
from clipself_seg.data.datasets.own_file import NO_TRAIN
from clipself_seg.errors import InputError
from clipself_seg.models.build import architecture, registered_data
from clipself_seg.models.model_protocols import Memory
from clipself_seg.yaml_files import leaves, read_tree

LEAST_STEPS = 500
LEAST_BATCHES = 4
# Parameters of the image towers of a ViT-B/16 and of a ViT-L/14, for which tools/recipe_costs.py computes `Memory`.
BASE, LARGE = 86e6, 304e6
MARGIN = 1.5  # for what CUDA and the allocator add
GIB = 2**30
ByHand = Callable[[str], bool]


class Machine(NamedTuple):
    """The hardware of a run.

    Attributes:
        device: MODEL.DEVICE.
        memory: GiB of a GPU, or for each process where the device is the CPU.
        cores: of the CPUs.
        processes: of the run.
    """

    device: str
    memory: float
    cores: int
    processes: int = 1

    @classmethod
    def here(cls, device: str) -> Machine:
        """This machine, with the cores of as many like it as the run has, and for each process its memory."""
        processes, here = comm.get_world_size(), comm.get_local_size()
        if device.startswith("cuda"):
            memory = torch.cuda.get_device_properties(torch.device(device)).total_memory
        else:
            pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
            memory = (pages * os.sysconf("SC_PAGE_SIZE") if pages else 8 * GIB) / here
        return cls(device, memory / GIB, (os.cpu_count() or 1) * processes // here, processes)


class Setting(NamedTuple):
    """A key of the configuration, its value, and the reason for the value."""

    key: str
    value: Any
    reason: str


def settings_for(
    cfg: CfgNode,
    images: int,
    machine: Machine,
    by_hand: ByHand = lambda key: False,
    recorded: Mapping[str, Any] | None = None,
    total: int = 0,
) -> list[Setting]:
    """Settings of a training that follow from the number of its images, the machine and the recipe.

    Args:
        cfg: the recipe.
        images: number of training images.
        machine: the hardware of the training.
        by_hand: says whether the user set a key, whose value is then kept.
        recorded: full keys and values of the run that goes on, which are kept too.
        total: SOLVER.MAX_ITER of the recipe, for `cfg` may have the user's; 0 for that of `cfg`.
    """
    solver, settings = cfg.SOLVER, list[Setting]()

    def put(key: str, value: Any, reason: str) -> Any:
        if by_hand(key):
            value, reason = dict(leaves(cfg))[key], "set by you"
        elif recorded and key in recorded:
            value, reason = type(value)(recorded[key]), "recorded by the run that goes on"
        settings.append(Setting(key, value, reason))
        return value

    batch, why, recompute = _batch(cfg, images, machine)
    batch = put("SOLVER.IMS_PER_BATCH", batch, why)
    if recompute:
        put("MODEL.CLIP.CHECKPOINTING", True, "blocks are computed twice, to need less memory")
    steps = put("SOLVER.MAX_ITER", *_steps(cfg, images, batch))
    warmup = min(solver.WARMUP_ITERS, steps // 10)
    put("SOLVER.WARMUP_ITERS", warmup, "the recipe's, at most a tenth of all steps")
    if solver.SCHEDULE == "steps" and solver.STEPS:
        drops = tuple(round(step * steps / (total or solver.MAX_ITER)) for step in solver.STEPS)
        put("SOLVER.STEPS", drops, "the same parts of the training as the recipe's")
    rate = solver.BASE_LR * batch / solver.IMS_PER_BATCH
    reason = f"the recipe's {solver.BASE_LR:g} for {solver.IMS_PER_BATCH} images, by the batch"
    put("SOLVER.BASE_LR", rate, reason if rate != solver.BASE_LR else "the recipe's")
    period = min(solver.CHECKPOINT_PERIOD, math.ceil(steps / 5))
    put("SOLVER.CHECKPOINT_PERIOD", period, "five times in the training, or as the recipe says")
    workers, reason = 0, "the processor trains"
    if machine.device != "cpu":
        workers = min(8, max(1, machine.cores // machine.processes - 1))
        reason = f"{machine.cores} cores for {machine.processes} processes"
    put("DATALOADER.NUM_WORKERS", workers, reason)
    return settings


def _is_mini(cfg: CfgNode) -> bool:
    """True if the configuration is one of the mini world, which are made for two CPU cores."""
    return cfg.MODEL.CLIP.NAME in MINI_CLIPS.values()


def _batch(cfg: CfgNode, images: int, machine: Machine) -> tuple[int, str, bool]:
    """Number of images of a step, the reason for it, and true if MODEL.CLIP.CHECKPOINTING is needed."""
    wanted, parts = cfg.SOLVER.IMS_PER_BATCH, machine.processes * cfg.SOLVER.ACCUMULATE
    why, recompute = "the recipe's", False
    memory: Memory | None = getattr(architecture(cfg), "memory", None)
    if memory and not _is_mini(cfg):
        # Between the two sizes, and beyond the larger one, it grows with the tower.
        fraction = max(0.0, (_tower_parameters(cfg.MODEL.CLIP.NAME) - BASE) / (LARGE - BASE))
        weights, step, twice = (base + fraction * (large - base) for base, large in memory)
        room = machine.memory / MARGIN - weights

        def fitting(each: float) -> int:
            return max(1, int(room / each)) * parts

        recompute = fitting(step) < wanted and twice < step
        if (most := fitting(twice if recompute else step)) < wanted:
            wanted, why = most, f"as many as {machine.memory:.0f} GiB hold"
    if (few := max(min(images, 2), images // LEAST_BATCHES)) < wanted:
        wanted, why = few, f"{images} images are {LEAST_BATCHES} batches"
    return max(1, wanted // parts) * parts, why, recompute


def _tower_parameters(clip: str) -> int:
    """Number of parameters of the image tower of a CLIP, by open_clip's name."""
    known = find_architecture(clip)
    with torch.device("meta"):
        tower = known.kind.build_image(known, known.quick_gelu)
    return sum(parameter.numel() for parameter in tower.parameters())


def _steps(cfg: CfgNode, images: int, batch: int) -> tuple[int, str]:
    """Number of steps of the training, and the reason for it."""
    most = math.ceil(cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / batch)
    epochs = getattr(architecture(cfg), "epochs", 20)
    steps = math.ceil(epochs * images / batch)
    if _is_mini(cfg) or steps >= most:
        return most, "as many images as in the recipe"
    if steps < LEAST_STEPS:
        return min(LEAST_STEPS, most), f"at least, for {images} images are few"
    return steps, f"{images} images {epochs} times"


def with_data(
    cfg: CfgNode, by_hand: ByHand, *, trains: bool = False, resume: bool = False, total: int = 0
) -> tuple[CfgNode, list[str]]:
    """The configuration with the data sets of ``DATASETS.DATA``, which are registered in this process.

    Args:
        cfg: configuration with the key.
        by_hand: says whether the user set a key, whose value is then kept. Where nobody set ``DATASETS.DATA``, the
            configuration is that of a run, and all its settings are kept.
        trains: a training is to follow.
        resume: take the settings that the run in ``OUTPUT_DIR`` has recorded, if there is one.
        total: as in `settings_for`.

    Returns:
        The configuration, and lines for the log.

    Raises:
        InputError: as `register_data` and `check_data`.
    """
    data = registered_data(cfg)
    assert data is not None
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.DATA = os.path.abspath(os.path.expanduser(cfg.DATASETS.DATA))
    if trains and not data.train:
        raise InputError(f"{cfg.DATASETS.DATA} {NO_TRAIN}")
    for key, names in (("TRAIN", (data.train,) if data.train else ()), ("TEST", data.test)):
        # Weights that are evaluated were trained on other data, unless a run has recorded these.
        if (key == "TEST" or trains or resume) and not by_hand(f"DATASETS.{key}"):
            cfg.DATASETS[key] = names
    said = []
    if trains:
        said = check_data([data.train, *data.test[:1]], cfg.INPUT.MAX_PIXELS)
        if by_hand("DATASETS.DATA"):
            recorded, file = dict[str, Any](), Path(cfg.OUTPUT_DIR) / "config.yaml"
            if resume and CheckpointFolder(file.parent / "checkpoints", keep=1).paths():
                recorded = dict(leaves(read_tree(file)))
            images, machine = len(DatasetCatalog.get(data.train)), Machine.here(cfg.MODEL.DEVICE)
            settings = settings_for(cfg, images, machine, by_hand, recorded, total)
            for key, value, _ in settings:
                cfg.merge_from_list([key, value])
            table = tabulate(settings, ["setting", "value", "because it is"], disable_numparse=True)
            said.append(
                f"settings of the training; KEY VALUE at the end of the command changes one\n{table}"
            )
    cfg.freeze()
    return cfg, said
