"""Runs by what decides them, where finished ones are kept, and how missing ones are made."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.config.weight_checks import WEIGHTS
from clipself_seg.data.datasets.table import DATASETS, SHIPPED_WORLD
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in
from lab import ROOT
from lab.mini.writer import WorldSize, manifest_of
from lab.tables import execution as module
from lab.tables import runs
from lab.tables.execution import plan, run_all
from lab.tables.runs import make_run, missing_data, resolve
from lab.tables.store import Store
from lab.tables.table import RunOf, RunSpec, read_tables
from tests.lab.tables.worlds import finish

PATCHES = "configs/mini/patches.yaml"


def name_of(**options):
    given = {key.replace("__", "."): str(value) for key, value in options.items()}
    return make_run(PATCHES, given, seed=0).name


def test_other_options_and_seeds_have_other_names():
    names = {name_of(), name_of(SOLVER__MAX_ITER=7), name_of(INPUT__REGIONS__MAX_SPLIT=6)}
    names |= {make_run(PATCHES, {}, seed=1).name, make_run(PATCHES, {}, seed=0, evaluate=True).name}
    names.add(make_run("configs/mini/proposals.yaml", {}, seed=0).name)
    assert len(names) == 6 and all(name.startswith(("patches_", "proposals_")) for name in names)


def test_what_is_written_out_is_the_same_run_as_the_default():
    assert name_of() == name_of(INPUT__REGIONS__MAX_SPLIT=4, OUTPUT_DIR="elsewhere")
    assert name_of() == name_of(SOLVER__CHECKPOINT_PERIOD=7, DATALOADER__NUM_WORKERS=1)


def test_shipped_weights_count_by_their_content_and_are_the_default():
    tags = {name_of(MODEL__CLIP__WEIGHTS=tag) for tag in ("mini", "mini-clipself")}
    assert len(tags) == 2 and name_of() in tags


def test_what_writes_the_data_of_runs_is_a_command_that_has_these_options():
    words = {run.prepare for table in read_tables([]) for run in table.runs["mini"].values()}
    for script, name, *options in filter(None, words):
        help_text = subprocess.check_output(
            [sys.executable, script, name, "--help"], cwd=ROOT, text=True
        )
        assert [word for word in options if word[:2] == "--" and word not in help_text] == []


# Configurations of the models that read them; all others are read by a distillation.
READ_BY = {
    "MODEL.CLIP.VISUAL_INIT": "mini/semseg",
    "MODEL.CLIP_BRANCH.WEIGHTS": "mini/panoptic",
    "MODEL.CAT_SEG.BACKBONE_WEIGHTS": "mini/semseg",
    "MODEL.DIFFUSION.WEIGHTS": "panoptic/odise_label",
}


@pytest.mark.parametrize("key", WEIGHTS)
def test_every_file_of_weights_counts_by_its_content(tmp_path, key):
    names = []
    config = f"configs/{READ_BY.get(key, 'mini/patches')}.yaml"
    for folder, content in (("a", b"weights"), ("b", b"weights"), ("c", b"others")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights.pt").write_bytes(content)
        names.append(make_run(config, {key: str(tmp_path / folder / "weights.pt")}, seed=0).name)
    assert names[0] == names[1] != names[2]


def test_typed_modules_count_by_the_content_of_all_their_files(tmp_path, monkeypatch):
    plain = name_of()
    package, method = tmp_path / "my_package", tmp_path / "my_method.py"
    package.mkdir()
    for file in (method, package / "__init__.py", package / "losses.py"):
        file.write_text("weight = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = []
    for typed, file in ((str(method), method), ("my_package.losses", package / "losses.py")):
        monkeypatch.setenv("CLIPSELF_SEG_IMPORT", typed)
        names += [name_of(), name_of()]
        file.write_text("weight = 0.5\n")
        names.append(name_of())
    monkeypatch.delenv("CLIPSELF_SEG_IMPORT")
    assert names[0] == names[1] and names[3] == names[4] and len({plain, *names}) == 5
    assert name_of() == plain


def test_another_world_gives_another_run(tmp_path, monkeypatch):
    standard = name_of()
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    assert name_of() == standard
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "manifest.json").write_text(json.dumps({"seed": 5}))
    assert name_of() != standard
    drawn = manifest_of(WorldSize(train=32, val=13, base=12))
    (tmp_path / "mini" / "manifest.json").write_text(json.dumps(drawn))
    of_its_size = name_of()
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(SHIPPED_WORLD))
    assert name_of() not in (standard, of_its_size)


def test_a_run_that_needs_another_one_has_its_weights_and_seed(tmp_path):
    weights = {"MODEL.CLIP.WEIGHTS": RunOf("clip")}
    specs = {
        "clip": RunSpec(PATCHES, {}, {}, False, 2),
        "detector": RunSpec("configs/mini/detection.yaml", {}, weights, False, 4),
        "read": RunSpec("configs/mini/regions.yaml", {}, {}, True, 1),
        "read_it": RunSpec("configs/mini/regions.yaml", {}, weights, True, 1),
    }
    detector = resolve(specs, "detector", seed=2)
    clip, itself = detector.with_needs()
    assert itself is detector and clip.name == resolve(specs, "clip", seed=2).name
    words = detector.command(tmp_path)
    assert words[words.index("SEED") + 1] == "2" and words[:2] == ["train", "--config-file"]
    assert words[3] == "--resume"
    trained = tmp_path / clip.name / "clip_final.safetensors"
    assert words[words.index("MODEL.CLIP.WEIGHTS") + 1] == str(trained)
    assert words[-2:] == ["OUTPUT_DIR", str(tmp_path / detector.name)]
    assert resolve(specs, "detector", seed=1).name != detector.name
    # Without training no seed moves anything.
    assert resolve(specs, "read", seed=1).name == resolve(specs, "read", seed=2).name
    assert resolve(specs, "read_it", seed=1).name != resolve(specs, "read_it", seed=2).name
    words = resolve(specs, "read", seed=1).command(tmp_path, gpus=4)
    assert words[0] == "eval" and words[3:5] == ["--num-gpus", "4"]


def test_what_is_missing_is_said_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    by_hand = "clipself-eva02-vitb16-coco-patches"
    weights = {"MODEL.CLIP.WEIGHTS": by_hand}
    spec = RunSpec("configs/regions/coco+eva02_vitb16.yaml", {}, weights, True, 0)
    run = resolve({"eva": spec}, "eva", 0)
    file = zoo()[by_hand].file
    assert file in run.missing[0] and str(tmp_path) in run.missing[0]
    assert "panoptic_val2017" in run.missing[1] and "https://cocodataset.org" in run.missing[1]
    (tmp_path / file).write_bytes(b"1")
    assert len(resolve({"eva": spec}, "eva", 0).missing) == 1
    named = make_run("configs/regions/coco+eva02_vitb16.yaml", {}, evaluate=True)
    (said,) = named.fetched
    assert said.startswith(
        "MODEL.CLIP.WEIGHTS merged2b_s8b_b131k (EVA02-B-16); size: about 299 MB; licence: MIT"
    )
    assert runs.size_and_licence("openai", "ViT-B-16-quickgelu").endswith("licence: Apache-2.0")
    assert runs.size_and_licence("nobody's", "ViT-B-16") == "size: unknown; licence: not stated"


def test_a_few_images_are_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = DATASETS["ade20k_150_test_sem_seg"]
    for need in files.needed():
        files.path(need.relative).mkdir(parents=True)
    (files.path(files.images) / "1.jpg").touch()
    for number in range(2000):
        (files.path(files.images) / f"{number}.jpg").touch()
    runs._count_files.cache_clear()
    said = missing_data("ade20k_150_test_sem_seg")
    labels = f"0 of 2000 files in {files.path(files.annotations)}"
    assert said.startswith(f"ade20k_150_test_sem_seg: {labels}: unpack")


def test_images_of_lvis_are_those_of_both_folders_of_coco(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = DATASETS["ov_lvis_val"]
    for path in runs._data_paths(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text("{}")
    (tmp_path / "coco").mkdir(exist_ok=True)
    monkeypatch.setattr(runs, "_too_few_annotations", lambda name: "")
    monkeypatch.setattr(runs, "_count_files", lambda folder: counts.get(folder.name, 0))
    counts = {"train2017": 118287, "panoptic_train2017": 118287}
    assert "0 of 19809 files in" in missing_data("ov_lvis_val")
    counts["val2017"] = 5000
    before = runs.fingerprint("ov_lvis_val")
    (tmp_path / "coco" / "zero-shot").mkdir()  # which decides no number of LVIS's
    assert not missing_data("ov_lvis_val") and runs.fingerprint("ov_lvis_val") == before


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("SOLVER.MAX_ITERS", "3", 'unknown key "SOLVER.MAX_ITERS"'),
        ("MODEL.CLIP.WEIGHTS", "https://a/b.pt", "MODEL.CLIP.WEIGHTS is the address https://a/b"),
    ],
)
def test_what_a_run_refuses_a_table_refuses_and_addresses(key, value, said):
    with pytest.raises(InputError, match=said):
        make_run(PATCHES, {key: value}, seed=0)


def test_a_number_of_examples_that_is_none_is_refused_by_its_key():
    spec = RunSpec(PATCHES, {"TEST.EXAMPLES.NUMBER": "x"}, {}, True, 1)
    with pytest.raises(InputError, match="TEST.EXAMPLES.NUMBER"):
        resolve({"a": spec}, "a", seed=0)


NUMBERS = {"mini_val": {"160": {"boxes.thing.top1": 20.0, "of no class": float("nan")}}}


def run_of(seed=0):
    return make_run("configs/mini/patches.yaml", {}, seed=seed)


def test_a_finished_run_is_kept_small_and_counts_without_its_folder(tmp_path):
    store, run = Store(tmp_path / "runs", tmp_path / "kept"), run_of()
    assert store.record(run) is None and not store.has_weights(run)
    finish(store, run, NUMBERS)
    store.end(run, 30.0)
    assert store.has_weights(run) and store.record(run)["minutes"] == 2
    clone = Store(tmp_path / "elsewhere", tmp_path / "kept")
    assert clone.record(run)["results"]["mini_val"]["160"]["boxes.thing.top1"] == 20
    assert not clone.has_weights(run) and clone.record(run_of(1)) is None
    assert (tmp_path / "kept" / f"{run.name}.json").stat().st_size < 3000


@pytest.mark.parametrize(
    "content",
    [
        {"results": {"a": {"x": 1.0}}, "provenance": {"not evaluated": ["b"]}},
        {"results": {"a": {"x": float("inf"), "y": 1}}, "provenance": {}},
        {"results": {}, "provenance": {}},
        [],
    ],
)
def test_results_that_are_not_whole_do_not_count(tmp_path, content):
    store, run = Store(tmp_path), run_of()
    finish(store, run, NUMBERS)
    (tmp_path / run.name / "results.json").write_text(json.dumps(content))
    assert Store(tmp_path).record(run) is None


def test_a_run_from_before_a_default_changed_is_made_anew(tmp_path):
    store, run = Store(tmp_path / "runs", tmp_path / "kept"), run_of()
    finish(store, run, NUMBERS)
    for folder in (tmp_path / "runs", tmp_path / "kept"):
        (path,) = folder.glob("defaults-*.json")
        defaults = json.loads(path.read_text())
        # A key that is new since, or gone, changes nothing.
        defaults["MODEL.CLIP.NEW"] = defaults.pop("TEST.REGIONS.GROUPING")
        path.write_text(json.dumps(defaults))
        assert Store(tmp_path / "runs", tmp_path / "kept").record(run) is not None
        path.write_text(json.dumps(defaults | {"INPUT.REGIONS.GRID_PAIRS": "all"}))
    again = Store(tmp_path / "runs", tmp_path / "kept")
    assert again.record(run) is None and again.is_outdated(run) and not again.has_weights(run)
    folder = again.begin(run)
    assert not (folder / "results.json").exists() and not again.is_outdated(run)


def test_a_run_goes_on_under_a_new_key_and_is_kept(tmp_path):
    store, run = Store(tmp_path / "runs", tmp_path / "kept"), run_of()
    store.begin(run)
    newer = dataclasses.replace(run, defaults={**run.defaults, "MODEL.CLIP.NEW": 1})
    finish(store, newer, NUMBERS)
    assert not store.is_outdated(newer) and store.record(newer)["minutes"] == 1.5
    assert Store(tmp_path / "elsewhere", tmp_path / "kept").record(newer) is not None


# Two steps with a checkpoint after each; what `die` names is killed after the first one, once.
PROGRAM = """
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
    (tmp_path / "clipself_seg").mkdir()
    (tmp_path / "clipself_seg" / "__init__.py").touch()
    (tmp_path / "clipself_seg" / "__main__.py").write_text(PROGRAM)
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
    assert "[1/2]" in said and "minutes left" in said and "$ clipself-seg train" in said
    # Its numbers are known, its weights are lost: they are needed for another run alone.
    (store.folder / clip.name / clip.result_file).unlink()
    assert plan([clip], store) == []
    longer = {"SOLVER.MAX_ITER": "9"}
    other = make_run("configs/mini/detection.yaml", longer, needs=detector.needs, seed=0)
    assert plan([other], store) == [clip, other]


