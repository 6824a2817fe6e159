"""The page of what to expect of each recipe: published numbers, hours of GPUs, memory.

    python tools/recipe_tables.py > docs/tables/expected.md
    python tools/recipe_tables.py --costs > tools/lab/tables/costs.json     # for reproduce --real

Published numbers are those of the tables in tools/lab/tables/ and of the official checkpoints; hours and memory are
the authors' where they said them, and computed (`recipe_costs`) where they did not.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode

from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.clip.openai import OPENAI_VIT
from clipself_seg.config import load_config
from clipself_seg.yaml_files import names, read_layers, setting_place
from lab import ROOT
from lab.tables.page import markdown_table
from lab.tables.rehearse import random_weights
from lab.tables.runs import config_name
from lab.tables.table import RunOf, Table, read_tables
from recipe_costs import evaluation, recipe

FOLDERS = ("distill", "regions", "semseg", "panoptic", "detection")
RATES = {"B": 52e12, "L": 70e12}
"""Operations a second of an A100 that the authors' times of two distillations imply, by the size of the ViT."""
AUTHORS = "CLIPSelf's tracker, issue 3"
MINI = re.compile(r" ?\(mini: [^)]*\)")  # what a row is in the mini world
COSTS = ("config", "images", "TFLOP an image", "A100 hours, computed", "GiB of a GPU, computed")
NUMBERS = ("config", "published")
# Folder of configurations -> beginnings of the names of checkpoints that are whole models of its task.
MODELS: dict[str, str | tuple[str, ...]] = {"semseg": "catseg", "panoptic": ("odise", "fcclip")}
EACH_TOWER = (
    "eva02_vitb16 eva02_vitl14_336 openai_vitb16 openai_vitl14_336 pe_core_vitb16 siglip2_vitb16 "
    "tipsv2_vitb14"
)
ON_TOWERS = {
    "distill/coco_captions": "eva02_vitb16",
    "distill/coco_patches": f"{EACH_TOWER} eva02_vitb16+paper",
    "distill/coco_proposals": "eva02_vitb16 eva02_vitl14_336",
    "distill/coco_region_text": "eva02_vitb16 eva02_vitl14_336",
    "distill/lvis_patches": "eva02_vitb16 eva02_vitl14_336",
    "distill/lvis_proposals": "eva02_vitb16 eva02_vitl14_336",
    "regions/coco": f"{EACH_TOWER} openai_rn50x4",
    "semseg/catseg": "openai_vitb16 openai_vitl14_336 pe_core_vitb16 siglip2_vitb16 tipsv2_vitb14",
    "semseg/catseg_token": "openai_vitb16 openai_vitl14_336",
    "panoptic/fcclip": (
        "convnext_large convnext_b openai_rn50 openai_rn101 openai_rn50x4 openai_rn50x16 "
        "openai_rn50x64"
    ),
    "panoptic/masks": "openai_vitb16",
    "panoptic/plain": EACH_TOWER,
    "panoptic/pyramid": "openai_vitb16 openai_vitl14_336 pe_core_vitb16 siglip2_vitb16 tipsv2_vitb14",
    "detection/ov_coco": EACH_TOWER,
    "detection/ov_lvis": "eva02_vitb16",
}
"""Tasks, and the towers on which each has a row."""
HOURS_SAID = {
    "distill/coco_patches+eva02_vitb16": "authors: 2 h on 8",
    "distill/coco_proposals+eva02_vitb16": "authors: 2 h on 8",
    "distill/coco_patches+eva02_vitl14_336": "authors: 6 h on 8",
    "distill/coco_proposals+eva02_vitl14_336": "authors: 6 h on 8",
}
"""Hours of GPUs that somebody measured."""
SECONDS_SAID = dict.fromkeys(("panoptic/odise_caption", "panoptic/odise_caption_clipself"), 0.79)
"""Seconds of a V100 that ODISE's paper says: 1.26 images of 1024 pixels a second."""


