"""predict: results can be read back, and a bad image does not stop the others."""

import json
import os
import re
import shlex
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_seg import memory
from clipself_seg.commands import predict
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in
from clipself_seg.prediction import load as loader
from clipself_seg.prediction.load import load
from clipself_seg.prediction.task_predictors import SemanticPredictor
from tests.conftest import ROOT
from tests.prediction.test_detection import OPTS as BOX_OPTS
from tests.prediction.test_panoptic import CONFIG, SMALL
from tests.prediction.test_semantic import OPTS
from tests.prediction.test_video import make_video


def test_results_of_a_folder_can_be_read_back(run, photos, tmp_path, capsys):
    words = ("--words", "dog|puppy, grass, sky", "--background")
    assert run(photos, *words) == 0
    assert "2 of 2 segmented" in capsys.readouterr().out
    out = tmp_path / "out"
    content = json.loads((out / "classes.json").read_text())
    assert content["names"] == {"0": "dog", "1": "grass", "2": "sky", "3": "background"}
    assert content["complete"] and content["background"] == 3 and content["threshold"] == 0.5
    assert content["prompted"][0] == ["dog", "puppy"] and not content["failed"]
    for name, size in (("one", (40, 60)), ("sub/two", (70, 30))):
        labels = read_indices(out / "labels" / f"{name}.png")
        assert labels.shape == size and labels.dtype == np.uint8 and labels.max() <= 3
        assert sum(content["images"][name]["fractions"].values()) == pytest.approx(1)
        assert min(Image.open(out / "overlays" / f"{name}.png").size) >= 100
    drawn = (out / "overlays/one.png").read_bytes()
    assert run(out / "overlays/one.png", *words) == 2
    assert "overlays/one.png would replace the image itself: give" in capsys.readouterr().err
    assert (out / "overlays/one.png").read_bytes() == drawn


def test_freed_memory_is_kept_once_the_weights_are_loaded(monkeypatch):
    done = []
    monkeypatch.setattr(memory, "keep_freed_memory", done.append)
    monkeypatch.setattr(loader, "prediction_config", lambda *given: done.append("weights"))
    model = mock.Mock(device=torch.device("cpu"))
    kind = mock.Mock(return_value=mock.Mock(model=model))
    monkeypatch.setitem(loader.PREDICTORS, "semantic", kind)
    assert predict.predictor_of("mini", None, None, []).model is model
    assert done == ["weights", "cpu"]


def test_bad_pictures_are_named_and_the_others_are_done(run, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "one.jpg").read_bytes()[:300])
    assert run(photos, tmp_path / "gone.jpg", "--words", "dog, sky") == 1
    said = capsys.readouterr()
    assert "2 of 4 segmented" in said.out
    assert "broken.jpg cannot be decoded" in said.err and "gone.jpg: no such file" in said.err
    content = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert run(photos / "broken.jpg", "--words", "dog, sky") == 2
    failed = {path.rsplit("/", 1)[1] for path in content["failed"]}
    assert failed == {"broken.jpg", "gone.jpg"} and set(content["images"]) == {"one", "sub/two"}


@pytest.mark.parametrize("task", [(), ("--task", "panoptic")])
def test_pipes_and_large_pictures_are_refused_and_the_others_segmented(
    run, photos, tmp_path, capsys, task
):
    os.mkfifo(tmp_path / "pipe.jpg")
    given = {"config": CONFIG, "opts": SMALL} if task else {"opts": OPTS}
    given["opts"] = [*given["opts"], "INPUT.MAX_PIXELS", "2399"]
    words = (photos, tmp_path / "pipe.jpg", "--words", "dog, sky", *task)
    assert run(*words, **given) == 1
    said = capsys.readouterr()
    assert "1 of 3 segmented" in said.out and "pipe.jpg: a pipe or a device, no file" in said.err
    assert "one.jpg is 60 x 40, which is more than the 2399 pixels of INPUT.MAX_PIXELS" in said.err
    assert (
        "things, each object a segment of its own: 2; stuff, one segment each: 0. " in said.err
    ) == bool(task)


def test_official_weights_bring_their_configuration(
    photos, tmp_path, capsys, monkeypatch, stand_ins
):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    words = [str(photos), "--words", "dog", "--output", str(tmp_path / "out")]
    assert predict.main([*words, "--model", "catseg-base"]) == 2
    assert "error: catseg-base is not on this machine; " in capsys.readouterr().err
    (tmp_path / "model_base.pth").write_bytes(b"\x80")
    with mock.patch.object(SemanticPredictor, "__init__", side_effect=InputError("seen")) as made:
        assert predict.main([*words, "--model", "catseg-base"]) == 2
    cfg = made.call_args.args[0]
    assert cfg.MODEL.WEIGHTS == "catseg-base" and cfg.MODEL.META_ARCHITECTURE == "CATSeg"


