"""A command's start: torchvision without torch's compiler, of which nothing stays, modules in which Python searches no
garbage, and freed memory that is kept."""

import ctypes
import gc
import os
import runpy
import sys
import types
import warnings

import pytest
import torch._dynamo.utils
import torchvision  # noqa: F401  (what a test takes away comes back)
from detectron2.config import CfgNode
from PIL import Image

import clipself_seg
from clipself_seg import detectron2_needed, memory
from clipself_seg.detectron2_needed import import_torchvision
from tests.faults import run_python

UTILS = "torch._dynamo.utils"
PREDICTS = """
import gc, sys
from clipself_seg.commands.predict import main

assert main([sys.argv[1], "--words", "red star, grass", "--model", "mini", "-o", sys.argv[2]]) == 0
assert "torchvision.ops" in sys.modules
assert gc.isenabled() and (gc.get_freeze_count() > 100_000) == ("triton" not in sys.modules)
assert not {"torch._dynamo", "open_clip", "transformers", "scipy", "huggingface_hub"} & sys.modules.keys()
supported = sys.modules["torchvision.ops.roi_align"].is_compile_supported
asked = supported("cpu")
import torch._dynamo.utils
assert asked == torch._dynamo.utils.is_compile_supported("cpu")
assert torch._dynamo.utils.__file__
"""


def test_a_prediction_imports_no_compiler_and_roi_align_still_asks_it(tmp_path):
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64), "red").save(image)
    done = run_python(PREDICTS, image, tmp_path / "out")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("of_a_command, triton", [(True, False), (False, False), (True, True)])
def test_what_is_no_command_or_has_triton_keeps_its_garbage_collector(
    monkeypatch, of_a_command, triton
):
    frozen = []
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    if not triton:
        monkeypatch.delitem(sys.modules, "triton")
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.setitem(sys.modules, "clipself_seg.commands", types.ModuleType("commands"))
    if not of_a_command:
        monkeypatch.delitem(sys.modules, "clipself_seg.commands")
    runpy.run_path(detectron2_needed.__file__)
    # Before Python may search once more.
    assert frozen == [False] * (of_a_command and not triton)


def test_what_torch_and_python_say_of_detectron2s_ways_is_not_told_to_users():
    with warnings.catch_warnings(record=True) as said:
        warnings.resetwarnings()
        runpy.run_path(clipself_seg.__file__)
        warnings.warn("`torch.jit.script` is deprecated. Please switch to ...", FutureWarning, 2)
        assert CfgNode._decode_cfg_value("runs/2in1") == "runs/2in1"
        assert not said
        warnings.warn("another", FutureWarning, 2)
        assert len(said) == 1


@pytest.mark.parametrize(
    "typed, turns",
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_sleep_soon_unless_the_environment_says_otherwise(monkeypatch, typed, turns):
    environment = dict(typed)
    monkeypatch.setattr(os, "environ", environment)
    runpy.run_path(clipself_seg.__file__)
    assert environment.get("GOMP_SPINCOUNT") == turns


@pytest.fixture
def torchvision_to_come(monkeypatch, tmp_path):
    """Both modules as if nothing had imported them; another torchvision asks for the names of its file."""

    def module(source: str) -> None:
        (tmp_path / "torchvision.py").write_text(source)

    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    real = sys.modules[UTILS]
    monkeypatch.delitem(sys.modules, UTILS)
    monkeypatch.setattr("importlib.import_module", lambda name: sys.modules.setdefault(name, real))
    monkeypatch.syspath_prepend(str(tmp_path))
    return module


def test_what_another_torchvision_wants_of_it_is_torchs_own(torchvision_to_come):
    torchvision_to_come(f"from {UTILS} import counters")
    import_torchvision()
    assert sys.modules["torchvision"].counters is torch._dynamo.utils.counters
    assert sys.modules[UTILS] is torch._dynamo.utils


def test_nothing_stands_in_after_an_import_that_fails(torchvision_to_come):
    torchvision_to_come(f"from {UTILS} import no_such_name")
    with pytest.raises(ImportError, match="no_such_name"):
        import_torchvision()
    torchvision_to_come("raise ImportError('damaged')")
    sys.modules.pop(UTILS)
    with pytest.raises(ImportError, match="damaged"):
        import_torchvision()
    assert UTILS not in sys.modules


@pytest.fixture
def libc(monkeypatch):
    """glibc, which keeps a list of what is asked of it."""
    libc = types.SimpleNamespace(asked=[])
    libc.mallopt = lambda key, value: libc.asked.append((key, value))
    libc.malloc_trim = lambda kept: libc.asked.append(("trim to", kept))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    return libc


def test_what_loading_left_is_handed_back_before_freed_memory_is_kept(libc):
    memory.keep_freed_memory("cuda")
    assert libc.asked == []
    memory.keep_freed_memory()
    first, *kept = libc.asked
    assert first == ("trim to", 0)
    assert [key for key, _ in kept] == [memory.M_MMAP_THRESHOLD, memory.M_TRIM_THRESHOLD]
    libc.asked.clear()
    memory.set_thresholds(32 << 20, 64 << 20)
    after = dict(libc.asked)
    assert all(after[key] < value for key, value in kept)


def test_another_library_than_glibc_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace())
    memory.keep_freed_memory()
