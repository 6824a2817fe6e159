"""Runs tests on another device than the CPU, as they are: what they make of numbers, arrays and files lies there.

    CLIPSELF_SEG_TEST_DEVICE=cuda python -m pytest -p tests.on_device tests/clip/test_parity.py

"lazy" is the simulated GPU of tools/bench/accelerator.py, which computes on the CPU and takes the ways of a GPU.
What a test makes and names no device for lies there, and so do parameters and buffers; what the code under test makes
so lies on the CPU, as it does with a GPU. Tests marked "cpu" ask for the ways of a CPU, and are left out. Tolerances
are those of the tests, in float32 without TF32. After each test the file that CLIPSELF_SEG_TEST_REPORT names gets
"passed" and "skipped" (their numbers), "failed" (test -> first line of its error), "tolerance_used" (the largest
difference as a multiple of what is allowed) and "most_used_by", the test that it was in.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _pytest
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map

from bench import accelerator
from bench.accelerator import ACCELERATOR, Accelerator
from clipself_seg.files import write_json

DEVICE = torch.device(os.environ.get("CLIPSELF_SEG_TEST_DEVICE", "cuda"))
FIGURES: dict[str, Any] = {"device": str(DEVICE), "passed": 0, "skipped": 0, "failed": {}}
FIGURES["tolerance_used"] = 0.0
REPORT = os.environ.get("CLIPSELF_SEG_TEST_REPORT")
MAKERS = _device_constructors()
FILLED = {Tensor.normal_, Tensor.uniform_, Tensor.random_, Tensor.bernoulli_}
TESTS = str(Path(__file__).parent)
LIBRARIES = [str(Path(module.__file__).parent) for module in (torch, np, _pytest)]
BETWEEN = (*LIBRARIES, __file__, accelerator.__file__)
DRAWN = FILLED | {torch.rand_like, torch.randn_like, torch.randint_like}


def moved(values: Any, device: torch.device | str) -> Any:
    """Nested values with all tensors on a device."""
    return tree_map(
        lambda v: v.to(device) if isinstance(v, Tensor) and not v.is_meta else v, values
    )


def of_test() -> bool:
    """Whether a test itself, and not what it calls, has called the function of torch that calls this."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(BETWEEN):
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(TESTS)


def together(values: Any) -> Any:
    """Nested values, on `DEVICE` if one of them is."""
    kinds = {value.device.type for value in tree_leaves(values) if isinstance(value, Tensor)}
    return moved(values, DEVICE) if kinds == {"cpu", DEVICE.type} else values


class OnDevice(TorchFunctionMode):
    """What a test makes naming no device lies on `DEVICE`; random numbers are drawn on the CPU, and are those of it."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in DRAWN and args[0].device.type == DEVICE.type:
            drawn = function(args[0].detach().cpu(), *args[1:], **kwargs)
            with torch.no_grad():
                return args[0].copy_(drawn) if function in FILLED else drawn.to(DEVICE)
        if not of_test():
            return function(*args, **kwargs)
        if function in MAKERS and kwargs.get("device") is None:
            made = function(*args, **kwargs | {"device": "cpu"})
            return made.detach().to(DEVICE).requires_grad_(made.requires_grad)
        if function in (Tensor.numpy, Tensor.__array__):
            args = (args[0].cpu(), *args[1:])
        args, kwargs = together((args, kwargs))
        return function(*args, **kwargs)


def compare(close: Any, actual: Any, expected: Any, **how: Any) -> None:
    """`torch.testing.assert_close` on the CPU, with the part of the tolerance that is used."""
    actual, expected = moved(actual, "cpu"), moved(expected, "cpu")
    tensors = isinstance(actual, Tensor) and isinstance(expected, Tensor)
    if (
        tensors
        and actual.is_floating_point()
        and actual.shape == expected.shape
        and how.get("atol")
    ):
        away = (actual.double() - expected.double()).abs()
        used = away / (how["atol"] + how.get("rtol", 0) * expected.double().abs())
        if used.numel() and used.max().item() > FIGURES["tolerance_used"]:
            FIGURES["tolerance_used"] = used.max().item()
            FIGURES["most_used_by"] = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
    close(actual, expected, **how)


def move_constants(items: list[pytest.Item]) -> None:
    """What test files made when they were imported, and parameters of tests, on the device."""
    held = [vars(module) for module in {item.module for item in items}]
    held += [item.callspec.params for item in items if hasattr(item, "callspec")]
    for names in held:
        for name, value in list(names.items()):
            if isinstance(value, Tensor | list | tuple | dict):
                if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
                    names[name] = moved(value, DEVICE)


@pytest.fixture(autouse=True, scope="session")
def on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """The device, and no TF32 on it: the tolerances are those of float32."""
    array, load, save = torch.from_numpy, torch.load, torch.save
    close = torch.testing.assert_close

    def placed(method: Any) -> Any:
        """A method of modules after which their tensors lie on the device."""

        def call(module: nn.Module, *given: Any, **how: Any) -> Any:
            result = method(module, *given, **how)
            module._apply(lambda t: t.to(DEVICE) if t.device.type == "cpu" else t)
            return result

        return call

    def registered(method: Any) -> Any:
        """A method that gives a module a tensor, which then lies on the device."""

        def call(module: nn.Module, name: str, tensor: Any, *given: Any, **how: Any) -> Any:
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                there = tensor.detach().to(DEVICE).requires_grad_(tensor.requires_grad)
                if isinstance(tensor, nn.Parameter):
                    there = nn.Parameter(there, tensor.requires_grad)
                tensor = there
            return method(module, name, tensor, *given, **how)

        return call

    def here(values: Any) -> Any:
        return moved(values, DEVICE) if of_test() else values

    with contextlib.ExitStack() as stack:
        if DEVICE == ACCELERATOR:
            stack.enter_context(Accelerator())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch, "from_numpy", lambda values: here(array(values)))
        patch.setattr(torch, "load", lambda *file, **how: here(load(*file, **how)))
        patch.setattr(torch, "save", lambda o, *a, **how: save(moved(o, "cpu"), *a, **how))
        for name in ("load_state_dict", "to", "cpu"):
            patch.setattr(nn.Module, name, placed(getattr(nn.Module, name)))
        for name in ("register_parameter", "register_buffer"):
            patch.setattr(nn.Module, name, registered(getattr(nn.Module, name)))
        patch.setattr(torch.testing, "assert_close", lambda *a, **how: compare(close, *a, **how))
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        move_constants(request.session.items)
        stack.enter_context(OnDevice())
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Before anybody imports the function by its name."""
    write = safetensors.torch.save_file
    safetensors.torch.save_file = lambda o, *a, **how: write(moved(o, "cpu"), *a, **how)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what only a CPU does."""
    left_out = [item for item in items if item.get_closest_marker("cpu")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Counts a test, or keeps its error."""
    if report.failed:
        lines = str(report.longrepr).splitlines()
        errors = [line[4:] for line in lines if line.startswith("E   ")]
        FIGURES["failed"][report.nodeid] = (errors or lines[-1:] or [""])[0][:300]
    elif report.skipped:
        FIGURES["skipped"] += 1
    elif report.when == "call":
        FIGURES["passed"] += 1
    if report.when == "teardown" and REPORT:  # a GPU may take the process with it
        write_json(REPORT, FIGURES)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Ends well: which tests failed is among the figures."""
    if REPORT and exitstatus == pytest.ExitCode.TESTS_FAILED:
        session.exitstatus = pytest.ExitCode.OK