def test_a_clip_as_it_is_segments_and_a_folder_of_it_does_too(run, photos, tmp_path):
    config = ROOT / "configs/mini/zero_shot.yaml"
    keys = ("MODEL.ZERO_SHOT.TEMPLATES", "single", "MODEL.DEVICE", "cpu")
    keys += ("TEST.BACKGROUND.THRESHOLD", "0.3")
    words = (photos, "--words", "dog|puppy, grass", "--background")
    assert run(*words, weights="mini-clipself", config=config, opts=keys) == 0
    content = json.loads((tmp_path / "out/classes.json").read_text())
    assert content["prompted"] == [["dog", "puppy"], ["grass"]] and content["threshold"] == 0.3
    labels = {
        name: read_indices(tmp_path / f"out/labels/{name}.png") for name in ("one", "sub/two")
    }
    assert labels["one"].shape == (40, 60)
    predictor = load("mini-clipself", config_file=config, opts=keys)
    predictor.set_vocabulary("dog|puppy, grass", "background")
    predictor.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").glob("*.safetensors")}
    assert names == {"clip.safetensors"}  # there are no weights but the CLIP's
    again = load(tmp_path / "saved", device="cpu")
    assert again.given.threshold == 0.3
    for name, path in (("one", "one.jpg"), ("sub/two", "sub/two.png")):
        assert (again(photos / path).labels == labels[name]).all()


OF_PANOPTIC = ("--stuff", "--clip-weights")
NO_DEVICE = {"opts": OPTS[: OPTS.index("MODEL.DEVICE")]}
# Words beside --words dog, and what is said of them; a task's own configuration, weights or keys are in `HOW`.
REFUSED = [
    ("--words 'dog, dog'", "name 'dog' is there twice"),
    ("--device tpu", "MODEL.DEVICE must be .*cpu.*got .?tpu", NO_DEVICE),
    ("--device cuda:77", "--device cuda:77: torch .* CUDA device.*--device cpu", NO_DEVICE),
    ("--precision float16", "TEST.PRECISION float16 needs a GPU, and MODEL.DEVICE is cpu"),
    ("", "no config file none.yaml", {"config": "none.yaml"}),
    ("", "this is no CAT-Seg checkpoint", {"weights": "mini-fvit"}),
    # A configuration of another task is said before its weights are fetched.
    (
        "--task semantic",
        "mini/detection does detection: leave out the task semantic",
        {"config": "mini/detection", "weights": "catseg-base", "opts": ()},
    ),
    ("--save panoptic", "--save panoptic .* with --task semantic, which has overlays, labels"),
    ("--ray --save overlays", "--save does not go with --ray"),
    ("--track", "--track needs objects: give --task panoptic or"),
    *((f"{name} 1", f"{name} needs --task panoptic") for name in OF_PANOPTIC),
    ("--task panoptic --stuff sea", 'stuff "sea" is not in the voc'),
    ("--task panoptic --words ade20k_150", "does not tell things from stuff"),
    ("--task panoptic --background", "--background does not .* panoptic: it needs --task semantic"),
    ("--task detection --score-threshold 2", r"must be in \[0, 1\], got 2.0"),
    ("--task detection --save coco", "does not go with .*detections.json is in COCO's"),
]
HOW = {
    "--task panoptic": {"config": CONFIG, "opts": SMALL},
    "--task detection": {"config": "mini/detection", "opts": BOX_OPTS},
}


@pytest.mark.parametrize(("words", "message", "how"), [(*row, {})[:3] for row in REFUSED])
def test_bad_input_is_a_line_and_status_2(run, photos, tmp_path, capsys, words, message, how):
    typed = shlex.split(words)
    typed += [] if "--words" in typed else ["--words", "dog"]
    assert run(photos, *typed, **HOW.get(" ".join(typed[:2]), {}) | how) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(message, error) and error.count("\n") <= 2
    assert not (tmp_path / "out").exists()


def test_results_that_cannot_be_written_end_it(run, photos, tmp_path, capsys):
    (tmp_path / "out").write_text("a file in the way")
    assert run(photos, "--words", "dog") == 2
    assert "is a file or below one: give another folder" in capsys.readouterr().err


def test_two_predictions_do_not_meet_and_leftovers_of_a_killed_one_go(
    run, photos, tmp_path, capsys
):
    out = tmp_path / "out"
    mine = [out / ".classes.json.x.part", out / "labels/sub/.two.png.x.part"]
    others = out / "another run/.metrics.json.x.part"
    for path in (*mine, others):
        path.mkdir(parents=True)
    words = (photos / "one.jpg", "--words", "dog")
    with alone_in(out):
        assert run(*words) == 2
        assert f"error: {out}: another process is at work" in capsys.readouterr().err
        assert all(path.exists() for path in mine) and not (out / "classes.json").exists()
    assert run(*words) == 0
    assert not any(path.exists() for path in mine) and others.exists()


