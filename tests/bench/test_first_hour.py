"""A GPU's first hour: its steps, what stays of them whatever happens, and the tests' way to another device."""

import json
import runpy
import shlex
import sys
import warnings

import pytest
import torch

from bench import command, first_hour, measure
from clipself_seg import training
from clipself_seg.clip import load_clip
from clipself_seg.clip.runtime import without_values
from clipself_seg.config import load_config
from clipself_seg.config.load import evaluation_precision, precision_from_config
from lab.mini.writer import WorldSize
from tests.conftest import ROOT
from tests.training.test_trainer import trainer

PYTHON = shlex.quote(sys.executable)


def step(label, code, file, **more):
    words = f"{PYTHON} -c {shlex.quote(code)} {file}"
    return {"label": label, "command": words, "file": file, "like": "", **more}


@pytest.fixture
def hour(tmp_path, monkeypatch):
    """The command on three steps: one that writes figures, one that fails, one that is compared with the first."""
    writes = "import json, sys; json.dump({'loss': %s, 'runs': {'step': {'seconds': 2, 'waits': {'a.py:3': 4}}}}, "
    writes += "open(sys.argv[1], 'w'))"
    planned = [
        step("good", writes % 2.0, tmp_path / "work/good/figures.json"),
        step("bad", "raise SystemExit('CUDA out of memory')", tmp_path / "work/bad/figures.json"),
        step("near", writes % 2.01, tmp_path / "work/near/f.json", like="good", tolerance=0.1),
    ]
    monkeypatch.setattr(first_hour, "steps", lambda *how: planned)
    path = tmp_path / "hour.json"
    words = ["first-hour", "--device", "cpu", "--json", str(path)]
    return path, lambda *more: command.main([*words, *more])


def test_a_step_that_fails_is_written_down_and_the_others_go_on(hour, capsys):
    path, run = hour
    assert run() == 0
    steps, page = json.loads(path.read_text())["steps"], path.with_suffix(".md").read_text()
    assert steps["bad"]["error"] == "status 1: CUDA out of memory" and "error" not in steps["near"]
    assert steps["near"]["loss_off"] == pytest.approx(0.005)
    said = capsys.readouterr()
    assert said.out == page and "step 2 of 3: bad" in said.err
    for part in ("CUDA out of memory", "good: step", "a.py:3", "0.005", "3 of 3 steps", "# bad\n"):
        assert part in page


def test_a_second_call_takes_what_failed_and_no_other_machine_goes_on(hour, capsys):
    path, run = hour
    assert run("--only", "good") == 0 and run() == 0
    said = capsys.readouterr().err
    assert said.count("step 1 of 3") == said.count("step 2 of 3") == 1
    assert run() == 0 and capsys.readouterr().err.count("step") == 1
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"device": "cuda"}))
    assert run() == 2 and "move it away" in capsys.readouterr().err


def test_an_interrupted_hour_keeps_what_was_measured(hour, monkeypatch, capsys):
    path, run = hour
    take = first_hour.take

    def interrupted(step, like):
        if step["label"] == "bad":
            raise KeyboardInterrupt
        return take(step, like)

    monkeypatch.setattr(first_hour, "take", interrupted)
    assert run() == 130 and "the same command goes on" in capsys.readouterr().err
    assert list(json.loads(path.read_text())["steps"]) == ["good"]
    assert path.with_suffix(".md").exists()


def test_a_step_that_does_not_end_is_ended_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(first_hour, "LIMIT", 1)
    child = f"import subprocess, time; subprocess.Popen(['sleep', '{60 * 60}']); time.sleep(60)"
    figures = first_hour.take(step("slow", child, tmp_path / "work/slow/figures.json"), {})
    assert figures["error"].startswith("not done after 0.01") and figures["took"] < 30


@pytest.mark.parametrize(
    "log",
    [
        "Traceback (most recent call last):\n  File\ntorch.OutOfMemoryError: {}\n[rank0]:[W1129] late\n",
        "-- Process 1 terminated with the following error:\n[rank1]: RuntimeError: {}\n\n",
        "InductorError: {}\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace\n",
        "ValueError: earlier\nerror: {}\nException ignored in: <function f>\n",
        "no error has a name\n{}\n\n",
    ],
)
def test_the_reason_of_a_failed_step_is_its_last_error(log):
    assert first_hour.reason(log.format("why it is")).endswith("why it is")


def test_one_error_of_many_tests_and_a_loss_that_is_off_are_a_line_each():
    tests = {"passed": 1, "failed": {f"test_{n}": "a | b" for n in range(3)}}
    off = {"loss": 2.0, "loss_off": 0.5, "loss_may_be_off": 0.1}
    taken = {"tests": tests, "training": off}
    hour = {"device": "cuda", "small": False, "machine": "a GPU", "planned": 5}
    hour["provenance"] = {"device": "H", "date": "today"}
    hour["steps"] = {label: of | {"commit": "c", "command": "x"} for label, of in taken.items()}
    page = first_hour.page(hour)
    assert "2 of 5 steps were taken; 3 are left" in page
    assert page.count("a \\| b") == page.count("test_0 and 2 more") == 1
    assert "| training: loss" in page and "0.5 off, 0.1 allowed" in page


