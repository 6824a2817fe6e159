"""Several fusions of one pass over the images, each evaluated on its own.

A fusion is a pair of exponents: alpha is CLIP's contribution to the scores of seen classes, beta to those
of all others; and a weight by which CLIP lowers void. Those of the paper's Table 6 have names; a sweep adds one for
each cell of its grid of exponents, or for each weight.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator

from clipself_seg.data.images import truth_pixels
from clipself_seg.data.panoptic_png import read_panoptic_png
from clipself_seg.errors import InputError, nearest
from clipself_seg.evaluation.panoptic.evaluator import PanopticQualityEvaluator
from clipself_seg.heads.fusion import TASKS, Fusion, fusion_exponents, mode_discount

FUSIONS = ("clip", "generator", "fused")  # fusion modes, in the order of the paper's table
SWEEP_NUMBERS = ("PQ", "PQ_seen", "PQ_unseen")
# Keys of numbers of a single class begin with these; only the CSVs have them.
CLASS_PREFIXES = ("PQ-", "SQ-", "RQ-", "IoU-", "ACC-")

Sweep = dict[str, Any]
logger = logging.getLogger(__name__)


def named_fusions(
    names: Sequence[str],
    alpha: float,
    beta: float,
    tasks: Sequence[str],
    void_discount: float = 0.0,
    void_sweep: Sequence[float] = (),
) -> dict[str, Fusion]:
    """The fusions of Table 6, and "fused" with other weights by which CLIP lowers void.

    Args:
        names: names of fusions, out of `FUSIONS`.
        alpha: exponent of CLIP's scores of seen classes in "fused", in [0, 1].
        beta: exponent of CLIP's scores of all other classes in "fused", in [0, 1].
        tasks: what is measured, out of `TASKS`.
        void_discount: weight by which CLIP's best class lowers void, but for "generator", in [0, 1].
        void_sweep: further such weights, each with a name of its own, see `void_name`.
    """
    own = tuple(tasks)
    named = {
        name: Fusion(*fusion_exponents(name, alpha, beta), own, mode_discount(name, void_discount))
        for name in names
    }
    return named | {void_name(one): Fusion(alpha, beta, own, one) for one in void_sweep}


def void_name(void_discount: float) -> str:
    """Name of the fusion with a weight by which CLIP lowers void, such as "void_0.5"."""
    return f"void_{void_discount:g}"


def check_names(names: Sequence[str], tasks: Sequence[str]) -> None:
    """Refuse fusions and tasks that there are not.

    Args:
        names: names of fusions, out of `FUSIONS`.
        tasks: what is measured, out of `TASKS`.

    Raises:
        InputError: an unknown name or task, or none at all.
    """
    for key, given, known in (("ROWS", names, FUSIONS), ("TASKS", tasks, TASKS)):
        if not given:
            raise InputError(f"TEST.PANOPTIC.{key} is empty: give some of {', '.join(known)}")
        for name in given:
            if name not in known:
                raise InputError(
                    f'TEST.PANOPTIC.{key} cannot have "{name}"; {nearest(name, known)}'
                )


def check_exponents(values: Iterable[float], source: str) -> None:
    """Refuse exponents out of [0, 1].

    Args:
        values: exponents to check.
        source: configuration key that they come from, for the error.

    Raises:
        InputError: one is not a number in [0, 1].
    """
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:
            raise InputError(f"{source} must be in [0, 1], got {value}")


def sweep_fusions(
    values: Sequence[float], seen: np.ndarray | None, void_discount: float = 0.0
) -> dict[str, Fusion]:
    """A fusion for each cell of the grid of alpha and beta that differs from the others.

    Args:
        values: exponents in [0, 1] that both alpha and beta take.
        seen: (K,) bool, classes of the training vocabulary; None: all of them.
        void_discount: weight by which CLIP's best class lowers void in all of them.
    """
    cells = [(alpha, beta) for alpha in values for beta in values]
    return {
        sweep_name(alpha, beta, seen): Fusion(alpha, beta, ("panoptic",), void_discount)
        for alpha, beta in cells
    }


def sweep_name(alpha: float, beta: float, seen: np.ndarray | None) -> str:
    """Name of a cell's fusion, with "-" for an exponent that no class has.

    Cells that differ only in such an exponent have the same name, so that they are evaluated once.
    """
    seen_exponent = "-" if seen is not None and not seen.any() else repr(float(alpha))
    unseen_exponent = "-" if seen is None or seen.all() else repr(float(beta))
    return f"sweep {seen_exponent} {unseen_exponent}"


def sweep_results(
    values: Sequence[float], seen: np.ndarray | None, numbers: Mapping[str, Mapping[str, float]]
) -> Sweep:
    """The grid of each of `SWEEP_NUMBERS`, as `fusion_report` takes it.

    Args:
        values: exponents in [0, 1] that both alpha and beta take.
        seen: (K,) bool, classes of the training vocabulary; None: all of them.
        numbers: name of a fusion -> name of a number -> the number.
    """
    sweep: Sweep = {"alpha": list(values), "beta": list(values)}
    for key in SWEEP_NUMBERS:
        grid = [
            [numbers[sweep_name(alpha, beta, seen)].get(key) for beta in values] for alpha in values
        ]
        if any(value is not None for line in grid for value in line):
            sweep[key] = grid
    return sweep


class FusionsEvaluator(DatasetEvaluator):
    """Passes the outputs of each fusion to that fusion's own evaluators."""

    def __init__(
        self,
        *,
        fusions: Mapping[str, Mapping[str, DatasetEvaluator]],
        quiet: Mapping[str, PanopticQualityEvaluator] | None = None,
    ) -> None:
        """
        Args:
            fusions: name of a fusion -> task of `TASKS` -> evaluator.
            quiet: evaluators of fusions that are too many for tables and files of their own.
        """
        self.fusions = fusions
        self.quiet = quiet or {}
        self._every = {
            **{name: list(by_task.values()) for name, by_task in fusions.items()},
            **{name: [evaluator] for name, evaluator in self.quiet.items()},
        }
        self._segments = bool(self.quiet) or any(
            "panoptic" in by_task for by_task in fusions.values()
        )

    def reset(self) -> None:
        """Forget all images."""
        for evaluators in self._every.values():
            for evaluator in evaluators:
                evaluator.reset()

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Compare the outputs of every fusion with the ground truth, which is read once.

        Args:
            inputs: samples as the evaluators of the fusions take them.
            outputs: for each sample "fusions": name of a fusion -> outputs as those evaluators take
                them.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            if self._segments:
                png = read_panoptic_png(sample["pan_seg_file_name"], truth_pixels(sample))
                sample = {**sample, "pan_seg": png}
            for name, evaluators in self._every.items():
                for evaluator in evaluators:
                    evaluator.process([sample], [output["fusions"][name]])

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Means in percent of every fusion, the same in every process; NaN is left out.

        Raises:
            InputError: an evaluator has nothing to compare, or not all images.
        """
        numbers = {name: self._numbers(name, by_task) for name, by_task in self.fusions.items()}
        for name, evaluator in self.quiet.items():
            numbers[name] = _means(evaluator.results(), "panoptic")
        return numbers

    def _numbers(self, name: str, by_task: Mapping[str, DatasetEvaluator]) -> dict[str, float]:
        logger.info("fusion %s:", name)
        numbers: dict[str, float] = {}
        for task, evaluator in by_task.items():
            (results,) = evaluator.evaluate().values()
            numbers |= _means(results, task)
        return numbers


def _means(results: Mapping[str, float], task: str) -> dict[str, float]:
    """Means of a task, without numbers of single classes and without NaN.

    Counts of classes stay only for panoptic quality: the tasks have the same keys for them.
    """
    return {
        key: value
        for key, value in results.items()
        if not key.startswith(CLASS_PREFIXES)
        and not math.isnan(value)
        and (task == "panoptic" or not key.startswith("classes"))
    }
