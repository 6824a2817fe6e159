"""Recipes of fine-tuning: what each trains, what is preserved, low rank from start to file, and what is refused."""

import math
import types

import numpy as np
import pytest
import torch
from PIL import Image

import mini
from clipself_seg.commands.train import main as train
from clipself_seg.commands.train import parse
from clipself_seg.config import load_config
from clipself_seg.data.datasets.records import detection_records, sem_seg_records
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.models import CATSeg
from clipself_seg.models.build import build_model
from clipself_seg.models.cat_seg.cat_seg_config import CATSegTraining
from clipself_seg.models.preservation import other_words, score_divergence
from clipself_seg.training import run
from lab.mini.faded import write_faded
from tests.models.fvit.test_model import sample as boxes_sample
from tests.tiny import random_clip, small_worlds

CLIP = "clip.visual.transformer.resblocks"
KEPT = ("MODEL.PRESERVATION.WORDS", "grass, sky, red disc", "MODEL.PRESERVATION.SAMPLE", "2")


def cat_seg(recipe, *opts):
    options = ("MODEL.WEIGHTS", "mini-cat-seg", *opts)
    return build_model(load_config(f"mini/semseg+{recipe}", options), trains=True)


def f_vit(recipe, *opts):
    options = ("MODEL.WEIGHTS", "mini-fvit", *opts)
    return build_model(load_config(f"mini/detection+{recipe}", options), trains=True)


@pytest.fixture(scope="module")
def faded(tmp_path_factory):
    """The data of ten classes, of two images."""
    folder = tmp_path_factory.mktemp("worlds")
    with small_worlds(folder, train=2, val=1, base=1):
        write_faded(folder)
        yield folder / "faded"


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("build", [cat_seg, f_vit])
def test_each_recipe_trains_its_parameters_of_clip_and_the_head(build):
    whole = {recipe: trained(build(recipe)) for recipe in ("aggregation_alone", "last_blocks")}
    low_rank = trained(build("low_rank"))
    head = {name for name in low_rank if not name.startswith("clip.")}
    assert whole["aggregation_alone"] == head
    last = whole["last_blocks"] - head
    assert last and all(name.startswith(f"{CLIP}.3.") for name in last)
    updates = low_rank - head
    assert updates and all(".parametrizations." in name for name in updates)


def test_a_recipe_is_refused_for_models_that_it_is_not_for():
    with pytest.raises(InputError, match="low_rank is for CATSeg and FViT, not for OpenPanoptic"):
        load_config("mini/panoptic+low_rank")
    with pytest.raises(InputError, match="LOW_RANK must be 0 for a frozen image tower"):
        f_vit("low_rank", "MODEL.FVIT.TRAIN_CLIP", "False")
    with pytest.raises(InputError, match="PRESERVATION.WEIGHT must be 0 without a start"):
        load_config("mini/semseg+preserved")


def test_a_recipe_lies_over_a_file_whose_name_has_dots(tmp_path):
    file = tmp_path / "my.v2.yaml"
    file.write_text("_BASE_: mini/semseg\n")
    words = ["--config-file", str(file), "--recipe", "low_rank"]
    assert load_config(parse(words).config_file).MODEL.CLIP.LOW_RANK == 8


def test_the_divergence_is_that_of_two_coins():
    value = score_divergence(torch.tensor(0.0), torch.tensor(math.log(3.0)))  # 1/2 for 3/4
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert value.item() == pytest.approx(expected)
    assert score_divergence(torch.tensor(1.5), torch.tensor(1.5)).item() == pytest.approx(0)


def test_words_that_share_any_name_with_a_trained_class_are_not_preserved():
    trained = ["red circle|dot", "blue ring"]
    words = "grass, Red-Circle, spot|dot, disc|puck, sky"
    assert other_words(words, trained) == (("grass",), ("disc",), ("sky",))
    with pytest.raises(InputError, match="WORDS dot, Blue ring has no word besides the classes"):
        other_words("dot, Blue ring", trained)


@pytest.mark.parametrize(
    "words, message",
    [
        ("a, b, c", "PAD_LEN is 5, DATASETS.TRAIN has 2 classes and .*SAMPLE adds 3"),
        ("a, " + "1234567" * 20, "more than the 77 tokens that CLIP reads"),
    ],
)
def test_words_that_would_push_classes_out_or_be_cut_are_refused(words, message):
    model = CATSeg.__new__(CATSeg)  # no more than `setup_training` asks
    torch.nn.Module.__init__(model)
    model.clip, model.texts = random_clip(), types.SimpleNamespace(templates="cat_seg")
    model.aggregator = torch.nn.Module()
    model.aggregator.sizes = types.SimpleNamespace(pad_len=5)
    model.training_settings = CATSegTraining(preservation=1.0, preserved_words=(words, 9))
    with pytest.raises(InputError, match=message):
        model.setup_training(["red circle", "blue ring"])


