"""The configuration of a folder of anybody's: files beside it, plain values, and nothing else."""

from __future__ import annotations

import pytest
import yaml

from clipself_seg.config import load_config
from clipself_seg.config.weights import WEIGHTS
from clipself_seg.errors import InputError
from clipself_seg.prediction.pretrained import (
    FILE_KEYS,
    LEFT_OUT,
    MOST_BYTES,
    read_folder_config,
    write_folder_config,
)
from tests.conftest import ROOT

FILES = {"MODEL.WEIGHTS": "model.safetensors", "MODEL.CLIP.WEIGHTS": "clip.safetensors"}


@pytest.fixture
def folder(tmp_path):
    """A folder with the configuration of a panoptic model, and files of weights without content."""
    opts = ["MODEL.FUSION.ALPHA", "0.25", "INPUT.MAX_PIXELS", "999999999", "MODEL.DEVICE", "cpu"]
    cfg = load_config(ROOT / "configs/mini/panoptic.yaml", opts)
    write_folder_config(cfg, tmp_path / "config.yaml", "ViT-Mini-8", FILES)
    for file in FILE_KEYS.values():
        (tmp_path / file).touch()
    return tmp_path


def change(folder, key, value):
    """Sets a key in the folder's file."""
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    *sections, name = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def test_what_decides_a_prediction_is_written_and_nothing_of_the_machine(folder):
    cfg = read_folder_config(folder, ["MODEL.DEVICE", "cpu"])
    fusion = cfg.MODEL.FUSION
    assert (fusion.ALPHA, fusion.BETA, fusion.SOURCE) == (0.25, 0.8, "weights_beta")
    assert cfg.MODEL.WEIGHTS == str(folder / "model.safetensors")
    assert cfg.MODEL.CLIP.WEIGHTS == str(folder / "clip.safetensors")
    assert cfg.MODEL.CLIP_BRANCH.WEIGHTS == "" and cfg.MODEL.CLIP_BRANCH.TEMPLATES == "vild63"
    assert cfg.INPUT.MAX_PIXELS == load_config(None).INPUT.MAX_PIXELS
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    assert tree.keys() == {"MODEL", "INPUT", "TEST", "SOLVER"} and tree["SOLVER"].keys() == {"AMP"}


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS"])
def test_weights_that_are_missing_are_named(folder, key):
    (folder / FILE_KEYS[key]).unlink()
    with pytest.raises(InputError, match=f"config.yaml: {key} is .*, which is not beside it"):
        read_folder_config(folder)
    change(folder, key, "")
    with pytest.raises(InputError, match=f"config.yaml has no {key}: save_pretrained writes"):
        read_folder_config(folder)


@pytest.mark.parametrize("value", ["/etc/passwd", "../a.pt", "mini", "hf-hub:a/b", "http://a/b", 3])
@pytest.mark.parametrize("key", FILE_KEYS)
def test_a_folder_names_no_file_but_its_own(folder, key, value):
    change(folder, key, value)
    with pytest.raises(InputError, match=f"{key} is .*: a folder names nothing but its own"):
        read_folder_config(folder)


@pytest.mark.parametrize(
    "key", sorted({*LEFT_OUT, *WEIGHTS} - FILE_KEYS.keys()) + ["OUTPUT_DIR", "DATASETS.TRAIN"]
)
def test_keys_of_files_and_of_training_are_refused(folder, key):
    change(folder, key, "")
    with pytest.raises(InputError, match=f"{key} is no key of a folder of save_pretrained"):
        read_folder_config(folder)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("_BASE_", "/etc/hosts", "stands on no other: take _BASE_ out"),
        ("_BASE_", ["http://a/b.yaml"], "stands on no other: take _BASE_ out"),
        ("MODEL.CLIP.NAMES", "x", 'unknown key "MODEL.CLIP.NAMES"; did you mean'),
        ("MODEL.CLIP.NAME", "hf-hub:a/b", "may lead out of the folder: give a plain name"),
        ("TEST.REGIONS.TEMPLATES", "~", "may lead out of the folder"),
        ("TEST.PANOPTIC.ROWS", ["clip", ["/etc/x"]], "'/etc/x', which may lead out of the folder"),
        ("TEST.PANOPTIC.ROWS", "('clip', '/etc/x')", "'/etc/x', which may lead out of the folder"),
        ("INPUT.MIN_SIZE_TEST", 10**6, "1000000, and 4096 is the largest number of a folder"),
        ("INPUT.MIN_SIZE_TRAIN", "(10**6,)", "MIN_SIZE_TRAIN must be of type tuple"),
        ("INPUT.MIN_SIZE_TRAIN", "(1000000,)", "1000000, and 4096 is the largest number"),
        ("MODEL.MASK_FORMER.DEC_LAYERS", 1 << 70, "of type int, and 4096 is the largest number"),
        ("MODEL.FUSION.ALPHA", float("nan"), "nan, and 4096 is the largest number"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "META_ARCHITECTURE is 'GeneralizedRCNN'"),
        ("MODEL.META_ARCHITECTURE", ["CATSeg"], "META_ARCHITECTURE is of type list"),
    ],
)
def test_what_a_folder_may_not_say_is_refused_by_name(folder, key, value, message):
    change(folder, key, value)
    with pytest.raises(InputError) as refused:
        read_folder_config(folder)
    assert message in str(refused.value) and "config.yaml" in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch run']",
        "MODEL: !!python/name:os.system",
        "MODEL: {WEIGHTS: !!python/object/new:os.system [touch run]}",
    ],
)
def test_nothing_in_a_configuration_runs(folder, text, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="config.yaml is not a usable YAML file"):
        read_folder_config(folder)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("file", ["config.yaml", "trained.json"])
def test_a_text_without_end_is_not_read(folder, file):
    change(folder, "TEST.TRAIN_VOCABULARY", "trained.json")
    with (folder / file).open("ab") as written:
        written.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match=f"{file} has .* {MOST_BYTES} at most are read"):
        read_folder_config(folder)
