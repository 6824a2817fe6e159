"""Proposals of an RPN become a file that distillation reads."""

import json
import sys

import pytest
import torch

import precompute
from clipself_seg.choice import ModelChoice
from clipself_seg.config import load_config
from clipself_seg.data.datasets.records import distillation_records
from clipself_seg.data.mappers.distill import DistillMapper
from clipself_seg.models import FViT
from clipself_seg.prediction.load import prediction_config
from lab.precompute.proposals import ProposalSelection, write_dataset_proposals
from tests.conftest import ROOT
from tests.tiny import save_noise

CONFIG = str(ROOT / "configs" / "mini" / "detection.yaml")
TINY = "MODEL.FVIT.CHANNELS 8 INPUT.DETECTION.SIDE 64 MODEL.FVIT.PROPOSALS_AFTER 100".split()
SIZES = {3: (40, 60), "b": (71, 31), 2: (64, 64)}


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    """Three images of noise as the mini world's training split; the file does not have the size of one."""
    (tmp_path / "mini" / "annotations").mkdir(parents=True)
    images = []
    for number, (height, width) in SIZES.items():
        save_noise(tmp_path / "mini" / "train" / f"{number}.png", height, width)
        size = {"height": height, "width": width} if number != 2 else {}
        images.append({"id": number, "file_name": f"{number}.png", **size})
    file = tmp_path / "mini" / "annotations" / "instances_train.json"
    file.write_text(json.dumps({"images": images}))
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    return tmp_path


@pytest.fixture
def target(world):
    return world / "mini" / "annotations" / "proposals_train.json"


def run(
    monkeypatch, target, *words, weights="random", dataset="mini_train", config=CONFIG, opts=TINY
):
    given = ("--config-file", config, "--weights", weights, "--dataset", dataset)
    # What is random is not sure of any box.
    given += ("--output", str(target), "--score", "0", "--min-side", "0")
    words = ("x.py", *given, *words, "--opts", *opts)
    monkeypatch.setattr(sys, "argv", list(words))
    return precompute.proposals()


def test_distillation_reads_what_the_tool_writes(monkeypatch, target, capsys):
    assert run(monkeypatch, target, "--per-image", "20") == 0
    content = json.loads(target.read_text())
    boxes = content["annotations"]
    assert capsys.readouterr().out == f"{target}: {len(boxes)} proposals of 3 images\n"
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert content["info"]["seed"] == 0 and len(content["info"]["weights_hash"]) > 8
    assert content["images"] == [
        {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        for number, (height, width) in SIZES.items()
    ]
    assert [box["id"] for box in boxes] == list(range(1, len(boxes) + 1))
    for number, (height, width) in SIZES.items():
        own = [box for box in boxes if box["image_id"] == number]
        assert 1 <= len(own) <= 20
        scores = [box["score"] for box in own]
        assert scores == sorted(scores, reverse=True) and 0 <= scores[-1] <= scores[0] <= 1
        for x, y, w, h in (box["bbox"] for box in own):
            assert 0 <= x <= x + w <= width + 1e-9 and 0 <= y <= y + h <= height + 1e-9
    proposed = distillation_records(["mini_train_proposals"], "proposals")
    assert sum(len(record["proposals"]) for record in proposed) == len(boxes)
    mapper = DistillMapper(
        load_config(ROOT / "configs" / "mini" / "proposals.yaml"), crop_size=16, seed=0
    )
    assert all(len(mapper(record, 0)["boxes"]) for record in proposed)


def test_boxes_are_the_models_in_pixels_of_the_original(target):
    cfg = prediction_config(ModelChoice("detection", str(CONFIG), "random"), TINY)
    boxes = torch.tensor([[0.004, 1.237, 31.0, 70.996], [2.0, 3.0, 5.5, 9.0], [1.0, 1.0, 2.0, 2.0]])
    with pytest.MonkeyPatch.context() as patch:
        answer = [(boxes, torch.tensor([0.9, 0.50004, 0.1]))]
        patch.setattr(FViT, "propose", lambda model, samples: answer)
        selection = ProposalSelection(score=0, min_side=0, per_image=2)
        done = write_dataset_proposals(cfg, "mini_train", target, selection)
    assert done == (6, 3)
    first, second = json.loads(target.read_text())["annotations"][:2]
    assert first["bbox"] == [0.0, 1.24, 31.0, 69.76] and first["area"] == 2162.56
    assert (second["score"], second["iscrowd"], second["image_id"]) == (0.5, 0, 3)


def test_a_file_that_is_there_is_kept(monkeypatch, target, capsys):
    target.write_text("mine")
    assert run(monkeypatch, target) == 2
    assert "is there already: give another --output, or --overwrite" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert run(monkeypatch, target, "--overwrite", "--per-image", "1") == 0
    assert len(json.loads(target.read_text())["annotations"]) == 3


@pytest.mark.parametrize(
    "how, words, message",
    [
        ({"dataset": "mini_trai"}, (), 'unknown data set "mini_trai"'),
        ({"weights": "none.pth"}, (), "no checkpoint at none.pth"),
        ({"config": "mini/semseg", "opts": ()}, (), "unknown model of boxes"),
        ({}, ("--score", "1.5"), "--score: has to be in [0, 1], got 1.5"),
    ],
)
def test_bad_input_is_a_line_and_status_2(monkeypatch, target, capsys, how, words, message):
    assert run(monkeypatch, target, *words, **how) == 2
    assert message in capsys.readouterr().err and not target.exists()


def test_images_that_are_missing_or_without_any_proposal_leave_no_file(
    world, monkeypatch, target, capsys
):
    with monkeypatch.context() as patch:
        none = [(torch.zeros(0, 4), torch.zeros(0))]
        patch.setattr(FViT, "propose", lambda model, samples: none)
        assert run(patch, target) == 2
    assert "no box of any image passes" in capsys.readouterr().err
    (world / "mini" / "train" / "b.png").unlink()
    assert run(monkeypatch, target) == 2
    assert "1 of 3 images are missing" in capsys.readouterr().err
    assert [path.name for path in target.parent.iterdir()] == ["instances_train.json"]


def test_what_is_no_object_is_not_written():
    boxes = torch.tensor(
        [[0, 0, 20, 20], [0, 0, 20, 19], [30, 0, 40, 7], [50, 0, 60, 10], [70, 0, 79, 9]]
    ).float()
    scores = torch.tensor([0.6, 0.9, 0.8, 0.5, 0.49])
    kept, their_scores = ProposalSelection().of(boxes, scores)
    assert kept.tolist() == [[0, 0, 20, 19], [50, 0, 60, 10]]  # one twice, one too low, one unsure
    torch.testing.assert_close(their_scores, torch.tensor([0.9, 0.5]))
    assert len(ProposalSelection(iou=1, min_side=0, score=0, per_image=4).of(boxes, scores)[0]) == 4
