"""The common part of all exports to ONNX: graphs with named inputs and outputs, and the files around them.

A graph is traced for inputs whose sizes vary, and then run by onnxruntime on inputs of other sizes. Nothing is
written where the results differ from torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipself_seg.clip.levers import stock_products
from clipself_seg.errors import InputError, of_extra
from clipself_seg.files import atomic_files, clear_killed, write_json
from clipself_seg.pages import TEMPLATES
from clipself_seg.prediction.predictor import ImagePredictor
from clipself_seg.prediction.pretrained import origins
from clipself_seg.provenance import provenance

# The exporter's own, of which torch brings none, and what checks the result.
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest absolute value of an output
BY_ROUNDING = 0.05  # largest fraction of detections or queries that rounding may decide about
Differences = dict[str, float]
Arrays = Sequence[np.ndarray]


@dataclasses.dataclass
class Graph:
    """A graph that becomes a file of ONNX.

    Attributes:
        module: on the CPU, in float32; takes the inputs in their order, and returns a tensor or a tuple of them.
        inputs: an example of each input by its name. Its varying sizes differ from those of `checks`, and are 2 or
            more.
        sizes: for each input its axes that vary, each with its name in the file, or with a `torch.export.Dim` where
            it is no free number.
        outputs: names of the outputs.
        checks: inputs of other sizes, in the order of `inputs`, for the comparison with torch.
        translations: operators of torch's that the exporter does not know -> functions of onnxscript.
        align: makes comparable what rounding decides about in torch's outputs and the file's, such as their order.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    sizes: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]
    checks: Iterable[tuple[Tensor, ...]]
    translations: dict[Any, Any] | None = None
    align: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]] | None = None


@dataclasses.dataclass
class Export:
    """A model in one file, and what stands beside it.

    Attributes:
        graph: of the model.
        metadata: what the JSON file says of it, besides what is the same of all.
        further: other graphs, by what follows the stem in the names of their files, such as "_text.onnx".
        beside: contents of further files, likewise, such as of ".py".
    """

    graph: Graph
    metadata: dict[str, Any]
    further: Mapping[str, Graph] = dataclasses.field(default_factory=dict)
    beside: dict[str, str] = dataclasses.field(default_factory=dict)


def require_packages() -> None:
    """Refuses to begin without the packages.

    Raises:
        MissingPackage: one is not installed.
    """
    for name in PACKAGES:
        of_extra(name, "ONNX", "export")


def require_free(paths: Sequence[Path]) -> None:
    """Refuses an export whose place is taken by files or folders; what killed ones have left there goes.

    Raises:
        InputError: names the first one.
    """
    for path in paths:
        clear_killed(path)
        if path.exists():
            raise InputError(f"{path} is there already: give another name, or remove it")


def script(name: str) -> str:
    """The Python file that is written beside a model: ``templates/onnx_{name}.py.txt``."""
    return (TEMPLATES / f"onnx_{name}.py.txt").read_text("utf-8")


def metadata_of(predictor: ImagePredictor[Any]) -> dict[str, Any]:
    """The beginning of the metadata of every task: the model, its class names, its weights and their licences."""
    model, cfg, vocabulary = predictor.model, predictor.config, predictor.vocabulary
    return {
        "model": type(model).__name__,
        "clip": model.clip.name,
        "names": [*predictor.names],
        "synonyms": [entry.names for entry in vocabulary.classes] if vocabulary else [],
        "weights": [] if cfg is None else [": ".join(filter(None, row)) for row in origins(cfg)],
        "provenance": provenance(weights_hash=model.weights_hash()),
    }


def smooth_images(*sizes: tuple[int, int]) -> Iterator[tuple[Tensor]]:
    """Images (1, 3, H, W) of smooth noise in [0, 255], of these rows and columns, for `Graph.checks`."""
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        coarse = torch.rand(1, 3, 8, 8, generator=generator) * 255
        yield (nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255),)


