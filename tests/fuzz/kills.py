"""Kills runs at random moments, starts them again, and compares what they end with, bit for bit.

    python -m tests.fuzz.kills --kills 50
    python -m tests.fuzz.kills --kills 3 --task semseg --seed 7 --keep output/kills --json output/kills.json

Small runs of each task train on the mini world, predict for its images, save a predictor or export: first one that
nobody interrupts, then others that end by SIGKILL and start again (with --resume, --skip-existing, or as they
are) until they are done; then the next one begins, until there were enough kills. Half of the kills come after a
time drawn between nothing and a little more than a whole run takes, the others before a change to a file that is
drawn in the same way: a file opened for writing, renamed or removed, a folder made or removed. Processes are
forked from one that has imported everything, so that a start takes a fraction of a second. Of a killed run a
loader's worker may live on for seconds, beside the run that resumes. Every second folder of save_pretrained
replaces one that is there.

A training is compared with the uninterrupted one in its final weights, its checkpoints (weights, moments, step,
metadata) and its metrics of every step but for the time they took, predictions and saved predictors in all
their files but for dates. Nothing half-written may be left, and no traceback may be printed. At every kill the
files of results that are there have to be whole, and a saved predictor is there whole or not at all. The seed
decides when runs are killed, the machine how far they have come. The status is 1 if anything differs.
"""

import argparse
import dataclasses
import json
import mmap
import os
import random
import re
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
from clipself_seg.clip import load_clip
from clipself_seg.commands import predict
from clipself_seg.errors import InputError
from clipself_seg.files import write_json
from clipself_seg.prediction.journal import FILE_NAME as JOURNAL
from clipself_seg.prediction.load import load
from clipself_seg.prediction.onnx.export import export
from tests.baseline import runs

# Task -> key of `runs.KILLED` and the file that its training ends with; "" and "" for what is no training.
CLIP = "clip_final.safetensors"
TASKS = {
    "distill": ("clipself", CLIP),
    "correlation": ("correlation", CLIP),
    "preservation": ("preservation", CLIP),
    "semseg": ("cat_seg", "model_final.pth"),
    "panoptic": ("open_panoptic", "model_final.pth"),
    "detection": ("fvit", "model_final.pth"),
    "own_data": ("own_data", "model_final.pth"),
    "predict": ("", ""),
    "save_pretrained": ("", ""),
    "export_file": ("", ""),
    "export_folder": ("", ""),
}
ONNX = "model.onnx"
WORDS = "red star, blue ring, grass"
SAVED = "overlays labels coco".split()
STEPS, PERIOD = 36, 3  # of a run, and from a checkpoint to the next
POLL = 0.002  # seconds
# The latest kill would come after so much of a whole run: some runs come to their end.
BEYOND = 1.25
CHANGES = {"os.mkdir", "os.rename", "os.rmdir", "os.remove"}  # events of Python's audit
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT  # flags of its event "open"
DATE = re.compile(rb"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00")


