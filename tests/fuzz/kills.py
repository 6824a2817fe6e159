"""Kills trainings at random moments, resumes them, and compares what they end with, bit for bit.

    python -m tests.fuzz.kills --kills 50
    python -m tests.fuzz.kills --kills 3 --task semseg --seed 7 --keep output/kills --json output/kills.json

Small runs of each task train on the mini world: first one that nobody interrupts, then others that end by
SIGKILL after a time drawn between nothing and what a whole run takes, and go on with --resume until they are
done; then the next one begins, until there were enough kills. Processes are forked from one that has imported
everything, so that a start takes a fraction of a second. Of a killed run a loader's worker may live on for
seconds, beside the run that resumes.

A run is compared with the uninterrupted one in its final weights, its checkpoints (weights, moments, step,
metadata) and its metrics of every step but for the time they took; nothing half-written may be left. The seed
decides after which times runs are killed, the machine how far they have come. The status is 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

import train_net
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.files import write_json
from tests.baseline import runs

# Task -> key of `runs.KILLED` and the file that its training ends with.
TASKS = {
    "distill": ("clipself", "clip_final.safetensors"),
    "semseg": ("cat_seg", "model_final.pth"),
    "panoptic": ("open_panoptic", "model_final.pth"),
    "detection": ("fvit", "model_final.pth"),
}
STEPS, PERIOD = 36, 3  # of a run, and from a checkpoint to the next
POLL = 0.002  # seconds


@dataclasses.dataclass
class Outcome:
    """What became of the runs of a task.

    Attributes:
        seconds: that the uninterrupted run took.
        steps: steps logged at each kill.
        finished: runs that came to their end.
        different: what differs from the uninterrupted run, or ended otherwise than it should.
    """

    seconds: float = 0.0
    steps: list[int] = dataclasses.field(default_factory=list)
    finished: int = 0
    different: list[str] = dataclasses.field(default_factory=list)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kills", type=int, default=50, help="of each task (50)")
    options.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS, help="(all)")
    options.add_argument("--steps", type=int, default=STEPS, help=f"of a run ({STEPS})")
    options.add_argument("--seed", type=int, default=0, help="decides the times (0)")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="for runs that differ")
    options.add_argument("--json", type=Path, metavar="FILE", help="for the numbers")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, resume, compare; print a table. Gives the exit status."""
    args = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, runs.surroundings(Path(folder)) as clip:
        outcomes = {
            task: killed_runs(
                task, clip, Path(folder) / task, args.kills, args.steps, args.seed, args.keep
            )
            for task in args.task
        }
    sys.stdout.write(f"{table(outcomes)}\n")
    for task, outcome in outcomes.items():
        sys.stdout.writelines(f"{task}: {line}\n" for line in outcome.different)
    if args.json:
        about = {"seed": args.seed, "steps": args.steps, "torch": torch.__version__}
        numbers = {task: dataclasses.asdict(outcome) for task, outcome in outcomes.items()}
        write_json(args.json, about | {"tasks": numbers})
    return int(any(outcome.different for outcome in outcomes.values()))


