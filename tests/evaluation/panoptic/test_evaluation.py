"""Several fusions from one pass, each with the numbers of its own evaluators, in any number of
processes."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from clipself_seg.clip import load_clip
from clipself_seg.config import add_clipself_seg_config
from clipself_seg.data.panoptic_png import read_panoptic_png
from clipself_seg.data.similarity import write_similarity
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.data.wordnet import UNKNOWN
from clipself_seg.errors import InputError
from clipself_seg.evaluation.instances.numbers import encode_masks
from clipself_seg.evaluation.panoptic.evaluation import PanopticEvaluation
from clipself_seg.evaluation.panoptic.evaluator import PanopticQualityEvaluator
from clipself_seg.evaluation.panoptic.fusions import sweep_fusions, sweep_results
from clipself_seg.heads.fusion import Fusion
from clipself_seg.heads.panoptic.clip_branches import DensePooling
from clipself_seg.heads.panoptic.mask_generator.outputs import GeneratorOutput, save_output
from clipself_seg.models import OpenPanoptic
from clipself_seg.models.protocol import Classes
from tests.panoptic_worlds import save_ids
from tests.two_processes import in_two_processes

# Category ids are in no order, and stuff stands between the things.
CLASSES = [
    ("cat", 40, True),
    ("sky", 10, False),
    ("dog", 30, True),
    ("sea", 20, False),
    ("cow", 5, True),
]
TRAINED = ["cat", "sky", "horse"]
SIZE = (24, 32)
COCO = "coco_2017_val_panoptic_with_sem_seg"


class Spoiler(nn.Module):
    """The ground truth, without a fraction alpha of the segments of seen classes and beta of others."""

    exponents = (0.2, 0.5)
    void_discount = 0.0

    def __init__(self):
        super().__init__()
        self.classes = Classes((("training's",),), (0,), None)
        self.asked = []

    def set_vocabulary(self, words, seen=None):
        self.words = words
        things = tuple(np.flatnonzero(words.thing).tolist())
        self.classes = Classes(words.names, things, seen)

    def evaluation_metadata(self, records):
        return {}

    def forward(self, batch, fusions):
        assert len(batch) == 1 and not self.training
        self.asked.append((batch[0]["image_id"], self.classes.names))
        truth = read_panoptic_png(batch[0]["pan_seg_file_name"])
        return [{"fusions": {name: self.spoil(batch[0], truth, f) for name, f in fusions.items()}}]

    def spoil(self, sample, truth, fusion):
        alpha, beta, tasks, _ = fusion
        names, _, seen = self.classes
        kept, labels = [], np.zeros(truth.shape, dtype=np.int64)
        for info in sample["segments_info"]:
            label = self.words.dataset_id_to_index[info["category_id"]]
            lost = info["id"] % 10 < 10 * (alpha if seen is None or seen[label] else beta)
            labels[truth == info["id"]] = (label + lost) % len(names)
            if not lost:
                kept.append({"id": info["id"], "category_id": label})
        ids = np.where(np.isin(truth, [info["id"] for info in kept]), truth, 0)
        outputs = {
            "panoptic": ("panoptic_seg", (torch.from_numpy(ids), kept)),
            "instances": ("instances", self.instances(truth, kept)),
            "semantic": ("sem_seg_labels", torch.from_numpy(labels)),
        }
        return dict(outputs[task] for task in tasks)

    def instances(self, truth, kept):
        kept = [info for info in kept if info["category_id"] in self.classes.things]
        masks = np.array([truth == info["id"] for info in kept]).reshape(-1, *truth.shape)
        instances = Instances(truth.shape)
        instances.pred_masks = torch.from_numpy(masks)
        instances.scores = torch.ones(len(kept))
        instances.pred_classes = torch.tensor([info["category_id"] for info in kept]).long()
        return instances


def write_image(folder, rng, name):
    """An image of eight blocks; returns its entries in both JSONs, and its instances."""
    blocks = np.arange(1, 9).reshape(2, 4) + 10 * rng.integers(1, 9)
    ids = np.kron(blocks, np.ones((12, 8), dtype=np.int64))
    labels = np.full(SIZE, 255, dtype=np.uint8)
    segments, instances = [], []
    for number, position in zip(blocks.ravel().tolist(), rng.permutation(8) % len(CLASSES)):
        _, category, thing = CLASSES[position]
        mask = ids == number
        labels[mask] = position
        info = {
            "id": number,
            "category_id": category,
            "area": 96,
            "bbox": [0, 0, 8, 12],
            "iscrowd": 0,
        }
        segments.append(info)
        if thing:
            encoded = encode_masks(mask[None])[0]
            encoded["counts"] = encoded["counts"].decode()
            instances.append(info | {"image_id": name, "segmentation": encoded})
    save_ids(folder / "segments" / f"{name}.png", ids)
    Image.new("RGB", SIZE[::-1]).save(folder / "images" / f"{name}.png")
    Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    entry = {"image_id": name, "file_name": f"{name}.png", "segments_info": segments}
    return {"id": name, "file_name": f"{name}.png", "height": 24, "width": 32}, entry, instances


def write_dataset(folder, seed, count):
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    made = [write_image(folder, rng, f"{folder.name}_{index}") for index in range(count)]
    images = [image for image, _, _ in made]
    files = {
        "panoptic": [entry for _, entry, _ in made],
        "instances": [entry for _, _, instances in made for entry in instances],
    }
    for kind, entries in files.items():
        content = {"images": images, "annotations": entries}
        (folder / f"{kind}.json").write_text(json.dumps(content))


def write_datasets(folder):
    classes = [{"names": [n], "dataset_id": i, "isthing": thing} for n, i, thing in CLASSES]
    (folder / "words.json").write_text(json.dumps({"name": "words", "classes": classes}))
    (folder / "trained.json").write_text(json.dumps(TRAINED))
    write_dataset(folder / "one", 0, 5)
    write_dataset(folder / "two", 1, 3)


def register(folder, name, **changes):
    """As a user does it."""
    DatasetCatalog.register(name, lambda: [])
    paths = {
        "image_root": folder / name / "images",
        "panoptic_root": folder / name / "segments",
        "panoptic_json": folder / name / "panoptic.json",
        "sem_seg_root": folder / name / "labels",
        "json_file": folder / name / "instances.json",
        "vocabulary": folder / "words.json",
    }
    MetadataCatalog.get(name).set(**{key: str(path) for key, path in (paths | changes).items()})


@pytest.fixture
def datasets(tmp_path):
    write_datasets(tmp_path)
    for name in ("one", "two"):
        register(tmp_path, name)
    yield tmp_path
    for name in ("one", "two"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def evaluation(folder, *options):
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    cfg.merge_from_list(
        ["DATASETS.TEST", ("one", "two"), "DATASETS.TRAIN", (), "INPUT.MIN_SIZE_TEST", 0]
        + ["INPUT.FORMAT", "RGB", "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(folder / "run")]
        + ["TEST.TRAIN_VOCABULARY", str(folder / "trained.json")]
    )
    cfg.merge_from_list(list(options))
    return PanopticEvaluation(cfg)


def test_every_fusion_of_every_data_set_comes_from_one_pass(datasets):
    model = Spoiler()
    results = evaluation(datasets)(model)
    names = tuple(name for name, _, _ in CLASSES)
    assert [(image, words) for image, words in model.asked] == [
        (f"{name}_{index}", names) for name, count in (("one", 5), ("two", 3)) for index in range(count)
    ]  # fmt: skip
    assert list(results) == ["one", "two"] and list(results["one"]) == [
        "clip",
        "generator",
        "fused",
    ]
    exponents = {name: (one["alpha"], one["beta"]) for name, one in results["one"].items()}
    assert exponents == {"clip": (1, 1), "generator": (0, 0), "fused": (0.2, 0.5)}
    for fusions, images in ((results["one"], 5), (results["two"], 3)):
        truth = fusions["generator"]
        wholes = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ_seen", "PQ_unseen", "mIoU", "mIoU-unseen")
        assert {truth[key] for key in wholes} == {100}
        assert truth["AP"] == pytest.approx(100) and truth["images"] == images
        assert {fusions["clip"][key] for key in ("PQ", "AP", "mIoU")} == {0}
        for key in ("PQ", "PQ_seen", "PQ_unseen", "AP", "AP-seen", "mIoU"):
            assert 0 < fusions["fused"][key] < 100, key
        assert (truth["classes"], truth["classes_seen"], truth["classes_unseen"]) == (5, 2, 3)
    json.dumps(results, allow_nan=False)


def test_numbers_of_a_fusion_are_those_of_its_evaluator_alone(datasets):
    results = evaluation(datasets)(Spoiler())["one"]["fused"]
    model, words = Spoiler().eval(), load_vocabulary(datasets / "words.json")
    seen = np.array([True, True, False, False, False])
    model.set_vocabulary(words, seen)
    fusions = {"fused": Fusion(0.2, 0.5, ("panoptic",))}
    alone = PanopticQualityEvaluator(dataset_name="one", vocabulary=words, seen=seen)
    for entry in json.loads((datasets / "one/panoptic.json").read_text())["annotations"]:
        png = str(datasets / "one/segments" / entry["file_name"])
        sample = entry | {"file_name": "x", "pan_seg_file_name": png}
        (output,) = model([sample | {"image": torch.zeros(3, 4, 4)}], fusions)
        alone.process([sample], [output["fusions"]["fused"]])
    expected = {key: value for key, value in alone.results().items() if "-" not in key}
    assert {key: results[key] for key in expected} == expected
    assert not any(key.startswith(("PQ-", "IoU-", "classes-")) for key in results)


def test_the_model_is_given_back_as_it_was(datasets):
    model = Spoiler().train()
    before = model.classes
    evaluation(datasets)(model)
    assert model.training
    assert model.classes is before
    broken = Spoiler()
    broken.forward = None
    with pytest.raises(TypeError):
        evaluation(datasets)(broken)
    assert broken.classes.names == (("training's",),)


def test_a_sweep_is_a_grid_over_seen_and_unseen_classes(datasets, caplog):
    options = ("DATASETS.TEST", ("one",), "TEST.PANOPTIC.SWEEP", (0, 0.5, 1.0))
    model = Spoiler()
    with caplog.at_level(logging.INFO, logger="clipself_seg"):
        results = evaluation(datasets, *options)(model)["one"]
    sweep = results["sweep"]
    assert len(model.asked) == 5 and sweep["alpha"] == sweep["beta"] == [0.0, 0.5, 1.0]
    # A lost segment is missed and nothing else: alpha decides about seen classes alone.
    seen, unseen = np.array(sweep["PQ_seen"]), np.array(sweep["PQ_unseen"])
    assert (seen == seen[:, :1]).all() and (unseen == unseen[:1]).all()
    assert seen[0, 0] == unseen[0, 0] == 100 and seen[2, 0] == unseen[0, 2] == 0
    np.testing.assert_allclose(sweep["PQ"], (2 * seen + 3 * unseen) / 5, rtol=0, atol=1e-10)
    assert sweep["PQ"][0][0] == results["generator"]["PQ"]
    json.dumps(results, allow_nan=False)
    assert (datasets / "run/sweep_one.png").stat().st_size > 1000
    assert "alpha \\ beta" in caplog.text and "100.0*" in caplog.text
    assert caplog.text.count('Panoptic quality of "one"') == 3  # those with a name


def test_each_weight_of_void_is_a_row_of_the_same_exponents(datasets, caplog):
    asked = []

    class Listener(Spoiler):
        void_discount = 0.5

        def spoil(self, sample, truth, fusion):
            asked.append(fusion)
            return super().spoil(sample, truth, fusion)

    options = ("TEST.PANOPTIC.VOID_SWEEP", (0, 0.25, 1.0), "TEST.PANOPTIC.SWEEP", (0.5,))
    with caplog.at_level(logging.INFO, logger="clipself_seg"):
        results = evaluation(datasets, *options)(Listener())["one"]
    weights = {
        "clip": 0.5,
        "generator": 0,
        "fused": 0.5,
        "void_0": 0,
        "void_0.25": 0.25,
        "void_1": 1,
    }
    named = {name: one for name, one in results.items() if name != "sweep"}
    assert {name: one["void_discount"] for name, one in named.items()} == weights
    for name in ("void_0", "void_0.25", "void_1"):
        assert (named[name]["alpha"], named[name]["beta"]) == (0.2, 0.5)
        assert named[name]["AP"] == named["fused"]["AP"] and "mIoU-unseen" in named[name]
    assert {one.void_discount for one in asked if one.tasks == ("panoptic",)} == {
        0.5
    }  # the sweep's
    assert "void less" in caplog.text
    assert "void_discount" not in evaluation(datasets)(Spoiler())["one"]["fused"]


def test_masks_without_class_scores_are_evaluated_with_clips_alone(datasets):
    source = ("MODEL.MASK_GENERATOR.SOURCE", "masks", "MODEL.MASK_GENERATOR.OUTPUTS")
    source += (str(datasets / "one/segments"), "DATASETS.TEST", ("one",))
    for options in ((), ("TEST.PANOPTIC.ROWS", ("clip",), "TEST.PANOPTIC.SWEEP", (0.5,))):
        with pytest.raises(InputError, match="named by CLIP alone: set TEST.PANOPTIC.ROWS"):
            evaluation(datasets, *source, *options)
    model = Spoiler()
    model.branch, model.masks_given = DensePooling(load_clip("ViT-Mini-8", None)), True
    model.outputs = str(datasets / "one/segments")
    model.evaluation_metadata = lambda records: OpenPanoptic.evaluation_metadata(model, records)
    run = evaluation(datasets, *source, "TEST.PANOPTIC.ROWS", ("clip",))
    run.check(model)
    assert run.metadata()["masks given"]["one"]["forms"] == {"png": 5}
    (datasets / "one/segments/one_3.png").rename(datasets / "one/segments/one.png")
    with pytest.raises(InputError, match="files are missing|masks of 1 of 5 images of one"):
        evaluation(datasets, *source, "TEST.PANOPTIC.ROWS", ("clip",)).check(model)


def test_cells_that_do_not_differ_are_evaluated_once():
    seen = np.array([True, False])
    assert len(sweep_fusions((0, 0.5, 1), seen)) == 9
    fusions = sweep_fusions((0, 0.5, 1), None)
    assert len(fusions) == len(sweep_fusions((0, 0.5, 1), ~seen & seen)) == 3
    assert {fusion.tasks for fusion in fusions.values()} == {("panoptic",)}
    numbers = {name: {"PQ": 10 * fusion.alpha} for name, fusion in fusions.items()}
    sweep = sweep_results((0, 0.5, 1), None, numbers)
    assert sweep == {"alpha": [0, 0.5, 1], "beta": [0, 0.5, 1], "PQ": [[0] * 3, [5] * 3, [10] * 3]}


def test_without_a_training_vocabulary_all_is_seen_and_nothing_is_split(datasets):
    options = ("TEST.TRAIN_VOCABULARY", "", "TEST.PANOPTIC.SWEEP", (0.5, 1.0))
    results = evaluation(datasets, *options)(Spoiler())["one"]
    assert "PQ_seen" not in results["fused"] and "AP-unseen" not in results["fused"]
    assert results["sweep"].keys() == {"alpha", "beta", "PQ"}
    assert results["sweep"]["PQ"][0][0] == results["sweep"]["PQ"][0][1] > 0


def test_the_first_training_data_set_says_what_is_seen(datasets):
    options = ("TEST.TRAIN_VOCABULARY", "", "DATASETS.TRAIN", ("two",))
    results = evaluation(datasets, *options)(Spoiler())["one"]["generator"]
    assert results["classes_seen"] == 5 and results["classes_unseen"] == 0


def test_files_and_tables_of_a_run(datasets, caplog):
    with caplog.at_level(logging.INFO, logger="clipself_seg"):
        evaluation(datasets)(Spoiler())
    assert "CLIP only" in caplog.text and "one PQ" in caplog.text and "unseen PQ" in caplog.text
    expected = {
        f"{fusion}/{kind}_classes_{name}.csv"
        for fusion in ("clip", "generator", "fused")
        for kind in ("panoptic", "instance", "sem_seg")
        for name in ("one", "two")
    }
    run = datasets / "run"
    assert {str(path.relative_to(run)) for path in run.rglob("*.*")} == expected


def test_fusions_and_tasks_are_what_is_asked_for(datasets):
    options = ("TEST.PANOPTIC.ROWS", ("clip",), "TEST.PANOPTIC.TASKS", ("semantic",))
    results = evaluation(datasets, *options)(Spoiler())["one"]
    assert results.keys() == {"clip"} and "mIoU" in results["clip"]
    assert "PQ" not in results["clip"] and "AP" not in results["clip"]


def test_a_data_set_that_never_has_files_for_a_task_goes_without(datasets, caplog):
    MetadataCatalog.remove("one")
    register_again = {"json_file": "", "sem_seg_root": ""}
    DatasetCatalog.remove("one")
    register(datasets, "one", **register_again)
    results = evaluation(datasets)(Spoiler())
    assert '"one" has no files for "instances", which is left out' in caplog.text
    assert results["one"]["generator"]["PQ"] == 100 and "AP" not in results["one"]["generator"]
    assert "mIoU" not in results["one"]["generator"] and "mIoU" in results["two"]["generator"]
    with pytest.raises(InputError, match='"one" has no files for any of instances, semantic'):
        options = ("TEST.PANOPTIC.TASKS", ("instances", "semantic"))
        evaluation(datasets, *options).check(Spoiler())


def test_metadata_say_what_the_configuration_leaves_open(datasets):
    path = datasets / "one/panoptic.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"info": {"areas": "clean"}}))
    blank = GeneratorOutput(torch.zeros(1, 2, 2), torch.zeros(1, 5), torch.zeros(1), SIZE, SIZE)
    for image in [f"one_{i}" for i in range(5)] + [f"two_{i}" for i in range(3)]:
        provenance = {"image_id": image, "file_name": f"{image}.png", "weights": image[:3]}
        save_output(datasets / "outputs", blank, names=(("any",),) * 5, **provenance)
    run, model = evaluation(datasets), Spoiler()
    model.outputs, model.masks_given = str(datasets / "outputs"), False
    model.branch = DensePooling(load_clip("ViT-Mini-8", None))
    model.evaluation_metadata = lambda records: OpenPanoptic.evaluation_metadata(model, records)
    run.check(model)
    assert json.loads(json.dumps(run.metadata())) == {
        "names of a class": "all, the best score of each",
        "CLIP branch": {
            "kind": "DensePooling",
            "input_size": 512,
            "aspect": "pad",
            "align_masks": True,
            "binarise": "centre_or_any",
            "interpolation": "bicubic",
            "antialias": True,
        },
        "generator on disk": {
            "one": {"weights": "one", "settings": "{}"},
            "two": {"weights": "two", "settings": "{}"},
        },
        "areas": {"one": "clean"},
    }


@pytest.mark.parametrize("kind", ["labels", "segments"])
def test_a_missing_file_is_refused_before_the_run(datasets, kind):
    evaluation(datasets).check(Spoiler())
    (datasets / "one" / kind / "one_3.png").unlink()
    with pytest.raises(InputError, match=f'"one": 1 of 5 files are missing.*{kind}/one_3.png'):
        evaluation(datasets).check(Spoiler())


@pytest.mark.parametrize(
    "options, message",
    [
        (("DATASETS.TEST", ("ones",)), 'no data set "ones" for panoptic segmentation'),
        (("TEST.PANOPTIC.ROWS", ("clap",)), 'ROWS cannot have "clap"; did you mean "clip"'),
        (
            ("TEST.PANOPTIC.TASKS", ("instance",)),
            'cannot have "instance"; did you mean "instances"',
        ),
        (("TEST.PANOPTIC.ROWS", ()), "ROWS is empty: give some of clip, generator, fused"),
        (("TEST.PANOPTIC.SWEEP", (0.5, 1.5)), r"SWEEP must be in \[0, 1\], got 1.5"),
        (("TEST.PANOPTIC.SWEEP", ("x",)), r"SWEEP must be in \[0, 1\], got x"),
        (("TEST.PANOPTIC.VOID_SWEEP", (2,)), r"VOID_SWEEP must be in \[0, 1\], got 2"),
        (("TEST.TRAIN_VOCABULARY", "coco_stuff"), "coco_stuff_171"),
        (("TEST.MIOU_RULE", "both"), 'unknown mIoU rule "both"'),
    ],
)
def test_what_would_fail_late_is_refused_early(datasets, options, message):
    with pytest.raises(InputError, match=message):
        evaluation(datasets, *options).check(Spoiler())


@pytest.mark.parametrize("thing, lacking", [(True, "stuff"), (False, "thing")])
def test_words_without_things_or_stuff_are_refused_early(datasets, thing, lacking):
    content = json.loads((datasets / "words.json").read_text())
    for entry in content["classes"]:
        entry["isthing"] = thing
    (datasets / "words.json").write_text(json.dumps(content))
    options = ("TEST.PANOPTIC.TASKS", ("panoptic",))
    with pytest.raises(InputError, match=f"words.*none of the 5 classes is {lacking}"):
        evaluation(datasets, *options).check(Spoiler())


def test_real_ground_truth_against_itself_is_100(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    options = ("DATASETS.TEST", (COCO,), "TEST.TRAIN_VOCABULARY", "openseg_coco_panoptic_133")
    tasks = ("TEST.PANOPTIC.TASKS", ("panoptic", "instances"), "TEST.PANOPTIC.ROWS", ("generator",))
    results = evaluation(tmp_path, *options, *tasks)(Spoiler())[COCO]["generator"]
    assert {results[key] for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ_seen")} == {100}
    assert results["AP"] > 99 and results["images"] == 50 and results["classes"] == 104


@pytest.mark.parametrize(
    "name, command",
    [
        (COCO, "clipself-seg data prepare coco_panoptic_semseg"),
        ("ade20k_panoptic_val", "clipself-seg data prepare ade20k_panoptic"),
    ],
)
def test_files_that_a_command_makes_are_asked_for_by_its_name(
    data_dir, tmp_path, monkeypatch, name, command
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    options = ("DATASETS.TEST", (name,), "TEST.TRAIN_VOCABULARY", "")
    with pytest.raises(InputError, match=command):
        evaluation(tmp_path, *options).check(Spoiler())


def test_two_processes_give_the_numbers_and_files_of_one(datasets):
    def work(rank, folder):
        return evaluation(folder, "TEST.PANOPTIC.SWEEP", (0, 0.5))(Spoiler())

    both = in_two_processes(work, datasets)
    run = datasets / "run"
    files = {path: path.read_bytes() for path in run.rglob("*.*")}
    expected = evaluation(datasets, "TEST.PANOPTIC.SWEEP", (0, 0.5))(Spoiler())
    assert both == [expected, expected]
    assert {path: path.read_bytes() for path in run.rglob("*.*")} == files


class TwoSteps(Spoiler):
    """Makes masks and names them apart: blocks of the image, of which one is no segment, all of the first class."""

    device = torch.device("cpu")

    def generate(self, sample):
        truth = read_panoptic_png(sample["pan_seg_file_name"])
        masks = [truth == number for number in np.unique(truth)[:-1]] + [truth >= 0]
        logits = torch.from_numpy(np.stack(masks)).float() * 2 - 1
        zeros = torch.zeros(len(masks))
        return GeneratorOutput(logits, torch.zeros(len(masks), 5), zeros, SIZE, SIZE)

    def clip_scores(self, sample, generated):
        logits = torch.zeros(len(generated.mask_logits), len(self.classes.names))
        return logits + torch.eye(5)[0], torch.ones(len(logits)).bool()


def numbers_beside(folder, *options):
    """The numbers of the fusions of "one" that some of TEST.NUMBERS add, and the evaluation."""
    names = [f"TEST.NUMBERS.{option}" if i % 2 == 0 else option for i, option in enumerate(options)]
    plain = evaluation(folder, "DATASETS.TEST", ("one",))(TwoSteps())["one"]
    run, model = evaluation(folder, "DATASETS.TEST", ("one",), *names), TwoSteps()
    run.check(model)
    more = run(model)["one"]
    for fusion, numbers in plain.items():
        assert {key: more[fusion][key] for key in numbers} == numbers
    json.dumps(more, allow_nan=False)
    beside = {
        fusion: {key: v for key, v in numbers.items() if key not in plain[fusion]}
        for fusion, numbers in more.items()
    }
    return beside, plain, model, run


def test_open_pq_of_classes_that_are_not_alike_is_pq(datasets):
    words = load_vocabulary(datasets / "words.json")
    apart = np.full((5, 5), UNKNOWN, dtype=np.uint8)
    np.fill_diagonal(apart, 0)
    write_similarity(datasets / "table.json", words, apart, "nothing")
    options = ("SIMILARITY", str(datasets / "table.json"), "BOUNDARY", True)
    numbers, plain, _, _ = numbers_beside(datasets, *options)
    for fusion, own in plain.items():
        for suffix in ("", "_th", "_st", "_seen", "_unseen"):
            assert numbers[fusion][f"Open-PQ{suffix}"] == own[f"PQ{suffix}"]
        assert numbers[fusion]["Open-mIoU"] == pytest.approx(own["mIoU"])
    assert numbers["generator"]["Boundary-mIoU"] == 100 and numbers["clip"]["Boundary-mIoU"] == 0


def test_the_gap_of_each_fusion_sums_up_and_the_best_queries_are_all_but_one(datasets):
    numbers, plain, _, _ = numbers_beside(datasets, "GAP", True)
    for fusion, own in plain.items():
        parts = [numbers[fusion][f"gap-{part}"] for part in ("naming", "thrown-away", "masks")]
        assert own["PQ"] + sum(parts) == pytest.approx(100)
        assert numbers[fusion]["best-queries-PQ"] == numbers["clip"]["best-queries-PQ"]
    # Of 8 segments an image the last one has no mask of its own.
    assert 75 < numbers["clip"]["best-queries-PQ"] < 100
    assert numbers["generator"]["true-names-PQ"] == 100


def test_naming_of_true_masks_is_right_for_the_one_class_that_is_ever_named(datasets):
    numbers, _, _, _ = numbers_beside(datasets, "NAMING", True)
    for own in numbers.values():
        assert (own["naming"], own["naming_st"], own["naming_th"]) == (
            20,
            0,
            pytest.approx(100 / 3),
        )
        assert own["true-masks-PQ_st"] == 0 < own["true-masks-PQ_th"] < 100
        assert "best-queries-PQ" not in own and "gap-naming" not in own


def test_oracle_words_are_given_with_each_sample(datasets):
    model, given = TwoSteps(), []
    forward = model.forward
    model.forward = lambda batch, fusions: given.append(batch[0].get("classes")) or forward(
        batch, fusions
    )
    run = evaluation(datasets, "DATASETS.TEST", ("one",), "TEST.NUMBERS.ORACLE", True)
    results = run(model)["one"]["fused"]
    entries = json.loads((datasets / "one/panoptic.json").read_text())["annotations"]
    index = {category: position for position, (_, category, _) in enumerate(CLASSES)}
    true = [sorted({index[s["category_id"]] for s in entry["segments_info"]}) for entry in entries]
    assert given == [None] * 5 + true
    assert results["oracle-PQ"] == results["PQ"] and "oracle-AP-unseen" in results


def test_the_synonym_test_keeps_what_is_seen(datasets):
    content = json.loads((datasets / "words.json").read_text())
    content["classes"][0]["names"] = ["cat", "kitten"]
    (datasets / "words.json").write_text(json.dumps(content))
    numbers, plain, model, _ = numbers_beside(datasets, "SYNONYMS", 5)
    assert [names[0] for _, names in model.asked] == ["cat"] * 10 + ["kitten"] * 5
    for fusion, own in plain.items():
        assert numbers[fusion]["synonyms"] == 2
        assert numbers[fusion]["synonyms-worst-PQ_seen"] == own["PQ_seen"]
        assert numbers[fusion]["synonyms-spread-AP"] == 0


def test_what_cannot_be_measured_is_refused_early(datasets):
    run = evaluation(datasets, "TEST.NUMBERS.GAP", True, "TEST.PANOPTIC.TASKS", ("semantic",))
    with pytest.raises(InputError, match='add "panoptic" to TEST.PANOPTIC.TASKS'):
        run.check(TwoSteps())
    with pytest.raises(InputError, match="which Spoiler does not"):
        evaluation(datasets, "TEST.NUMBERS.NAMING", True).check(Spoiler())
    model = TwoSteps()
    model.evaluation_metadata = lambda records: {"generator on disk": {}}
    with pytest.raises(InputError, match="SYNONYMS needs a generator"):
        evaluation(datasets, "TEST.NUMBERS.SYNONYMS", 2).check(model)


def test_the_protocol_says_what_was_used(datasets):
    run = evaluation(datasets, "DATASETS.TEST", ("one",), "TEST.NUMBERS.ORACLE", True)
    run(Spoiler())
    parts = run.protocols["one"].as_dict()
    assert parts["words"] == "words, 5 classes" and parts["size"] == "own size"
    assert parts["seen"] == f"a name as {datasets / 'trained.json'} spells it: 2 of 5"
    assert parts["beside"] == "ORACLE" and parts["rule"] == "mIoU over classes by rule present"
