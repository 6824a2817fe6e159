"""Several fusions from one pass, each with the numbers of its own evaluators, in any number of processes."""

import json
import logging
from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.clip import load_clip
from clipself_seg.commands.train import main
from clipself_seg.data.images import read_image
from clipself_seg.data.mappers.samples import chw
from clipself_seg.data.masks import encode_masks
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.evaluation.panoptic.ground_truth import read_panoptic_ground_truth
from clipself_seg.heads.panoptic.clip_branches import DensePooling
from clipself_seg.models import OpenPanoptic
from clipself_seg.models.panoptic.mask_models import load_mask_model
from clipself_seg.models.panoptic.mask_sources import Given
from lab.prepare.common import Options
from lab.prepare.streets import prepare_cityscapes, prepare_vistas
from tests.archives import CITY, write_city_image, write_vistas_image
from tests.mask_models import save_mask_model
from tests.spoiled_panoptic import CLASSES, Spoiler, evaluation, register


def test_every_fusion_of_every_data_set_comes_from_one_pass(datasets):
    model = Spoiler()
    results = evaluation(datasets)(model)
    names = tuple(name for name, _, _ in CLASSES)
    assert [(image, words) for image, words in model.asked] == [
        (f"{name}_{index}", names) for name, count in (("one", 5), ("two", 3)) for index in range(count)
    ]  # fmt: skip
    assert list(results) == ["one", "two"]
    assert list(results["one"]) == ["clip", "generator", "fused"]
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
        assert not any(key.startswith(("PQ-", "IoU-", "classes-")) for key in fusions["fused"])
        assert (truth["classes"], truth["classes_seen"], truth["classes_unseen"]) == (5, 2, 3)
    json.dumps(results, allow_nan=False)


def test_each_weight_of_void_is_a_row_of_the_same_exponents(datasets, caplog):
    asked = []

    class Listener(Spoiler):
        void_discount = 0.5

        def spoil(self, sample, truth, fusion):
            asked.append(fusion)
            return super().spoil(sample, truth, fusion)

    options = ("TEST.PANOPTIC.VOID_SWEEP", (0, 0.25, 1.0))
    with caplog.at_level(logging.INFO, logger="clipself_seg"):
        named = evaluation(datasets, *options)(Listener())["one"]
    weights = {"clip": 0.5, "generator": 0, "fused": 0.5}
    weights |= {"void_0": 0, "void_0.25": 0.25, "void_1": 1}
    assert {name: one["void_discount"] for name, one in named.items()} == weights
    for name in ("void_0", "void_0.25", "void_1"):
        assert (named[name]["alpha"], named[name]["beta"]) == (0.2, 0.5)
        assert named[name]["AP"] == named["fused"]["AP"] and "mIoU-unseen" in named[name]
    assert "void less" in caplog.text
    assert "void_discount" not in evaluation(datasets)(Spoiler())["one"]["fused"]


def test_masks_without_class_scores_are_evaluated_with_clips_alone(datasets):
    source = ("MODEL.MASK_GENERATOR.SOURCE", "masks", "MODEL.MASK_GENERATOR.OUTPUTS")
    source += (str(datasets / "one/segments"), "DATASETS.TEST", ("one",))
    source += ("MODEL.FUSION.MODE", "clip")
    for key, options in (
        ("ROWS", ()),
        ("VOID_SWEEP", ("TEST.PANOPTIC.ROWS", ("clip",), "TEST.PANOPTIC.VOID_SWEEP", (0.5,))),
    ):
        with pytest.raises(InputError, match=f"TEST.PANOPTIC.{key} must be .* for masks, which"):
            evaluation(datasets, *source, *options)
    model = Spoiler()
    model.branch = DensePooling(load_clip("ViT-Mini-8", None))
    model.masks = Given(str(datasets / "one/segments"))
    model.evaluation_metadata = lambda records: OpenPanoptic.evaluation_metadata(model, records)
    run = evaluation(datasets, *source, "TEST.PANOPTIC.ROWS", ("clip",))
    run.check(model)
    assert run.metadata()["masks given"]["one"]["forms"] == {"png": 5}
    (datasets / "one/segments/one_3.png").rename(datasets / "one/segments/one.png")
    with pytest.raises(InputError, match="files are missing|masks of 1 of 5 images of one"):
        evaluation(datasets, *source, "TEST.PANOPTIC.ROWS", ("clip",)).check(model)


def test_without_a_training_vocabulary_all_is_seen_and_nothing_is_split(datasets):
    results = evaluation(datasets, "TEST.TRAIN_VOCABULARY", "")(Spoiler())["one"]
    assert "PQ_seen" not in results["fused"] and "AP-unseen" not in results["fused"]


def test_classes_of_ones_own_are_known_in_any_case(datasets):
    names = Vocabulary.load(MetadataCatalog.get("one").vocabulary).first_names
    own = Vocabulary("own", (VocabularyClass((names[0].upper(), "another"), 1),))
    truth = read_panoptic_ground_truth("one", ("panoptic",), own)
    assert truth.seen.tolist() == [True] + [False] * (len(names) - 1)


def test_files_and_tables_of_a_run(datasets, caplog):
    with caplog.at_level(logging.INFO, logger="clipself_seg"):
        evaluation(datasets)(Spoiler())
    assert "CLIP only" in caplog.text and "unseen PQ" in caplog.text
    assert "The paper" not in caplog.text
    expected = {
        f"{fusion}/{kind}_classes_{name}.csv"
        for fusion in ("clip", "generator", "fused")
        for kind in ("panoptic", "instance", "sem_seg")
        for name in ("one", "two")
    }
    run = datasets / "run"
    assert {str(path.relative_to(run)) for path in run.rglob("*.*")} == expected


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
    run, model = evaluation(datasets), Spoiler()
    model.masks = SimpleNamespace(settings=lambda records: {})
    model.branch = DensePooling(load_clip("ViT-Mini-8", None))
    model.evaluation_metadata = lambda records: OpenPanoptic.evaluation_metadata(model, records)
    run.check(model)
    assert json.loads(json.dumps(run.metadata())) == {
        "names of a class": "not stated by the model",
        "CLIP branch": {"kind": "DensePooling", "input_size": 512, "aspect": "pad"}
        | {"align_masks": True, "binarise": "centre_or_any"}
        | {"interpolation": "bicubic", "antialias": True},
        "areas": {"one": "clean"},
    }