def killed_runs(
    task: str,
    clip: Path,
    folder: Path,
    kills: int,
    steps: int,
    seed: int,
    keep: Path | None = None,
) -> Outcome:
    """Kill and resume runs of a task, and compare them with one that is not.

    Args:
        task: key of `TASKS`.
        clip: checkpoint of the CLIP, see `runs.surroundings`.
        folder: for all runs.
        kills: number of them.
        steps: of a run.
        seed: decides after which times the runs are killed.
        keep: folder for runs that differ.
    """
    kind, final = TASKS[task]
    folder.mkdir(parents=True)
    outcome = Outcome()

    def begin(output: Path, workers: int) -> int:
        changes = {"SOLVER__MAX_ITER": steps, "SOLVER__CHECKPOINT_PERIOD": PERIOD}
        changes |= {"SOLVER__CHECKPOINT_KEEP": 2, "DATALOADER__NUM_WORKERS": workers}
        command = runs.KILLED[kind].command(clip, output, "--resume", **changes)
        return start(lambda: train_net.main(command), folder / f"{output.name}.txt")

    before = time.monotonic()
    status = end(begin(folder / "whole", workers=0))
    outcome.seconds = time.monotonic() - before
    if status:
        outcome.different.append(f"the uninterrupted run ended with {status}")
        return outcome
    rng = random.Random(f"{seed} {task}")
    with tqdm(total=kills, desc=task, unit="kill") as progress:
        while not outcome.different and (len(outcome.steps) < kills or not outcome.finished):
            output = folder / f"killed_{outcome.finished}"
            left = kills - len(outcome.steps)
            limit = rng.uniform(0, outcome.seconds) if left else None
            status = end(begin(output, workers=1), limit)
            if status == -signal.SIGKILL:
                outcome.steps.append(len(logged(output)))
                progress.update()
                continue
            outcome.finished += 1
            if status:
                last = (folder / f"{output.name}.txt").read_text().strip().splitlines()[-1:]
                outcome.different.append(f"{output.name} ended with {status}: {' '.join(last)}")
            outcome.different += differences(folder / "whole", output, final)
            if not outcome.different:
                shutil.rmtree(output)
            elif keep:
                shutil.copytree(folder, keep / task, dirs_exist_ok=True)
    return outcome


def start(work: Callable[[], int], log: Path) -> int:
    """Number of a forked process that works, writes what it says into `log` and ends with the status."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            with open(log, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout = sys.stderr = file
                try:
                    status = work()
                except Exception:
                    traceback.print_exc()
        finally:
            os._exit(status)
    return child


def end(child: int, seconds: float | None = None) -> int:
    """Exit status of a process, or minus the signal; it is killed if it takes longer than `seconds`."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is not None and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL)
    if deadline is not None:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def logged(output: Path) -> list[dict[str, Any]]:
    """What a run wrote of its steps, but for the time that they took and a line that was cut off."""
    path = output / "metrics.json"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if k not in runs.NOT_KEPT} for row in rows]


def differences(whole: Path, output: Path, final: str) -> list[str]:
    """What a run that is done has other than the uninterrupted one, in words.

    Args:
        whole: folder of the uninterrupted run.
        output: folder of the other one.
        final: name of the file that the training ends with.
    """
    different = []
    if not (output / final).exists():
        return [f"{output.name} has no {final}"]
    one, two = (read_checkpoint(folder / final).tensors for folder in (whole, output))
    names = [name for name in one.keys() | two.keys() if not same(one.get(name), two.get(name))]
    if names:
        different.append(f"{final} of {output.name} differs in {', '.join(sorted(names)[:3])}")
    states = [
        {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
        for folder in (whole, output)
    ]
    if states[0] != states[1]:
        different.append(f"checkpoints of {output.name} differ: {sorted(states[1])}")
    if logged(whole) != logged(output):
        different.append(f"metrics of {output.name} differ")
    left = [path.name for path in output.rglob(".*")]
    if left:
        different.append(f"{output.name} has half-written files: {', '.join(left[:3])}")
    return different


def same(one: torch.Tensor | None, two: torch.Tensor | None) -> bool:
    """Whether two tensors have the same bits."""
    return one is not None and two is not None and one.dtype == two.dtype and torch.equal(one, two)


def table(outcomes: dict[str, Outcome]) -> str:
    """One row a task."""
    rows = [
        [
            task,
            len(outcome.steps),
            sum(steps == 0 for steps in outcome.steps),
            max(outcome.steps, default=0),
            outcome.finished,
            len(outcome.different),
            f"{outcome.seconds:.1f}",
        ]
        for task, outcome in outcomes.items()
    ]
    titles = ["task", "kills", "before a step was logged", "steps at the last", "runs compared"]
    return tabulate(rows, [*titles, "differences", "seconds of a run"])


def work_in_one_thread() -> None:
    """Threads of OpenMP and OpenCV do not survive the forks."""
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


if __name__ == "__main__":
    work_in_one_thread()
    sys.exit(main())