def test_a_run_that_was_killed_goes_on(store, capsys):
    clip, detector = clip_and_detector()
    (store.folder / "die").write_text(clip.name)
    failed = run_all([clip, detector], store)
    assert "was ended by SIGKILL" in failed[clip.name]
    assert failed[detector.name] == f"needs {clip.name}, which failed"
    assert f"[2/2] {detector.name} left out: needs {clip.name}" in capsys.readouterr().out
    assert run_all(plan([clip, detector], store), store) == {}
    assert steps(store) == [[r.name, step] for r in (clip, detector) for step in "01"]


def test_a_failure_is_named_and_the_others_come_to_their_end(store, monkeypatch):
    clip, _ = clip_and_detector()
    other = make_run("configs/mini/proposals.yaml", {}, seed=0)
    monkeypatch.setenv("bad", clip.name)
    failed = run_all([clip, other], store)
    assert list(failed) == [clip.name]
    assert failed[clip.name].startswith("error: the reason (all of it: ")
    assert store.record(other) is not None and store.record(clip) is None


def test_a_budget_takes_what_is_needed_too_and_a_later_seed_last():
    clip, detector = clip_and_detector()  # of 2 and 4 minutes
    dear = make_run("configs/mini/proposals.yaml", {}, seed=0, minutes=90)
    later = make_run("configs/mini/patches.yaml", {}, seed=1, minutes=2)
    cells = {detector.name: 1, dear.name: 99, later.name: 9}
    todo = [later, clip, detector, dear]
    assert module.affordable(todo, cells, [0, 1], 2) == [dear, clip, detector, later]
    assert module.affordable(todo, cells, [0, 1], 1) == [clip, detector, later]
    assert module.affordable(todo, cells, [0, 1], 0.09) == [later]


