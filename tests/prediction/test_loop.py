"""Batches, failures and interruptions: an index that goes on is that of a call that nobody interrupted."""

import errno
import json
import os
import re
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.commands.predict import SAVE
from clipself_seg.data.masks import read_indices
from clipself_seg.errors import InputError
from clipself_seg.prediction import loop
from clipself_seg.prediction.files import find_images
from clipself_seg.prediction.journal import FILE_NAME, Journal, require_same
from clipself_seg.prediction.loop import predict_each, predict_files
from clipself_seg.prediction.results import Detections, PanopticSegmentation, Segmentation
from clipself_seg.prediction.writers import ResultFiles
from tests.prediction.test_detection import predictor as detector
from tests.prediction.test_panoptic import predictor as segmenter
from tests.tiny import save_noise

NAMES = ("dog", "sky")
INDEX = {"semantic": "classes.json", "panoptic": "panoptic.json", "detection": "detections.json"}


def labeller():
    """A stand-in for the predictor of labels: bright pixels are sky."""

    def predict_batch(images, names=()):
        maps = [(image[..., 0] > 127).astype(np.uint8) for image in images]
        more = {"class_scores": np.ones(2), "category_ids": (0, 1), "background": None}
        return [
            Segmentation(labels, names=NAMES, image=image, **more)
            for image, labels in zip(images, maps)
        ]

    made = mock.Mock(task="semantic", absent=None)
    made.predict_files.side_effect = made.predict_batch.side_effect = predict_batch
    made.about.return_value = {"names": {str(label): name for label, name in enumerate(NAMES)}}
    made.categories.return_value = [{"id": 5 + 2 * k, "name": name} for k, name in enumerate(NAMES)]
    made.require_words.return_value = mock.Mock(background=None)
    made.model.weights_hash.return_value = "none"
    made.mapper.max_pixels = 10**6
    return made


def made_results(task, folder, files):
    if task == "semantic":
        return ResultFiles(
            predictor=labeller(), folder=folder, images=files.images, save=SAVE[task]
        )
    made = detector(masks=True) if task == "detection" else segmenter()
    of_one = made.model.forward
    made.model.forward = lambda samples, **options: [
        output for sample in samples for output in of_one([sample], **options)
    ]
    return ResultFiles(predictor=made, folder=folder, images=files.images, save=SAVE[task])


@pytest.fixture(autouse=True)
def plain_overlays(monkeypatch):
    """Drawing takes longer than all else."""
    for kind in (Segmentation, Detections, PanopticSegmentation):
        monkeypatch.setattr(kind, "overlay", lambda result: Image.fromarray(result.image))


@pytest.fixture
def inputs(tmp_path):
    for place in range(5):
        folder = tmp_path / "in" / ("sub" if place % 2 else ".")
        save_noise(folder / f"image {place}.png", 12 + place, 20, seed=place)
    return tmp_path / "in"


def predict(task, inputs, out, *, date=1, resume=False, batch_size=1, stop=None, settings=None):
    """The places of the images that the model got; it is interrupted at the call with the number `stop`."""
    files = find_images([inputs], out)
    results = made_results(task, out, files)
    results.provenance = {"date": date}
    whole, heights = results.predict, []

    def counted(images, sources):
        if stop is not None and len(heights) >= stop:
            raise KeyboardInterrupt
        heights.extend(image.shape[0] - 12 for image in images)
        return whole(images, sources)

    results.predict = counted
    journal = Journal(out, settings or {"words": list(NAMES)}, resume)
    try:
        predict_files(results, files, journal, batch_size)
    except KeyboardInterrupt:
        assert stop is not None
    return sorted(heights)


