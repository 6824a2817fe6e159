"""The thin tools: what they write can be read, what they are given wrong is named."""

from __future__ import annotations

import subprocess
import sys

import convert_clip
import make_mini_world
import pytest
import torch
import train_mini_clip

from clipself_seg.clip import load_clip, save_clip
from tests.conftest import ROOT


def run(monkeypatch, tool, *words) -> int:
    monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, words)])
    return tool.main()


def test_converted_student_has_the_official_wrapper_and_the_same_weights(monkeypatch, tmp_path):
    clip = load_clip("ViT-Mini-8", None)
    save_clip(clip, tmp_path / "student.safetensors")
    words = ("--model", "ViT-Mini-8", "--weights", tmp_path / "student.safetensors")
    assert run(monkeypatch, convert_clip, *words, "--output", tmp_path / "official.pt") == 0
    content = torch.load(tmp_path / "official.pt", weights_only=True)
    assert {"epoch", "name", "state_dict"} <= content.keys()
    assert {"token_embedding.weight", "visual.proj", "logit_scale"} <= content["state_dict"].keys()
    assert load_clip("ViT-Mini-8", tmp_path / "official.pt").weights_hash() == clip.weights_hash()


def test_unknown_layout_is_one_line_and_status_2(monkeypatch, tmp_path, capsys):
    words = ("--model", "ViT-Mini-8", "--weights", "mini", "--layout", "openclip")
    assert run(monkeypatch, convert_clip, *words, "--output", tmp_path / "x.pt") == 2
    assert capsys.readouterr().err == 'error: no layout "openclip"; did you mean "open_clip"?\n'


def test_worlds_are_written_once(monkeypatch, tmp_path, capsys):
    words = ("--output", tmp_path, "--train", 2, "--val", 1)
    assert (
        run(monkeypatch, make_mini_world, *words) == 0 == run(monkeypatch, make_mini_world, *words)
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("written") and said[1].endswith("complete already")


def test_a_mini_clip_is_trained_and_saved(monkeypatch, tmp_path):
    path = tmp_path / "clip.safetensors"
    assert run(monkeypatch, train_mini_clip, "--output", path, "--scenes", 4, "--steps", 1) == 0
    assert load_clip("ViT-Mini-8", path).image_size == 64


@pytest.mark.parametrize("tool", sorted(p.name for p in (ROOT / "tools").glob("[!_]*.py")))
def test_help_is_quick_because_nothing_heavy_is_imported(tool):
    code = (ROOT / "tools" / tool).read_text()
    if "parse_arguments" not in code:
        pytest.skip("not a command")
    checked = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path('tools/{tool}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'detectron2', 'cv2'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", checked], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