@dataclasses.dataclass
class Outcome:
    """What became of the runs of a task.

    Attributes:
        seconds: that the uninterrupted run took.
        changes: number of changes to files of that run.
        steps: at each kill, steps logged, images done, or files of a predictor written.
        before_changes: kills before a change to a file; the others came after a time.
        finished: runs that came to their end.
        different: what differs from the uninterrupted run, or ended otherwise than it should.
    """

    seconds: float = 0.0
    changes: int = 0
    before_changes: int = 0
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
    task: str, clip: Path, folder: Path, kills: int, steps: int, seed: int, keep: Path | None = None
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
    final = TASKS[task][1]
    folder.mkdir(parents=True)
    outcome, whole, changes = Outcome(), folder / "whole", mmap.mmap(-1, 8)
    work = work_of(task, clip, steps)

    def begin(output: Path, workers: int, before: int = 0) -> int:
        log = folder / f"{output.name}.txt"
        return start(lambda: work(output, workers), log, changes, before)

    before = time.monotonic()
    status = end(begin(whole, workers=0))
    outcome.seconds = time.monotonic() - before
    outcome.changes = int.from_bytes(changes[:], sys.byteorder)
    if status:
        outcome.different.append(f"the uninterrupted run ended with {status}")
        return outcome
    rng = random.Random(f"{seed} {task}")
    with tqdm(total=kills, desc=task, unit="kill") as progress:
        while not outcome.different and (len(outcome.steps) < kills or not outcome.finished):
            output = folder / f"killed_{outcome.finished}"
            if task == "save_pretrained" and outcome.finished % 2 and not output.exists():
                if not any(folder.glob(f".{output.name}.*")):
                    shutil.copytree(whole, output)
            last, limit = 0, None
            if len(outcome.steps) < kills and rng.random() < 0.5:
                limit = rng.uniform(0, BEYOND * outcome.seconds)
            elif len(outcome.steps) < kills:
                last = rng.randint(1, 1 + int(BEYOND * outcome.changes))
            status = end(begin(output, 1, last), limit)
            log = (folder / f"{output.name}.txt").read_text(errors="replace").strip()
            if status == -signal.SIGKILL:
                outcome.steps.append(done(task, output))
                outcome.before_changes += bool(last)
                outcome.different += torn(task, whole, output)
                progress.update()
            else:
                outcome.finished += 1
                if status:
                    said = "".join(log.splitlines()[-1:])
                    outcome.different.append(f"{output.name} ended with {status}: {said}")
                outcome.different += differences(whole, output, final)
            if "Traceback" in log:
                outcome.different.append(f"{output.name} prints a traceback")
            if outcome.different and keep:
                shutil.copytree(folder, keep / task, dirs_exist_ok=True)
            elif status == 0:
                shutil.rmtree(output)
    return outcome


def work_of(task: str, clip: Path, steps: int) -> Callable[[Path, int], int]:
    """What a run does, given its folder and a number of loader workers; gives the status. Args as `killed_runs`."""
    kind = TASKS[task][0]
    changes: dict[str, Any] = {"SOLVER__MAX_ITER": steps, "SOLVER__CHECKPOINT_PERIOD": PERIOD}
    changes |= {"SOLVER__CHECKPOINT_KEEP": 2}

    if kind == "own_data":
        begun = clip.parent / "begun"
        train_net.main(runs.KILLED["fvit"].command(clip, begun, SOLVER__MAX_ITER=1))
        changes["MODEL__WEIGHTS"] = begun / "model_final.pth"
        changes["DATASETS__DATA"] = clip.parent / "mini/annotations/instances_train.json"

    def train(output: Path, workers: int) -> int:
        more = changes | {"DATALOADER__NUM_WORKERS": workers}
        return train_net.main(runs.KILLED[kind].command(clip, output, "--resume", **more))

    def predict_images(output: Path, _: int) -> int:
        words = [str(clip.parent / "mini/val"), "--words", WORDS, "--model", "mini"]
        words += ["--skip-existing", "--batch-size", "2", "--save", *SAVED, "--device", "cpu"]
        return predict.main([*words, "--output", str(output)])

    if kind:
        return train
    if task == "predict":
        return predict_images
    if task == "export_folder":
        tower = load_clip("ViT-Mini-8", "mini")
        del tower.visual.blocks[1:], tower.text.blocks[1:]
        return lambda output, _: export_once(tower, output)
    if task == "export_file":
        mini = load("mini-clipself", device="cpu")
        mini.set_vocabulary(WORDS)
        return lambda output, _: export_once(mini, output / ONNX)
    config = runs.CONFIGS / "mini/semseg.yaml"
    predictor = load("mini-cat-seg", config_file=config, device="cpu")
    predictor.set_vocabulary(WORDS)
    return lambda output, _: predictor.save_pretrained(output, overwrite=True) or 0


def export_once(model: Any, path: Path) -> int:
    """Export, unless a killed export is found to be complete."""
    try:
        export(model, path)
    except InputError as error:
        if "is there already" not in str(error):
            raise
    return 0