def test_without_a_gpu_the_cpu_is_not_taken_for_one(hour, monkeypatch, capsys):
    path, _ = hour
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["first-hour", "--json", str(path)]) == 2
    assert "--device cpu takes the steps without" in capsys.readouterr().err and not path.exists()


@pytest.mark.parametrize(("device", "small"), [("cuda", False), ("cpu", True)])
def test_steps_are_commands_that_are_understood(device, small, tmp_path, worlds_root, monkeypatch):
    drawn: list[object] = []
    planned = list(first_hour.steps(tmp_path, device, small, 1))
    assert len({step["label"] for step in planned}) == len(planned)
    assert len({step["file"] for step in planned}) == len(planned)
    labels = [step["label"] for step in planned]
    verified = [step["command"].split()[2:] for step in planned if " verify " in step["command"]]
    assert verified == ([] if small else [["clipself_seg", "weights", "verify", "openai-vitb16"]])
    for step in planned:
        assert step["like"] in ["", *labels] or (small and step["like"].endswith("on the CPU"))
        words = shlex.split(step["command"])
        if "tools/benchmark.py" in words:
            command.parser().parse_args(words[words.index("tools/benchmark.py") + 1 :])
        elif step["label"] == "mini worlds":
            monkeypatch.setattr(sys, "argv", words[1:])
            monkeypatch.setattr("lab.mini.writer.make_worlds", lambda *how: drawn.append(how))
            assert runpy.run_path(str(ROOT / words[1]))["mini_world"](words[3:]) in (None, 0)
            assert drawn == [(tmp_path / "worlds", WorldSize(16, 3, 0, 16))]
        elif "train" in words and not step["label"].endswith(("TF32", "CPU")):
            own = words[words.index("--config-file") + 1 :]
            cfg = load_config(own[0], own[3:], trains=True)
            assert cfg.MODEL.CLIP.WEIGHTS in ("", "random") and device in own
            assert evaluation_precision(cfg) == precision_from_config(cfg)
            low = step["label"].endswith(("bfloat16", "compiled"))
            assert evaluation_precision(cfg) == (torch.bfloat16 if low else None)
            with without_values():
                visual = load_clip(cfg.MODEL.CLIP.NAME, None).visual
            assert cfg.MODEL.CLIP.COMPILE in visual.readouts.compiled


def test_waits_are_counted_by_their_places(monkeypatch):
    modes = []
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with measure.watched(torch.device("cuda")) as seen:
        for text in ("called a synchronizing CUDA operation", "another warning"):
            for _ in range(2):
                warnings.warn(text, stacklevel=1)
    ((place, times),) = seen["waits"].items()
    assert place.startswith("bench/test_first_hour.py:") and times == 2
    assert seen["memory_bytes"] == 7
    assert modes == ["warn", "default"] and seen["seconds"] > 0


def test_steps_images_and_waiting_for_samples_are_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "HOOKS", [])
    from bench.watch import Watch

    def evaluate(model):  # before the first step, too
        model.eval()()
        model.train()
        return {}

    cfg = load_config("mini/patches", ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"])
    run = trainer(
        tmp_path, evaluate=evaluate, hooks=[Watch(cfg)], iterations=3, evaluation_period=2
    )
    step = run.model.forward
    run.model.forward = lambda *samples: step(*samples) if samples else None
    run.train()
    run.model.eval()()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["runs"].keys() == {"waiting for samples", "step", "image"}
    assert figures["runs"]["step"]["seconds"] > 0 and figures["runs"]["step"]["waits"] == {}
    first = json.loads((tmp_path / "metrics.json").read_text().splitlines()[0])
    assert figures["loss"] == pytest.approx(first["loss_clipself"])


@pytest.mark.heavy
def test_the_whole_hour_in_small_on_the_cpu(tmp_path, capsys):
    path = tmp_path / "hour.json"
    words = ["first-hour", "--device", "cpu", "--small", "--threads", "1", "--json", str(path)]
    assert command.main(words) == 0
    hour = json.loads(path.read_text())
    assert not {label: of["error"] for label, of in hour["steps"].items() if "error" in of}
    assert hour["steps"]["tests/heads/test_fusion.py"]["failed"] == {}
    trained = [of["runs"] for of in hour["steps"].values() if "loss" in of]
    assert len(trained) == 11 and all({"step", "image"} <= runs.keys() for runs in trained)
    assert hour["steps"]["distillation, two processes"]["loss_off"] < 1e-3
    capsys.readouterr()
    assert command.main(words) == 0 and "step" not in capsys.readouterr().err
