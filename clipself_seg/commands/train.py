"""Train and evaluate every model of this project.

    clipself-seg train --task distillation --model openai-vitb16 --num-gpus 8
    clipself-seg train --config-file configs/distill/coco_patches+eva02_vitb16.yaml --num-gpus 8
    clipself-seg eval --model catseg-base DATASETS.TEST "('ade20k_150_test_sem_seg',)"
    clipself-seg eval --config-file regions/coco+eva02_vitb16 TEST.REGIONS.SIZES "(320, 640, 1024)"

Writes into OUTPUT_DIR: config.yaml, log.txt, metrics.json, TensorBoard events and checkpoints/, and at the
end results.json and the trained weights: clip_final.safetensors of a distillation, model_final.pth of a
model. --model and `clipself_seg.load` take both.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipself_seg.commands import options
from clipself_seg.errors import INTERRUPTED, InputError, ended_by, in_short, report_input_errors

if TYPE_CHECKING:
    from clipself_seg.training.launchers import Place

logger = logging.getLogger(__name__)
# What gloo and NCCL say in the others when a process ended.
LOST_CONNECTION = re.compile("closed by peer|reset by peer|remote process exited|Broken pipe")
GRACE = 10  # seconds
AGAIN = "a training that has a checkpoint goes on with --resume, all else begins anew"


def _options(parser: options.CommandLine) -> None:
    """Adds Detectron2's default arguments, without importing it, and this project's."""
    config = "a file, or a name below configs/"
    options.value(parser, "--config-file", config, "", metavar="FILE")
    options.task(parser, "take the configuration of semantic, panoptic, detection or distillation")
    model = "name or file of the weights to evaluate or to start training from, with their configuration"
    options.value(parser, "--model", model)
    data = "your data: a YAML file, a folder or a COCO JSON (docs/own_data.md)"
    options.value(parser, "--data", data, metavar="PATH")
    recipe = "of fine-tuning, such as low_rank (docs/finetuning.md)"
    options.value(parser, "--recipe", recipe, metavar="NAME")
    options.resume(parser)
    evaluate = (
        "evaluate MODEL.WEIGHTS (regions: MODEL.CLIP.WEIGHTS); with --resume the newest checkpoint"
    )
    options.flag(parser, "--eval-only", evaluate)
    processes = "processes, one per GPU; on the CPU without GPUs; leave out with torchrun"
    options.value(parser, "--num-gpus", processes, 1)
    options.device(parser)
    options.precision(parser)
    machines = options.group(parser, rare=True)
    options.value(machines, "--num-machines", "number of machines", 1)
    options.value(machines, "--machine-rank", "from 0", 0)
    options.value(machines, "--dist-url", "address where processes meet: tcp://HOST:PORT", "auto")
    options.keys_at_the_end(parser)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Options of a command line, of which ``--task``, ``--model`` and their like become keys and values in ``opts``."""
    args = main.parser().parse(words)
    _options_as_keys(args)
    return args


def _options_as_keys(args: argparse.Namespace) -> None:
    _model_as_keys(args)
    if args.data is not None:
        args.opts = [*args.opts, "DATASETS.DATA", os.path.abspath(os.path.expanduser(args.data))]
        args.data = None
    options.take_device(args)
    if args.recipe is not None:
        from clipself_seg.yaml_files import with_recipes

        if not args.config_file:
            raise InputError("--recipe needs a model: add --task, --model or --config-file")
        args.config_file = with_recipes(args.config_file, args.recipe)
        args.recipe = None  # another process parses nothing anew


def _model_as_keys(args: argparse.Namespace) -> None:
    """Takes configuration and weights of ``--task`` and ``--model``; typed keys count more.

    Raises:
        InputError: as `find_model`; a folder of `save_pretrained`.
    """
    if args.task is None and args.model is None:
        return
    from clipself_seg.choice import DISTILLATION, TRAINED, find_distillation, find_model

    if args.task == DISTILLATION and not args.config_file:
        choice = find_distillation(args.model)
    else:
        model = args.model if args.model or args.config_file else TRAINED.get(args.task)
        choice = find_model(model, args.task, args.config_file or None)
    if not choice.config_file:
        raise InputError(
            f"{args.model} is a folder of save_pretrained, which only predicts: give its config.yaml as --config-file, "
            f"and its file of weights as {choice.key}"
        )
    args.config_file = choice.config_file
    # A training without --model starts from what its configuration names.
    taken = choice.weights is not None and (args.model is not None or args.eval_only)
    args.opts = [*choice.opts, *([choice.key, choice.weights] if taken else []), *args.opts]


