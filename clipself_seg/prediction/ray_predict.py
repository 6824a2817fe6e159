"""Prediction of many images by Ray: its readers, a model in each worker, and Parquet files with a row an image.

What an image is called decides whether it is done: a call that was interrupted goes on where its rows end.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, Generic, TypeVar

import numpy as np

from clipself_seg.checkpoints.download import is_address
from clipself_seg.data.images import ENDINGS, decode_image, read_image
from clipself_seg.data.masks import mask_as_json
from clipself_seg.errors import GOES_ON, InputError, in_short, known, of_extra
from clipself_seg.files import alone_in
from clipself_seg.imports import typed_environment
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.journal import Journal, Json
from clipself_seg.prediction.loop import FilePredictor, predict_each, reason_of
from clipself_seg.prediction.results import Prediction

R = TypeVar("R", bound=Prediction)
Row = dict[str, Any]  # of a table
# Device -> a model with its vocabulary on it, and the settings that results depend on (JSON).
Make = Callable[[str], tuple[FilePredictor[R], Json]]
BLOCK = 64  # images of a file
# Kinds of inputs; the first three are endings of files that are read here, not opened as images.
READ = LIST, TABLE, SHARD = ".txt", ".parquet", ".tar"
IMAGE, FOLDER = "image", "folder"
logger = logging.getLogger(__name__)

optional = functools.partial(of_extra, user="--ray", extra="ray")
"""Gives a module of the extra `ray`, or raises MissingPackage."""


def read_images(inputs: Sequence[str], column: str | None = None) -> Any:
    """The images as a data set of Ray's, a row each: its name "image", and its file's "content".

    Where the content is empty the name is a path or an address, which the worker opens.

    Args:
        inputs: images, folders of them, ``.txt`` files with a path a line (relative to the file), ``.parquet`` files
            with a column of such paths, or of the bytes of image files, and ``.tar`` shards of webdataset; each a
            path, or an address that fsspec knows.
        column: name of that column; None if there is only one.

    Raises:
        InputError: a Parquet file has no such column.
        OSError: a file cannot be opened.
    """
    groups = defaultdict[tuple[str, str], list[str]](list)
    for path in dict.fromkeys(inputs):
        path = path if is_address(path) else os.path.abspath(path)
        ending = os.path.splitext(path)[1].lower()
        if ending in ENDINGS or (ending not in READ and os.path.isfile(path)):
            groups[IMAGE, ""].append(path)
        elif ending in READ:
            groups[ending, os.path.dirname(path)].append(path)
        else:
            groups[FOLDER, path].append(path)
    first, *others = [_read(*group, paths, column) for group, paths in groups.items()]
    return first.union(*others) if others else first


def _read(kind: str, folder: str, paths: list[str], column: str | None) -> Any:
    """Rows of the files of a kind in a folder, or of the images below it."""
    data, fsspec = optional("ray.data"), optional("fsspec")
    if kind == IMAGE:
        return data.from_items([{"image": path, "content": b""} for path in paths])
    # Ray finds these alone.
    own = not is_address(folder) or folder.startswith(("s3://", "gs://"))
    where = {"filesystem": None if own else fsspec.core.url_to_fs(folder)[0]}
    if kind == LIST:
        return data.read_text(paths, **where).map(lambda row: _named(row["text"].strip(), folder))
    if kind == TABLE:
        with fsspec.open(paths[0]) as file:
            names = optional("pyarrow.parquet").read_schema(file).names
        given = names[0] if column is None and len(names) == 1 else column
        chosen = known(given, names, "column", origin=paths[0], hint=": --column NAME")
        rows = data.read_parquet(paths, columns=[chosen], **where)
        return rows.map(lambda row: _named(row[chosen] or "", folder))
    if kind == SHARD:
        return data.read_webdataset(paths, decoder=None, **where).map(_of_shard)
    endings = [ending[1:] for ending in ENDINGS]
    files = data.read_binary_files(paths, include_paths=True, file_extensions=endings, **where)
    return files.rename_columns({"path": "image", "bytes": "content"})


def _named(value: str | bytes, folder: str) -> Row:
    """The row of a path in a list or table, or of an image in a table."""
    if isinstance(value, bytes):
        return {"image": f"sha256:{hashlib.sha256(value).hexdigest()[:32]}", "content": value}
    return {"image": value if is_address(value) else os.path.join(folder, value), "content": b""}


def _of_shard(row: Row) -> Row:
    contents = (row[key] for key in sorted(row) if f".{key.lower()}" in ENDINGS)
    content = next(filter(None, contents), b"")
    return {"image": f"{row['__url__']}#{row['__key__']}", "content": content}


class Worker(Generic[R]):
    """A process of Ray with a model, which predicts batch after batch."""

    def __init__(self, make: Make[R], device: str, folder: str) -> None:
        """
        Args:
            make: builds the model.
            device: where it is put.
            folder: where the command was called, for the paths in it.
        """
        os.chdir(folder)
        self.results, _ = make(device)

    def __call__(self, batch: Any) -> Any:
        """The table of results of a table of images; one that cannot be read or processed has an error in its row."""
        rows = batch.to_pylist()
        images = dict[int, np.ndarray]()
        outcomes = dict[int, Any]()
        for place, row in enumerate(rows):
            try:
                images[place] = _pixels(row["image"], row["content"], self.results.max_pixels)
            except Exception as error:  # whatever a library makes of a strange file
                outcomes[place] = error
        outcomes |= predict_each(self.results, images, [_source(row["image"]) for row in rows])
        done = [{"image": row["image"]} | _row(outcomes[i]) for i, row in enumerate(rows)]
        return optional("pyarrow").Table.from_pylist(done, schema=_schema())


def _pixels(image: str, content: bytes, max_pixels: int) -> np.ndarray:
    if not content and not is_address(image):
        return read_image(image, max_pixels=max_pixels)
    if not content:
        with optional("fsspec").open(image) as file:
            content = file.read()
    return decode_image(content, image, max_pixels)


def _source(image: str) -> ImageFile:
    """The file of an image, by whose name its masks are found, or by its key in a shard."""
    shard, _, key = image.rpartition("#")
    name = key if shard.lower().endswith(SHARD) else image
    return ImageFile(Path(image), image, PurePath(name).stem)


def _row(outcome: Prediction | Exception) -> Row:
    """Boxes are COCO's (x, y, width, height), masks COCO's compressed run lengths."""
    if isinstance(outcome, Exception):
        return {"error": reason_of(outcome)}
    regions = outcome.streamed_regions()
    height, width = outcome.image.shape[:2]
    return {
        "height": height,
        "width": width,
        "class_ids": [outcome.category_ids[label] for label in regions.labels],
        "class_names": [outcome.names[label] for label in regions.labels],
        "scores": regions.scores.tolist(),
        "boxes": regions.boxes_xywh().tolist(),
        "masks": None if regions.masks is None else [*map(mask_as_json, regions.masks)],
        "absent": None if outcome.presence is None else list(outcome.absent),
    }


def _schema() -> Any:
    pa = optional("pyarrow")
    mask = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])
    columns = {
        "image": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "class_ids": pa.list_(pa.int64()),
        "class_names": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "boxes": pa.list_(pa.list_(pa.float32(), 4)),
        "masks": pa.list_(mask),
        "absent": pa.list_(pa.string()),
        "error": pa.string(),
    }
    return pa.schema(columns)


def predict_over_ray(
    make: Make[R],
    inputs: Sequence[str],
    output: str,
    *,
    column: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    batch_size: int = 1,
) -> tuple[int, int]:
    """Predicts for the images that have no row yet.

    Without a running cluster (`ray start`, RAY_ADDRESS) Ray starts one on this machine for the call. All
    machines have to see the folder, the images and the weights under the same paths.

    Args:
        make: builds a model in each worker, and here to look at the settings.
        inputs: see `read_images`.
        output: folder of the results.
        column: see `read_images`.
        workers: number of models; None for one a GPU, or one a CPU but one where there are no GPUs.
        device: "cpu", or "cuda" with a GPU for each; None for what the cluster has.
        batch_size: images that a model gets at once.

    Returns:
        Number of images with an error in place of results, and of all in the folder.

    Raises:
        InputError: Ray is missing or ends, its cluster does not answer, an input cannot be used, the folder has
            results of other settings or another table, another process is at work there, or a worker wants a GPU and
            there is none.
    """
    ray, data = optional("ray"), optional("ray.data")
    folder = Path(output).absolute()
    results, settings = make("cpu")
    with alone_in(folder):
        journal = Journal(folder, settings, resume=True)
        journal.open(results.provenance)
        journal.close()
        del results  # the workers have models of their own
        done = set(column_of(folder, "image"))
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        environment = {"env_vars": typed_environment()}
        try:
            ray.init(log_to_driver=False, logging_level="WARNING", runtime_env=environment)
            resources = ray.cluster_resources()
            gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1)
            # Ray shows each worker one GPU, whose number is 0 there.
            device = (device or ("cuda" if gpus else "cpu")).partition(":")[0]
            if device != "cpu" and not gpus:
                raise InputError(f"--device {device}: Ray's cluster has no GPU: give --device cpu")
            count = workers or (gpus if device != "cpu" else max(1, int(cpus) - 1))
            left = read_images(inputs, column).filter(lambda row: row["image"] not in done)
            predicted = left.repartition(target_num_rows_per_block=BLOCK).map_batches(
                Worker,
                fn_constructor_args=(make, device, os.getcwd()),
                batch_size=batch_size,
                batch_format="pyarrow",
                compute=data.ActorPoolStrategy(size=count),
                # One is left for Ray's readers, without which nothing begins.
                num_cpus=min(1, int(1000 * (cpus - 1) / count) / 1000),
                num_gpus=0 if device == "cpu" else 1,
            )
            predicted.write_parquet(str(folder))
        except InputError:
            raise
        except (OSError, ValueError, ray.exceptions.RayError) as error:
            reason = in_short(getattr(error, "cause", None) or error)
            raise InputError(f"Ray ended ({reason}): {GOES_ON}") from error
        finally:
            ray.shutdown()
        errors = column_of(folder, "error")
    if not errors:
        raise InputError(f"no images in {', '.join(inputs)}")
    return sum(error is not None for error in errors), len(errors)


def column_of(folder: Path, name: str) -> list[Any]:
    """A column of all files of results; one that a killed call left half-written is removed.

    Raises:
        InputError: a Parquet file is a table of something else.
    """
    pyarrow, parquet = optional("pyarrow"), optional("pyarrow.parquet")
    values = []
    for path in sorted(folder.glob(f"*{TABLE}")):
        try:
            with parquet.ParquetFile(path) as file:
                if file.schema_arrow.names != _schema().names:
                    raise InputError(f"{path} is no table of results: give another --output")
                values += file.read([name])[name].to_pylist()
        except pyarrow.ArrowInvalid:  # its end, where the columns stand, is missing
            logger.warning("%s is not whole: its images are done again", path)
            path.unlink()
    return values
