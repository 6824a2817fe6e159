"""Speed and memory of all tasks beside a plain formulation: features, distillation, regions, CAT-Seg, ODISE, F-ViT.

    python tools/benchmark.py all --repeats 1 --json all.json
    python tools/benchmark.py dense --model ViT-B-16 --size 1024
    python tools/benchmark.py distill --model ViT-B-16 --size 1024 --batch 2
    python tools/benchmark.py regions --model EVA02-B-16 --size 1024 --json regions.json
    python tools/benchmark.py semseg --model ViT-B-16-quickgelu --classes 847 --only image --repeats 1
    python tools/benchmark.py semseg --model ViT-B-16-quickgelu --training
    python tools/benchmark.py panoptic --repeats 3
    python tools/benchmark.py detection --only image "behind the tower" --repeats 3
    python tools/benchmark.py models --json docs/measured/models.json
    python tools/benchmark.py first-hour --json output/first_hour.json

"all" is every job of the project at its official sizes in one run, one line each beside its plain formulation
and in bfloat16 (an hour on two cores with --repeats 1; --only takes the first words of lines). A job that is
in the file of --json from the same commit and processor is not measured again, so that a second call goes on.
docs/measured/speed.json is such a file, and python tools/write_tables.py brings it to docs/performance.md.
"models" writes what README and docs/performance.md say of the models of README's table (three minutes;
python tools/write_tables.py brings it there).

Weights are random and images are noise: neither changes the time. Everything is timed in turn in one
process (the median of --repeats calls counts); peak memory, weights included, is that of a process for
each formulation. FLOP/s count the matrix products that the task needs, not what a formulation computes
in vain, and are compared with the fastest large matrix product of the same run.

The plain formulation resizes and normalises crops one by one into 20 float slots, runs OpenAI's last
block in full beside the value path, embeds crops through the whole last block, pools boxes in a loop and
masks from a copy of the map for each, and reads boxes and masks from a dense pass each. CAT-Seg's
encodes texts at the full context length, repeats guidance for every class, makes padding tokens, has all
windows in one batch and all classes' maps at the size of the image, and trains on one-hot targets. All
have torch's own linear layers. An image has 480 x 640 pixels; "image" encodes the texts anew, as for a
first image, and gives all scores, "best class" only the labels.

Panoptic segmentation has ODISE's sizes: an image of 1024 x 1365 on a canvas of 1024 x 1408. The plain
generator predicts masks and pooled embeddings ten times, plain masked attention has mask tokens
for keys too and a boolean mask, plain dense pooling a copy of the map for each mask, the plain merge is a loop over
queries.
Memory of the merge is what it needs beside the masks, which have the size of the canvas.

Detection has the sizes of F-ViT on OV-LVIS, one image, boxes of all sizes and random vectors for texts. The
plain detector resizes taps at the tower's width before its lateral convolutions, has batch norms of their own,
samples CLIP's regions by RoIAlign, suppresses all candidates class by class, and samples each mask all over the
image (Detectron2 does so on a GPU; on a CPU it keeps to the box, as here). "behind the tower" is an image whose taps
are given.

"first-hour" is for a machine with a GPU: tests on it, steps and images of all tasks in each precision, waits, sizes of
pieces, two processes. What it takes is in first_hour.yaml. --json is output/first_hour.json if it is not
given, a page (.md) lies beside it; a second call goes on where the first one ended. --only takes first words of steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipself_seg.commands.options import flag, value
from clipself_seg.errors import InputError, report_input_errors

if TYPE_CHECKING:
    from bench.case import Case

START = time.perf_counter()
COMMON = ("repeats", "threads", "device")
OF_ONE_TASK = "model size batch precision classes training compile pieces".split()
MODEL, PANOPTIC_MODEL, DETECTION_MODEL = "ViT-B-16", "ViT-L-14-336-quickgelu", "EVA02-B-16"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = "all models dense distill regions semseg panoptic detection first-hour".split()
    value(options, "task", choices=tasks)
    models = f"{MODEL}; of panoptic ODISE's, {PANOPTIC_MODEL}; of detection {DETECTION_MODEL}"
    value(options, "--model", f"open_clip's name ({models})")
    value(options, "--size", "side in pixels", 1024)
    value(options, "--batch", "images", 1)
    precisions = ["float32", "bfloat16", "float16"]
    value(options, "--precision", "of autocast", "float32", choices=precisions)
    classes = "of semseg (150; 171 in training), panoptic (133) or detection (1203)"
    value(options, "--classes", classes, kind=int)
    only = "rows of the table to measure, each beside its plain formulation (everything)"
    value(options, "--only", only, count="+", metavar="NAME")
    flag(options, "--training", "a training step of semseg")
    compiled = "blocks of the image tower by torch.compile, as MODEL.CLIP.COMPILE, in the warm-up"
    flag(options, "--compile", compiled)
    flag(options, "--small", "first-hour as small as can be, to see that it works")
    pieces = "elements that a piece of work makes at once on a GPU (2**28, 1 GiB in float32)"
    value(options, "--pieces", pieces, kind=int, metavar="ELEMENTS")
    value(options, "--repeats", "timed calls of everything", 5)
    value(options, "--threads", "of torch (its own choice)", kind=int)
    value(options, "--device", "(a GPU if there is one)", choices=["cpu", "cuda"])
    value(options, "--json", "file for all figures, with where they come from")
    return options


def say(line: str) -> None:
    """A line of progress on stderr."""
    sys.stderr.write(f"[{time.perf_counter() - START:6.1f} s] {line}\n")


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    options = parser()
    args = vars(options.parse_args(arguments))
    task, path = args["task"], args.pop("json")
    small = args.pop("small")
    args["only"] = tuple(args["only"] or ())
    if small and task != "first-hour":
        raise InputError(f"--small is for first-hour, not for {task}")
    given = [name for name in OF_ONE_TASK if args[name] != options.get_default(name)]
    if given and task in ("all", "models", "first-hour"):
        raise InputError(f"--{given[0]} is for one task, {task} has its own; leave it out")
    import torch

    from clipself_seg.files import write_json

    if args["threads"] is None:
        args["threads"] = torch.get_num_threads()
    gpu = torch.cuda.is_available() or task == "first-hour"
    args["device"] = args["device"] or ("cuda" if gpu else "cpu")
    if task == "first-hour":
        from bench.first_hour import first_hour

        path = Path(path or "output/first_hour.json")
        sys.stdout.write(first_hour(path, args | {"small": small}, say))
        return
    if task == "models":
        from bench.models import measure_models

        write_json(Path(path or "docs/measured/models.json"), measure_models(args["only"], say))
        return
    from bench import jobs

    if task == "all":
        common = {key: args[key] for key in COMMON}
        shown = jobs.run_all(common, args["only"], Path(path) if path else None, say)
    else:
        case = _case(args)
        results = jobs.run_benchmark(case, say)
        shown = {f"{task}, {case.model}": results}
        if path:
            write_json(Path(path), results)
    sys.stdout.write(jobs.table(shown) + "\n")


def _case(args: dict[str, Any]) -> Case:
    """The case of one task, with what its size is where nothing is said."""
    from bench.case import Case

    task = args["task"]
    classes = {"panoptic": 133, "detection": 1203}
    args["classes"] = args["classes"] or classes.get(task, 171 if args["training"] else 150)
    models = {"panoptic": PANOPTIC_MODEL, "detection": DETECTION_MODEL}
    args["model"] = args["model"] or models.get(task, MODEL)
    return Case(**args)