@pytest.mark.parametrize("kind", ["labels", "segments"])
def test_a_missing_file_is_refused_before_the_run(datasets, kind):
    evaluation(datasets).check(Spoiler())
    (datasets / "one" / kind / "one_3.png").unlink()
    with pytest.raises(InputError, match=f'"one": 1 of 5 files are missing.*{kind}/one_3.png'):
        evaluation(datasets).check(Spoiler())


def test_the_protocol_says_what_was_used(datasets):
    run = evaluation(datasets, "DATASETS.TEST", ("one",))
    run(Spoiler())
    parts = run.protocols["one"].as_dict()
    assert parts["words"] == "words, 5 classes" and parts["size"] == "own size"
    assert parts["seen"] == f"a name as {datasets / 'trained.json'} spells it: 2 of 5"
    assert parts["rule"] == "mIoU over classes by rule present"


TRAINED = ("TEST.TRAIN_VOCABULARY", "openseg_coco_panoptic_133")

CITYSCAPES, VISTAS = "cityscapes_fine_panoptic_val", "mapillary_vistas_panoptic_val"


@pytest.fixture
def streets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for number, city in enumerate(("aachen", "bonn")):
        write_city_image(tmp_path, f"{city}_00000{number}_000019", values=CITY[:: 1 - 2 * number])
    write_vistas_image(tmp_path)
    return tmp_path


def evaluated(folder, model, name):
    options = ("DATASETS.TEST", (name,), "TEST.PANOPTIC.ROWS", ("generator", "fused"), *TRAINED)
    return evaluation(folder, *options)(model)[name]


@pytest.mark.parametrize(
    "name, prepare, split, images, classes, seen",
    [
        # Road and persons are seen; pole and rider are not; of cars there is but a crowd, which counts for nothing.
        (CITYSCAPES, prepare_cityscapes, "val", 2, 4, 2),
        (VISTAS, prepare_vistas, "validation", 1, 4, 4),
    ],
)
def test_the_truth_itself_is_100_in_pq_ap_and_miou(
    streets, name, prepare, split, images, classes, seen
):
    prepare(Options(streets), [split])
    truth = evaluated(streets, Spoiler(), name)["generator"]
    assert {truth[key] for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "mIoU")} == {100}
    assert truth["AP"] == pytest.approx(100) and truth["images"] == images
    assert (truth["classes"], truth["classes_seen"]) == (classes, seen)
    assert truth.get("Cityscapes-AP") == (pytest.approx(100) if name == CITYSCAPES else None)


def test_a_label_file_gives_the_classes_other_names_and_decides_which_are_seen(streets):
    prepare_cityscapes(Options(streets), ["val"])
    own = Vocabulary.load("openseg_cityscapes_19")
    lines = [f"{index}:class {index}" for index in range(len(own))]
    lines[5] = "5:person,pole"
    path = streets / "words.txt"
    path.write_text("\n".join(lines))
    options = ("DATASETS.TEST", (CITYSCAPES,), "TEST.LABEL_FILES", (str(path),), *TRAINED)
    model = Spoiler()
    results = evaluation(streets, *options)(model)[CITYSCAPES]["generator"]
    assert model.asked[0][1][5:7] == ("person", "class 6")
    assert (results["PQ"], results["classes"], results["classes_seen"]) == (100, 4, 1)
    with pytest.raises(
        InputError, match="TEST.LABEL_FILES must be a file for each of DATASETS.TEST"
    ):
        evaluation(streets, "TEST.LABEL_FILES", ("a.txt",))


def test_a_model_that_finds_masks_is_evaluated_with_our_names_as_a_folder_of_its_masks(
    streets, tmp_path
):
    prepare_cityscapes(Options(streets), ["val"])
    model = save_mask_model("eomt", tmp_path / "model")
    find, masks = load_mask_model(model), tmp_path / "masks"
    for path in (streets / "cityscapes/leftImg8bit/val").rglob("*.png"):
        found = find(chw(read_image(path)))
        lengths = [one | {"counts": one["counts"].decode()} for one in encode_masks(found.masks)]
        scored = zip(lengths, found.scores.tolist(), strict=True)
        entries = [{"segmentation": one, "score": score} for one, score in scored]
        masks.mkdir(exist_ok=True)
        (masks / f"{path.stem}.json").write_text(json.dumps(entries))
    results = {}
    for given in (model, masks):
        words = ["MODEL.MASK_GENERATOR.OUTPUTS", str(given), "DATALOADER.NUM_WORKERS", "0"]
        words += ["OUTPUT_DIR", str(given / "run"), "DATASETS.TEST", f"('{CITYSCAPES}',)"]
        words += ["MODEL.CLIP_BRANCH.TEMPLATES", "odise"]
        assert main(["--config-file", "mini/panoptic_masks", "--eval-only", *words]) == 0
        results[given] = json.loads((given / "run/results.json").read_text())
    assert results[model]["results"] == results[masks]["results"]
    assert results[model]["results"][CITYSCAPES]["clip"]["images"] == 2
    assert results[model]["provenance"]["masks found"]["model"].startswith("Eomt")
