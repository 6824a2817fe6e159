"""The small commands: what they write can be read, what they are given wrong is named."""

from __future__ import annotations

import torch

from clipself_seg.clip import load_clip, save_clip
from clipself_seg.commands import convert_clip, make_mini_world, train_mini_clip


def run(command, *words) -> int:
    return command.main([str(word) for word in words])


def test_converted_student_has_the_official_wrapper_and_the_same_weights(tmp_path):
    clip = load_clip("ViT-Mini-8", None)
    save_clip(clip, tmp_path / "student.safetensors")
    words = ("--model", "ViT-Mini-8", "--weights", tmp_path / "student.safetensors")
    assert run(convert_clip, *words, "--output", tmp_path / "official.pt") == 0
    content = torch.load(tmp_path / "official.pt", weights_only=True)
    assert {"epoch", "name", "state_dict"} <= content.keys()
    assert {"token_embedding.weight", "visual.proj", "logit_scale"} <= content["state_dict"].keys()
    assert load_clip("ViT-Mini-8", tmp_path / "official.pt").weights_hash() == clip.weights_hash()


def test_unknown_layout_is_one_line_and_status_2(tmp_path, capsys):
    words = ("--model", "ViT-Mini-8", "--weights", "mini", "--layout", "openclip")
    assert run(convert_clip, *words, "--output", tmp_path / "x.pt") == 2
    assert capsys.readouterr().err == 'error: no layout "openclip"; did you mean "open_clip"?\n'


def test_worlds_are_written_once(tmp_path, capsys):
    words = ("--output", tmp_path, "--train", 2, "--val", 1)
    assert run(make_mini_world, *words) == 0 == run(make_mini_world, *words)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("written") and said[1].endswith("complete already")


def test_a_mini_clip_is_trained_and_saved(tmp_path):
    path = tmp_path / "clip.safetensors"
    assert run(train_mini_clip, "--output", path, "--scenes", 4, "--steps", 1) == 0
    assert load_clip("ViT-Mini-8", path).image_size == 64
