"""A command's start: torchvision without torch's compiler, and nothing that stays of how that is done."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch._dynamo.utils
from PIL import Image

from clipself_seg.torchvision_import import import_torchvision

UTILS = "torch._dynamo.utils"
PREDICTS = """
import sys
from clipself_seg.commands.predict import main

assert main(["--vocabulary", "red star, grass", "--input", sys.argv[1], "--output", sys.argv[2]]) == 0
assert "torchvision.ops" in sys.modules
assert not {"torch._dynamo", "sympy", "open_clip", "transformers", "scipy"} & sys.modules.keys()
supported = sys.modules["torchvision.ops.roi_align"].is_compile_supported
asked = supported("cpu")
import torch._dynamo.utils
assert asked == torch._dynamo.utils.is_compile_supported("cpu")
assert torch._dynamo.utils.__file__
"""


def test_a_prediction_imports_no_compiler_and_roi_align_still_asks_it(tmp_path):
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64), "red").save(image)
    run = [sys.executable, "-c", PREDICTS, str(image), str(tmp_path / "out")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
