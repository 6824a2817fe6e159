"""Fixtures for all tests: the shared real data, and a clean state before and after each test."""

import dataclasses
import gc
import logging
import multiprocessing
import os
import sys
from collections.abc import Generator, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
PARITY = ROOT / "tests" / "parity"
BASELINE = ROOT / "tests" / "baseline"
# More threads than this make the tiny models of the tests slower, not faster.
THREADS = min(2, torch.get_num_threads())
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1:
    # Workers of pytest-xdist share the cores, and so does what they start.
    THREADS = 1
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
torch.set_num_threads(THREADS)
# No test compares distributed tensors, whose import takes half a second in every worker.
torch.testing._comparison._HAS_DTENSOR = False  # type: ignore[attr-defined]
# Without a GPU torch.manual_seed keeps the stack of each call for one that may come, in a millisecond.
SEED = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
keep_freed_memory()  # the system takes longer to hand out pages than small models to compute


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage in what test files import, neither while they do nor later: that takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests: no core waits for them at the end."""
    items.sort(key=lambda item: not item.path.name.startswith("test_overfit"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real images and reference outputs; tests that need it skip without it."""
    folder = Path(os.environ.get("CLIPSELF_SEG_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set CLIPSELF_SEG_SHARED)")
    return folder


@pytest.fixture(scope="session")
def data_dir(shared_dir: Path) -> Path:
    """A few real images with annotations, laid out as DETECTRON2_DATASETS."""
    folder = shared_dir / "data"
    if not folder.is_dir():
        pytest.skip(f"no real pictures at {folder}")
    return folder


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets files of any size and digest stand in for those of the zoo."""
    for name, entry in zoo().items():
        monkeypatch.setitem(zoo(), name, dataclasses.replace(entry, size=None, sha256=""))


@pytest.fixture
def datasets_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder, as DETECTRON2_DATASETS."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def real_datasets(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real images, as DETECTRON2_DATASETS."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    return data_dir


@pytest.fixture
def worlds_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder, as CLIPSELF_SEG_MINI."""
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    return tmp_path


@pytest.fixture
def catalogue() -> Iterator[None]:
    """Detectron2's catalogue forgets after the test which data sets it registered."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Text embeddings of tests do not go to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPSELF_SEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    """Seed every test alike, and undo what it did to the global state of torch; log lines of a run end with it."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    generator = torch.get_rng_state()
    SEED(0)
    yield
    for name in ("clipself_seg", "detectron2"):
        logging.getLogger(name).handlers.clear()
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_rng_state(generator)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New processes as strange to this one as spawned ones, of a server that imports for all: imports take longest."""
    multiprocessing.set_forkserver_preload(["clipself_seg.evaluation.panoptic.quality"])
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(sys.path)
    )  # of which the server is not told else
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
def two_threads(clean_state: None) -> None:
    """For tests of kernels: two threads, also where each worker has one."""
    torch.set_num_threads(2)
