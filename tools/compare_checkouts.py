#!/usr/bin/env python3
"""Run every task in two checkouts of this project, and compare what they write.

    git worktree add --detach ../before HEAD~1
    python tools/compare_checkouts.py ../before . --worlds output/mini_world

Evaluates the shipped weights of every task, trains two steps of every recipe, and predicts a few scenes. Numbers,
label maps and tensors have to be equal bit for bit; dates, commits, versions, times and paths are left out. All runs
in one thread, since last digits depend on their number. What each case wrote stays below --output.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

EVAL = "train_net.py --eval-only --config-file configs/mini"
# The training data of the mini world, in batches that a world of eight scenes has.
TRAIN = (
    "train_net.py --config-file configs/mini/{}.yaml DATASETS.TEST () SOLVER.MAX_ITER 2 SOLVER.LOG_PERIOD 1 "
    "SOLVER.IMS_PER_BATCH 4 DATALOADER.NUM_WORKERS 0 MODEL.DEVICE cpu OUTPUT_DIR"
)
WORDS = "red star|scarlet star, blue ring, green cross, grass, sand, water"
PREDICT = f"-m clipself_seg predict {{scenes}} --words '{WORDS}' --device cpu"
# Case -> words after ``python``, of which the last is followed by its output folder.
CASES = {
    "regions": f"{EVAL}/regions.yaml MODEL.CLIP.WEIGHTS mini OUTPUT_DIR",
    "regions-clipself": f"{EVAL}/regions.yaml MODEL.CLIP.WEIGHTS mini-clipself OUTPUT_DIR",
    "regions-proposals": f"{EVAL}/regions.yaml MODEL.CLIP.WEIGHTS mini-clipself-proposals OUTPUT_DIR",
    "zero-shot": f"{EVAL}/zero_shot.yaml OUTPUT_DIR",
    "semantic": f"{EVAL}/semseg.yaml MODEL.WEIGHTS mini-cat-seg OUTPUT_DIR",
    "panoptic": f"{EVAL}/panoptic.yaml MODEL.WEIGHTS mini-open-panoptic OUTPUT_DIR",
    "panoptic-original": f"{EVAL}/panoptic_original.yaml MODEL.WEIGHTS mini-open-panoptic OUTPUT_DIR",
    "detection": f"{EVAL}/detection.yaml MODEL.WEIGHTS mini-fvit OUTPUT_DIR",
    "predict-zero-shot": f"{PREDICT} --model mini-clipself -o",
    "predict-semantic": f"{PREDICT} --model mini-cat-seg --save labels coco --absent mark -o",
    "predict-background": f"{PREDICT} --model mini-cat-seg --background --threshold 0.3 -o",
    "predict-panoptic": f"{PREDICT} --model mini-open-panoptic --stuff 'grass, sand, water' -o",
    "predict-detection": f"{PREDICT} --model mini-fvit -o",
}
RECIPES = "patches proposals patches_preserved captions region_text semseg panoptic panoptic_plain detection"
CASES |= {f"train-{recipe}": TRAIN.format(recipe) for recipe in RECIPES.split()}
# Keys of JSON that differ between commits, machines and days.
LEFT_OUT = set(
    "argv command commit date date_created time seconds config config_file output_dir versions version provenance "
    "data_time eta_seconds rank_data_time peak_memory".split()
)


def run(checkout: Path, case: str, folder: Path, worlds: Path) -> None:
    """Run a case in a checkout; its log lies beside its output."""
    folder.mkdir(parents=True)
    scenes = sorted((worlds / "mini/val").glob("*"))[:3]
    words = shlex.split(CASES[case].replace("{scenes}", shlex.join(map(str, scenes))))
    own = {"PYTHONPATH": str(checkout), "CLIPSELF_SEG_MINI": str(worlds), "OMP_NUM_THREADS": "1"}
    with open(folder / "log.txt", "w") as log:
        command = [sys.executable, *words, str(folder / "output")]
        done = subprocess.run(command, cwd=checkout, env=os.environ | own, stdout=log, stderr=log)
    if done.returncode:
        sys.exit(f"{case} failed in {checkout}: {folder / 'log.txt'}")


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Place and value of everything in a JSON value, without `LEFT_OUT`."""
    if isinstance(value, dict):
        for key in value.keys() - LEFT_OUT:
            yield from leaves(value[key], f"{at}.{key}")
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from leaves(one, f"{at}[{index}]")
    else:
        yield at, str(value)


def content(root: Path) -> dict[str, Any]:
    """The compared content of a folder of outputs: numbers of JSON, label maps and tensors, by their place."""
    written: dict[str, Any] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.name == "metrics.json":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            written |= {f"{name}{at}": value for at, value in leaves(lines)}
        elif path.suffix == ".json":
            written |= {f"{name}{at}": v for at, v in leaves(json.loads(path.read_text()))}
        elif path.suffix == ".png" and "overlays" not in path.parts:
            written[name] = path.read_bytes()
        elif path.suffix == ".safetensors":
            written |= {f"{name} {key}": t.tobytes() for key, t in load_file(path).items()}
    return written


def main() -> int:
    """Run and compare; the status is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkouts", nargs=2, type=Path)
    parser.add_argument("--worlds", type=Path, default=Path("output/mini_world"))
    parser.add_argument("--output", type=Path, default=Path("output/compare_checkouts"))
    parser.add_argument("--only", nargs="+", default=list(CASES), help="cases by name (all)")
    args = parser.parse_args()
    failed = False
    for case in args.only:
        sides = [args.output.absolute() / case / side for side in ("old", "new")]
        for checkout, folder in zip(args.checkouts, sides):
            run(checkout.absolute(), case, folder, args.worlds.absolute())
        old, new = (content(folder / "output") for folder in sides)
        wrong = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        failed |= bool(wrong) or not old
        sys.stdout.write("\n  ".join([f"{case}: {len(wrong)} of {len(old)} differ", *wrong[:20]]))
        sys.stdout.write("\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
