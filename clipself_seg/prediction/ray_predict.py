"""Prediction of many images by the workers of a Ray cluster, or of this machine alone: Parquet in blocks of images.

First the images, then the rows of a block, the folder of blocks, from which an interrupted call goes on, and last how
blocks are handed out. Ray may start a block again whose worker died: its file is replaced by the same one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from clipself_seg.data.images import decode_image, read_image
from clipself_seg.data.masks import mask_as_json
from clipself_seg.errors import InputError, in_short, of_extra
from clipself_seg.files import (
    alone_in,
    atomic_path,
    read_json,
    read_text,
    remove_leftovers,
    require_regular_file,
    write_json,
)
from clipself_seg.imports import typed_environment
from clipself_seg.prediction.files import find_images
from clipself_seg.prediction.journal import Json, input_state, require_same
from clipself_seg.prediction.loop import Results, predict_each, reason_of
from clipself_seg.prediction.results import Prediction
from clipself_seg.schema import OBJECT, check

R = TypeVar("R", bound=Prediction)
Row = dict[str, object]  # of the table of results
# Device -> a model with its vocabulary on it, and the settings that results depend on (JSON).
Make = Callable[[str], tuple[Results[R], Json]]
# By its underscore no part, for those that read the folder as one table.
SETTINGS_FILE = "_settings.json"
BLOCK = 64  # images of a file
# Of a Parquet file that a stranger wrote: what it may state whatever its size, and how much more than it has.
MANY_ROWS = 1 << 18
MANY_BYTES = 1 << 28
MOST_TIMES = 16
MOST_LETTERS = 4096  # of a path
logger = logging.getLogger(__name__)


class Item(NamedTuple):
    """An image: a file, or a row of a Parquet file.

    Attributes:
        image: its path, or "FILE#ROW" for bytes in a Parquet file.
        table: the Parquet file that has its bytes; None for a file of its own.
        column: name of the column with the bytes.
        row: row of the table.
    """

    image: str
    table: str | None = None
    column: str = ""
    row: int = 0


def find_items(inputs: Sequence[str], output: str, column: str | None = None) -> list[Item]:
    """Images of folders, lists and Parquet files, in a fixed order.

    Args:
        inputs: images, folders of them, ``.txt`` files with a path a line (relative to the file), and
            ``.parquet`` files with a column of paths, or of the bytes of image files.
        output: folder of the results, in which nothing is looked for.
        column: name of that column; None if there is one alone that can be meant.

    Raises:
        InputError: an input is missing, or has no images or no such column, or one image comes twice.
    """
    items = list[Item]()
    plain = []
    for path in map(os.path.abspath, inputs):
        if path.endswith(".parquet"):
            items += _table_items(path, column)
        elif path.endswith(".txt"):
            lines = [line.strip() for line in read_text(path, "list of images").splitlines()]
            items += [Item(os.path.join(os.path.dirname(path), line)) for line in lines if line]
        else:
            plain.append(path)
    if plain:
        files = find_images(plain, output)
        if files.failed:
            path, reason = next(iter(files.failed.items()))
            raise InputError(f"{path}: {reason}: correct it, or leave it out")
        items += [Item(str(image.path)) for image in files.images]
    if not items:
        raise InputError(f"no images in {', '.join(inputs)}")
    if len({item.image for item in items}) < len(items):
        names = sorted(item.image for item in items)
        twice = next(a for a, b in zip(names, names[1:]) if a == b)
        raise InputError(f"{twice} is given twice: leave one out")
    return items


def _table_items(path: str, column: str | None) -> list[Item]:
    types = optional("pyarrow.types")
    schema = _open_table(path).schema_arrow
    texts = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]
    contents = [f.name for f in schema if types.is_binary(f.type) or types.is_large_binary(f.type)]
    usable = texts + contents
    if column is None and len(usable) == 1:
        (column,) = usable
    if column is None or column not in usable or schema.names.count(column) > 1:
        raise InputError(
            f"{path} has these columns of texts or bytes: {', '.join(usable) or 'none'}; name that of the images, a "
            "name that comes once: --column NAME"
        )
    # With one copy of each value: a few bytes can stand for a long path in every row.
    file = _open_table(path, read_dictionary=[column])
    _check_extent(file, path)
    if column in contents:
        return [Item(f"{path}#{row}", path, column, row) for row in range(file.metadata.num_rows)]
    with _reading_table(path):
        return _paths(path, file.read([column])[column].chunks)


def _paths(path: str, chunks: Sequence[Any]) -> list[Item]:
    """The items of a column of paths."""
    items = list[Item]()
    for chunk in chunks:
        chunk.validate(full=True)
        names = [value or "" for value in chunk.dictionary.to_pylist()]
        if any(len(name) > MOST_LETTERS for name in names):
            raise InputError(f"{path} has a path of more than {MOST_LETTERS} letters: correct it")
        whole = [os.path.join(os.path.dirname(path), name) for name in names]
        items += [Item("" if i is None else whole[i]) for i in chunk.indices.to_pylist()]
    return items


def _open_table(path: str | Path, **how: object) -> Any:
    """A Parquet file whose metadata alone is read.

    Raises:
        InputError: it is missing, no regular file, or no Parquet.
    """
    with _reading_table(path):
        require_regular_file(path)
        return optional("pyarrow.parquet").ParquetFile(path, page_checksum_verification=True, **how)


@contextlib.contextmanager
def _reading_table(path: str | Path) -> Iterator[None]:
    """Turns all that pyarrow raises into an `InputError` that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path} is missing: correct its name") from None
    except InputError:
        raise
    except (OSError, ValueError, optional("pyarrow").ArrowException) as error:
        raise InputError(
            f"{path} cannot be read as Parquet ({in_short(error)}): give a whole one"
        ) from None