def test_an_interrupted_call_goes_on_with_the_same_options_and_no_others(
    run, photos, tmp_path, capsys, monkeypatch
):
    whole, images = SemanticPredictor.predict_batch, []

    def interrupted(self, batch, **options):
        if len(images) == 1:
            raise KeyboardInterrupt
        images.extend(batch)
        return whole(self, batch, **options)

    words = (photos, "--words", "dog, sky")
    with monkeypatch.context() as patch:
        patch.setattr(SemanticPredictor, "predict_batch", interrupted)
        assert run(*words) == 130
        said = capsys.readouterr().err
        assert "the same command goes on with --skip-existing, and begins anew without" in said
    for changed in (["--background"], ["--words", "dog"]):
        assert run(*words, *changed, "--skip-existing") == 2
        assert "results of other settings: " in (said := capsys.readouterr().err)
        assert "leave out --skip-existing to begin anew" in said
    with mock.patch.object(
        SemanticPredictor, "predict_batch", autospec=True, side_effect=whole
    ) as called:
        assert run(*words, "--skip-existing") == 0
    assert called.call_count == 1
    assert "2 of 2 segmented" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/classes.json").read_text())
    assert content["complete"] and list(content["images"]) == ["one", "sub/two"]


def test_examples_stand_for_classes_and_the_journal_knows_them_by_their_content(
    run, photos, tmp_path, capsys
):
    reference = photos / "sub/two.png"
    (tmp_path / "same.png").write_bytes(reference.read_bytes())

    def call(path, box, *words):
        examples = ("--example", f"screw={path}#{box}", "--example", f"screw={reference}")
        return run(photos / "one.jpg", *examples, *words)

    words = ("--words", "dog, sky", "--skip-existing")
    assert call(reference, "5,5,20,20", *words) == 0
    content = json.loads((tmp_path / "out/classes.json").read_text())
    assert content["names"] == {"0": "dog", "1": "sky", "2": "screw"}
    with mock.patch.object(SemanticPredictor, "predict_batch", autospec=True) as called:
        assert call(tmp_path / "same.png", "5,5,20,20", *words) == 0
    assert called.call_count == 0
    capsys.readouterr()
    for changed in ((reference, "5,5,20,21", *words), (photos / "one.jpg", "5,5,20,20", *words)):
        assert call(*changed) == 2
        assert "results of other settings: examples" in capsys.readouterr().err
    assert call(reference, "5,5,20,20") == 0
    content = json.loads((tmp_path / "out/classes.json").read_text())
    assert content["names"] == {"0": "screw"}


def test_an_example_that_is_none_or_no_words_at_all_are_refused_at_once(run, photos, capsys):
    wrong = {
        (): "no words: give --words",
        ("--example", "screw"): "not of the form NAME=IMAGE#REGION",
        ("--example", "screw=none.jpg#1,2,3,4"): "none.jpg",
        ("--example", f"screw={photos / 'one.jpg'}#900,2,3,4"): "has no pixel in the region",
    }
    with mock.patch.object(predict, "predictor_of") as made:
        for words, said in wrong.items():
            assert run(photos, *words) == 2
            assert said in capsys.readouterr().err
        image = str(photos / "one.jpg")
        words = ("--model", "mini-fvit", "--words", "dog", "--example", f"dog={image}")
        assert predict.main([image, *words]) == 2
        assert "--example does not go with --task detection" in capsys.readouterr().err
    assert not made.called


def test_an_image_and_a_video_are_done_together(run, photos, tmp_path, capsys):
    video = make_video(tmp_path / "walk.mp4", count=3)
    words = (photos / "one.jpg", video, "--words", "dog, sky", "--every", "2")
    assert run(*words, "--save", "coco", "labels") == 2
    assert "--save coco does not go with a video, which has overl" in capsys.readouterr().err
    assert run(*words, "--save", "labels", "overlays") == 0
    assert "2 of 2 segmented" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/classes.json").read_text())
    assert list(content["images"]) == ["one"] and content["videos"]["walk"]["frames"] == 2
    names = {path.name for path in (tmp_path / "out/labels/walk.mp4").iterdir()}
    assert names == {"000000.png", "000002.png"}
    assert (tmp_path / "out/overlays/walk.mp4").is_file()
    with mock.patch.object(SemanticPredictor, "predict_batch", side_effect=AssertionError):
        assert run(*words, "--save", "overlays", "labels", "--skip-existing") == 0


def test_the_help_lists_the_vocabularies():
    real = {name for name in Vocabulary.available() if not name.startswith("mini")}
    assert real <= set(re.split(r"[\s,.]+", predict.__doc__))
