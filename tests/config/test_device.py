"""What MODEL.DEVICE and --device name; CUDA and mps are pretended."""

import pytest
import torch

from clipself_seg.__main__ import COMMANDS, body
from clipself_seg.clip.runtime import widest
from clipself_seg.config import load_config
from clipself_seg.device import chosen_device, require_device
from clipself_seg.errors import InputError


@pytest.fixture
def devices(monkeypatch):
    """Pretends so many GPUs, and mps or not."""

    def pretend(gpus: int, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


def configured(*device: str) -> str:
    keys = ["MODEL.DEVICE", *device] if device else []
    chosen: str = load_config(None, keys).MODEL.DEVICE
    return chosen


@pytest.mark.parametrize(
    ("gpus", "mps", "auto", "default"),
    [(2, True, "cuda", "cuda"), (0, True, "mps", "cpu"), (0, False, "cpu", "cpu")],
)
def test_auto_is_the_first_of_cuda_mps_and_cpu_and_mps_is_never_the_default(
    devices, gpus, mps, auto, default
):
    devices(gpus, mps)
    assert (chosen_device("auto"), configured("auto"), configured()) == (auto, auto, default)


@pytest.mark.parametrize("absent", ["cuda:2", "mps"])
def test_a_device_that_is_not_here_is_refused_if_typed_and_said_if_configured(
    devices, caplog, absent
):
    devices(2, False)
    require_device("cuda:1")
    with pytest.raises(InputError, match="sees 2 CUDA .* and no mps: give another one"):
        require_device(absent)
    assert configured(absent) == "cpu"
    assert f"MODEL.DEVICE {absent} is not on this machine: the CPU computes" in caplog.text


def test_mps_computes_in_float32(devices, caplog):
    devices(0, True)
    half = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"]
    amp = load_config(None, ["MODEL.DEVICE", "mps", *half]).SOLVER.AMP
    assert configured("mps") == "mps" and not amp.ENABLED
    assert "float16 is not tried on mps" in caplog.text
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cpu")) == torch.float64


@pytest.mark.parametrize("words", ["train", "eval", "dense-maps", "explore"])
def test_a_command_that_computes_takes_a_device(capsys, words):
    with pytest.raises(SystemExit):
        body(COMMANDS[words])(["--help"])
    assert "--device" in capsys.readouterr().out


def test_a_training_refuses_a_device_that_is_not_here(devices, capsys, tmp_path):
    devices(0, False)
    words = ["--config-file", "mini/patches", "--device", "mps", "OUTPUT_DIR", str(tmp_path)]
    assert body(COMMANDS["train"])(words) == 2
    assert "--device mps: torch" in capsys.readouterr().err
