"""The evaluation at the end of a run, and its results.json: of the run's weights, and of mixtures with its start."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor

from clipself_seg.data.datasets.table import DATASETS, SHIPPED
from clipself_seg.evaluation.evaluation_base import Evaluation, Results
from clipself_seg.models.model_protocols import Model, TrainableModel
from clipself_seg.provenance import provenance, write_results
from clipself_seg.training import mixing as mixtures

RESULTS_FILE = "results.json"
logger = logging.getLogger(__name__)

TITLE = "Classes that were trained and classes that were not, before and after, in percent"
NO_OTHERS = (
    "All classes of DATASETS.TEST were trained, so no number says what the model has forgotten of others: name data "
    "sets with other classes in DATASETS.TEST, or under `others` of the data file."
)
NO_NUMBERS = (
    "No mixture of the weights before and after was evaluated: DATASETS.TEST is empty, or neither DATASETS.TRAIN nor "
    "TEST.TRAIN_VOCABULARY says which of its classes were trained."
)


@dataclass(frozen=True)
class RunOutputs:
    """Files of an evaluation, with their provenance.

    Attributes:
        cfg: configuration of the run.
        folder: folder of the files.
        iterations: number of training steps of the weights; None where it is not known.
        fraction: f of the mixture that is evaluated.
        suffix: end of the files' names before their ending, such as "_eval".
    """

    cfg: CfgNode
    folder: Path
    iterations: int | None
    fraction: float = 1.0
    suffix: str = ""

    def file(self, name: str) -> Path:
        """Path of a file, with the suffix before its ending."""
        path = self.folder / name
        return path.with_name(f"{path.stem}{self.suffix}{path.suffix}")

    def write(
        self,
        evaluation: Evaluation[Any, Any],
        model: Model,
        results: Results,
        rows: mixtures.Rows | None = None,
    ) -> None:
        """Writes numbers with their provenance, in the main process.

        Args:
            evaluation: that made the numbers.
            model: has the weights that they are of.
            results: the numbers so far.
            rows: the numbers of each mixture; None before there are any.
        """
        if not comm.is_main_process():
            return
        metadata = provenance(
            config=self.cfg.dump(),
            seed=self.cfg.SEED,
            weights_hash=model.weights_hash(),
            device=self.cfg.MODEL.DEVICE,
            processes=comm.get_world_size(),
            iterations=self.iterations,
            **evaluation.metadata(),
        )
        if self.fraction < 1:
            metadata["fraction of the trained weights"] = self.fraction
        roots = (DATASETS[name].root for name in evaluation.datasets if name in DATASETS)
        if any(root.shipped for root in roots):
            metadata["mini worlds"] = SHIPPED
        # Where a later data set fails, the file says what it lacks.
        if waiting := [name for name in evaluation.datasets if name not in results]:
            metadata["not evaluated"] = waiting
        protocols = {name: one.as_dict() for name, one in evaluation.protocols.items()}
        mixing = {"mixing": mixtures.as_json(rows)} if rows else {}
        path = self.file(RESULTS_FILE)
        write_results(path, results, metadata, protocols, **mixing)
        logger.info("results written to %s", path)


def evaluate_run(
    evaluation: Evaluation[Any, Any],
    model: Model,
    outputs: RunOutputs,
    start: Mapping[str, Tensor],
    fractions: Sequence[float],
) -> Results:
    """Evaluates the weights as they are, then mixtures with the start; writes their numbers, tables and the knee.

    Returns the numbers of the weights as they are.

    Args:
        evaluation: the evaluation on ``DATASETS.TEST``.
        model: has the weights after the training.
        outputs: where the files are written.
        start: the tensors that the training changed, as they were before it, see `changed_tensors`.
        fractions: as of `fractions_of`.
    """
    write = functools.partial(outputs.write, evaluation, model)
    results = evaluation(model, write)
    rows = {1.0: {name: mixtures.split_of(numbers) for name, numbers in results.items()}}
    for fraction in fractions[1:] if mixtures.means_of(rows[1.0]) else ():
        logger.info("weights at %g between those before (0) and after (1) the training:", fraction)
        folder = outputs.file("mixing") / f"{fraction:g}"
        own = RunOutputs(outputs.cfg, folder, outputs.iterations, fraction)
        part = evaluation.changed(output_dir=folder, silent=True)
        with mixtures.mixed(model, start, fraction):
            mixture = part(model, functools.partial(own.write, part, model))
        rows[fraction] = {name: mixtures.split_of(numbers) for name, numbers in mixture.items()}
    if fractions and len(rows) == 1:
        logger.warning(NO_NUMBERS)
    if len(rows) == 1 or not comm.is_main_process():
        return results
    write(results, rows)
    knee = mixtures.knee_of(rows)
    best = NO_OTHERS if knee is None else f"Knee (*), the best harmonic mean: {knee:g}"
    if knee in (0, 1):
        best += f". No mixture is better than the {'end' if knee else 'start'}: none is written"
    logger.info("%s:\n%s\n%s", TITLE, mixtures.forgetting_table(rows), best)
    if knee is not None and 0 < knee < 1:
        path = outputs.folder / "model_mixed.pth"
        with mixtures.mixed(model, start, knee):
            cast(TrainableModel, model).export(path)
        logger.info("weights of the knee, %g, written to %s", knee, path)
    return results
