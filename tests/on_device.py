"""Runs tests on another device than the CPU, as they are: what they make of numbers, arrays and files lies there.

    CLIPSELF_SEG_TEST_DEVICE=cuda python -m pytest -p tests.on_device tests/clip/test_parity.py

"lazy" is the simulated GPU of tools/bench/accelerator.py, which computes on the CPU and takes the ways of a GPU.
Tolerances are those of the tests, in float32 without TF32. The file that CLIPSELF_SEG_TEST_REPORT names gets "passed"
(their number), "failed" (test -> first line of its error), "tolerance_used" (the largest difference as a multiple of
what is allowed) and "most_used_by", the test that it was in.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_map

from bench.accelerator import ACCELERATOR, Accelerator
from clipself_seg.files import write_json

DEVICE = torch.device(os.environ.get("CLIPSELF_SEG_TEST_DEVICE", "cuda"))
FIGURES: dict[str, Any] = {"device": str(DEVICE), "passed": 0, "failed": {}, "tolerance_used": 0.0}
MAKERS = _device_constructors()
FILLED = {Tensor.normal_, Tensor.uniform_, Tensor.random_, Tensor.bernoulli_}
DRAWN = FILLED | {torch.rand_like, torch.randn_like, torch.randint_like}


def moved(values: Any, device: torch.device | str) -> Any:
    """Nested values with all tensors on a device."""
    return tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, values)


class OnDevice(TorchFunctionMode):
    """Tensors that name no device lie on `DEVICE`; random ones are drawn on the CPU, and are those of the CPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in MAKERS and kwargs.get("device") is None:
            made = function(*args, **kwargs | {"device": "cpu"})
            return made.detach().to(DEVICE).requires_grad_(made.requires_grad)
        if function in DRAWN and args[0].device.type == DEVICE.type:
            drawn = function(args[0].detach().cpu(), *args[1:], **kwargs)
            with torch.no_grad():
                return args[0].copy_(drawn) if function in FILLED else drawn.to(DEVICE)
        if function in (Tensor.numpy, Tensor.__array__):
            args = (args[0].cpu(), *args[1:])
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


@pytest.fixture(autouse=True, scope="session")
def on_device() -> Iterator[None]:
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

    with contextlib.ExitStack() as stack:
        if DEVICE == ACCELERATOR:
            stack.enter_context(Accelerator())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch, "from_numpy", lambda values: array(values).to(DEVICE))
        patch.setattr(torch, "load", lambda *file, **how: moved(load(*file, **how), DEVICE))
        patch.setattr(torch, "save", lambda o, *a, **how: save(moved(o, "cpu"), *a, **how))
        for name in ("load_state_dict", "to", "cpu"):
            patch.setattr(nn.Module, name, placed(getattr(nn.Module, name)))
        patch.setattr(torch.testing, "assert_close", lambda *a, **how: compare(close, *a, **how))
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        stack.enter_context(OnDevice())
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Counts a test, or keeps its error."""
    if report.failed:
        lines = str(report.longrepr).splitlines()
        errors = [line[4:] for line in lines if line.startswith("E   ")]
        FIGURES["failed"][report.nodeid] = (errors or lines[-1:] or [""])[0][:300]
    elif report.when == "call" and report.passed:
        FIGURES["passed"] += 1


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes the figures, and ends well: which tests failed is among them."""
    if path := os.environ.get("CLIPSELF_SEG_TEST_REPORT"):
        write_json(path, FIGURES)
        if exitstatus == pytest.ExitCode.TESTS_FAILED:
            session.exitstatus = pytest.ExitCode.OK
