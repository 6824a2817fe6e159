"""Counts the kernel launches that each part of a benchmark would need on a GPU, without a GPU.

A GPU computes what it is given one launch after another, and small ones take the time that Python needs to ask for
them. Counted are torch's operations on tensors of the device, once everything has been called before: those that read
or write their values, copies to and from it included, and not those that make views or memory. A GPU runs at least one
kernel for each (a few for sorting, some convolutions and norms, and one for many tensors in a fused optimiser).
Attention is one operation; its backward pass is counted by its parts.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.accelerator import ACCELERATOR, Accelerator, OnAccelerator
from bench.case import Case
from bench.jobs import chosen_jobs, prefixed
from bench.report import chosen_runs, headline
from bench.workloads import build_runs
from clipself_seg.errors import InputError
from clipself_seg.provenance import provenance

# Operations that read no values but are no views by their signature either.
WITHOUT_KERNEL = {
    "aten._fused_sdp_choice",
    "aten._unsafe_view",
    "aten.empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.lift_fresh",
    "aten.new_empty",
    "aten.new_empty_strided",
}

HEADER = ["operations of a GPU", "ours", "plain", "GFLOP of products"]


class Launches(Accelerator):
    """Context that counts; `operations` has the number of each by its name, such as "aten.add"."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = Counter[str]()
        self.fused = False  # within an operation that is one kernel on a GPU

    def __enter__(self) -> Launches:
        super().__enter__()
        self._opened.enter_context(_FusedAttention(self))
        return self

    def watch(
        self, operation: Any, args: Any, kwargs: Mapping[str, Any], given: Sequence[Tensor]
    ) -> None:
        """Count an operation that a GPU would launch."""
        name = str(operation.overloadpacket)
        if not self.fused and name not in WITHOUT_KERNEL and not _is_view(operation):
            self.operations[name] += 1


class _FusedAttention(TorchFunctionMode):
    """Context in which attention is counted as one operation: only for devices that it knows torch fuses it."""

    def __init__(self, counted: Launches) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        there = args and isinstance(args[0], OnAccelerator)
        if function is not F.scaled_dot_product_attention or not there:
            return function(*args, **(kwargs or {}))
        self.counted.fused = True
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self.counted.fused = False
            self.counted.operations["aten.scaled_dot_product_attention"] += 1


def _is_view(operation: Any) -> bool:
    if torch.Tag.inplace_view in operation.tags:
        return True
    aliases = [result.alias_info for result in operation._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def count_launches(case: Case, report: Callable[[str], None]) -> dict[str, Any]:
    """Count the launches of a case.

    Args:
        case: what to count; its device is of no account.
        report: called with the progress.

    Returns:
        "case", "launches" (by name of a run: "all", "operations" by their names, most frequent first, and "flops",
        0 where they are not counted) and "provenance".

    Raises:
        InputError: the model or its size do not fit, nothing is called as in `only`, or the precision is not float32.
    """
    if case.precision != "float32":
        raise InputError(f"--launches counts in float32, not in {case.precision}")
    torch.set_num_threads(case.threads)
    launches: dict[str, dict[str, Any]] = {}
    with Accelerator():
        report("building the model")
        there = dataclasses.replace(case, device=ACCELERATOR.type)
        runs = chosen_runs(build_runs(there), case.only)
        for name, run in runs.items():
            report(f"operations: {name}")
            run.call(run.setup())  # what is made once is not counted
            given = run.setup()
            with Launches() as counted:
                run.call(given)
            operations = dict(counted.operations.most_common())
            total = counted.operations.total()
            launches[name] = {"all": total, "operations": operations, "flops": run.flops}
    return {
        "case": dataclasses.asdict(case),
        "launches": launches,
        "provenance": provenance(seed=0),
    }


def count_all(
    common: Mapping[str, Any], only: Sequence[str], report: Callable[[str], None]
) -> dict[str, Any]:
    """Count the launches of all jobs of `benchmark all`.

    Args:
        common: fields of every job's `Case`.
        only: labels of jobs, or the first words of some; () is all.
        report: called with the progress.

    Returns:
        "jobs" (by label what `count_launches` returns).

    Raises:
        InputError: no job is called like that, or the precision is not float32.
    """
    jobs: dict[str, Any] = {}
    for job in chosen_jobs(only):
        jobs[job.label] = count_launches(job.case(common), prefixed(report, job.label))
    return {"jobs": jobs}


def launches_as_text(results: Mapping[str, Any]) -> str:
    """The results of `count_launches` or `count_all` as tables, ours beside the plain formulation's."""
    if "jobs" in results:
        return "\n\n".join(map(launches_as_text, results["jobs"].values()))
    launches = results["launches"]
    rows = [
        [
            name,
            numbers["all"],
            launches.get(f"plain {name}", {}).get("all"),
            numbers["flops"] / 1e9 or None,
        ]
        for name, numbers in launches.items()
        if name.removeprefix("plain ") not in launches or not name.startswith("plain ")
    ]
    return "\n".join([headline(results["case"]), "", tabulate(rows, HEADER, floatfmt=".1f")])