def test_once_the_hours_are_spent_no_further_run_begins(store, capsys, monkeypatch):
    clip, detector = clip_and_detector()
    hours = 0.2 / 3600  # of two cores; a run takes longer
    monkeypatch.setenv("SLEEP", "0.2")
    assert run_all([clip, detector], store, hours=hours) == {}
    assert "the hours are spent: 1 runs are left" in capsys.readouterr().out
    assert store.has_weights(clip) and store.record(detector) is None


def test_a_killed_call_resumes_after_what_outlived_it(store, capsys, monkeypatch):
    clip, detector = clip_and_detector()
    child = multiprocessing.get_context("fork").Process(
        target=run_all, args=([clip, detector], store)
    )
    with monkeypatch.context() as slow:
        slow.setenv("SLEEP", "0.4")
        child.start()
    while not (store.folder / "begun").exists():
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert run_all(plan([clip, detector], store), store) == {}
    assert steps(store) == [[r.name, step] for r in (clip, detector) for step in "01"]
    assert "waiting: " in capsys.readouterr().out


def test_an_interrupted_call_that_waits_for_another_starts_nothing(store, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    clip, _ = clip_and_detector()
    monkeypatch.setattr(module, "wait", interrupt)
    with alone_in(store.folder / clip.name), pytest.raises(KeyboardInterrupt):
        run_all([clip], store)
    assert not (store.folder / "begun").exists()


def test_where_the_system_says_no_processor_time_runs_are_made_all_the_same(store, monkeypatch):
    monkeypatch.delattr(os, "wait4")
    clip, detector = clip_and_detector()
    (store.folder / "die").write_text(detector.name)
    assert "was ended by SIGKILL" in run_all([clip, detector], store)[detector.name]
    assert run_all(plan([clip, detector], store), store) == {}
    assert all(store.record(run)["minutes"] > 0 for run in (clip, detector))


def test_the_time_of_a_part_whose_end_nobody_saw_is_counted_until_its_last_line(tmp_path):
    store, run = Store(tmp_path / "runs", tmp_path / "kept"), run_of()
    folder = store.begin(run)
    note = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(note | {"began": 1000.0}))
    (folder / "log.txt").touch()
    os.utime(folder / "log.txt", (1120, 1120))  # then all were killed
    finish(store, run, NUMBERS)
    assert store.record(run)["minutes"] == pytest.approx(2 + 1.5)
    assert "began" not in store.record(run)


