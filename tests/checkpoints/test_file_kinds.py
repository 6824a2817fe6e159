"""Files that were cut off, or are of a kind that is not read, are refused at once and without torch."""

import re

import pytest
import torch
from safetensors.torch import save_file

from clipself_seg.checkpoints import needs
from clipself_seg.checkpoints.file_kinds import require_readable
from clipself_seg.checkpoints.locate import locate, refuse_lost
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.commands import doctor
from clipself_seg.errors import InputError
from tests.faults import run_python

TENSORS = {"visual.proj": torch.ones(64, 64)}
CUT_OFF = "is truncated or no .* file .*; fetch it again"


def write(path, kind, left=1.0):
    """A file of a kind, or the first part of it."""
    save_file(TENSORS, path) if kind == "safetensors" else torch.save(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content))])
    return path


@pytest.mark.parametrize("kind", ["safetensors", "archive"])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_part_of_a_file_is_refused_and_the_whole_passes(kind, name, tmp_path):
    require_readable(write(tmp_path / name, kind))
    require_readable(tmp_path)
    for left in (0.2, 0.9, 0.999):
        write(tmp_path / name, kind, left)
        with pytest.raises(InputError, match=f"{name} {CUT_OFF}"):
            require_readable(tmp_path / name)
        with pytest.raises(InputError, match=f"{name} {CUT_OFF}"):
            refuse_lost(str(tmp_path / name))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("predict.main", (__file__, "--words", "dog")),
        ("explore.explore", (__file__, "--words", "dog")),
        ("export.export", ("-o", "onnx")),
    ],
)
def test_a_part_under_a_name_of_the_zoo_is_refused_before_torch(call, words, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    path = write(tmp_path / zoo()["openai-vitb16"].file, "safetensors", 0.5)
    for refuse in (locate, lambda name: needs.missing_parts({"MODEL.CLIP.WEIGHTS": name})):
        with pytest.raises(InputError, match=f"{path.name} {CUT_OFF}"):
            refuse("openai-vitb16")
    code = "import sys; from clipself_seg.commands import predict, explore, export; "
    code += f"print({call}(sys.argv[1:]), *sys.modules)"
    done = run_python(code, *words, "--model", "openai-vitb16")
    status, *modules = done.stdout.split()
    assert status == "2" and "torch" not in modules and re.search(CUT_OFF, done.stderr)


def test_a_file_stands_for_the_same_weights_by_another_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / zoo()["EVA02-B-16:merged2b_s8b_b131k"].file).write_bytes(b"\x80eights")
    doctor._weights()
    said = capsys.readouterr().out
    assert ": EVA02-B-16:merged2b_s8b_b131k, eva02-vitb16\n" in said