class Published(NamedTuple):
    """Numbers of a configuration, and where they are printed."""

    source: str
    numbers: str

    def __str__(self) -> str:
        return f"{self.source}: {self.numbers}"


def recipes() -> list[str]:
    """Configurations that have a row, such as "distill/coco_patches+eva02_vitb16", in the page's order."""
    pairs = [f"{task}+{tower}" for task, towers in ON_TOWERS.items() for tower in towers.split()]
    known = sorted([*pairs, *names()])
    listed = [name for folder in FOLDERS for name in known if name.startswith(f"{folder}/")]
    # Tasks without a tower are nothing to run; the stock RPN needs none.
    return [name for name in listed if "rpn" in name or has_tower(name)]


def has_tower(name: str) -> bool:
    """True if a configuration names its CLIP; a task's file alone leaves that to a tower over it."""
    return setting_place("MODEL.CLIP.NAME", read_layers(name)) >= 0


@functools.cache
def _tables() -> list[Table]:
    return read_tables()


def published(name: str) -> list[str]:
    """Published numbers of a configuration, each with its source; empty if there are none."""
    tables = [numbers for table in _tables() for numbers in _in_table(table, name)]
    entries = [(one.name, one.published) for one in zoo().values() if name in one.configs]
    own = [Published(f"`{entry}`", numbers) for entry, numbers in entries if _is_model(entry, name)]
    once = {one.numbers: one for one in reversed([*tables, *own]) if one.numbers}
    parts = {numbers: set(numbers.split(", ")) for numbers in once}
    whole = [n for n in once if not any(parts[n] < other for other in parts.values())]
    return [str(once[numbers]) for numbers in reversed(whole)]


def _is_model(entry: str, name: str) -> bool:
    """True if an official checkpoint is a result of a configuration, and no part that it starts from."""
    return entry.startswith(MODELS.get(name.split("/")[0], "-"))


def _in_table(table: Table, name: str) -> Iterator[Published]:
    runs = table.runs["real"]
    for row in table.rows.values():
        spec = runs.get(row.run)
        numbers = ", ".join(
            f"{table.columns[key].title('real')} {value}" for key, value in row.paper.items()
        )
        if spec is None or not numbers or not (spec.evaluate or _as_it_is(spec.options)):
            continue
        source = f"{table.title.partition(':')[0]}, {MINI.sub('', row.title)}"
        if config_name(spec.config) == name:
            yield Published(source, numbers)
        for weights in spec.weights.values():
            below = runs[weights.run] if isinstance(weights, RunOf) else None
            variant = "table_a3" in spec.config
            if (
                below
                and config_name(below.config) == name
                and _as_it_is(below.options)
                and not variant
            ):
                yield Published(f"(on it) {source}", numbers)


def _as_it_is(options: Mapping[str, str]) -> bool:
    """True if options leave the recipe as its configuration has it."""
    return all(key.startswith("TEST.") for key in options)


def gpus(name: str) -> int:
    """GPUs of the published run: CAT-Seg's 4, else 8."""
    return 4 if name.startswith("semseg/") else 8


def _config(name: str) -> CfgNode:
    """A configuration with random weights."""
    # bfloat16, because float16 is switched off where there is no GPU.
    values = {"SOLVER.AMP.DTYPE": "bfloat16", **random_weights(name)}
    words = [word for pair in values.items() for word in pair]
    return load_config(ROOT / f"configs/{name}.yaml", words)


def rate(cfg: CfgNode) -> float:
    """Operations a second of an A100, by the size of the ViT."""
    return RATES["L" if "-L-" in cfg.MODEL.CLIP.NAME else "B"]