@pytest.mark.parametrize("lost", ["results", "provenance", "minutes"])
def test_a_kept_record_that_lacks_a_part_is_none(tmp_path, lost):
    store, run = Store(tmp_path / "runs", tmp_path / "kept"), run_of()
    finish(store, run, NUMBERS)
    store.end(run, 30.0)
    path = tmp_path / "kept" / f"{run.name}.json"
    kept = json.loads(path.read_text())
    assert Store(tmp_path / "elsewhere", tmp_path / "kept").record(run) == kept
    del kept[lost]
    path.write_text(json.dumps(kept))
    assert Store(tmp_path / "elsewhere", tmp_path / "kept").record(run) is None


def test_results_without_numbers_are_a_failure(store, monkeypatch):
    clip, _ = clip_and_detector()
    (store.folder.parent / "clipself_seg" / "__main__.py").write_text("")
    assert "no complete, finite numbers" in run_all([clip], store)[clip.name]
    finish(store, clip, {"val": {"x": 1.0}})
    assert json.loads((store.folder / clip.name / "run.json").read_text())["minutes"] >= 1.5


def test_data_of_a_run_is_prepared_once_before_it(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path / "worlds"))
    text = "import pathlib, sys; open('prepared', 'a').write(sys.argv[1]); sys.exit({})"
    (tmp_path / "prepare.py").write_text(text.format("0"))
    prepare = ("prepare.py", "{mini}/labels;")
    runs = [make_run("configs/mini/patches.yaml", {}, seed=s, prepare=prepare) for s in (0, 1)]
    assert runs[0].name != make_run("configs/mini/patches.yaml", {}, seed=0).name
    assert run_all(runs, store) == {}
    assert (tmp_path / "prepared").read_text() == f"{tmp_path}/worlds/labels;"
    (tmp_path / "prepare.py").write_text(text.format("'error: no labels'"))
    (other,) = [make_run("configs/mini/patches.yaml", {}, seed=2, prepare=prepare)]
    failed = run_all([other], store)
    reason = "its data could not be prepared: error: no labels (all of it"
    assert failed[other.name].startswith(reason)


def test_runs_read_the_data_and_the_configuration_of_the_caller_and_see_no_gpu(
    store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", "data")
    monkeypatch.setenv("CLIPSELF_SEG_MINI", "worlds")
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", "w")
    own = tmp_path / "mine.yaml"
    own.write_text(f"_BASE_: {runs.ROOT}/configs/mini/patches.yaml\n")
    run = make_run("mine.yaml", {}, seed=0)
    assert run_all(plan([run], store), store) == {}
    seen = json.loads((store.folder / "environment.json").read_text())
    variables = ("DETECTRON2_DATASETS", "CLIPSELF_SEG_MINI", "CLIPSELF_SEG_WEIGHTS")
    assert [seen[one] for one in variables] == [str(tmp_path / n) for n in ("data", "worlds", "w")]
    assert seen["CUDA_VISIBLE_DEVICES"] == "" and str(own) in run.command(store.folder)