def _check_extent(file: Any, path: str | Path) -> None:
    """Refuse rows and bytes that a file of its size does not hold, by its metadata."""
    metadata, size = file.metadata, os.path.getsize(path)
    # Not by columns: pyarrow ends the process where those of a damaged file do not fit.
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    stated = sum(group.total_byte_size for group in groups)
    if metadata.num_rows > max(MANY_ROWS, size) or stated > max(MANY_BYTES, MOST_TIMES * size):
        raise InputError(
            f"{path} has {size} bytes, and states {metadata.num_rows} rows and {stated} bytes: write it with less "
            "compression, or give a .txt with a path a line"
        )


def read_item(item: Item, max_pixels: int, tables: dict[str, _Column]) -> np.ndarray:
    """An image, (H, W, 3) uint8 RGB.

    Args:
        item: file, or row of a table.
        max_pixels: largest number of pixels of an image that is decoded.
        tables: columns that are open, by their files; that of the item is added.
    """
    if item.table is None:
        return read_image(item.image, max_pixels=max_pixels)
    if item.table not in tables:
        tables[item.table] = _Column(item.table, item.column)
    return decode_image(tables[item.table].value(item.row), item.image, max_pixels)


class _Column:
    """Bytes of a column of a Parquet file, of which one value and one page are in memory."""

    def __init__(self, path: str, column: str) -> None:
        self.file = _open_table(path)
        _check_extent(self.file, path)
        self.path = path
        self.column = column
        self._next = 0
        self._end = 0
        self._batches: Iterator[Any] = iter(())

    def value(self, row: int) -> bytes:
        with _reading_table(self.path):
            if not self._next <= row < self._end:
                self._begin(row)
            for batch in self._batches:
                self._next += 1
                if self._next > row:
                    return batch.column(0)[0].as_py() or b""
            raise ValueError(f"no row {row}")

    def _begin(self, row: int) -> None:
        """Go to the beginning of the row group that has a row."""
        begin = end = 0
        for index in range(self.file.num_row_groups):
            begin, end = end, end + self.file.metadata.row_group(index).num_rows
            if row < end:
                break
        self._next = begin
        self._end = end
        self._batches = self.file.iter_batches(1, row_groups=[index], columns=[self.column])


def predict_block(results: Results[R], items: Sequence[Item], batch_size: int) -> list[Row]:
    """A row for each image of a block; one that cannot be read or processed has an error in it.

    Args:
        results: predicts.
        items: the images.
        batch_size: images that the model gets at once.
    """
    rows: list[Row] = [{"image": item.image} for item in items]
    images = dict[int, np.ndarray]()
    tables = dict[str, _Column]()
    for place, item in enumerate(items):
        try:
            images[place] = read_item(item, results.max_pixels, tables)
        except Exception as error:  # whatever a library makes of a strange file
            rows[place]["error"] = reason_of(error)
        if len(images) == batch_size or place == len(items) - 1:
            for done, outcome in predict_each(results, images).items():
                if isinstance(outcome, Exception):
                    rows[done]["error"] = reason_of(outcome)
                else:
                    rows[done] |= _row(outcome)
            images.clear()
    return rows


def _row(result: Prediction) -> Row:
    """The entries of a row for a prediction; boxes are COCO's (x, y, width, height), masks COCO's compressed RLE."""
    regions = result.streamed_regions()
    height, width = result.image.shape[:2]
    masks = None if regions.masks is None else [*map(mask_as_json, regions.masks)]
    return {
        "height": height,
        "width": width,
        "class_ids": [result.category_ids[label] for label in regions.labels],
        "class_names": [result.names[label] for label in regions.labels],
        "scores": regions.scores.tolist(),
        "boxes": regions.boxes_xywh().tolist(),
        "masks": masks,
    }