def run(args: argparse.Namespace) -> None:
    """Trains or evaluates as one process of the run."""
    from clipself_seg.checkpoints.needs import fetch_needed
    from clipself_seg.config import load
    from clipself_seg.config.weight_checks import fetch_addresses, require_weights
    from clipself_seg.data.datasets.records import require_files
    from clipself_seg.data.datasets.table import DATASETS
    from clipself_seg.models.build import architecture
    from clipself_seg.yaml_files import option_pairs

    cfg = load.load_config(args.config_file, args.opts, trains=not args.eval_only)
    said: list[str] = []
    if cfg.DATASETS.DATA and not args.config_file:
        from clipself_seg.choice import TASKS

        verb = "eval" if args.eval_only else "train"
        lines = [f"\n  clipself-seg {verb} --task {t} --data {cfg.DATASETS.DATA}" for t in TASKS]
        raise InputError("data do not say which model is meant, a task does:" + "".join(lines))
    if cfg.DATASETS.DATA:
        from clipself_seg.training.own_data import with_data

        sources = load.Sources(args.config_file, option_pairs(args.opts))
        how = {"trains": not args.eval_only, "resume": args.resume}
        cfg, said = with_data(cfg, sources.by_hand, total=sources.recipe("SOLVER.MAX_ITER"), **how)
    key = "TEST" if args.eval_only else "TRAIN"
    if not args.config_file and not cfg.DATASETS[key]:
        raise InputError(
            f"give --task, --model, --config-file (a name below configs/) or DATASETS.{key}"
        )
    for name in cfg.DATASETS[key]:  # before weights are fetched
        if name in DATASETS:
            others = tuple(other for other in cfg.DATASETS[key] if other != name)
            left = f', DATASETS.{key} "{others}"' if others else f" of DATASETS.{key}"
            require_files(name, DATASETS[name], otherwise=f"; or leave it out{left}")
    values = {name: value for name, (value, _) in load.values_and_defaults(cfg).items()}
    fetch_needed(values, texts=bool(cfg.DATASETS.TEST) or architecture(cfg).task() != "regions")
    cfg = fetch_addresses(cfg)
    require_weights(cfg)
    from clipself_seg.training.run import alone_in_output, evaluate, setup, train

    with alone_in_output(cfg):
        setup(cfg)
        for line in said:
            logger.info(line)
        if args.eval_only:
            evaluate(cfg, args.resume)
            return
        hooks = []
        if cfg.VIS_PERIOD:
            from clipself_seg.prediction.training_pictures import DrawPredictions

            hooks.append(DrawPredictions(cfg))
        train(cfg, args.resume, hooks)


def run_together(args: argparse.Namespace) -> None:
    """`run` in one of several processes, of which one on each machine says what all know.

    Raises:
        InputError: also for another process that ended, on another machine.
    """
    from detectron2.utils import comm

    from clipself_seg.training.run import OutputInUse

    others = comm.get_local_rank() > 0
    try:
        run(args)
    except OutputInUse:
        leave_process_group()
        if not others:
            raise
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)  # `main` says it
    except RuntimeError as error:
        if not LOST_CONNECTION.search(str(error)):
            raise
        # If the other process is of this machine, `main` sees it end, ends this one and says which.
        time.sleep(GRACE)
        raise InputError(f"another process of this run ended, see its message; {AGAIN}") from None


def worker(args: argparse.Namespace) -> None:
    """`run_together` in a process of Detectron2's `launch`, which looks at exit statuses only."""
    status = report_input_errors(run_together)(args)
    if status:
        sys.exit(status)
    leave_process_group()


def join(place: Place, args: argparse.Namespace) -> None:
    """`run_together` in a process that torchrun has started.

    Raises:
        InputError: processes are asked for beside those; the processes do not meet.
    """
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm

    from clipself_seg.training.launchers import gpu_of, name_of_start

    if args.num_gpus * args.num_machines > 1:
        raise InputError("torchrun starts the processes: leave out --num-gpus and --num-machines")
    if torch.cuda.is_available():
        torch.cuda.set_device(gpu_of(place, torch.cuda.device_count()))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, processes = next(dist.rendezvous("env://", place.rank, place.processes))
        store = dist.PrefixStore(name_of_start(store, rank, processes), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
    except dist.DistError as error:
        raise InputError(
            f"process {place.rank + 1} of {place.processes} cannot reach the others at {place.address}, "
            f"port {place.port} ({in_short(error)}): see whether they all started and reach that host"
        ) from None
    comm.create_local_process_group(place.local_processes)
    # An agent counts the restarts of its own machine alone.
    args.resume = any(comm.all_gather(args.resume))
    run_together(args)
    leave_process_group()


def leave_process_group() -> None:
    """Waits for the other processes and takes their group down, if there is one.

    Detectron2 keeps the group in a cache. Left there, it falls with the interpreter, and a thread of
    gloo's that still runs then aborts a process whose work is done.
    """
    import torch.distributed as dist
    from detectron2.utils import comm

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        comm._get_global_gloo_group.cache_clear()
        dist.destroy_process_group()


def check_processes(args: argparse.Namespace) -> None:
    """Refuses what `launch` would answer with a failed assertion."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else None
    if args.num_gpus < 1 or (gpus is not None and args.num_gpus > gpus):
        raise InputError(f"--num-gpus {args.num_gpus}: this machine has {gpus or 'only a CPU'}")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise InputError("several machines need --dist-url tcp://HOST:PORT, the same for each")


@options.command(_options, __doc__, again=AGAIN)
def main(args: argparse.Namespace) -> int:
    """Trains or evaluates in this process, or starts those that do; returns the exit status."""
    _options_as_keys(args)
    from clipself_seg.training.launchers import place_of, restarted

    # What was started anew goes on; with --eval-only the flag would ask for other weights.
    args.resume |= restarted(os.environ) and not args.eval_only
    if place := place_of(os.environ):
        join(place, args)
        return 0
    check_processes(args)
    if args.num_gpus * args.num_machines == 1:
        run(args)
        return 0
    from detectron2.engine import launch
    from torch.multiprocessing import ProcessExitedException

    machines = {"num_machines": args.num_machines, "machine_rank": args.machine_rank}
    try:
        launch(worker, args.num_gpus, dist_url=args.dist_url, args=(args,), **machines)
    except ProcessExitedException as error:
        if error.exit_code < 0:
            raise InputError(
                f"process {error.error_index + 1} of {args.num_gpus} on this machine "
                f"{ended_by(error.exit_code)}; the others were ended too; {AGAIN}"
            ) from None
        if error.exit_code == INTERRUPTED:
            raise KeyboardInterrupt from None
        return error.exit_code  # it said why
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    except SystemExit as error:
        return int(error.code or 0)
    return 0
