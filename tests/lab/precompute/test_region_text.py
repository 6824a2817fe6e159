"""Proposals get nouns of captions, and region-text training reads them."""

import json

import pytest
import torch

import precompute
from clipself_seg.data.datasets.records import distillation_records, region_text_records
from clipself_seg.data.datasets.table import SHIPPED_WORLD
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in
from lab.mini.crops import tag_caption
from lab.precompute import region_text
from lab.precompute.region_text import pseudo_labels
from lab.prepare import nouns as nouns_module
from tests.conftest import ROOT
from tests.tiny import small_worlds

CONFIG = str(ROOT / "configs/mini/region_text.yaml")
SCENES = 5


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    """Annotations of a small mini world."""
    with small_worlds(tmp_path_factory.mktemp("worlds"), SCENES, 1, 1) as root:
        yield root / "mini/annotations"


@pytest.fixture
def target(annotations):
    target = annotations / "region_text_train.json"
    target.unlink(missing_ok=True)
    return target


def run(annotations, *words, captions=True, opts=(), call=precompute.region_text):
    given = ["--config-file", CONFIG, "--proposals", annotations / "proposals_train.json"]
    if captions:
        given += ["--captions", annotations / "captions_train.json"]
    return call([str(word) for word in [*given, *words, "--opts", *opts]])


def content_of(path):
    """What the file says but for when and how it was made."""
    content = json.loads(path.read_text())
    content.pop("info")
    return content


def write_pool(annotations):
    """The world's class names as a list of nouns."""
    content = json.loads((annotations / "panoptic_train.json").read_text())
    path = annotations / "nouns.txt"
    path.write_text("\n".join(category["name"] for category in content["categories"]))
    return path


def test_training_reads_what_the_tool_writes(annotations, target, capsys):
    pool = write_pool(annotations)
    assert run(annotations, "--nouns", pool) == 0
    said = capsys.readouterr().out.splitlines()
    content = json.loads(target.read_text())
    boxes, given = content["annotations"], json.loads(
        (annotations / "proposals_train.json").read_text()
    )
    assert len(content["categories"]) == 44 and content["categories"][0]["id"] == 1
    assert said[0].startswith(f"{target}: {len(boxes)} of {len(given['annotations'])} proposals")
    assert f"of {SCENES} images have none" in said[0]
    known = {(box["image_id"], *box["bbox"]) for box in given["annotations"]}
    assert {(box["image_id"], *box["bbox"]) for box in boxes} <= known
    for image in content["images"]:
        scores = [box["score"] for box in boxes if box["image_id"] == image["id"]]
        assert scores == sorted(scores, reverse=True) and all(0.1 < score <= 1 for score in scores)
        assert len(image["captions"]) == 2
    records, nouns = region_text_records(["mini_train_region_text"])
    assert list(nouns) == pool.read_text().splitlines()
    assert sum(len(record["labels"]) for record in records) == len(boxes)
    again = {
        r["image_id"]: r for r in distillation_records(["mini_train_region_text"], "proposals")
    }
    for record in records:
        assert (again[record["image_id"]]["proposals"] == record["proposals"]).all()


def test_without_a_list_the_nouns_are_the_most_frequent_ones(annotations, target):
    run(annotations, "--top", 5)
    captions = json.loads((annotations / "captions_train.json").read_text())["annotations"]
    names = [category["name"] for category in content_of(target)["categories"]]
    own = [[name for c in captions if name in c["phrases"]] for name in names]
    counts = [len(listed) for listed in own]
    assert len(names) == 5 and counts == sorted(counts, reverse=True) and counts[-1] >= 1


def test_captions_without_phrases_are_tagged(annotations, target, monkeypatch):
    monkeypatch.setattr(nouns_module, "nltk_tagger", lambda: tag_caption)
    content = json.loads((annotations / "captions_train.json").read_text())
    for caption in content["annotations"]:
        del caption["phrases"]
    path = annotations / "plain_captions.json"
    path.write_text(json.dumps(content))
    run(annotations, "--captions", path, "--processes", 1)
    names = {category["name"] for category in content_of(target)["categories"]}
    assert {"circle", "star"} <= names and not any(" " in name for name in names)