class Parts:
    """A folder of results: which blocks are there, and by which settings."""

    def __init__(self, folder: str | Path, items: Sequence[Item], block_size: int) -> None:
        """
        Args:
            folder: folder of the results.
            items: all images, in their order.
            block_size: images of a block, at least 1.
        """
        self.folder = Path(folder)
        self.items = items
        self.block_size = block_size
        self.count = -(-len(items) // block_size)

    def block(self, index: int) -> Sequence[Item]:
        """The images of a block."""
        return self.items[index * self.block_size : (index + 1) * self.block_size]

    def path(self, index: int) -> Path:
        """The file of a block."""
        return self.folder / f"part-{index:05d}.parquet"

    def begin(self, settings: Mapping[str, object], provenance: Mapping[str, object]) -> list[int]:
        """Note the settings, or compare them with those that are there.

        Args:
            settings: what results depend on beside the images; JSON.
            provenance: of this call; JSON.

        Returns:
            The blocks whose file is not there, or not as it was written.

        Raises:
            InputError: the folder has results of other settings or of other images.
        """
        path = self.folder / SETTINGS_FILE
        asked = {**settings, "images": self._digest(), "images of a block": self.block_size}
        if path.exists():
            content = read_json(path, "settings")
            check(content, {"settings": OBJECT}, path, "give another --output")
            require_same(self.folder, content["settings"], asked, "give another --output")
        else:
            write_json(path, {"settings": asked, "provenance": dict(provenance)})
        return [index for index in range(self.count) if not self._is_whole(index)]

    def errors(self) -> int:
        """Number of images with an error, of all blocks that are there."""
        parquet = optional("pyarrow.parquet")
        tables = (parquet.read_table(self.path(i), columns=["error"]) for i in range(self.count))
        return sum(len(table) - table["error"].null_count for table in tables)

    def _is_whole(self, index: int) -> bool:
        path, names = self.path(index), [item.image for item in self.block(index)]
        if not path.exists():
            return False
        try:
            file = _open_table(path)
            _check_extent(file, path)
            with _reading_table(path):
                table = file.read()
                if table.schema == _schema() and table["image"].to_pylist() == names:
                    return True
        except InputError as error:
            logger.debug("%s", error)
        logger.warning(
            "%s is not as it was written: its %d images are done again", path, len(names)
        )
        return False

    def _digest(self) -> str:
        """Digest of the images' names, and of the size and last change of their files."""
        digest = hashlib.sha256()
        states: dict[str, str] = {}
        for item in self.items:
            file = item.table or item.image
            if file not in states:
                states[file] = json.dumps(input_state(Path(file)))
            digest.update(f"{item.image}\0{item.column}\0{states[file]}\n".encode())
        return digest.hexdigest()[:16]


def write_part(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows of a block as Parquet, atomically."""
    pyarrow = optional("pyarrow")
    with atomic_path(path) as temporary:
        table = pyarrow.Table.from_pylist(list(rows), schema=_schema())
        optional("pyarrow.parquet").write_table(
            table, temporary, compression="zstd", write_page_checksum=True
        )


def _schema() -> Any:
    pa = optional("pyarrow")
    mask = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])
    return pa.schema(
        [
            ("image", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("class_ids", pa.list_(pa.int64())),
            ("class_names", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
            ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
            ("masks", pa.list_(mask)),
            ("error", pa.string()),
        ]
    )


optional = functools.partial(of_extra, user="--ray", extra="ray")
"""Gives a module of the extra `ray`, or raises MissingPackage."""


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


class BlockWorker(Generic[R]):
    """Has a model, and predicts block after block."""

    def __init__(
        self, make: Make[R], device: str, parts: Parts, batch_size: int, folder: str
    ) -> None:
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

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
        """Predict the blocks of a batch of Ray's, and write their files; returns their numbers."""
        done = [int(index) for index in batch["block"]]
        for index in done:
            rows = predict_block(self.results, self.parts.block(index), self.batch_size)
            write_part(self.parts.path(index), rows)
        return {"block": done}


def predict_over_ray(
    make: Make[R],
    inputs: Sequence[str],
    output: str,
    workers: Workers,
    column: str | None = None,
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
    parts = Parts(os.path.abspath(output), find_items(inputs, output, column), BLOCK)
    results, settings = make("cpu")
    with alone_in(parts.folder):
        remove_leftovers(parts.folder)
        todo = parts.begin(settings, results.provenance)
        del results  # the workers have models of their own
        if todo:
            ray.init(
                log_to_driver=False,
                logging_level="WARNING",
                runtime_env={"env_vars": typed_environment()},
            )
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


def _predict(data: Any, make: Make[R], parts: Parts, todo: list[int], workers: Workers) -> None:
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
