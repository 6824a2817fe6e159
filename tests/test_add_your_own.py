"""Methods of somebody else's, the files of docs/examples, in the tables of the project."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipself_seg import extend, imports
from clipself_seg.clip import find_kind, load_clip, save_clip
from clipself_seg.clip.find_kind import KINDS
from clipself_seg.clip.tower import TowerOptions
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.config.declare import KEYS
from clipself_seg.errors import InputError
from clipself_seg.evaluation.evaluation_base import METRICS, add_metrics
from clipself_seg.models.build import build_model
from clipself_seg.models.distillation import OBJECTIVES, build_target
from tests.conftest import ROOT
from tests.registries import NAMES, registries_kept
from tests.tiny import small_worlds

EXAMPLES = ROOT / "docs" / "examples"
OBJECTIVE = "MODEL.CLIPSELF.OBJECTIVES.RANKS"
ATTENTION = ("MODEL.CLIP.ATTENTION", "value_value")
STEPS = ("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2")
SMALL = ("INPUT.REGIONS.STUDENT_SIZE", "64", "INPUT.REGIONS.MAX_SPLIT", "2", "DATASETS.TEST", "()")
PIXELS = ("DATASETS.TEST", "('mini_val_sem_seg',)")


@pytest.fixture(scope="module", autouse=True)
def typed(tmp_path_factory):
    """The files as `--import` names them, and small worlds."""
    files = ":".join(str(EXAMPLES / f"my_{name}.py") for name in NAMES)
    worlds = small_worlds(tmp_path_factory.mktemp("worlds"), 4, 2, 4, seed=5)
    with pytest.MonkeyPatch.context() as patch, worlds, registries_kept():
        patch.setenv(imports.VARIABLE, files)
        load_config(None)
        yield


def results_of(folder, config, *words):
    words = ["--config-file", config, *words, "OUTPUT_DIR", str(folder)]
    assert train.main(words) == 0
    return json.loads((folder / "results.json").read_text())["results"]


def test_an_attention_and_a_metric_are_evaluated_by_name(tmp_path, caplog):
    caplog.set_level("INFO")
    words = ("--eval-only", *PIXELS, *ATTENTION)
    numbers = results_of(tmp_path, "mini/zero_shot", *words)["mini_val_sem_seg"]
    seen, unseen = numbers["mIoU-seen"], numbers["mIoU-unseen"]
    assert numbers["hIoU"] == pytest.approx(2 * seen * unseen / (seen + unseen))
    ious = [value for name, value in numbers.items() if name.startswith("IoU-")]
    assert numbers["median-IoU"] == pytest.approx(np.median(ious))
    said = " ".join(caplog.text.split())  # lines of the protocol are wrapped
    assert "Registered metrics" in said and "attention value_value" in said
    plain = build_model(load_config("mini/zero_shot")).clip.visual
    mine = build_model(load_config("mini/zero_shot", ATTENTION)).clip.visual
    images = torch.randn(1, 3, 32, 48)
    assert mine.dense(images).shape == plain.dense(images).shape
    assert not torch.allclose(mine.dense(images), plain.dense(images), atol=1e-2)


def test_a_loss_is_trained_by_its_weight_beside_clipselfs_and_alone(tmp_path):
    words = ["--config-file", "mini/patches", *SMALL, *STEPS, OBJECTIVE, "0.5"]
    assert train.main([*words, "OUTPUT_DIR", str(tmp_path)]) == 0
    logged = (tmp_path / "metrics.json").read_text()
    assert "loss_ranks" in logged and "loss_clipself" in logged
    alone = load_config("mini/patches", [OBJECTIVE, "0.5", "MODEL.CLIPSELF.OBJECTIVES.CROPS", "0"])
    assert build_target(alone).weights == {"RANKS": 0.5}


def test_a_metric_that_fails_is_named_with_its_file_and_all_other_numbers_are_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(METRICS, "wrong", lambda numbers, confusion: numbers["mIou"])
    words = ["--config-file", "mini/zero_shot", "--eval-only", *PIXELS]
    assert train.main([*words, "OUTPUT_DIR", str(tmp_path)]) == 2
    numbers = json.loads((tmp_path / "results.json").read_text())["results"]["mini_val_sem_seg"]
    assert {"mIoU", "hIoU"} <= numbers.keys() and "wrong" not in numbers
    says = f'the metric "wrong" fails at {__file__}, line '
    error = capsys.readouterr().err
    assert says in error and "KeyError('mIou')" in error


def test_a_head_is_trained_evaluated_and_has_a_key_of_its_own(tmp_path):
    mine = ("MODEL.META_ARCHITECTURE", "MyHead", "MODEL.MY_HEAD.SCALE", "20")
    trained = results_of(tmp_path, "mini/semseg_original", *mine, *STEPS, *PIXELS)
    words = ("--eval-only", *mine, *PIXELS, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    again = results_of(tmp_path / "again", "mini/semseg_original", *words)
    assert again == trained and np.isfinite(trained["mini_val_sem_seg"]["mIoU"])
    with pytest.raises(InputError, match="MY_HEAD.SCALE must be of type float"):
        load_config("mini/semseg_original", [*mine[:2], "MODEL.MY_HEAD.SCALE", "warm"])


def test_a_kind_of_tower_is_distilled_and_its_file_is_read(tmp_path):
    torch.manual_seed(0)
    clip = load_clip("MyTower-8", None)
    save_clip(clip, tmp_path / "start.safetensors")
    named = (
        "MODEL.CLIP.NAME",
        "MyTower-8",
        "MODEL.CLIP.WEIGHTS",
        str(tmp_path / "start.safetensors"),
    )
    words = ["--config-file", "mini/patches", *SMALL, *STEPS, *named]
    assert train.main([*words, "OUTPUT_DIR", str(tmp_path / "run")]) == 0
    student = load_clip("MyTower-8", tmp_path / "run" / "clip_final.safetensors")
    assert student.weights_hash() != clip.weights_hash()
    assert torch.equal(student.logit_scale, clip.logit_scale)
    # All other kinds have their models as before.
    assert find_kind.kind_of(find_kind._configs()["ViT-Mini-8"]).name == "OpenAI ViT"
    assert [*KINDS][0] == "MyTower"


@pytest.mark.parametrize(
    "words, message",
    [
        (["MODEL.CLIP.ATTENTION", "value_key"], r"did you mean \"value_value\".* it with --import"),
        ([OBJECTIVE.replace("RANKS", "RANK"), "1"], r"RANKS\"\? \(or import the module that regis"),
        ([OBJECTIVE, "-1"], "RANKS must be 0 or more"),
        ([OBJECTIVE, "1", "MODEL.CLIPSELF.TARGET", "captions"], "RANKS must be 0.0 unless TARGET"),
    ],
)
def test_what_nobody_registered_and_wrong_values_are_refused_by_name(words, message):
    with pytest.raises(InputError, match=message):
        load_config("mini/patches", words)


def test_an_attention_of_another_shape_is_named_with_both_shapes():
    clip = load_clip("ViT-Mini-8", "mini")
    with registries_kept():
        extend.register_attention("all")(lambda queries, keys, values, grid: (values, grid))
        clip.visual.configure(TowerOptions(attention="all"))
        with pytest.raises(InputError, match=r'"all" returns \(1, \d, 7, .* \(1, \d, 6, '):
            clip.dense(torch.zeros(1, 3, 16, 24))


def test_an_objective_that_is_no_scalar_is_named_with_its_shape():
    with registries_kept():
        extend.register_objective("WRONG")(lambda step: torch.zeros(8, 128))
        with pytest.raises(InputError, match=r'"WRONG" returns \(8, 128\): return a scalar'):
            OBJECTIVES["WRONG"].value(None, None)


@pytest.mark.parametrize(
    "enter, message",
    [
        (lambda: extend.register_attention("naclip")(abs), 'there is a "naclip" already'),
        (lambda: extend.register_attention("none")(abs), 'there is a "none" already'),
        (lambda: extend.register_objective("CROPS")(abs), 'there is a "CROPS" already'),
        (lambda: extend.register_metric("hIoU")(abs), 'there is a "hIoU" already'),
        (lambda: extend.register_task("semantic")(abs), 'there is a "semantic" already'),
        (lambda: extend.register_key("SOLVER.BASE_LR", 1.0), 'there is a "SOLVER.BASE_LR" already'),
        (lambda: extend.register_key("SOLVER.BASE_LR.MINE", 1.0), "in a key that is none"),
        (lambda: extend.register_key("SOLVER", 1.0), "SOLVER is a section"),
        (lambda: extend.register_kind(replace(KINDS["EVA ViT"], name="Mine"), {}), "take EVA"),
        (lambda: extend.register_kind(KINDS["MyTower"], {"ViT-B-16": {}}), '"MyTower" already'),
    ],
)
def test_a_name_that_exists_is_refused(enter, message):
    before = (len(KINDS), KEYS["MODEL.CLIP.ATTENTION"].choices, len(find_kind._configs()))
    with pytest.raises(InputError, match=message):
        enter()
    assert before == (len(KINDS), KEYS["MODEL.CLIP.ATTENTION"].choices, len(find_kind._configs()))


def test_a_metric_counts_in_the_innermost_numbers_and_never_takes_a_name(monkeypatch):
    numbers = {
        "fused": {"mIoU-seen": 50.0, "mIoU-unseen": 25.0},
        "clip": {"PQ": 3.0},
        "sweep": {"1": {}},
    }
    add_metrics(numbers, None)
    assert numbers["fused"]["hIoU"] == pytest.approx(100 / 3) and numbers["clip"] == {"PQ": 3.0}
    assert numbers["sweep"] == {"1": {}}
    monkeypatch.setitem(METRICS, "PQ", lambda numbers, confusion: 1.0)
    numbers = {"PQ": 3.0}
    assert "the evaluation has such a number" in add_metrics(numbers, None)["PQ"]
    assert numbers == {"PQ": 3.0}