def test_the_pool_labels_every_box_above_the_threshold(annotations, target):
    words = ("--nouns", write_pool(annotations), "--candidates", "pool")
    run(annotations, *words, "--threshold", 0, captions=False)
    given = json.loads((annotations / "proposals_train.json").read_text())["annotations"]
    content = content_of(target)
    assert len(content["annotations"]) == len(given)
    assert not any("captions" in image for image in content["images"])
    with pytest.raises(InputError, match="no proposal has a noun.* above --threshold 1.0"):
        direct(annotations, *words, "--threshold", 1, "--overwrite", captions=False)
    assert content_of(target) == content


def direct(annotations, *words, **how):
    """The same, with its error."""
    body, parser = precompute.region_text.body, precompute.region_text.parser()
    return run(annotations, *words, **how, call=lambda typed: body(parser.parse_args(typed)))


@pytest.mark.parametrize(
    "words, opts, captions, message",
    [
        (["--top", 0], [], True, "--top: has to be at least 1, got 0"),
        (["--threshold", 1.5], [], True, "--threshold: has to be in [0, 1], got 1.5"),
        (["--nouns", "/nowhere.txt"], [], True, "list of nouns /nowhere.txt is missing"),
        ([], [], False, "--captions is missing"),
        (["--nouns", "/nowhere.txt"], [], False, "--captions is missing"),
        ([], ["DATASETS.TRAIN", "('mini_train',)"], True, '"mini_train" has classes, and nouns'),
        ([], ["DATASETS.TRAIN", "()"], True, "give the one data set whose images are labelled"),
        ([], ["MODEL.META_ARCHITECTURE", "FViT"], True, "unknown model of nouns"),
    ],
)
def test_what_cannot_be_is_one_line(annotations, target, capsys, words, opts, captions, message):
    assert run(annotations, *words, opts=opts, captions=captions) == 2
    assert message in capsys.readouterr().err and not target.exists()


def test_the_small_worlds_of_the_package_are_not_written_to(target, monkeypatch, capsys):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(SHIPPED_WORLD))
    assert run(SHIPPED_WORLD / "mini/annotations") == 2
    assert "would lie in the package" in capsys.readouterr().err


def write_captions(annotations, captions):
    """A file of captions, each with its image id."""
    path = annotations / "other_captions.json"
    said = [{"image_id": image_id, "caption": text} for image_id, text in captions]
    path.write_text(json.dumps({"annotations": said}))
    return path


def test_captions_of_other_images_are_refused_before_anything_is_embedded(
    annotations, target, monkeypatch, caplog
):
    monkeypatch.setattr(region_text, "build_clip", None)
    pool = ("--nouns", write_pool(annotations))
    path = write_captions(annotations, [(-1, "a dog")])
    message = f"{path} has no caption of any image of {annotations / 'proposals_train.json'}"
    with pytest.raises(InputError, match=message):
        direct(annotations, *pool, "--captions", path, captions=False)
    content = json.loads((annotations / "proposals_train.json").read_text())
    path = write_captions(annotations, [(content["images"][0]["id"], "a dog")])
    with caplog.at_level("INFO"), pytest.raises(TypeError):
        direct(annotations, *pool, "--captions", path, captions=False)
    assert f"{path}: {SCENES - 1} of {SCENES} images have no caption" in caplog.text


def test_a_file_that_is_there_and_a_folder_at_work_are_left_alone(annotations, target, capsys):
    target.write_text("mine")
    assert run(annotations) == 2 and target.read_text() == "mine"
    assert "is there already: give another --output, or --overwrite" in capsys.readouterr().err
    target.unlink()
    with alone_in(annotations):
        assert run(annotations) == 2
    assert "is at work there" in capsys.readouterr().err


def test_pseudo_labels_are_the_best_candidates_with_their_probability_among_all_nouns():
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, 2.0, 1.0], [1.0, 0.0, 0.0]])
    labels, scores = pseudo_labels(logits)
    assert labels.tolist() == [1, 1, 0]
    torch.testing.assert_close(scores, logits.softmax(1).amax(1))
    candidates = torch.tensor([[True, False, True], [True, False, True], [False, False, False]])
    labels, scores = pseudo_labels(logits, candidates)
    assert labels.tolist() == [2, 2, -1]
    expected = torch.stack([logits[0].softmax(0)[2], logits[1].softmax(0)[2], torch.tensor(0.0)])
    torch.testing.assert_close(scores, expected)
    labels, scores = pseudo_labels(logits[:0])
    assert labels.shape == scores.shape == (0,)
