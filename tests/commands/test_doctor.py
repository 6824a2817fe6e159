"""What the doctor says of a whole environment, and of one that lacks something."""

from __future__ import annotations

import sys

from clipself_seg.checkpoints import shipped
from clipself_seg.commands import doctor


def test_a_whole_environment_gets_versions_device_data_and_weights(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "\n  detectron2 " in said and "\n  CPU, " in said and "mini-fvit" in said
    assert f"$DETECTRON2_DATASETS: {tmp_path}" in said
    assert "absent: lvis_v1_train" in said and "https://www.lvisdataset.org" in said


def test_what_is_missing_is_said_with_the_command_that_brings_it(capsys, monkeypatch, tmp_path):
    for module in ("detectron2", "nltk", "cv2", "tokenizers"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(shipped.SHIPPED_MODELS, "mini-fvit", tmp_path / "lost.safetensors")
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "cv2 is missing: pip install opencv-python-headless" in said
    assert "detectron2 is missing (for models" in said
    assert said.count("clipself-seg install-detectron2") == 2
    assert 'nltk is missing (for nouns of captions): pip install "clipself_seg[captions]"' in said
    assert (
        'tokenizers is missing (for texts of SigLIP and TIPSv2): pip install "clipself_seg[tokenizers]"'
        in said
    )
    assert "lost.safetensors: missing" in said


def test_an_environment_without_extras_is_whole(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert doctor.main(["--skip-datasets"]) == 0
    assert "Data sets" not in capsys.readouterr().out


def test_official_weights_that_are_here_are_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    (tmp_path / "model_base.pth").touch()
    doctor.main(["--skip-datasets"])
    assert f"official ones in {tmp_path} ($CLIPSELF_SEG_WEIGHTS): catseg-base\n" in (
        capsys.readouterr().out
    )
