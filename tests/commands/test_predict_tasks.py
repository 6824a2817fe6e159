"""predict for panoptic segmentation, with --masks, and for detection."""

import json

import numpy as np
import pytest
from PIL import Image

from clipself_seg.commands import predict
from clipself_seg.data.masks import read_panoptic_png
from tests.mask_models import save_mask_model
from tests.prediction.test_detection import OPTS as BOX_OPTS
from tests.prediction.test_panoptic import SMALL
from tests.prediction.test_video import make_video


def test_panoptic_results_of_a_folder_can_be_read_back(panoptic, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "one.jpg").read_bytes()[:300])
    words = ("--words", "green ring, blue ring|hoop, grass", "--stuff", "grass")
    fusion = ["MODEL.FUSION.ALPHA", "0.2", "MODEL.FUSION.BETA", "0.4"]
    fusion += ["MODEL.FUSION.VOID_DISCOUNT", "0.5", "TEST.TRAIN_VOCABULARY", "mini_base"]
    assert panoptic(photos, *words, opts=[*SMALL, *fusion]) == 1
    said = capsys.readouterr()
    assert "2 of 3 segmented" in said.out and "broken.jpg cannot be decoded" in said.err
    assert "each object a segment" not in said.err
    out = tmp_path / "out"
    content = json.loads((out / "panoptic.json").read_text())
    info = content["info"]
    assert (info["alpha"], info["beta"], info["trained"]) == (0.2, 0.4, "mini_base")
    assert info["void_discount"] == 0.5
    assert info["seen"] == ["green ring", "grass"] and info["complete"] and len(info["failed"]) == 1
    assert [c["isthing"] for c in content["categories"]] == [1, 1, 0]
    assert [i["file_name"] for i in content["images"]] == ["one.jpg", "sub/two.png"]


@pytest.fixture
def masks(tmp_path):
    """Two overlapping masks of one.jpg as run lengths, and a map of three of sub/two.png."""
    folder = tmp_path / "masks"
    (folder / "sub").mkdir(parents=True)
    whole = {"size": [40, 60], "counts": [0, 2400]}
    half = {"size": [40, 60], "counts": [0, 1200, 1200]}
    entries = [{"segmentation": whole, "score": 0.2}, {"segmentation": half, "score": 0.9}]
    (folder / "one.json").write_text(json.dumps(entries))
    ids = np.arange(70 * 30).reshape(70, 30) // 600
    Image.fromarray(ids.astype(np.uint8)).save(folder / "sub/two.png")
    return folder


def name_masks(photos, masks, out, *words):
    given = ["--task", "panoptic", "--masks", masks, "--words", "red star, grass", "--stuff", ""]
    given += ["--model", "mini", "-o", out, "--device", "cpu", *words]
    given = [*(photos if isinstance(photos, list) else [photos]), *given]
    return predict.main([str(word) for word in given])


def test_masks_of_a_folder_get_names_and_are_merged(photos, masks, tmp_path, capsys):
    opts = ("--opts", "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", "0.3")
    opts += ("--save", "coco", "panoptic")
    assert name_masks(photos, masks, tmp_path / "out", *opts) == 0
    assert "2 of 2 segmented" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert (content["info"]["alpha"], content["info"]["beta"]) == (1, 1)
    areas = [sorted(s["area"] for s in entry["segments_info"]) for entry in content["annotations"]]
    assert areas == [[1200, 1200], [300, 600, 600]]
    # Run lengths go down the columns: the better mask is the left half.
    ids = read_panoptic_png(tmp_path / "out/panoptic/one.png")
    assert len(np.unique(ids[:, :30])) == len(np.unique(ids[:, 30:])) == 1
    assert name_masks(photos, masks, tmp_path / "out", *opts, "--skip-existing") == 0
    (masks / "one.json").write_text("[]")
    assert name_masks(photos, masks, tmp_path / "out", *opts, "--skip-existing") == 2
    assert "results of other settings: masks has changed" in capsys.readouterr().err