def cost(name: str) -> list[str]:
    """The cells of `COSTS` behind the name: images, TFLOP an image, A100 hours, GiB of a GPU; empty if not computed."""
    cfg = _config(name)
    given = cfg.MODEL.MASK_GENERATOR.SOURCE == "masks"
    if "transfer" in name or name.endswith("_clipself") or given:  # only evaluated
        return [""] * 4
    solver = cfg.SOLVER
    if (
        cfg.MODEL.META_ARCHITECTURE == "OpenPanoptic"
        and cfg.MODEL.MASK_GENERATOR.SOURCE == "diffusion"
    ):
        drawn = f"{solver.IMS_PER_BATCH * solver.MAX_ITER:,}"
        return [drawn, "not computed", "authors: 4,608 of V100", "not computed"]
    kind = find_architecture(cfg.MODEL.CLIP.NAME).kind
    if name.startswith("semseg/") and kind.tokenizer is not OPENAI_VIT.tokenizer:
        return [f"{solver.IMS_PER_BATCH * solver.MAX_ITER:,}", *["not computed"] * 3]
    made = recipe(cfg, solver.AMP.ENABLED)
    if made is None:
        return [""] * 4
    hours = made.images * made.flops / rate(cfg) / 3600
    each = max(1, solver.IMS_PER_BATCH // gpus(name))
    memory = made.memory(each) / 2**30
    return [
        f"{made.images:,}",
        f"{made.flops / 1e12:.2g}",
        _two_digits(hours) + (f" ({HOURS_SAID[name]})" if name in HOURS_SAID else ""),
        f"{_two_digits(memory)} ({each})",
    ]


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def costs() -> dict[str, dict[str, float]]:
    """Numbers of the page by configuration, where they are computed, and seconds of an image's evaluation."""
    cells = {name: [*cost(name), "", "", "", ""][2:4] for name in recipes()}
    memory = {name: re.fullmatch(r"([\d.]+) \((\d+)\)", gib) for name, (_, gib) in cells.items()}
    hours = {name: first.split(" ")[0].replace(",", "") for name, (first, _) in cells.items()}
    return {
        "hours of a training": {
            name: float(cell) for name, cell in hours.items() if cell.replace(".", "").isdigit()
        },
        "GiB of a GPU": {name: float(match[1]) for name, match in memory.items() if match},
        "images of a GPU": {name: int(match[2]) for name, match in memory.items() if match},
        "seconds of an image": seconds(),
    }


def seconds() -> dict[str, float]:
    """Seconds of an A100 of an image, of every configuration that a table evaluates on real data."""
    runs = [run for table in _tables() for run in table.runs["real"].values()]
    return {
        name: _seconds(name) for name in sorted({config_name(r.config) for r in runs if r.evaluate})
    }


def _seconds(name: str) -> float:
    if name in SECONDS_SAID:
        return SECONDS_SAID[name]
    cfg = _config(name)
    flops = evaluation(cfg)
    assert flops is not None, name
    return float(f"{flops / rate(cfg):.2g}")


def page() -> str:
    """The page, in Markdown."""
    base, large = RATES["B"] / 1e12, RATES["L"] / 1e12
    text = Path(__file__).with_name("expected.md").read_text(encoding="utf-8")
    blocks = [text.format(base=base, large=large, authors=AUTHORS)]
    for folder in FOLDERS:
        names = {
            name: name.removeprefix(f"{folder}/")
            for name in recipes()
            if name.startswith(f"{folder}/")
        }
        costs = [[f"`{short}`", *cost(name)] for name, short in names.items()]
        numbers = [
            [f"`{short}`", "<br>".join(published(name)) or "none"] for name, short in names.items()
        ]
        tables = [(COSTS, [row for row in costs if any(row[1:])]), (NUMBERS, numbers)]
        blocks.append(f"## {folder}\n")
        blocks += [f"{markdown_table(headings, body)}\n" for headings, body in tables if body]
    return "\n".join(blocks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--costs", action="store_true", help="write costs.json, not the page")
    if parser.parse_args().costs:
        sys.stdout.write(json.dumps(costs(), indent=1) + "\n")
    else:
        sys.stdout.write(page())