def write_model(export: Export, path: Path) -> dict[str, Differences]:
    """Writes a model in one file and what stands beside it, all or nothing.

    Args:
        export: the model.
        path: file to write, none of whose neighbours of the same stem is there.

    Returns:
        Differences of onnxruntime from torch of each file, see `export_graph`.

    Raises:
        InputError: a package is missing, or a difference is too large.
        OSError: the files cannot be written.
    """
    require_packages()
    with atomic_files(path) as made:
        files = {}
        for ending, graph in {path.suffix: export.graph, **export.further}.items():
            name = path.stem + ending
            files[name] = export_graph(graph, made / name)
        write_json(made / f"{path.stem}.json", export.metadata | {"files": files})
        for ending, content in export.beside.items():
            (made / f"{path.stem}{ending}").write_text(content, "utf-8")
    # The model came last: where it is, everything is.
    return {name: entries["differences"] for name, entries in files.items()}


def export_graph(graph: Graph, path: Path) -> dict[str, Any]:
    """Writes one file of ONNX and compares it with torch.

    Weights of more than ONNX keeps in one file (2 GB) go to a ``.data`` file beside it.

    Args:
        graph: to export.
        path: file to write.

    Returns:
        What the metadata say of the file: "opset", names, types and shapes of "inputs" and "outputs", and
        "differences" of onnxruntime from torch, as fractions of the largest absolute value of an output, by the
        shapes of the inputs.

    Raises:
        InputError: a difference is larger than `TOLERANCE`.
    """
    from onnxruntime import InferenceSession, SessionOptions

    with plain(graph.module), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own parts for one another
        # It warns of constants that stay as they are.
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            input_names=[*graph.inputs],
            output_names=[*graph.outputs],
            dynamic_shapes=tuple(_dynamic(graph.sizes.get(name, {})) for name in graph.inputs),
            custom_translation_table=graph.translations,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for value in program.model.graph.inputs:
        for axis, size in graph.sizes.get(str(value.name), {}).items():
            if isinstance(size, str) and value.shape is not None:
                value.shape[axis] = size
    program.save(path, external_data=False)
    options = SessionOptions()
    options.log_severity_level = 3  # errors
    session = InferenceSession(path, options, ["CPUExecutionProvider"])
    return {
        "opset": program.model.opset_imports[""],
        "inputs": {one.name: [one.type, one.shape] for one in session.get_inputs()},
        "outputs": {one.name: [one.type, one.shape] for one in session.get_outputs()},
        "differences": _differences(graph, session, path.name),
    }


def _dynamic(sizes: Mapping[int, Any]) -> dict[int, Any]:
    """The sizes as torch takes them; a name alone leaves to torch what it can be."""
    free = torch.export.Dim.DYNAMIC
    return {axis: free if isinstance(size, str) else size for axis, size in sizes.items()}


@contextlib.contextmanager
def plain(module: nn.Module) -> Iterator[None]:
    """Lets a module, a copy of the caller's, compute by the plain formulations, which are what is exported.

    Convolutions in place of products, results that overwrite inputs and what is computed again for
    gradients are made for torch's kernels.
    """
    module.requires_grad_(False)
    with stock_products(), torch.enable_grad():  # with gradients on nothing is overwritten
        yield


@torch.no_grad()
def _differences(graph: Graph, session: Any, name: str) -> Differences:
    """Largest difference of the file's outputs from torch's for each input, by its shape."""
    differences = {}
    for given in graph.checks:
        made = graph.module(*given)
        made = (made,) if isinstance(made, Tensor) else made
        wanted: Arrays = [one.numpy() for one in made]
        arrays = {key: value.numpy() for key, value in zip(graph.inputs, given, strict=True)}
        computed = session.run(None, arrays)
        if graph.align is not None:
            wanted, computed = graph.align(wanted, computed)
        shape = ", ".join("x".join(map(str, value.shape)) for value in given)
        differences[shape] = 0.0
        for output, one, other in zip(graph.outputs, wanted, computed, strict=True):
            scale = max(np.abs(one).max(initial=0), np.finfo(np.float32).tiny)
            difference = np.inf  # of other shapes
            if one.shape == other.shape:
                difference = float(np.abs(one - other).max(initial=0) / scale)
            if not difference <= TOLERANCE:
                raise InputError(
                    f"{output} of {name} differs from torch by {difference:.1e} of the largest value for an "
                    f"input of {shape}, and {TOLERANCE:.0e} is allowed: nothing is written; try another "
                    "torch or onnxruntime"
                )
            differences[shape] = max(differences[shape], difference)
    return differences
