"""Settings of a training follow from the number of its images, the machine and the recipe."""

import re

import pytest
from detectron2.data import DatasetCatalog

from clipself_seg.choice import find_model
from clipself_seg.commands import train as command
from clipself_seg.config import load_config
from clipself_seg.config.load import Sources
from clipself_seg.data.datasets.own import check_data, register_data
from clipself_seg.errors import InputError
from clipself_seg.training.own_data import Machine, settings_for, with_data
from clipself_seg.yaml_files import leaves, option_pairs, read_tree
from tests.data.datasets.test_own import YAML, folder  # noqa: F401  a fixture

GPU = Machine("cuda", 24, 16)
CPU = Machine("cpu", 16, 2)
SEMANTIC, DETECTION = "semseg/catseg_token+openai_vitb16", "detection/ov_coco+eva02_vitb16"
pytestmark = pytest.mark.usefixtures("catalogue")


def values(config, images, machine, opts=()):
    cfg = load_config(config, opts)
    by_hand = set(opts[::2]).__contains__
    return {s.key.partition(".")[2]: s.value for s in settings_for(cfg, images, machine, by_hand)}


def test_few_images_are_seen_often_and_many_as_often_as_the_recipe_says():
    assert [values(SEMANTIC, n, GPU)["MAX_ITER"] for n in (60, 1000, 10**6)] == [500, 5000, 80000]
    few = values(SEMANTIC, 60, GPU)
    assert (few["CHECKPOINT_PERIOD"], few["WARMUP_ITERS"], few["NUM_WORKERS"]) == (100, 0, 8)
    assert values(DETECTION, 2000, GPU)["WARMUP_ITERS"] <= 500


def test_the_batch_fits_memory_images_and_processes_and_the_rate_follows():
    whole, small = values(DETECTION, 10**5, GPU._replace(memory=800)), values(DETECTION, 10**5, GPU)
    assert (whole["IMS_PER_BATCH"], whole["BASE_LR"]) == (64, 1e-4)
    assert small["IMS_PER_BATCH"] < 64
    assert small["BASE_LR"] == pytest.approx(1e-4 * small["IMS_PER_BATCH"] / 64)
    assert [values(DETECTION, n, GPU)["IMS_PER_BATCH"] for n in (1, 3, 60)] == [1, 2, 15]
    two = values(SEMANTIC, 3, GPU._replace(processes=2))
    assert two["IMS_PER_BATCH"] == 2
    divided = values(SEMANTIC, 9, CPU, ("SOLVER.ACCUMULATE", "4"))
    assert divided["IMS_PER_BATCH"] == 4  # and not the two of which nine images are four batches
    assert values("distill/coco_patches+eva02_vitl14_336", 10**4, GPU)["CLIP.CHECKPOINTING"] is True


def test_cores_are_those_of_all_machines_and_memory_that_of_a_process(monkeypatch):
    monkeypatch.setattr("clipself_seg.training.own_data.comm.get_world_size", lambda: 16)
    monkeypatch.setattr("clipself_seg.training.own_data.os.cpu_count", lambda: 64)
    pages = {"SC_PHYS_PAGES": 2**24, "SC_PAGE_SIZE": 2**12}  # 64 GiB
    monkeypatch.setattr("clipself_seg.training.own_data.os.sysconf", pages.__getitem__)
    for of_machine, memory, cores in ((8, 8, 128), (1, 64, 1024)):
        monkeypatch.setattr(
            "clipself_seg.training.own_data.comm.get_local_size", lambda n=of_machine: n
        )
        assert Machine.here("cpu") == Machine("cpu", memory, cores, 16)


