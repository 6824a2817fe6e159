#!/usr/bin/env python3
"""Run every task in two checkouts of this project, and compare what they write.

    git worktree add --detach ../before HEAD~1
    python tools/compare_checkouts.py ../before . --worlds output/mini_world

Evaluates the shipped weights of every task, trains two steps of every recipe, and predicts a few scenes. Numbers,
label maps and tensors have to be equal bit for bit; dates, commits, versions, times and paths are left out. What a
checkout has written is kept below --output, and is not computed again for a commit without changes. Everything runs
in one thread: last digits depend on their number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

SHIPPED = "MODEL.WEIGHTS"
CLIP = "MODEL.CLIP.WEIGHTS"
# Configuration below configs/mini and keys of each evaluation.
EVALUATIONS = {
    "regions": ("regions", CLIP, "mini"),
    "regions-clipself": ("regions", CLIP, "mini-clipself"),
    "regions-proposals": ("regions", CLIP, "mini-clipself-proposals"),
    "zero-shot": ("zero_shot",),
    "semantic": ("semseg", SHIPPED, "mini-cat-seg"),
    "panoptic": ("panoptic", SHIPPED, "mini-open-panoptic"),
    "panoptic-original": ("panoptic_original", SHIPPED, "mini-open-panoptic"),
    "detection": ("detection", SHIPPED, "mini-fvit"),
}
# Configurations below configs/mini of which two steps are trained.
TRAININGS = "patches proposals patches_preserved captions region_text semseg panoptic panoptic_plain detection".split()
WORDS = "red star|scarlet star, blue ring, green cross, grass, sand, water"
PREDICTIONS = {
    "predict-zero-shot": ("--model", "mini-clipself"),
    "predict-semantic": ("--model", "mini-cat-seg", "--save", "labels", "coco", "--absent", "mark"),
    "predict-background": ("--model", "mini-cat-seg", "--background", "--threshold", "0.3"),
    "predict-panoptic": ("--model", "mini-open-panoptic", "--stuff", "grass, sand, water"),
    "predict-detection": ("--model", "mini-fvit"),
}
# Keys of JSON that differ between commits, machines and days.
LEFT_OUT = set(
    "argv command commit date date_created time seconds config config_file output_dir versions version provenance "
    "data_time eta_seconds rank_data_time peak_memory".split()
)


def cases(worlds: Path) -> dict[str, list[str]]:
    """Command of each case, behind the interpreter, up to its output folder."""
    commands = {}
    for name, (config, *keys) in EVALUATIONS.items():
        words = ["train_net.py", "--config-file", f"configs/mini/{config}.yaml", "--eval-only"]
        commands[name] = [*words, *keys, "MODEL.DEVICE", "cpu", "OUTPUT_DIR"]
    for config in TRAININGS:
        words = ["train_net.py", "--config-file", f"configs/mini/{config}.yaml", "DATASETS.TEST"]
        keys = ["()", "SOLVER.MAX_ITER", "2", "SOLVER.LOG_PERIOD", "1", "SOLVER.IMS_PER_BATCH", "4"]
        keys += ["DATALOADER.NUM_WORKERS", "0"]
        commands[f"train-{config}"] = [*words, *keys, "MODEL.DEVICE", "cpu", "OUTPUT_DIR"]
    scenes = [str(path) for path in sorted((worlds / "mini/val").glob("*"))[:3]]
    for name, options in PREDICTIONS.items():
        words = ["-m", "clipself_seg", "predict", *scenes, "--words", WORDS, *options]
        commands[name] = [*words, "--device", "cpu", "--output"]
    return commands


def run(checkout: Path, command: list[str], folder: Path, worlds: Path) -> None:
    """Runs a command in a checkout, with its log beside the outputs; one that ran already is not repeated."""
    done = folder / "done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = {"PYTHONPATH": str(checkout), "CLIPSELF_SEG_MINI": str(worlds), "OMP_NUM_THREADS": "1"}
    with open(folder / "log.txt", "w") as log:
        command = [sys.executable, *command, str(folder / "output")]
        subprocess.run(
            command, cwd=checkout, env=os.environ | own, stdout=log, stderr=log, check=True
        )
    done.touch()


def state_of(checkout: Path) -> str:
    """The commit of a checkout, or "changed" where it has uncommitted changes."""
    git = ["git", "-C", str(checkout)]
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    return "changed" if changed.strip() else commit.strip()


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Places in two JSON values which differ, without `LEFT_OUT`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            if key not in LEFT_OUT:
                yield from differences(old.get(key), new.get(key), f"{at}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new)):
            yield from differences(*pair, f"{at}[{index}]")
    elif isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and old.shape == new.shape:
        if not np.array_equal(old, new):
            yield f"{at}: by {np.abs(old.astype(float) - new.astype(float)).max():.3g} at most"
    elif str(old) != str(new):
        yield f"{at}: {str(old)[:60]} -> {str(new)[:60]}"


def content(path: Path) -> Any:
    """What a file holds, as JSON has it; None for a file that is not compared."""
    if path.name == "metrics.json":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".png" and "overlays" not in path.parts:
        return path.read_bytes()
    if path.suffix == ".safetensors":
        return load_file(path)
    return None


def compare(old: Path, new: Path) -> list[str]:
    """What differs between two folders of outputs."""
    files = {
        path.relative_to(root)
        for root in (old, new)
        for path in root.rglob("*.*")
        if "tfevents" not in path.name
    }
    wrong = []
    for file in sorted(files):
        if not ((old / file).exists() and (new / file).exists()):
            wrong.append(f"{file}: only {'before' if (old / file).exists() else 'after'}")
        elif (old / file).is_file():
            wrong += [f"{file}{d}" for d in differences(content(old / file), content(new / file))]
    return wrong


def main() -> int:
    """Run and compare; the status is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--worlds", type=Path, default=Path("output/mini_world"))
    parser.add_argument("--output", type=Path, default=Path("output/compare_checkouts"))
    parser.add_argument("--only", nargs="+", default=[], help="cases by name (all)")
    args = parser.parse_args()
    worlds = args.worlds.absolute()
    failed = False
    for name, command in cases(worlds).items():
        if args.only and name not in args.only:
            continue
        folders = []
        for side, checkout in (("old", args.old), ("new", args.new)):
            folders.append(args.output.absolute() / side / state_of(checkout) / name)
            run(checkout.absolute(), command, folders[-1], worlds)
        wrong = compare(*(folder / "output" for folder in folders))
        failed |= bool(wrong)
        sys.stdout.write("\n  ".join([f"{name}: {'differs' if wrong else 'equal'}", *wrong[:20]]))
        sys.stdout.write("\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
