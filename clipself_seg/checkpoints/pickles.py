"""Detectron2's ``.pkl`` weights: a pickle of numpy arrays, read without running what is in it."""

from __future__ import annotations

import collections
import importlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipself_seg.errors import InputError, in_short

# What rebuilds an array, under the modules of numpy 1 and numpy 2.
MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
ARRAYS = ("numpy.core.numeric", "numpy._core.numeric")
_MULTIARRAY = importlib.import_module(np.ndarray.__reduce__(np.zeros(1))[0].__module__)
_NUMERIC = importlib.import_module(_MULTIARRAY.__name__.replace("multiarray", "numeric"))


def read_numpy_pickle(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Name -> tensor of a pickled dict of arrays, or of the one that is its "model".

    Raises:
        InputError: missing, damaged, without arrays, or naming anything that could run code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
            content = content["model"]
        arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray | np.generic)}
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    except FileNotFoundError:
        raise InputError(f"no weights at {path}; give the path of a .pkl file") from None
    except _ForeignName as error:
        raise InputError(
            f"{path} is refused: it names {error}, which could run code when loaded; use a file "
            "that holds arrays only"
        ) from None
    except Exception as error:  # about damaged bytes pickle and numpy raise all there is
        raise InputError(
            f"{path} is truncated or no pickle of arrays ({in_short(error)}); fetch it again"
        ) from None
    if not tensors:
        raise InputError(f"{path} holds no arrays; is it a checkpoint?")
    return tensors


class _ForeignName(pickle.UnpicklingError):
    """A global that is not on the list."""


class _ArrayUnpickler(pickle.Unpickler):
    """Knows dicts, lists, strings, numbers and arrays; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module in MODULES and name in ("_reconstruct", "scalar"):
            return getattr(_MULTIARRAY, name)
        if module in ARRAYS and name == "_frombuffer":
            return getattr(_NUMERIC, name)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("_codecs", "encode"):
            return _latin1  # how protocol 2 writes bytes
        raise _ForeignName(f"{module}.{name}")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _ForeignName(f"the encoding {encoding}")
    return text.encode("latin1")
