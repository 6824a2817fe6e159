"""Runs in their order, side by side, killed and gone on with; train_net.py is a stand-in."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import pytest

from clipself_seg.tables import execution as module
from clipself_seg.tables import runs
from clipself_seg.tables.execution import plan, run_all
from clipself_seg.tables.runs import make_run
from clipself_seg.tables.store import Store
from tests.tables.worlds import finish

# Two steps with a checkpoint after each; what `die` names is killed after the first one, once.
TRAIN_NET = """
import fcntl, json, os, pathlib, sys, time
words = sys.argv
folder = pathlib.Path(words[words.index("OUTPUT_DIR") + 1])
fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
log, checkpoint = folder.parent / "log.txt", folder / "checkpoint"
die = folder.parent / "die"
for step in range(int(checkpoint.read_text()) if checkpoint.exists() else 0, 2):
    open(log, "a").write(f"{folder.name} {step} {os.environ['OMP_NUM_THREADS']}\\n")
    (folder.parent / "environment.json").write_text(json.dumps(dict(os.environ)))
    (folder.parent / "begun").touch()
    time.sleep(float(os.environ.get("SLEEP", 0)))
    checkpoint.write_text(str(step + 1))
    if die.exists() and die.read_text() in folder.name:
        die.unlink()
        os.kill(os.getpid(), 9)
if "bad" in os.environ and os.environ["bad"] in folder.name:
    sys.exit("error: the reason")
(folder / "clip_final.safetensors").touch()
(folder / "model_final.pth").touch()
(folder / "results.json").write_text(json.dumps({"results": {"val": {"x": 1.5}}, "provenance": {}}))
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    (tmp_path / "train_net.py").write_text(TRAIN_NET)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "POLL", 0.05)
    (tmp_path / "runs").mkdir()
    return Store(tmp_path / "runs")


def steps(store):
    return [line.split()[:2] for line in (store.folder / "log.txt").read_text().splitlines()]


def clip_and_detector():
    clip = make_run("configs/mini/patches.yaml", {}, seed=0, minutes=2)
    needs = {"MODEL.CLIP.WEIGHTS": clip}
    return clip, make_run("configs/mini/detection.yaml", {}, needs=needs, seed=0, minutes=4)


def test_what_is_needed_comes_first_and_what_is_finished_is_not_run_again(store, capsys):
    clip, detector = clip_and_detector()
    todo = plan([detector, clip, detector], store)
    assert todo == [clip, detector]
    assert run_all(todo, store) == {}
    assert [name for name, _ in steps(store)] == [clip.name] * 2 + [detector.name] * 2
    assert plan([clip, detector], store) == [] and store.record(clip)["minutes"] > 0
    said = capsys.readouterr().out
    assert "[1/2]" in said and "minutes left" in said and "$ python train_net.py" in said
    # Its numbers are known, its weights are lost: they are needed for another run alone.
    (store.folder / clip.name / clip.result_file).unlink()
    assert plan([clip], store) == []
    other = make_run(
        "configs/mini/detection.yaml", {"SOLVER.MAX_ITER": "9"}, needs=detector.needs, seed=0
    )
    assert plan([other], store) == [clip, other]


def test_a_run_that_was_killed_goes_on(store):
    clip, detector = clip_and_detector()
    (store.folder / "die").write_text(clip.name)
    failed = run_all([clip, detector], store)
    assert "was ended by SIGKILL" in failed[clip.name]
    assert failed[detector.name] == f"needs {clip.name}, which failed"
    assert run_all(plan([clip, detector], store), store) == {}
    assert steps(store) == [[r.name, step] for r in (clip, detector) for step in "01"]


def test_a_failure_is_named_and_the_others_come_to_their_end(store):
    clip, _ = clip_and_detector()
    other = make_run("configs/mini/proposals.yaml", {}, seed=0)
    failed = run_all([clip, other], store, environment={"bad": clip.name})
    assert list(failed) == [clip.name]
    assert failed[clip.name].startswith("error: the reason (all of it: ")
    assert store.record(other) is not None and store.record(clip) is None