def start(
    work: Callable[[], int], log: Path, changes: mmap.mmap | None = None, last: int = 0
) -> int:
    """Number of a forked process that works, adds what it says to `log` and ends with the status.

    Args:
        work: gives the status.
        log: file.
        changes: shared memory, in which the process counts its changes to files.
        last: number, from 1, of the change before which it ends by SIGKILL; 0: it does not.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            with open(log, "a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout = sys.stderr = file
                if changes is not None:
                    count_changes(changes, last)
                try:
                    status = work()
                except Exception:
                    traceback.print_exc()
        finally:
            os._exit(status)
    return child


def count_changes(changes: mmap.mmap, last: int) -> None:
    """Count this process's changes to files, and end it before the `last` one; see `start`."""
    own, counted = os.getpid(), 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal counted
        changing = event in CHANGES or event == "open" and args[2] & WRITING
        if changing and os.getpid() == own:  # not in a child that was forked since
            counted += 1
            changes[:] = counted.to_bytes(8, sys.byteorder)
            if counted == last:
                os.kill(own, signal.SIGKILL)

    sys.addaudithook(count)


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


def done(task: str, output: Path) -> int:
    """How far a run has come, see `Outcome.steps`."""
    if task == "export_file":
        return len([*output.glob(".*.part/folder/*")])
    if task in ("save_pretrained", "export_folder"):
        return len([*output.parent.glob(f".{output.name}.*/folder/*")])
    if task == "predict":
        path = output / JOURNAL
        return path.read_text().count('"input"') if path.exists() else 0
    return len(logged(output))


def torn(task: str, whole: Path, output: Path) -> list[str]:
    """What is half-written at a kill under the name of a whole file, in words."""
    if TASKS[task][0] or not output.exists():
        return []
    names, there = different_files(whole, output), files(output)
    if task == "predict":  # which has fewer, and an index of them
        names = [name for name in names if name in there and not name.endswith(".json")]
        names = [name for name in names if ".part/" not in name]
    if task == "export_file":  # of which the model comes last
        names = [name for name in names if name in there or ONNX in there]
        names = [name for name in names if ".part/" not in name]
    return [f"{output.name} has a part of {name} after a kill" for name in names]


def files(folder: Path) -> dict[str, bytes]:
    """Name -> content of all files but the journal, without the dates in them."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != JOURNAL]
    return {str(path.relative_to(folder)): DATE.sub(b"", path.read_bytes()) for path in paths}


def different_files(whole: Path, output: Path) -> list[str]:
    """Names of files that only one of two folders has, or whose content differs."""
    one, two = files(whole), files(output)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def differences(whole: Path, output: Path, final: str) -> list[str]:
    """What a run that is done has other than the uninterrupted one, in words.

    Args:
        whole: folder of the uninterrupted run.
        output: folder of the other one.
        final: name of the file that the training ends with; "" for what is no training.
    """
    if not (output / final).exists():
        return [f"{output.name} has no {final}"]
    different = [f"{output.name} differs in {name}" for name in different_files(whole, output)[:3]]
    if final:
        different = different_training(whole, output, final)
    left = [path.name for path in output.rglob(".*") if path.name != JOURNAL]
    left += [path.name for path in output.parent.glob(f".{output.name}.*")]
    if left:
        different.append(f"{output.name} has half-written files: {', '.join(left[:3])}")
    return different


def different_training(whole: Path, output: Path, final: str) -> list[str]:
    """What differs in weights, checkpoints and metrics, in words; see `differences`."""
    different = []
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
            outcome.before_changes,
            sum(steps == 0 for steps in outcome.steps),
            max(outcome.steps, default=0),
            outcome.finished,
            len(outcome.different),
            f"{outcome.seconds:.1f}",
        ]
        for task, outcome in outcomes.items()
    ]
    titles = ["task", "kills", "before a change to a file", "before the first step", "most steps"]
    return tabulate(rows, [*titles, "runs compared", "differences", "seconds of a run"])


def work_in_one_thread() -> None:
    """Threads of OpenMP and OpenCV do not survive the forks."""
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


if __name__ == "__main__":
    work_in_one_thread()
    sys.exit(main())