def content(folder):
    """Every file below a folder but the journal."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != FILE_NAME
    }


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("task", ["semantic", "panoptic", "detection"])
def test_an_interrupted_call_that_goes_on_writes_the_files_of_an_uninterrupted_one(
    inputs, tmp_path, task, batch_size
):
    assert len(predict(task, inputs, tmp_path / "whole", batch_size=batch_size)) == 5
    out = tmp_path / "out"
    first = predict(task, inputs, out, batch_size=batch_size, stop=2)
    assert len(first) == 2 and content(out) != content(tmp_path / "whole")
    (index,) = (json.loads(text) for path, text in content(out).items() if path == INDEX[task])
    assert not index.get("info", index)["complete"]
    assert len(index["images"]) == 2
    second = predict(task, inputs, out, date=2, resume=True, batch_size=batch_size)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert content(out) == content(tmp_path / "whole")
    assert predict(task, inputs, out, date=3, resume=True, batch_size=batch_size) == []
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_formats_of_a_task_agree(inputs, tmp_path, task):
    predict(task, inputs, tmp_path / "out")
    out = tmp_path / "out"
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {*SAVE[task]} - {"coco"}
    content = json.loads((out / "coco.json").read_text())
    places = {entry["id"]: place for place, entry in enumerate(content["categories"])}
    names = ["image 0", "image 2", "image 4", "sub/image 1", "sub/image 3"]
    assert [
        Path(image["file_name"]).with_suffix("").as_posix() for image in content["images"]
    ] == names
    for image, name in zip(content["images"], names):
        listed = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        masks = [rle.decode(entry["segmentation"]).astype(bool) for entry in listed]
        labels = [places[entry["category_id"]] for entry in listed]
        painted = np.full(masks[0].shape, 255)
        for mask, label in zip(masks, labels):
            painted[mask] = label
        assert (read_indices(out / f"labels/{name}.png") == painted).all()


def test_a_batch_of_which_an_image_is_not_done_is_predicted_as_it_was(inputs, tmp_path):
    predict("semantic", inputs, tmp_path / "out", batch_size=2)
    (tmp_path / "out/overlays/sub/image 1.png").unlink()
    assert predict("semantic", inputs, tmp_path / "out", resume=True, batch_size=2) == [1, 4]


def test_what_has_changed_or_is_not_as_it_was_written_is_done_again(inputs, tmp_path):
    out = tmp_path / "out"
    predict("semantic", inputs, out)
    os.utime(inputs / "image 0.png", ns=(1, 1))
    (out / "labels/sub/image 1.png").unlink()
    (out / "overlays/image 2.png").write_bytes(b"")  # cut off
    journal = out / FILE_NAME
    lines = journal.read_text().splitlines()
    lines.insert(2, lines[0])  # the settings once more
    journal.write_text("\n".join(lines)[:-9])  # without the end of the last image's line
    assert predict("semantic", inputs, out, resume=True) == [0, 1, 2, 3]
    assert predict("semantic", inputs, out, resume=True) == []
    journal.write_bytes(b"\xff\x00")
    assert len(predict("semantic", inputs, out, resume=True)) == 5
    assert predict("semantic", inputs, out, resume=True) == []


def rewrite(journal, change):
    """Write the lines of a journal anew, as if what `change` makes of them had been written."""
    lines = [change(json.loads(line)) for line in journal.read_text().splitlines()]
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize(
    "change, done",
    [
        (lambda line: {key: line[key] for key in line if key != "provenance"}, 5),
        (lambda line: [line], 5),
        (lambda line: {key: line[key] for key in line if key != "entry"}, 5),
        (lambda line: line | {"files": None} if line.get("name") == "image 0" else line, 1),
    ],
)
def test_lines_of_a_journal_that_nobody_wrote_do_not_count(inputs, tmp_path, change, done):
    out = tmp_path / "out"
    predict("semantic", inputs, out)
    rewrite(out / FILE_NAME, change)
    assert len(predict("semantic", inputs, out, resume=True)) == done


def test_other_images_are_added_and_the_index_is_of_those_that_are_named(inputs, tmp_path):
    predict("detection", inputs / "image 2.png", tmp_path / "out")
    assert predict("detection", inputs, tmp_path / "out", resume=True) == [0, 1, 3, 4]
    detections = json.loads((tmp_path / "out/detections.json").read_text())
    assert [image["id"] for image in detections["images"]] == [1, 2, 3, 4, 5]
    numbers = [(entry["id"], entry["image_id"]) for entry in detections["annotations"]]
    assert numbers == [(number, (number + 1) // 2) for number in range(1, 11)]
    assert predict("detection", inputs / "image 0.png", tmp_path / "out", resume=True) == []
    detections = json.loads((tmp_path / "out/detections.json").read_text())
    assert [image["file_name"] for image in detections["images"]] == ["image 0.png"]


def test_other_settings_are_refused_by_name_and_begin_anew_without_resuming(inputs, tmp_path):
    predict("semantic", inputs, tmp_path / "out", settings={"threshold": 0.5})
    whole = content(tmp_path / "out")
    with pytest.raises(InputError, match=r"threshold has changed \(0.5, now 0.75\): give another"):
        predict("semantic", inputs, tmp_path / "out", settings={"threshold": 0.75}, resume=True)
    assert content(tmp_path / "out") == whole
    assert len(predict("semantic", inputs, tmp_path / "out", settings={"threshold": 0.75})) == 5


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, None),
        ({"seen": [False]}, "seen has changed: "),
        ({"masks": "a"}, "masks has changed (None, now 'a')"),
    ],
)
def test_settings_are_the_same_as_json_or_refused_by_name(change, message):
    old = {"seen": [True], "MODEL.DEVICE": "cpu"}
    new = {"seen": (True,), "MODEL.DEVICE": "cpu"} | change
    refused = pytest.raises(InputError, match=re.escape(message)) if message else nullcontext()
    with refused:
        require_same("out", old, new, "")


def test_an_image_that_fails_in_a_batch_fails_alone(inputs, tmp_path):
    (inputs / "broken.png").write_bytes(b"no image")
    files = find_images([inputs], tmp_path / "out")
    results = made_results("semantic", tmp_path / "out", files)
    whole = results.predict

    def strange(images, sources):
        if any(image.shape[0] == 12 for image in images):
            raise RuntimeError("no kernel for this")
        return whole(images, sources)

    results.predict = strange
    failed = predict_files(results, files, batch_size=4)
    assert failed == {
        str(inputs / "broken.png"): failed[str(inputs / "broken.png")],
        str(inputs / "image 0.png"): "cannot be processed (RuntimeError: no kernel for this)",
    }
    index = json.loads((tmp_path / "out/classes.json").read_text())
    assert set(index["images"]) == {"image 2", "image 4", "sub/image 1", "sub/image 3"}


def test_batches_that_fail_are_told_once_and_their_images_go_one_at_a_time(caplog):
    class Small:
        def predict(self, images, sources):
            if len(images) > 1:
                raise RuntimeError("no room for so many")
            return images

    loop._warn_of_batches.cache_clear()
    for _ in range(3):
        assert predict_each(Small(), {0: "a", 1: "b"}) == {0: "a", 1: "b"}
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "a batch fails (RuntimeError: no room for so many)" in told.getMessage()
    assert "--batch-size" in told.getMessage()


def test_an_image_whose_results_would_have_too_long_a_name_fails_alone(inputs, tmp_path):
    long = inputs / f"{'a' * 251}.png"
    for ending in (".png", ".jpg"):
        shutil.copy(inputs / "image 0.png", long.with_suffix(ending))
    files = find_images([inputs], tmp_path / "out")
    failed = predict_files(made_results("semantic", tmp_path / "out", files), files)
    assert set(failed) == {str(long), str(long.with_suffix(".jpg"))}
    assert "File name too long" in failed[str(long)]
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == 5


def test_images_are_read_ahead_in_a_thread_and_no_further_than_a_batch(
    inputs, tmp_path, monkeypatch
):
    lock, read, most = threading.Lock(), [], []
    whole = loop.read_image

    def counting(path, **options):
        with lock:
            read.append(threading.current_thread())
        return whole(path, **options)

    monkeypatch.setattr(loop, "read_image", counting)
    files = find_images([inputs], tmp_path / "out")
    results = made_results("semantic", tmp_path / "out", files)
    predicted, again = [], results.predict

    def model(images, sources):
        predicted.extend(images)
        with lock:
            most.append(len(read) - len(predicted))
        return again(images, sources)

    results.predict = model
    assert predict_files(results, files) == {}
    assert len(read) == 5 and max(most) <= 1 and threading.main_thread() not in read


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_is_written_while_the_model_works_on_the_next_one_and_no_later(
    inputs, tmp_path, batch_size
):
    files = find_images([inputs], tmp_path / "out")
    results = made_results("semantic", tmp_path / "out", files)
    predicted, written, most = [], [], []
    goes_on = {batch_size: threading.Event()}
    model, write = results.predict, results.write

    def counted(images, sources):
        most.append(len(predicted) - len(written))
        predicted.extend(sources)
        if len(predicted) > batch_size:
            goes_on[batch_size].set()
        return model(images, sources)

    def waiting(source, result):
        assert goes_on[batch_size].wait(60), "the model did not go on"
        written.append(source)
        return write(source, result)

    results.predict, results.write = counted, waiting
    assert predict_files(results, files, batch_size=batch_size) == {}
    assert len(written) == 5 and max(most) <= batch_size


def test_a_disk_that_is_full_ends_the_call_which_goes_on_later(inputs, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict("semantic", inputs, whole)
    files = find_images([inputs], out)
    results = made_results("semantic", out, files)
    results.provenance = {"date": 1}
    write = results.write

    def full(source, result):
        if source.name == "image 4":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(source, result)

    results.write = full
    with pytest.raises(InputError, match="results cannot be written below .*No space left"):
        predict_files(results, files, Journal(out, {"words": list(NAMES)}, False))
    names = [json.loads(line) for line in (out / FILE_NAME).open()][1:]
    assert [line["name"] for line in names][:2] == ["image 0", "image 2"]
    assert 4 in predict("semantic", inputs, out, date=2, resume=True)
    assert content(out) == content(whole)


def test_failures_are_said_in_the_order_of_the_images(inputs, tmp_path):
    (inputs / "image 2.png").write_bytes(b"no image")
    files = find_images([inputs], tmp_path / "out")
    results = made_results("semantic", tmp_path / "out", files)
    results.predict = lambda images, sources: 1 / 0
    assert list(predict_files(results, files, batch_size=5)) == [str(i.path) for i in files.images]
