"""A rehearsal of tables: two steps of one run of each recipe, on random weights of the real sizes.

What would stop a table after days, a file that is not read or a batch that does not fit, stops here within the hour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from lab.tables.runs import COSTS, NAMED, Run, config_name, missing_data, resolve
from lab.tables.table import RunOf, RunSpec, Table

STEPS = {"SOLVER.MAX_ITER": "2", "TEST.EVAL_PERIOD": "0"}
# A CPU would encode 63 sentences of each name for half an hour.
ONE_SENTENCE = {"TEST.REGIONS.TEMPLATES": "single"}
PUBLISHED = "MODEL.WEIGHTS"  # a whole model, which random weights do not stand for


def random_weights(config: str) -> dict[str, str]:
    """Keys and values by which a configuration, such as "distill/coco_patches+eva02_vitb16", needs no weights."""
    values = {} if "rpn" in config else {"MODEL.CLIP.WEIGHTS": ""}
    if config.startswith("semseg/"):
        values["MODEL.CAT_SEG.BACKBONE_WEIGHTS"] = "random"
    return values


def rehearsals(tables: Iterable[Table], scale: str, gpus: int) -> tuple[list[Run], list[str]]:
    """The shortest run of each recipe of some tables, and what the recipes without one lack.

    A recipe is the configuration of a task, on whatever tower, trained or evaluated.

    Args:
        tables: tables whose recipes are meant.
        scale: "mini" or "real".
        gpus: GPUs of each run; 0 for a CPU, which has one image a step in place of the recipe's.
    """
    chosen, lacking = dict[tuple[str, bool], Run](), dict[tuple[str, bool], list[str]]()
    for table in tables:
        specs = table.runs[scale]
        short = {name: _short(spec, gpus) for name, spec in specs.items()}
        for name in table.shown_runs(scale):
            minutes = resolve(specs, name, 0).minutes
            run = dataclasses.replace(resolve(short, name, 0), minutes=minutes)
            recipe = config_name(run.config).partition("+")[0], run.evaluate
            if missing := _missing(run):
                lacking[recipe] = missing
            elif recipe not in chosen or minutes < chosen[recipe].minutes:
                chosen[recipe] = run
    lost = (what for recipe, missing in lacking.items() if recipe not in chosen for what in missing)
    return list(chosen.values()), list(dict.fromkeys(lost))


def _short(spec: RunSpec, gpus: int) -> RunSpec:
    """A run of two steps, on random weights in place of those of a CLIP that others published."""
    name = config_name(spec.config)
    weights = {
        key: source
        for key, source in spec.weights.items()
        if isinstance(source, RunOf) or key == PUBLISHED
    }
    random = {key: value for key, value in random_weights(name).items() if key not in weights}
    options = {**random, **spec.options}
    if name.startswith(("distill/", "regions/", "whole_images/")):
        options |= ONE_SENTENCE
    if not spec.evaluate:
        images = COSTS["images of a GPU"].get(name, 1)
        options |= STEPS | {"SOLVER.IMS_PER_BATCH": f"{gpus * images or 1:g}"}
    return dataclasses.replace(spec, options=options, weights=weights)


def _missing(run: Run) -> list[str]:
    """The data and weights that a run and its needs lack; a part of a data set is enough."""
    missing = list[str]()
    for one in run.with_needs():
        missing += filter(None, (missing_data(name, whole=False) for name in one.settings["data"]))
        published = one.settings["weights"].get(PUBLISHED, "")
        if published.startswith(NAMED):
            missing.append(f"the weights {published.removeprefix(NAMED)}, which are not random")
    return missing
