"""Prediction of many images by the workers of a Ray cluster, or of this machine alone: Parquet in blocks.

What a block is and how it is written is in `prediction.blocks`; here it is only handed out. Ray may start a block
again whose worker died: its file is replaced by the same one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from clipself_seg.errors import InputError
from clipself_seg.files import alone_in, remove_leftovers
from clipself_seg.prediction.blocks import Parts, find_items, optional, predict_block, write_part
from clipself_seg.prediction.loop import Results

BLOCK = 64  # images of a file
Make = Callable[[str], tuple[Results, dict[str, Any]]]
"""Device -> a model with its vocabulary on it, and the settings that results depend on (JSON)."""


class Workers(NamedTuple):
    """Number and devices of the workers.

    Attributes:
        number: workers, each with a model; None for one a GPU, or a CPU where there are none.
        device: "cpu", or "cuda" with a GPU for each; None for what the cluster has.
        batch_size: images that a model gets at once.
    """

    number: int | None = None
    device: str | None = None
    batch_size: int = 1


class BlockWorker:
    """Has a model, and predicts block after block."""

    def __init__(self, make: Make, device: str, parts: Parts, batch_size: int, folder: str) -> None:
        """
        Args:
            make: builds the model.
            device: where it is put.
            parts: the blocks.
            batch_size: images that the model gets at once.
            folder: where the command was called, for the paths in it.
        """
        os.chdir(folder)
        self.results, _ = make(device)
        self.parts = parts
        self.batch_size = batch_size

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """Predict the blocks of a batch of Ray's, and write their files; returns their numbers."""
        done = [int(index) for index in batch["block"]]
        for index in done:
            rows = predict_block(self.results, self.parts.block(index), self.batch_size)
            write_part(self.parts.path(index), rows)
        return {"block": done}


def predict_over_ray(
    make: Make,
    inputs: Sequence[str],
    output: str,
    workers: Workers,
    column: str | None = None,
    block_size: int = BLOCK,
) -> tuple[int, int]:
    """Predict the blocks that are not there yet.

    Without a running cluster (`ray start`, RAY_ADDRESS) Ray starts one on this machine for the call. All
    machines have to see the folder, the images and the weights under the same paths.

    Args:
        make: builds a model in each worker, and here to look at the settings.
        inputs: see `find_items`.
        output: folder of the results.
        workers: who predicts.
        column: see `find_items`.
        block_size: images of a file.

    Returns:
        Number of images with an error in place of results, and of all.

    Raises:
        InputError: Ray or pyarrow is missing, an input cannot be used, the folder has results of other
            settings, another process is at work there, or a worker wants a GPU and there is none.
    """
    ray = optional("ray")
    data = optional("ray.data")
    if workers.number is not None and workers.number < 1:
        raise InputError(f"{workers.number} workers: give 1 or more")
    parts = Parts(os.path.abspath(output), find_items(inputs, output, column), block_size)
    results, settings = make("cpu")
    with alone_in(parts.folder):
        remove_leftovers(parts.folder)
        todo = parts.begin(settings, results.provenance)
        del results  # the workers have models of their own
        if todo:
            ray.init(log_to_driver=False, logging_level="WARNING")
            try:
                _predict(data, make, parts, todo, _placed(workers, ray.cluster_resources()))
            finally:
                ray.shutdown()
        return parts.errors(), len(parts.items)


def _placed(workers: Workers, resources: Mapping[str, float]) -> Workers:
    """The workers with a device and a number."""
    gpus = int(resources.get("GPU", 0))
    device = workers.device or ("cuda" if gpus else "cpu")
    if device != "cpu" and not gpus:
        raise InputError(f"--device {device}: Ray's cluster has no GPU: give --device cpu")
    count = workers.number or (gpus if device != "cpu" else int(resources.get("CPU", 1)))
    return workers._replace(number=count, device=device)


def _predict(data: Any, make: Make, parts: Parts, todo: list[int], workers: Workers) -> None:
    data.DataContext.get_current().enable_progress_bars = False
    blocks = data.from_items([{"block": index} for index in todo], override_num_blocks=len(todo))
    done = blocks.map_batches(
        BlockWorker,
        fn_constructor_args=(make, workers.device, parts, workers.batch_size, os.getcwd()),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(workers.number or 1, len(todo))),
        num_cpus=1,
        num_gpus=0 if workers.device == "cpu" else 1,
    )
    there = parts.count - len(todo)
    with tqdm(desc="blocks", unit="block", total=parts.count, initial=there) as bar:
        for _ in done.iter_rows():
            bar.update()
