"""The quickstart's commands, chapters and folder."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipself_seg.commands import predict, train
from clipself_seg.config import load_config
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in
from clipself_seg.visualization.boxes import SEEN, UNSEEN
from clipself_seg.yaml_files import CONFIGS, find_file
from lab.quickstart import chapters, quickstart, steps
from lab.quickstart.chapters import DETECTION
from lab.quickstart.steps import AT_ONCE, Run, View, call_together
from quickstart import quickstart as command


def python(*lines: str) -> list[str]:
    return ["-c", "\n".join(["import os, sys", *lines])]


def test_lines_bear_the_name_of_their_command_and_commands_share_the_cores(capfd):
    told = "print(os.environ['OMP_NUM_THREADS'], os.environ['CLIPSELF_SEG_MINI'])"
    commands = {"one": python(told), "two": python("print('up', file=sys.stderr)", told)}
    call_together(commands, Path("worlds"))
    threads = max(1, torch.get_num_threads() // AT_ONCE)
    lines = capfd.readouterr().out.splitlines()
    assert sum(line.startswith("$ python -c") for line in lines) == 2
    assert [line for line in lines if line.startswith("[one]")] == [f"[one] {threads} worlds"]
    assert {"[two] up", f"[two] {threads} worlds"} <= set(lines)


def test_a_command_that_fails_is_named_and_the_others_come_to_their_end(tmp_path):
    done = tmp_path / "done"
    commands = {"bad": python("sys.exit(3)"), "good": python(f"open({str(done)!r}, 'w')")}
    with pytest.raises(InputError, match=r"this step failed: python -c (.|\n)*after \[bad\]"):
        call_together(commands, tmp_path)
    assert done.exists()


def test_ctrl_c_starts_no_further_command(tmp_path, monkeypatch):
    started = []

    def follow(name, words, environment):
        started.append(name)
        time.sleep(0.5)  # until the others wait
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.2)
        return 0

    monkeypatch.setattr(steps, "AT_ONCE", 1)
    monkeypatch.setattr(steps, "_follow", follow)
    # torch's launcher, which another test calls, leaves its own behind.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            call_together({name: python("") for name in "abc"}, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.3)
    assert started == ["a"]


def test_a_command_that_the_system_ends_is_named_with_the_reason(tmp_path):
    commands = {"big": python("os.kill(os.getpid(), 9)")}
    message = r"this step was ended by SIGKILL, often for want of memory.*: python -c"
    with pytest.raises(InputError, match=message):
        call_together(commands, tmp_path)


def test_commands_are_the_packages_own_and_need_no_checkout(tmp_path, monkeypatch):
    training = Run("", "live", "patches.yaml", training=True).command(tmp_path)
    view = View("", Run("", "seen", "semseg.yaml"), "mini-cat-seg")
    images = view.command(tmp_path / "out", tmp_path, "mini")
    for words, module in ((training, train), (images, predict)):
        assert words[:2] == ["-m", "clipself_seg"] and words[2] == module.__name__.split(".")[-1]
        args = module.main.parser().parse_args(words[3:])
        monkeypatch.chdir(tmp_path)  # as site-packages, there is no folder configs here
        assert find_file(args.config_file).parent == CONFIGS / "mini"
    assert (steps.ROOT / "clipself_seg" / "__main__.py").is_file()


def test_finished_trainings_keep_no_checkpoints_and_are_not_run_again(tmp_path, monkeypatch):
    runs = (Run("", "trains", "patches.yaml", training=True), Run("", "evaluates", "regions.yaml"))
    checkpoints = tmp_path / "trains" / "checkpoints"
    called: list[list[str]] = []

    def interrupted(commands, worlds):
        checkpoints.mkdir(parents=True, exist_ok=True)
        raise InputError("this step failed")

    def finished(commands, worlds):
        called.append(sorted(commands))
        assert all("--resume" in words for name, words in commands.items() if name == "trains")
        (tmp_path / "trains" / "results.json").touch()

    monkeypatch.setattr(steps, "call_together", interrupted)
    with pytest.raises(InputError):
        steps.run_together(runs, tmp_path, tmp_path)
    assert checkpoints.exists()  # to go on from
    monkeypatch.setattr(steps, "call_together", finished)
    steps.run_together(runs, tmp_path, tmp_path)
    steps.run_together(runs, tmp_path, tmp_path)
    assert called == [["evaluates", "trains"], ["evaluates"]] and not checkpoints.exists()


def _annotation(category: int, x: int, **more: float) -> dict:
    return {"id": 1, "image_id": 7, "category_id": category, "bbox": [x, 40, 60, 60]} | more


def _write(path, content) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def test_each_column_has_the_sure_boxes_of_its_run_and_the_truth_knows_what_is_seen(tmp_path):
    image = tmp_path / "worlds/mini/val/000007.jpg"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (500, 300), (128, 128, 128)).save(image)
    classes = load_vocabulary("mini_things").classes
    known, new = (next(c.dataset_id for c in classes if c.seen is seen) for seen in (True, False))
    images = [{"id": 7, "file_name": "a/000007.jpg", "height": 300, "width": 500}]
    true = [_annotation(known, 10), _annotation(new, 400)]
    categories = [{"id": c.dataset_id, "name": c.names[0]} for c in classes]
    content = {"images": images, "annotations": true, "categories": categories}
    _write(tmp_path / "worlds/mini/annotations/instances_val.json", content)
    boxes = ([_annotation(new, 9, score=0.6)], [_annotation(known, 10, score=0.9)])
    for run, entries in zip(DETECTION.runs, (*boxes, [_annotation(new, 9, score=1)]), strict=True):
        _write(tmp_path / run.folder / "detections_mini_val_boxes.json", entries)
    (row,) = chapters.show_images(DETECTION, tmp_path, tmp_path / "worlds", ["mini"])["mini"]
    columns = list(row.tiles.values())
    seen, unseen = ([(c == k).all(axis=-1).any() for c in columns] for k in (SEEN, UNSEEN))
    assert seen == [True, False, True, False] and unseen == [True, False, False, True]


def test_two_quickstarts_do_not_meet_and_a_fresh_one_forgets_the_earlier(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(quickstart, "_run_chapters", lambda *given: called.append(given))
    (tmp_path / "patches_live").mkdir()
    (tmp_path / "index.html").touch()
    with alone_in(tmp_path), pytest.raises(InputError, match="another process"):
        quickstart.run_quickstart(tmp_path, fresh=True)
    assert len(list(tmp_path.iterdir())) == 2 and not called
    quickstart.run_quickstart(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and len(called) == 1
    quickstart.run_quickstart(tmp_path, fresh=True)
    assert not list(tmp_path.iterdir())


def test_a_full_quickstart_trains_longer_on_more_scenes_and_takes_no_short_run_for_its_own(
    tmp_path, monkeypatch
):
    scenes, shown, folders = [], [], set()

    def stop(runs, output, worlds):
        training = [run.training for run in runs]
        assert training == sorted(training, reverse=True)  # the long ones begin
        folders.add(output)
        solvers = {
            run.folder: load_config(f"mini/{run.config}", list(run.options)).SOLVER for run in runs
        }
        shown.append({name: s.MAX_ITER * s.IMS_PER_BATCH for name, s in solvers.items()})
        raise InputError("enough")

    monkeypatch.setattr(quickstart, "make_worlds", lambda root, size: scenes.append(size.val))
    monkeypatch.setattr(quickstart, "run_together", stop)
    for full in (False, True):
        with pytest.raises(InputError, match="enough"):
            quickstart.run_quickstart(tmp_path, full=full)
    short, long = shown
    trained = {"patches_live", "proposals_live", "semseg_original", "semseg_clipself"}
    trained |= {"panoptic_live", "detection_original", "detection_clipself"}
    assert {name for name in long if short[name] < long[name] / 2} == trained
    assert scenes == [100, 200] and len(folders) == 2 and short.keys() == long.keys()


def test_the_help_names_what_every_chapter_trains():
    help = command.parser().format_help()
    assert all(model in help for model in ("CAT-Seg", "mask generator", "F-ViT"))