def test_a_killed_call_resumes_after_what_outlived_it(store, capsys):
    clip, detector = clip_and_detector()
    slow = {"environment": {"SLEEP": "0.4"}}
    child = multiprocessing.get_context("fork").Process(
        target=run_all, args=([clip, detector], store), kwargs=slow
    )
    child.start()
    while not (store.folder / "begun").exists():
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert run_all(plan([clip, detector], store), store) == {}
    assert steps(store) == [[r.name, step] for r in (clip, detector) for step in "01"]
    assert "waiting: " in capsys.readouterr().out


def test_where_the_system_says_no_processor_time_runs_are_made_all_the_same(store, monkeypatch):
    monkeypatch.delattr(os, "wait4")
    clip, detector = clip_and_detector()
    (store.folder / "die").write_text(detector.name)
    assert "was ended by SIGKILL" in run_all([clip, detector], store)[detector.name]
    assert run_all(plan([clip, detector], store), store) == {}
    assert [store.record(run)["minutes"] for run in (clip, detector)] == [None, None]


def test_results_without_numbers_are_a_failure(store, monkeypatch):
    clip, _ = clip_and_detector()
    (store.folder.parent / "train_net.py").write_text("")
    assert "no complete, finite numbers" in run_all([clip], store)[clip.name]
    finish(store, clip, {"val": {"x": 1.0}})
    assert json.loads((store.folder / clip.name / "run.json").read_text())["minutes"] >= 1.5


def test_data_of_a_run_is_prepared_once_before_it(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path / "worlds"))
    text = (
        "import pathlib, sys; pathlib.Path('prepared').open('a').write(sys.argv[1]); sys.exit({})"
    )
    (tmp_path / "prepare.py").write_text(text.format("0"))
    prepare = ("prepare.py", "{mini}/labels;")
    runs = [make_run("configs/mini/patches.yaml", {}, seed=s, prepare=prepare) for s in (0, 1)]
    assert runs[0].name != make_run("configs/mini/patches.yaml", {}, seed=0).name
    assert run_all(runs, store) == {}
    assert (tmp_path / "prepared").read_text() == f"{tmp_path}/worlds/labels;"
    (tmp_path / "prepare.py").write_text(text.format("'error: no labels'"))
    (other,) = [make_run("configs/mini/patches.yaml", {}, seed=2, prepare=prepare)]
    failed = run_all([other], store)
    assert failed[other.name].startswith(
        "its data could not be prepared: error: no labels (all of it"
    )


def test_runs_read_the_data_and_the_configuration_of_the_caller_and_see_no_gpu(
    store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", "data")
    monkeypatch.setenv("CLIPSELF_SEG_MINI", "worlds")
    own = tmp_path / "mine.yaml"
    own.write_text(f"_BASE_: {runs.ROOT}/configs/mini/patches.yaml\n")
    run = make_run("mine.yaml", {}, seed=0)
    assert run_all(plan([run], store), store) == {}
    seen = json.loads((store.folder / "environment.json").read_text())
    roots = (seen["DETECTRON2_DATASETS"], seen["CLIPSELF_SEG_MINI"])
    assert roots == (str(tmp_path / "data"), str(tmp_path / "worlds"))
    assert seen["CUDA_VISIBLE_DEVICES"] == "" and str(own) in run.command(store.folder)


def test_what_is_left_out_is_counted(store, monkeypatch, capsys):
    clip, detector = clip_and_detector()
    monkeypatch.setenv("bad", "patches")
    failed = run_all([clip, detector], store)
    assert failed.keys() == {clip.name, detector.name}
    said = capsys.readouterr().out
    assert f"[2/2] {detector.name} left out: needs {clip.name}, which failed" in said
