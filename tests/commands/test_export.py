"""export: which CLIP a command line means, and what it says; clip/test_export.py has the rest."""

from __future__ import annotations

import pytest

from clipself_seg.checkpoints.shipped import SHIPPED_MODELS
from clipself_seg.clip import export as onnx_export
from clipself_seg.commands import export


@pytest.fixture
def exported(monkeypatch):
    """The CLIPs that would be exported, and folders."""
    calls = []

    def keep(clip, folder):
        calls.append((clip, folder))
        return {"dense.onnx": {"1x3x64x64": 6.66e-7}}

    monkeypatch.setattr(onnx_export, "export_onnx", keep)
    return calls


def run(*words) -> int:
    return export.main([str(word) for word in words])


def test_a_clip_by_name_and_what_is_said_of_it(exported, capsys, tmp_path):
    out = tmp_path / "onnx"
    assert run("--clip-name", "ViT-Mini-8", "--weights", "mini", "--output", out) == 0
    ((clip, folder),) = exported
    assert folder == str(out) and clip.report is not None and not clip.training
    said = capsys.readouterr().out
    assert said == f"dense.onnx, 1x3x64x64: 6.7e-07 of the largest feature\nwritten: {out}\n"


def test_the_clip_of_a_configuration_is_that_inside_its_trained_model(exported, tmp_path):
    config = ("--config-file", "configs/mini/semseg.yaml", "--output", tmp_path)
    assert "mini-cat-seg" in SHIPPED_MODELS and run(*config, "--weights", "mini-cat-seg") == 0
    ((clip, _),) = exported
    assert not clip.training and clip.logit_scale.device.type == "cpu"
    assert any("q_proj_weight" in name for name in clip.state_dict())  # CAT-Seg's own attention


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--clip-name", "ViT-Mini-8"), "names no weights: give a file or a tag"),
        (
            ("--clip-name", "ViT-Mini-8", "--weights", "mini", "--opts", "SEED", "1"),
            "give --config-file",
        ),
        (
            ("--config-file", "configs/mini/patches.yaml", "--weights", "random"),
            "is of CLIPSelf: give a configuration of CATSeg, FViT, OpenPanoptic, or the CLIP itself",
        ),
    ],
)
def test_what_names_no_clip_is_told_in_a_line(exported, words, reason, tmp_path, capsys):
    assert run(*words, "--output", tmp_path) == 2 and not exported
    assert reason in capsys.readouterr().err
