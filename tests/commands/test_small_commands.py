"""The small commands: what they write can be read, what they are given wrong is named."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.clip import load_clip, save_clip
from clipself_seg.commands import (
    convert_clip,
    make_mini_world,
    quickstart,
    repeat_seeds,
    train_mini_clip,
    write_generator_outputs,
)
from clipself_seg.prediction import generator_outputs
from clipself_seg.quickstart import quickstart as chapters
from clipself_seg.tables.runs import make_run
from clipself_seg.tables.store import Store
from tests.tables.worlds import finish


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


def test_the_dense_feature_of_the_weights_is_kept_and_said(tmp_path, capsys):
    clip = load_clip("ViT-Mini-8", "mini", dense=DenseFeature("multi_value", 2))
    clip.distilled = clip.visual.dense_feature
    save_clip(clip, tmp_path / "student.safetensors")
    words = ("--model", "ViT-Mini-8", "--weights", tmp_path / "student.safetensors")
    assert run(convert_clip, *words, "--output", tmp_path / "official.pt") == 0
    said = capsys.readouterr().out
    assert "dense feature multi_value of 2 blocks" in said.splitlines()[0]
    assert said.splitlines()[-1] == "dense feature of the weights: multi_value of 2 blocks"
    assert load_clip("ViT-Mini-8", tmp_path / "official.pt").distilled == clip.distilled


def test_unknown_layout_is_one_line_and_status_2(tmp_path, capsys):
    words = ("--model", "ViT-Mini-8", "--weights", "mini", "--layout", "openclip")
    assert run(convert_clip, *words, "--output", tmp_path / "x.pt") == 2
    assert (
        capsys.readouterr().err
        == 'error: no layout "openclip" of OpenAI ViT; did you mean "open_clip"?\n'
    )


def test_worlds_are_written_once(tmp_path, capsys):
    words = ("--output", tmp_path, "--train", 1, "--val", 1, "--base", 1)
    assert run(make_mini_world, *words) == 0 == run(make_mini_world, *words)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("written") and said[1].endswith("complete already")


def test_a_mini_clip_is_trained_and_saved(tmp_path):
    path = tmp_path / "clip.safetensors"
    assert run(train_mini_clip, "--output", path, "--scenes", 4, "--steps", 1) == 0
    assert load_clip("ViT-Mini-8", path).image_size == 64


def test_numbers_of_finished_runs_are_printed_with_their_spread(tmp_path, capsys):
    for seed, number in ((3, 10.0), (4, 14.0)):
        finished = make_run("configs/mini/semseg.yaml", {}, seed=seed)
        finish(Store(tmp_path), finished, {"val": {"mIoU": number, "mACC": 1.0}})
    words = ("configs/mini/semseg.yaml", "--seeds", 3, 4, "--output", tmp_path, "--show", "/mIoU")
    assert run(repeat_seeds, *words) == 0
    said = capsys.readouterr().out
    assert "12.00 +- 2.83" in said and "mACC" not in said
    assert said.splitlines()[-1] == str(tmp_path / "seeds.json")
    assert run(repeat_seeds, "configs/mini/semseg.yaml", "--seeds", 3) == 2


def test_generator_outputs_are_written_with_the_options_of_the_command(
    tmp_path, monkeypatch, capsys
):
    def write(cfg, dataset, folder, overwrite):
        assert (cfg.MODEL.WEIGHTS, cfg.SEED, dataset, overwrite) == (str(weights), 7, "val", True)
        return generator_outputs.Written(2, 3)

    monkeypatch.setattr(generator_outputs, "write_dataset_outputs", write)
    weights = tmp_path / "w.pth"
    weights.touch()
    (tmp_path / "empty.yaml").write_text("VERSION: 2\n")
    words = ("--config-file", tmp_path / "empty.yaml", "--weights", weights, "--dataset", "val")
    words += ("--output", tmp_path, "--overwrite", "--opts", "SEED", 7)
    assert run(write_generator_outputs, *words) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 2 written, 3 there already\n"


@pytest.mark.parametrize("fresh", [False, True])
def test_the_quickstart_is_told_its_folders(tmp_path, monkeypatch, fresh):
    told = []
    monkeypatch.setattr(chapters, "run_quickstart", lambda *given: told.append(given))
    monkeypatch.setenv("CLIPSELF_SEG_MINI", "worlds of mine")
    assert run(quickstart, "--output", tmp_path, *(["--fresh"] if fresh else [])) == 0
    assert told == [(str(tmp_path), "worlds of mine", fresh)]
