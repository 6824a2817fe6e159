"""train: what it accepts, how it is started and interrupted, and training from shards."""

import json
import os
import re
import shutil
import signal
import time
from multiprocessing import set_forkserver_preload

import pytest
import torch
from detectron2 import engine
from detectron2.utils import comm
from safetensors.torch import load_file
from torch.distributed import init_process_group
from torch.multiprocessing import ProcessExitedException, get_context, start_processes

from clipself_seg.checkpoints.zoo import SHIPPED, zoo
from clipself_seg.clip import load_clip
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.data.mappers.distill import DistillMapper
from clipself_seg.errors import InputError
from clipself_seg.evaluation.region_accuracy import RegionEvaluation
from clipself_seg.files import alone_in
from clipself_seg.models import CLIPSelf
from tests.conftest import ROOT
from tests.shards import encoded, samples, write_shard, write_shards
from tests.tiny import write_tiny_coco
from tests.two_processes import in_two_processes

SMALL = {
    "MODEL.CLIP.NAME": "ViT-Mini-8",
    "MODEL.CLIP.WEIGHTS": "",
    "INPUT.REGIONS.STUDENT_SIZE": "64",
    "DATASETS.TRAIN": "('coco_2017_train',)",
    "DATASETS.TEST": "()",
    "DATALOADER.NUM_WORKERS": "0",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.WARMUP_ITERS": "2",
    "SOLVER.BASE_LR": "1e-3",
    "SOLVER.LOG_PERIOD": "1",
    "TEST.REGIONS.TEMPLATES": "single",
}


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    root = tmp_path / "datasets"
    write_tiny_coco(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.setenv("CLIPSELF_SEG_CACHE", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    return root


def words(output, *flags, **changes):
    """A command line; keyword arguments are keys with two underscores for a dot."""
    changed = {key.replace("__", "."): str(value) for key, value in changes.items()}
    pairs = (SMALL | changed | {"OUTPUT_DIR": str(output)}).items()
    return [*flags, *(word for pair in pairs for word in pair)]


@pytest.mark.usefixtures("served")
def test_two_processes_train_and_evaluate_like_one(tmp_path, datasets):
    set_forkserver_preload(["clipself_seg.training.run", "detectron2.engine", "torch._dynamo"])
    tested = {"DATASETS__TEST": "('coco_2017_val_panoptic',)", "TEST__EVAL_PERIOD": 1}
    assert train.main(words(tmp_path / "two", "--num-gpus", "2", **tested)) == 0
    assert train.main(words(tmp_path / "one", **tested)) == 0
    one, two = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("one", "two"))
    assert one["results"] == two["results"] and two["provenance"]["processes"] == 2
    assert one["results"]["coco_2017_val_panoptic"]["64"]["images"] == 5
    left, right = (
        load_clip("ViT-Mini-8", tmp_path / run / "clip_final.safetensors") for run in ("one", "two")
    )
    for name, tensor in left.state_dict().items():
        # Adam turns rounding of tiny gradients into steps, so single entries may differ: the mean
        # does not, and was 2e-5 to 3e-4 without averaging over the processes.
        assert (tensor - right.state_dict()[name]).abs().mean() < 1e-5, name


def test_under_torchrun_no_further_processes_are_asked_for(tmp_path, monkeypatch, capsys):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    for name in ("LOCAL_RANK", "RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    assert train.main(words(tmp_path, "--num-gpus", "2")) == 2
    assert "torchrun starts the processes: leave out --num-gpus" in capsys.readouterr().err


def test_evaluation_of_sizes_and_of_a_checkpoint(tmp_path, datasets, capsys):
    tested = {"DATASETS__TEST": "('coco_2017_val_panoptic',)"}
    assert train.main(words(tmp_path, **tested)) == 0
    trained = json.loads((tmp_path / "results.json").read_text())
    config = (tmp_path / "config.yaml").read_text()
    sizes = {"TEST__REGIONS__SIZES": "(64, 128)"}
    assert train.main(words(tmp_path, "--eval-only", "--resume", **tested, **sizes)) == 0
    found = json.loads((tmp_path / "results_eval.json").read_text())
    sizes = found["results"]["coco_2017_val_panoptic"]
    assert sizes["64"] == trained["results"]["coco_2017_val_panoptic"]["64"] and "128" in sizes
    assert found["provenance"]["weights_hash"] == trained["provenance"]["weights_hash"]
    assert (tmp_path / "size_curve_coco_2017_val_panoptic.png").exists()
    assert train.main(words(tmp_path, "--eval-only", **tested)) == 0
    original = json.loads((tmp_path / "results_eval.json").read_text())
    assert original["provenance"]["weights_hash"] != trained["provenance"]["weights_hash"]
    # What the training wrote about itself is still there.
    assert json.loads((tmp_path / "results.json").read_text()) == trained
    assert (tmp_path / "config.yaml").read_text() == config
    last = max((tmp_path / "checkpoints").glob("*.safetensors"))
    older = words(tmp_path / "own", "--eval-only", **tested, MODEL__WEIGHTS=last)
    assert train.main(older) == 0
    loaded = json.loads((tmp_path / "own" / "results.json").read_text())
    assert loaded["results"] == trained["results"]
    assert train.main([*older, "MODEL.CLIP.WEIGHTS", "mini"]) == 2
    assert f"{last} is a training checkpoint of a run with other" in capsys.readouterr().err
    assert train.main(words(tmp_path / "own", "--eval-only", **tested)) == 0
    assert {"config.yaml", "results.json"} <= set(os.listdir(tmp_path / "own"))


def test_training_leaves_out_missing_test_sets_and_evaluation_does_not(
    tmp_path, datasets, capfd, monkeypatch
):
    monkeypatch.setattr(RegionEvaluation, "metadata", lambda self: {"rule": "own"}, raising=False)
    shutil.rmtree(datasets / "coco" / "panoptic_val2017")
    tested = {
        "DATASETS__TEST": "('coco_2017_val_panoptic', 'coco_2017_train_panoptic')",
        "SOLVER__MAX_ITER": 1,
    }
    assert train.main(words(tmp_path / "out", **tested)) == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(content["results"]) == ["coco_2017_train_panoptic"]
    assert content["provenance"]["rule"] == "own"
    said = " ".join(capfd.readouterr())
    assert "evaluated without" in said and "panoptic_val2017 is missing" in said
    assert train.main(words(tmp_path / "eval", "--eval-only", **tested)) == 2


def test_data_sets_are_looked_for_before_weights_are_fetched(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    output = ["OUTPUT_DIR", str(tmp_path / "out")]
    assert train.main(["--eval-only", "--model", "catseg-base", *output]) == 2
    said = capfd.readouterr().err
    assert 'data set "ade20k_full_sem_seg_freq_val_all": ' in said and "fetching" not in said
    assert "or leave it out, DATASETS.TEST \"('context_459_test_sem_seg', 'ade20k_150_" in said
    assert train.main(["--task", "semantic", *output]) == 2
    said = capfd.readouterr().err
    assert 'data set "coco_2017_train_stuff_all_sem_seg": ' in said and "fetch" not in said


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_what_is_fetched_is_said_before_as_predict_says_it(
    tmp_path, monkeypatch, datasets, capfd, flags
):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named = {"MODEL__CLIP__NAME": "ViT-B-16", "MODEL__CLIP__WEIGHTS": "openai-vitb16"}
    tested = {"DATASETS__TEST": "('coco_2017_val_panoptic',)"}
    assert train.main(words(tmp_path / "out", *flags, **named, **tested)) == 2
    said = capfd.readouterr().err
    what = f"openai-vitb16 (size about 598 MB; {zoo()['openai-vitb16'].terms})"
    assert f"to be fetched, 598 MB: {what}\nfetching openai-vitb16" in said
    assert "save it as" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "head", "shipped"),
    [
        ("panoptic", "mask generator", "mini-open-panoptic"),
        ("semseg", "cost aggregation", "mini-cat-seg"),
        ("detection", "detector", "mini-fvit"),
    ],
)
def test_a_random_head_is_not_evaluated(tmp_path, capsys, config, head, shipped):
    words = ["--config-file", str(ROOT / f"configs/mini/{config}.yaml")]
    assert train.main(["--eval-only", *words, "OUTPUT_DIR", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"MODEL.WEIGHTS is empty, so the {head} is random" in error and f"{shipped}, wh" in error


@pytest.mark.parametrize(("flags", "key"), [([], "TRAIN"), (["--eval-only"], "TEST")])
def test_without_a_configuration_one_is_asked_for(tmp_path, capsys, flags, key):
    for words in ([], ["OUTPUT_DIR", str(tmp_path / "out")]):
        assert train.main([*flags, *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: give --task, --model, --config-file")
        assert said.endswith(f" or DATASETS.{key}\n") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


IMAGE = "coco/train2017/000000000003.jpg"
CLIP_FILE = SHIPPED / "vit_mini_8.safetensors"
FIRST_CHECKPOINT = "iteration_0000002.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL__META_ARCHITECTURE": "RegionReader"}, "evaluate it (eval)"),
        ({"MODEL__CLIP__WEIGHTS": "none.pt"}, "none.pt"),
        ({"MODEL__CLIP__TRAINABLE_BLOCKS": 0}, "must be -1 for all blocks"),
        ({"DATASETS__TRAIN": "()"}, "DATASETS.TRAIN"),
        ({"DATASETS__TEST": "('coco_2017_val',)"}, 'data set "coco_2017_val"'),
        ({"SOLVER__IMS_PER_BATCH": 16}, "SOLVER.IMS_PER_BATCH"),
        ({"TEST__REGIONS__SIZES": "(100,)"}, "take 96 or 104"),
        (
            {"MODEL__CLIP__NAME": "RN-Mini", "TEST__REGIONS__READ": "('attention_boxes',)"},
            "class token",
        ),
        ({"MODEL__WEIGHTS": CLIP_FILE}, "is a CLIP, which CLIPSelf takes as MODEL.CLIP.WEIGHTS"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, datasets, capfd, changes, message):
    assert train.main(words(tmp_path / "out", **changes)) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in "".join(lines)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_whoever_reads_it(tmp_path, datasets, capfd, workers):
    cut(datasets / IMAGE)
    changes = {"SOLVER__MAX_ITER": 9, "DATALOADER__NUM_WORKERS": workers}
    assert train.main(words(tmp_path / "out", **changes)) == 2
    errors = capfd.readouterr().err.strip().splitlines()
    assert "000000000003.jpg" in errors[-1] and "Traceback" not in "".join(errors)


def test_a_second_run_a_foreign_resume_and_a_damaged_checkpoint_are_refused(
    tmp_path, datasets, capfd
):
    left = tmp_path / "out/.config.yaml.x.part", tmp_path / "out/checkpoints/.iteration_1.x.part"
    for path in left:
        path.mkdir(parents=True)
    assert train.main(words(tmp_path / "out")) == 0
    assert not any(path.exists() for path in left)
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert train.main(words(tmp_path / "out", TEST__EVAL_PERIOD=9)) == 2
    assert (tmp_path / "out" / "config.yaml").read_text() == config
    assert "--resume" in capfd.readouterr().err
    assert train.main(words(tmp_path / "out", "--resume", SOLVER__BASE_LR=1)) == 2
    assert "SOLVER.BASE_LR was 0.001, is 1.0" in capfd.readouterr().err
    cut(tmp_path / "out" / "checkpoints" / FIRST_CHECKPOINT)
    assert train.main(words(tmp_path / "out", "--resume")) == 2
    assert f"{FIRST_CHECKPOINT} is damaged" in capfd.readouterr().err
    assert train.main(words(tmp_path / "new", "--eval-only", "--resume")) == 2


ON_MINI = {"DATASETS__TRAIN": "('mini_train',)", "DATASETS__TEST": "('mini_val_panoptic',)"}


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--eval-only",)])
def test_a_folder_where_another_run_is_at_work_is_refused_and_stays_as_it_is(
    tmp_path, capfd, flags
):
    writing = tmp_path / "out" / "checkpoints" / ".iteration_0000002.safetensors.x.part"
    writing.mkdir(parents=True)
    with alone_in(tmp_path / "out"):
        given = words(tmp_path / "out", *flags, **ON_MINI)
        assert train.main(given) == 2
    assert capfd.readouterr().err == (
        f"error: OUTPUT_DIR {tmp_path / 'out'}: another process is at work there: "
        "wait for it, or give another folder\n"
    )
    assert os.listdir(tmp_path / "out") == ["checkpoints"] and writing.exists()


def _refused(rank, folder):
    comm.create_local_process_group(2)
    train.worker(train.parse(words(folder / "out", **ON_MINI)))


def test_processes_that_are_refused_together_say_it_once(tmp_path, capfd):
    with alone_in(tmp_path / "out"), pytest.raises(ProcessExitedException) as caught:
        in_two_processes(_refused, tmp_path)
    assert caught.value.exit_code == 2 and not os.listdir(tmp_path / "out")
    assert capfd.readouterr().err.count("is at work there") == 1


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_worker_that_is_killed_is_named_in_a_sentence(
    tmp_path, datasets, capfd, monkeypatch
):
    monkeypatch.setattr(DistillMapper, "__call__", _die)
    assert train.main(words(tmp_path / "out", DATALOADER__NUM_WORKERS=1)) == 2
    errors = capfd.readouterr().err.strip().splitlines()
    assert re.match(r"error: process \d+, which reads images .* ended by the system", errors[-1])
    assert "Traceback" not in "".join(errors)


def _second_dies(rank, *_):
    _die() if rank else time.sleep(60)


def test_a_process_of_several_that_is_killed_is_named_in_a_sentence(tmp_path, capfd, monkeypatch):
    def launch(*_, **__):
        start_processes(_second_dies, nprocs=2, start_method="fork")

    monkeypatch.setattr(engine, "launch", launch)
    monkeypatch.setattr(train, "check_processes", lambda args: None)
    assert train.main(words(tmp_path, "--num-gpus", "2")) == 2
    message = r"error: process 2 of 2 on this machine was ended by SIGKILL, .*--resume"
    assert re.search(message, capfd.readouterr().err)


def test_a_process_that_loses_another_one_elsewhere_says_so(tmp_path, monkeypatch):
    def meet(rank):
        init_process_group("gloo", f"file://{tmp_path}/meet", rank=rank, world_size=2)
        comm.create_local_process_group(2)
        with pytest.raises(InputError, match="another process of this run ended.*--resume"):
            train.run_together(None)
        (tmp_path / f"said by {rank}").touch()

    monkeypatch.setattr(train, "GRACE", 0)
    monkeypatch.setattr(train, "run", lambda _: _die() if comm.get_rank() else comm.all_gather(1))
    processes = [get_context("fork").Process(target=meet, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "said by 0").exists() and not (tmp_path / "said by 1").exists()


def _interrupted(*_):
    raise KeyboardInterrupt


def test_ctrl_c_ends_all_processes_and_is_said_once(tmp_path, capfd, monkeypatch):
    waiting = get_context("fork").Process(target=time.sleep, args=(60,))

    def launch(*_, **__):
        waiting.start()
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "launch", launch)
    monkeypatch.setattr(train, "check_processes", lambda args: None)
    assert train.main(words(tmp_path, "--num-gpus", "2")) == 130
    waiting.join()
    assert waiting.exitcode == -signal.SIGTERM
    monkeypatch.setattr(train, "run", _interrupted)
    with pytest.raises(SystemExit, match="130"):
        train.worker(None)
    said = "interrupted; what is complete stays: a training that has a checkpoint goes on with --resume"
    assert capfd.readouterr().err == f"{said}, all else begins anew\n"


MINI = ("--config-file", str(ROOT / "configs/mini/patches.yaml"))


@pytest.fixture
def shards(tmp_path):
    """A notation for four shards, the last of which has an image that is cut off."""
    write_shards(tmp_path)
    write_shard(tmp_path / "03.tar", [*samples(range(9, 12)), ("bad.jpg", encoded(1)[:200])])
    torch.set_num_threads(1)
    return f"wds:{tmp_path}/{{00..03}}.tar"


def run(folder, name, *flags, **changes):
    given = {"DATASETS__TRAIN": f"({name!r},)", "SOLVER__MAX_ITER": 6} | changes
    return train.main(words(folder, *MINI, *flags, **given))


def lines(folder):
    """What was logged of each step, but for the clock."""
    steps = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    clocks = ("time", "data_time", "eta_seconds")
    return [{k: v for k, v in step.items() if k not in clocks} for step in steps]


def test_a_run_on_shards_goes_on_exactly_and_counts_what_it_cannot_use(
    tmp_path, shards, monkeypatch, capfd
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    often = {"SOLVER__CHECKPOINT_PERIOD": 2}
    assert run(whole, shards, **often) == 0
    assert [line["unusable_images"] for line in lines(whole)][-1] == 1
    assert capfd.readouterr().out.count("left out: image ") == 1
    assert run(whole, shards, "--resume", **often, DATALOADER__NUM_WORKERS=1) == 2
    assert "DATALOADER.NUM_WORKERS was 0, is 1. Restore that" in capfd.readouterr().err
    step = CLIPSelf.after_optimizer_step
    steps = []

    def interrupted(self):
        step(self)
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CLIPSelf, "after_optimizer_step", interrupted)
        assert run(parts, shards, **often) == 130
    assert run(parts, shards, "--resume", **often) == 0
    assert "resumed after 2 steps" in capfd.readouterr().out
    assert lines(parts) == lines(whole)
    one, two = (load_file(folder / "clip_final.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_shards_are_refused_where_more_than_images_is_read(tmp_path, shards, capfd):
    folder = tmp_path / "out"
    for changes, message in (
        ({"INPUT__REGIONS__SOURCE": "proposals"}, "SOURCE grid (now proposals)"),
        ({"MODEL__CLIPSELF__TARGET": "captions"}, "TARGET crops (now captions)"),
        ({"DATASETS__TRAIN": f"({shards!r}, 'mini_train')"}, "nothing beside them"),
        (
            {"DATASETS__TRAIN": "('wds:none{0..1}.tar',)"},
            "2 of 2 shards are missing, such as none0",
        ),
        ({"DATASETS__TRAIN": "('wds:pipe:touch ran',)"}, "files on this machine, such as"),
    ):
        assert run(folder, shards, **changes) == 2
        assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "config", "opts"),
    [
        (["--task", "semantic"], "semseg/catseg+openai_vitb16", []),
        (
            ["--eval-only", "--model", "catseg-base", "SEED", "1"],
            "semseg/catseg+openai_vitb16",
            ["MODEL.WEIGHTS", "catseg-base", "SEED", "1"],
        ),
        (
            ["--eval-only", "--model", "mini-clipself"],
            "mini/zero_shot",
            ["MODEL.CLIP.WEIGHTS", "mini-clipself"],
        ),
        (["--task", "distillation"], "distill/coco_patches+eva02_vitb16", []),
        (
            ["--task", "distillation", "--model", "openai-vitb16"],
            "distill/coco_patches+openai_vitb16",
            ["MODEL.CLIP.NAME", "ViT-B-16", "MODEL.CLIP.WEIGHTS", "openai-vitb16"],
        ),
        (["--task", "distillation", "--model", "mini"], "mini/patches", []),
    ],
)
def test_task_and_model_give_configuration_and_weights(words, config, opts):
    args = train.parse(words)
    assert (args.config_file, args.opts) == (config, opts)
    load_config(args.config_file, args.opts)


def test_a_model_of_another_task_is_refused():
    with pytest.raises(InputError, match="mini-fvit does detection: leave out the task semantic"):
        train.parse(["--task", "semantic", "--model", "mini-fvit"])
    with pytest.raises(InputError, match="mini-fvit is no CLIP alone"):
        train.parse(["--task", "distillation", "--model", "mini-fvit"])
