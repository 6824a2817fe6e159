"""Measures time of calls that alternate, the fastest matrix product, and peak memory of a process."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from clipself_seg.clip.linear import linear
from clipself_seg.errors import InputError
from clipself_seg.memory import keep_freed_memory, set_thresholds

# Rows, inner side and columns: a large square, and the two products of a ViT-B's MLP.
PEAK_SHAPES = ((2048, 2048, 2048), (4096, 768, 3072), (4096, 3072, 768))


def _nothing() -> None:
    return None


class Run(NamedTuple):
    """A function to time.

    Attributes:
        call: gets what `setup` returns.
        flops: operations that the task needs, 0 where there are no matrix products to speak of.
        setup: what has to be done before each call and is not timed.
        given: bytes of what `setup` returns, where that is not part of the memory.
        calls: after which memory has its peak; an optimiser has its state from the second step on.
    """

    call: Callable[[Any], Any]
    flops: int = 0
    setup: Callable[[], Any] = _nothing
    given: int = 0
    calls: int = 1


def matmul_peak(dtype: torch.dtype, device: torch.device, repeats: int) -> float:
    """Operations per second of the fastest large matrix product: the best of all calls for `PEAK_SHAPES`.

    Of torch's own products and, in float32 on a CPU, those of `linear`, whichever are faster.
    """
    of_convolutions = device.type == "cpu" and dtype == torch.float32
    products = [F.linear, linear] if of_convolutions else [F.linear]
    peak = 0.0
    for rows, inner, columns in PEAK_SHAPES:
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(columns, inner, device=device).to(dtype)
        for product in products:
            run = Run(lambda _, f=product, a=a, b=b: f(a, b))  # type: ignore[misc]
            seconds = min(time_run(run, device) for _ in range(repeats + 1))
            peak = max(peak, 2 * rows * inner * columns / seconds)
    return peak


def time_run(run: Run, device: torch.device) -> float:
    """Seconds of one call."""
    prepared = run.setup()
    _synchronise(device)
    start = time.perf_counter()
    kept = run.call(prepared)
    _synchronise(device)
    seconds = time.perf_counter() - start
    del kept  # after the clock: freeing a large result is not part of the work
    return seconds


def set_allocator(keep: bool, device: torch.device) -> None:
    """Sets the allocator as training and prediction have it, or as torch finds it."""
    if keep:
        keep_freed_memory(device.type)
    else:
        set_thresholds(32 << 20, 64 << 20)  # glibc's own at their largest


def keeps_memory(name: str) -> bool:
    """True if a run keeps freed memory: every one of ours, and no plain one."""
    return not name.startswith("plain ")


def time_in_turn(
    runs: Mapping[str, Run],
    device: torch.device,
    repeats: int,
    report: Callable[[str], None],
) -> dict[str, list[float]]:
    """Seconds of every run, `repeats` times in turn, so that a slow moment of the machine hits all.

    A run that keeps freed memory is called once more if a plain one has handed memory back since its last call: what is
    timed is a later step of a long run, not the pages that the system clears for a first one.

    Args:
        runs: by name; each is called once before to warm up.
        device: to wait for.
        repeats: rounds.
        report: called with the progress.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    before, behind = None, set(runs)  # runs whose memory was handed back
    for turn in range(repeats + 1):
        for name, run in runs.items():
            keep = keeps_memory(name)
            if keep != before:  # setting it hands back what is free
                set_allocator(keep, device)
                before, behind = keep, set(runs)
            if turn and keep and name in behind and device.type == "cpu":
                time_run(run, device)
            behind.discard(name)
            seconds = time_run(run, device)
            report(f"round {turn}/{repeats}  {name}: {seconds:.3f} s{'' if turn else ' (warm-up)'}")
            if turn:
                times[name].append(seconds)
    return times


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[dict[str, Any]]:
    """Measures what is done in the context.

    Yields:
        Filled when the context is left: "seconds", "memory_bytes" (on a GPU torch's most, on the CPU that of the
        process so far) and "waits": FOLDER/FILE:LINE -> how often Python waited for a GPU there, as torch sees it.
    """
    gpu, figures = device.type == "cuda", dict[str, Any]()
    with warnings.catch_warnings(record=gpu) as caught:
        if gpu:
            warnings.simplefilter("always")
            torch.cuda.reset_peak_memory_stats(device)
            torch.cuda.set_sync_debug_mode("warn")
        _synchronise(device)
        start = time.perf_counter()
        yield figures
        _synchronise(device)
        figures["seconds"] = time.perf_counter() - start
        if gpu:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught or () if "called a synchronizing" in str(w.message)]
    figures["waits"] = Counter(
        "/".join(Path(w.filename).parts[-2:]) + f":{w.lineno}" for w in waits
    )
    figures["memory_bytes"] = torch.cuda.max_memory_allocated(device) if gpu else _resident_peak()


def peak_memory(build: Callable[[Any], Mapping[str, Run]], case: Any, name: str) -> int:
    """Bytes that a process of its own needs at most for the calls of a run: weights, but not what is given.

    On the CPU the growth of the process's peak since its imports, on a GPU torch's allocations.

    Args:
        build: importable; makes the runs of a case in the new process.
        case: with `device` and `threads`; can be pickled.
        name: name of the run.

    Raises:
        InputError: the process was ended, most often because memory ran out.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(_measure_memory, build, case, name).result()
        except BrokenProcessPool:
            raise InputError(
                f'"{name}" was ended, most likely for want of memory: lower --size or --batch'
            ) from None


def _measure_memory(build: Callable[[Any], Mapping[str, Run]], case: Any, name: str) -> int:
    torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    before = 0 if device.type == "cuda" else _resident_peak()
    run = build(case)[name]
    set_allocator(keeps_memory(name), device)
    with watched(device) as seen:
        for _ in range(run.calls):
            time_run(run, device)
    return int(seen["memory_bytes"]) - before - run.given


def _resident_peak() -> int:
    """Bytes; Linux's ``VmHWM`` where it exists, since ``ru_maxrss`` starts with the parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
