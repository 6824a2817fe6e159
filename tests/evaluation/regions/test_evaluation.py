"""Regions at several input sizes: the numbers of each size alone, and crops that are encoded once."""

import json
import logging

import pytest
import torch

from clipself_seg.clip import load_clip
from clipself_seg.data.datasets.table import DATASETS
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.evaluation.region_accuracy import RegionEvaluation
from clipself_seg.models import CLIPSelf, RegionReader
from tests.tables import cells
from tests.tiny import write_tiny_coco

NAME = "coco_2017_train_panoptic"
READ = ("boxes", "crops", "attention_boxes")


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    write_tiny_coco(tmp_path / "datasets", images=3)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


def evaluation(sizes, folder):
    how = {"read": READ, "workers": 0, "output_dir": folder}
    return RegionEvaluation(datasets=[NAME], sizes=sizes, **how)


def test_crops_are_encoded_once_for_all_sizes(tmp_path, datasets, monkeypatch):
    torch.manual_seed(0)
    model = RegionReader(clip=load_clip("ViT-Mini-8", None), read=READ).eval()
    text_KE = torch.nn.functional.normalize(torch.randn(133, model.clip.embed_dim), dim=-1)
    monkeypatch.setattr(model.bank, "embed", lambda *_: text_KE)
    visual, encoded = model.clip.visual, []
    visual.register_forward_hook(lambda module, images, rows: encoded.append(len(rows)))
    alone = {}
    for size in (48, 64):
        encoded.clear()
        alone |= evaluation((size,), tmp_path / str(size))(model)[NAME]
        regions = sum(encoded)
    encoded.clear()
    together = evaluation((48, 64), tmp_path / "both")(model)[NAME]
    assert regions == 6 and sum(encoded) == regions
    assert together == alone and list(together[64]) == list(alone[64])
    for size in (48, 64):
        tables = [
            json.loads((folder / f"region_accuracy_{NAME}.json").read_text())
            for folder in (tmp_path / str(size), tmp_path / "both" / f"size_{size}")
        ]
        assert tables[0] == tables[1] and "crops.top5" in tables[0]["classes"][0]


def test_tables_have_a_row_a_data_set_or_of_several_sizes_a_row_a_size(tmp_path):
    numbers = {48: {"boxes.thing.top1": 12.5}, 64: {"boxes.thing.top1": 25.0}}
    (one,) = evaluation((64,), tmp_path).tables({NAME: {64: numbers[64]}}).values()
    assert cells(one)[-1][:3] == [NAME, "25.0", "-"]
    (both,) = evaluation((48, 64), tmp_path).tables({NAME: numbers}).values()
    assert [line[:2] for line in cells(both)[-2:]] == [
        [f"{NAME}, 48 px", "12.5"],
        [f"{NAME}, 64 px", "25.0"],
    ]


def test_the_protocol(tmp_path, datasets, caplog):
    model = RegionReader(clip=load_clip("ViT-Mini-8", None), read=READ, templates="single").eval()
    run = evaluation((64,), tmp_path)
    with caplog.at_level(logging.INFO, logger="clipself_seg"):
        run(model)
    vocabulary = Vocabulary.load(DATASETS[NAME].vocabulary)
    assert run.protocols[NAME].as_dict() == {
        "words": f"{vocabulary.name}, 133 classes",
        "synonyms": "all, the mean of their embeddings",
        "templates": '"a photo of a {}"',
        "background": "none, every region has a class",
        "windows": "none",
        "size": f"fitted into a square of 64 px, masks by rule reference; crops {model.image_size} px",
        "seen": "no split",
        "features": "token",
        "rule": "mean over classes, each among all classes",
    }
    assert caplog.text.count(f"Protocol of {NAME}: words") == 1


def test_mixtures_have_the_numbers_that_their_alpha_alone_has_and_leave_the_model_as_it_was(
    tmp_path, datasets
):
    torch.manual_seed(0)
    model = CLIPSelf(clip=load_clip("ViT-Mini-8", None), read=READ, templates="single")
    with torch.no_grad():
        for weights in filter(lambda weights: weights.requires_grad, model.student.parameters()):
            weights.add_(0.1 * torch.randn_like(weights))

    def numbers_with(alpha, alphas=()):
        model.alpha = alpha
        run = evaluation((48, 64), tmp_path)
        run.grouping, run.alphas = True, alphas
        return run, run(model.eval())[NAME]

    expected = {alpha: numbers_with(alpha)[1] for alpha in (0.0, 0.7, 1.0)}
    swept, numbers = numbers_with(1.0, (0.7, 0.0))
    for size, own in numbers.items():
        assert {k: v for k, v in own.items() if "alpha" not in k} == expected[1.0][size]
        for alpha in swept.alphas:
            prefix = f"alpha_{alpha:g}-"
            mixture = {k.removeprefix(prefix): v for k, v in own.items() if k.startswith(prefix)}
            assert mixture == expected[alpha][size] != expected[1.0][size]
    assert model.alpha == 1.0 and not model.training
    assert model.clip.weights_hash() == model.weights_hash()
    (table,) = swept.tables({NAME: numbers}).values()
    row = f"{NAME}, 64 px"
    assert [line[0] for line in cells(table)][-3:] == [row, f"{row}, alpha 0.7", f"{row}, alpha 0"]


def test_mixtures_in_the_midst_of_a_training_leave_it_training(tmp_path, datasets):
    model = CLIPSelf(clip=load_clip("ViT-Mini-8", None), read=("boxes",), templates="single")
    run = evaluation((48,), tmp_path)
    run.read, run.alphas = ("boxes",), (0.5,)
    numbers = run(model.train())[NAME][48]
    assert model.training and model.alpha == 1.0 and "alpha_0.5-boxes.thing.top1" in numbers


def test_grouping_is_measured_where_it_is_asked_for_and_changes_no_accuracy(
    tmp_path, datasets, monkeypatch
):
    torch.manual_seed(0)
    model = RegionReader(clip=load_clip("ViT-Mini-8", None), read=READ).eval()
    text_KE = torch.nn.functional.normalize(torch.randn(133, model.clip.embed_dim), dim=-1)
    monkeypatch.setattr(model.bank, "embed", lambda *_: text_KE)
    plain = evaluation((64,), tmp_path / "plain")
    grouping = evaluation((64,), tmp_path / "grouping")
    grouping.grouping = True
    (before,), (after,) = (one(model)[NAME].values() for one in (plain, grouping))
    assert {key: after[key] for key in before} == before
    assert after.keys() - before.keys() == {"grouping.purity", "grouping.chance"}
    assert 0 < after["grouping.purity"] <= 100