def test_a_mini_recipe_keeps_its_numbers_and_what_is_typed_stays():
    mini = values("mini/semseg", 60, CPU)
    assert (mini["IMS_PER_BATCH"], mini["MAX_ITER"], mini["BASE_LR"]) == (4, 200, 1e-3)
    assert mini["NUM_WORKERS"] == 0
    typed = values(SEMANTIC, 60, GPU, ("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "7"))
    assert (typed["IMS_PER_BATCH"], typed["MAX_ITER"], typed["BASE_LR"]) == (2, 7, 2e-4)


def test_drops_are_the_recipes_parts_of_a_typed_number_of_steps_and_typed_drops_stay(tmp_path):
    recipe, typed = "panoptic/fcclip+convnext_large", ["SOLVER.MAX_ITER", "2000"]
    own = tmp_path / "own.yaml"
    own.write_text(f"_BASE_: {recipe}\nSOLVER: {{MAX_ITER: 2000}}")
    for config, opts, expected in (
        (recipe, typed, (1778, 1926)),
        (own, [], (1778, 1926)),
        (recipe, [*typed, "SOLVER.STEPS", "(7, 9)"], (7, 9)),
    ):
        cfg, sources = load_config(config, opts), Sources(config, option_pairs(opts))
        total = sources.recipe("SOLVER.MAX_ITER")
        settings = settings_for(cfg, 1000, GPU, sources.by_hand, total=total)
        assert [s.value for s in settings if s.key == "SOLVER.STEPS"] == [expected], config


def test_the_command_gives_drops_of_the_recipe_to_a_typed_number_of_steps(
    folder, tmp_path, monkeypatch  # noqa: F811
):
    steps = []
    monkeypatch.setattr(
        "clipself_seg.training.run.train", lambda cfg, *_: steps.append(cfg.SOLVER.STEPS)
    )
    opts = ("SOLVER.SCHEDULE", "steps", "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "run"))
    assert command.main(options(folder, *opts)) == 0
    assert steps == [(300,)]  # Detectron2's drop at 30000, and the recipe's 200 steps


def test_values_without_a_name_are_counted_and_broken_files_named_before_a_step(
    folder,  # noqa: F811
):
    data = register_data(folder / "screws.yaml", "semantic")
    said = check_data([data.train, *data.test])
    assert said[0] == "own_screws_train_sem_seg: 11 images, 3 classes"
    assert "without a name, which are ignored, in 11 maps: 200 (72 pixels)" in said[1]
    assert said[2] == "own_screws_train_sem_seg: 1 of 3 classes have no pixel in 11 maps: sky (9)"
    assert said[-2].startswith("own_screws_train_sem_seg: 11 images are few to train on: see first")
    assert said[-1].startswith("own_screws_val_sem_seg: 2 images measure little")
    (folder / "images/train/1.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="screws.yaml: image .*1.jpg is not an image of"):
        check_data([data.train])


def test_a_single_class_of_a_segmentation_is_warned_of_and_of_a_detection_it_is_none(
    folder,  # noqa: F811
):
    (folder / "one.yaml").write_text("train: images/train\nval: images/val\nnames: {3: dog}\n")
    for part in ("train", "val"):
        (folder / f"labels/{part}").mkdir(parents=True)
        (folder / f"labels/{part}/0.txt").write_text("3 0.5 0.5 0.5 0.5\n")
    only = 'one_train_sem_seg: "dog" is the only class, so every pixel gets it: name the rest, too'
    said = check_data([register_data(folder / "one.yaml", "semantic").train])
    assert any(only in line for line in said)
    said = check_data([register_data(folder / "one.yaml", "detection").train])
    assert said and "only class" not in " ".join(said)


@pytest.fixture
def trained(folder, tmp_path):  # noqa: F811
    """Folder of a run of two steps on data of one's own."""
    opts = ("SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "run"))
    assert command.main(options(folder, *opts)) == 0
    return tmp_path / "run"


def options(folder, *opts):  # noqa: F811
    return ["--task", "semantic", "--model", "mini", "--data", str(folder / "screws.yaml"), *opts]


def test_a_run_records_its_data_and_goes_on_and_is_evaluated_from_its_folder(
    folder, trained, tmp_path, monkeypatch  # noqa: F811
):
    recorded = dict(leaves(read_tree(trained / "config.yaml")))
    assert recorded["DATASETS.DATA"] == str(folder / "screws.yaml")
    assert recorded["DATASETS.TRAIN"] == ["own_screws_train_sem_seg"]
    results = (trained / "results.json").read_text()
    assert "own_screws_val_sem_seg" in results
    said = (trained / "log.txt").read_text()
    assert said.count("All data sets in percent") == 1 and "0 before" in said
    assert max(map(len, said.splitlines())) < 350
    for name in ("own_screws_train_sem_seg", "own_screws_val_sem_seg"):
        DatasetCatalog.remove(name)
    choice = find_model(str(trained / "model_final.pth"))
    words = ["--eval-only", "--config-file", choice.config_file, "MODEL.WEIGHTS", choice.weights]
    assert command.main([*words, "OUTPUT_DIR", str(tmp_path / "evaluated")]) == 0
    assert (tmp_path / "evaluated/results.json").exists()
    # Another machine would choose others: the recorded ones count.
    monkeypatch.setattr(Machine, "here", lambda device: Machine("cuda", 24, 16))
    opts = ("SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(trained))
    assert command.main([*options(folder, "--resume"), *opts]) == 0
    said = (trained / "log.txt").read_text()
    assert re.search("DATALOADER.NUM_WORKERS +0 +recorded by the run that goes on", said)


def test_what_an_evaluation_wrote_is_no_run_that_goes_on(folder, tmp_path):  # noqa: F811
    (tmp_path / "config.yaml").write_text("SOLVER: {MAX_ITER: 77}")
    opts = ["DATASETS.DATA", str(folder / "screws.yaml"), "OUTPUT_DIR", str(tmp_path)]
    cfg = load_config("mini/semseg", opts)
    by_hand = opts[::2].__contains__
    assert with_data(cfg, by_hand, trains=True, resume=True)[0].SOLVER.MAX_ITER == 400
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/iteration_0000002.safetensors").touch()
    assert with_data(cfg, by_hand, trains=True, resume=True)[0].SOLVER.MAX_ITER == 77


def test_the_limit_of_pixels_is_that_of_the_run(folder):  # noqa: F811
    cfg = load_config("mini/semseg", ["DATASETS.DATA", str(folder / "screws.yaml")])
    cfg.defrost()
    cfg.INPUT.MAX_PIXELS = 20  # of 6 x 4
    with pytest.raises(InputError, match="6 x 4, which is more than the 20 pixels of INPUT.MAX_P"):
        with_data(cfg, lambda key: True, trains=True)


def test_data_without_a_task_are_refused_with_the_command_of_each(folder, capsys):  # noqa: F811
    file = str(folder / "screws.yaml")
    for words in (["--data", file], ["--num-gpus", "1", "DATASETS.DATA", file]):
        assert command.main(words) == 2
        said = capsys.readouterr().err.splitlines()
        tasks = ("semantic", "panoptic", "detection")
        assert said[-3:] == [f"  clipself-seg train --task {t} --data {file}" for t in tasks]


def test_an_evaluation_counts_as_seen_what_its_weights_were_trained_on(folder):  # noqa: F811
    cfg = load_config("mini/semseg", ["DATASETS.DATA", str(folder / "screws.yaml")])

    def data_of(**how):
        return with_data(cfg, lambda key: False, **how)[0].DATASETS

    own = ("own_screws_train_sem_seg",)
    assert data_of().TRAIN == ("mini_train_base_sem_seg",)
    assert data_of().TEST[0] == "own_screws_val_sem_seg"
    assert data_of(trains=True).TRAIN == data_of(resume=True).TRAIN == own


def test_a_file_without_train_is_evaluated_and_not_trained_on(folder):  # noqa: F811
    (folder / "val.yaml").write_text(YAML.replace("train: images/train", ""))
    cfg = load_config("mini/zero_shot", ["DATASETS.DATA", str(folder / "val.yaml")], trains=False)
    cfg, _ = with_data(cfg, lambda key: key == "DATASETS.DATA")
    assert cfg.DATASETS.TEST == ("own_val_val_sem_seg",)
    cfg = load_config("mini/semseg", ["DATASETS.DATA", str(folder / "val.yaml")])
    with pytest.raises(InputError, match='val.yaml has no "train"'):
        with_data(cfg, lambda key: key == "DATASETS.DATA", trains=True)