def test_masks_that_are_lost_are_counted_with_the_reason_and_overlaps_can_be_kept(
    photos, masks, tmp_path, capsys
):
    entries = json.loads((masks / "one.json").read_text())
    empty = {"segmentation": {"size": [40, 60], "counts": [2400]}}
    (masks / "one.json").write_text(json.dumps([empty, *entries]))
    assert name_masks(photos, masks, tmp_path / "out", "--keep-overlaps") == 2
    assert "--keep-overlaps needs --masks FOLDER and --save coco" in capsys.readouterr().err
    assert name_masks(photos, masks, tmp_path / "out", "--save", "coco", "--keep-overlaps") == 0
    # Of six, one is empty, and the better half of the image is not the worse whole's.
    assert "of 6 masks that were given 4 are in segments, and" in capsys.readouterr().out
    panoptic, coco = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("panoptic", "coco")
    )
    first, second = (image["masks"] for image in panoptic["images"])
    assert (first["given"], second) == (3, {"given": 3, "lost": []})
    reasons = {one["mask"]: one["reason"] for one in first["lost"]}
    assert reasons.keys() == {0, 1} and "CLIP sees nothing" in reasons[0]
    assert "surer masks leave less than 80% of it" in reasons[1]
    kept = [one for one in coco["annotations"] if one["image_id"] == coco["images"][0]["id"]]
    assert [one["area"] for one in kept] == [2400, 1200] and len(coco["annotations"]) == 5
    assert 0 < kept[0]["score"] < 0.2 < kept[1]["score"] < 0.9


def test_an_image_whose_masks_do_not_fit_fails_alone(photos, masks, tmp_path, capsys):
    (masks / "one.json").write_text('[{"size": [60, 40], "counts": [2400]}]')
    assert name_masks(photos, masks, tmp_path / "out", "--batch-size", "2") == 1
    said = capsys.readouterr()
    assert "1 of 2 segmented" in said.out and "one.json: mask 0 is no mask of an image" in said.err
    (masks / "sub/two.png").unlink()
    assert name_masks(photos, masks, tmp_path / "out") == 2
    assert "no masks of sub/two in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (("--model", "mini-open-panoptic"), "is a model for panoptic, and no CLIP alone"),
        (("--masks", "gone"), 'no folder of masks "gone"'),
        (("--task", "semantic"), " does not go with --task semantic"),
    ],
)
def test_what_masks_do_not_go_with_is_refused(
    photos, masks, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    assert name_masks(photos, masks, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_a_video_has_no_folder_of_masks(masks, tmp_path, capsys):
    make_video(tmp_path / "walk.mp4", count=1)
    assert name_masks(tmp_path / "walk.mp4", masks, tmp_path / "out") == 2
    assert "--masks FOLDER does not go with a video" in capsys.readouterr().err


def test_a_model_finds_the_masks_of_frames_and_goes_on_after_an_interruption(
    photos, tmp_path, capsys
):
    model = save_mask_model("eomt", tmp_path / "model")
    make_video(tmp_path / "walk.mp4", count=2)
    inputs, words = [photos, tmp_path / "walk.mp4"], ("--save", "overlays")
    assert name_masks(inputs, model, tmp_path / "out", *words) == 0
    assert (tmp_path / "out/overlays/walk.mp4").is_file()
    (tmp_path / "out/overlays/one.png").unlink()
    assert name_masks(inputs, model, tmp_path / "out", *words, "--skip-existing") == 0
    assert (tmp_path / "out/overlays/one.png").is_file()
    save_mask_model("mask2former", model)
    assert name_masks(inputs, model, tmp_path / "out", *words, "--skip-existing") == 2
    assert "results of other settings: " in capsys.readouterr().err


def test_a_folder_may_be_called_as_a_model(photos, masks, tmp_path, monkeypatch, capsys):
    masks.rename(tmp_path / "sam2")
    monkeypatch.chdir(tmp_path)
    assert name_masks(photos, "./sam2", tmp_path / "out") == 0
    assert "licence" not in capsys.readouterr().err


def test_a_model_that_is_gated_is_named_with_its_licence(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    assert name_masks(photos, "sam3", tmp_path / "out") == 2
    assert "facebook/sam3 is gated (SAM License)" in capsys.readouterr().err


@pytest.fixture
def boxes(run):
    def call(*words, opts=BOX_OPTS):
        return run(*words, config="mini/detection", opts=opts)

    return call


def test_boxes_of_a_folder_can_be_read_back(boxes, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "one.jpg").read_bytes()[:300])
    words = ("--words", "green ring, blue ring|hoop")
    assert boxes(photos, *words) == 1
    said = capsys.readouterr()
    assert "2 of 3 searched for objects" in said.out and "broken.jpg cannot be decoded" in said.err
    out = tmp_path / "out"
    content = json.loads((out / "detections.json").read_text())
    assert content["info"]["score threshold"] == 0 and len(content["info"]["failed"]) == 1
    assert len(content["annotations"]) == 10
    assert {path.name for path in out.rglob("*.png")} == {"one.png", "two.png"}


def test_boxes_of_low_scores_are_left_out_unless_asked_for(boxes, photos, tmp_path):
    opts = BOX_OPTS[: BOX_OPTS.index("MODEL.FVIT.SCORE_THRESHOLD")]
    assert boxes(photos / "one.jpg", "--words", "dog", opts=opts) == 0
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["info"]["score threshold"] == predict.SCORE_THRESHOLD