def test_cat_seg_preserves_the_scores_of_other_words():
    model = cat_seg("preserved", *KEPT)
    model.setup_training(["red circle", "blue ring"])
    model.train()
    images = torch.randint(256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    labels = torch.full((1, 64, 64), 255)
    labels[:, :20, :20] = 1
    losses = model([{"image": images[0], "sem_seg": labels[0]}])
    assert losses["loss_preserved"].item() == pytest.approx(0, abs=1e-6)
    assert not any(module.training for module in model._start[0].modules())
    with torch.no_grad():
        model.aggregator.head.weight.mul_(1.5)
    losses = model([{"image": images[0], "sem_seg": labels[0]}])
    assert losses["loss_preserved"] > 1e-4
    losses["loss_preserved"].backward()
    assert model.aggregator.head.weight.grad.abs().sum() > 0
    assert not any("start" in name for name in model.state_dict())


def test_f_vit_preserves_what_the_start_proposes():
    model = f_vit("preserved", "MODEL.FVIT.PROPOSALS_AFTER", "20")
    model.setup_training(["red circle", "blue ring"])
    model.train()
    losses = model([boxes_sample(), boxes_sample(1)])
    assert losses["loss_preserved"].item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        model.rpn_head.rpn_cls.bias.sub_(1.0)
    assert model([boxes_sample(), boxes_sample(1)])["loss_preserved"] > 0.01
    model.roi_head.loss_settings = model.roi_head.loss_settings._replace(rois=3)
    assert model([boxes_sample()])["loss_preserved"].isfinite()
    model._start[0].rpn_head.propose = lambda *_: (torch.zeros(0, 4), torch.zeros(0))
    assert model([boxes_sample()])["loss_preserved"].isfinite()


def test_low_rank_resumes_exactly_and_its_file_has_ordinary_weights(faded, tmp_path):
    """One run in one go, one that stopped after a step; the file loads without the key and labels the same."""
    words = [
        "--config-file",
        "mini/semseg",
        "--recipe",
        "low_rank",
        "MODEL.WEIGHTS",
        "mini-cat-seg",
    ]
    words += [
        "DATASETS.TEST",
        "()",
        "SOLVER.IMS_PER_BATCH",
        "1",
        "SOLVER.SCHEDULE",
        "steps",
        "SOLVER.STEPS",
        "()",
    ]
    words += ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.WARMUP_ITERS", "0", "SEED", "3"]
    for name, steps in (("whole", 2), ("broken", 1), ("broken", 2)):
        resume = ["--resume"] if steps == 2 and name == "broken" else []
        options = ["SOLVER.MAX_ITER", str(steps), "OUTPUT_DIR", str(tmp_path / name)]
        assert train([*resume, *words, *options]) == 0
    files = [
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("whole", "broken")
    ]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    options = ["MODEL.WEIGHTS", str(tmp_path / "whole/model_final.pth")]
    plain = build_model(load_config("mini/semseg", options)).eval()
    cfg = load_config(str(tmp_path / "whole/config.yaml"))
    of_state = build_model(cfg, trains=True)
    assert run._load_trained(cfg, of_state) == 2
    shipped = build_model(load_config("mini/semseg", ["MODEL.WEIGHTS", "mini-cat-seg"]))
    weights = [
        m.clip.visual.transformer.resblocks[0].mlp.c_fc.weight for m in (plain, of_state, shipped)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert plain.state_dict().keys() == shipped.state_dict().keys()


def test_the_faded_photographs_have_labels_of_ten_classes_alone(faded):
    with Image.open(faded / "train/000000.jpg") as image:
        pixels = np.asarray(image, dtype=float)
    assert (pixels[..., 0] - pixels[..., 2]).mean() > 20  # warm
    labels = np.asarray(Image.open(faded / "stuffthingmaps/train/000000.png"))
    assert labels[labels != 255].max() < 10 <= len(Vocabulary.load("mini_ten"))
    assert detection_records("mini_faded_train_boxes", training=True, masks=False)
    assert len(sem_seg_records("mini_faded_val_sem_seg")) == 1


def test_without_a_folder_the_faded_scenes_are_of_the_worlds_that_the_environment_names(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path / "mine"))
    assert mini.faded([]) == 2
    missing = f"{tmp_path}/mine/mini/annotations/instances_train.json is missing"
    assert missing in capsys.readouterr().err
