"""Predictors as folders: what is read back is equal, half a folder is never there, the hub has what was pushed.

The configuration of a folder of anybody's has files beside it, plain values, and nothing else.
"""

import copy
import functools
import json
import re
import shutil
from unittest import mock

import huggingface_hub
import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from clipself_seg.choice import FOLDER_FILES
from clipself_seg.commands import predict
from clipself_seg.config import load_config
from clipself_seg.config.declare import KEYS
from clipself_seg.errors import InputError
from clipself_seg.prediction import pretrained
from clipself_seg.prediction.load import load
from clipself_seg.prediction.presence import Absent
from clipself_seg.prediction.pretrained import (
    FILE_KEYS,
    MOST_BYTES,
    from_folder,
    read_folder_config,
    write_folder_config,
)
from clipself_seg.prediction.task_predictors import PanopticPredictor, SemanticPredictor
from clipself_seg.yaml_files import leaves, read_tree
from tests.conftest import ROOT
from tests.faults import full_disk
from tests.tiny import equal_results, noise
from tests.weight_server import serving

WORDS = "red star, blue ring|hoop, grass"
# Name of a predictor -> how it is made, and its vocabulary.
MADE = {
    "SemanticPredictor": ("semantic", {"background": "void|wall"}),
    "PanopticPredictor": ("panoptic", {"stuff": "grass"}),
    "DetectionPredictor": ("detection", {}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name -> predictor with its vocabulary, and its folder; each is made once."""
    made = {}

    def get(name):
        if name not in made:
            task, words = MADE[name]
            predictor = load("mini", task=task, device="cpu")
            predictor.set_vocabulary(WORDS, **words)
            folder = tmp_path_factory.mktemp("saved") / name
            predictor.save_pretrained(folder)
            made[name] = predictor, folder
        return made[name]

    return get


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the panoptic folder, whose large files are links."""
    source = saved("PanopticPredictor")[1]
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            (tmp_path / path.name).symlink_to(path)
        else:
            shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MADE)
def test_what_is_read_back_predicts_the_same_bit_for_bit(saved, name):
    predictor, folder = saved(name)
    again = load(folder, device="cpu")
    assert type(again) is type(predictor) and type(again).__name__ == name
    assert again.model.weights_hash() == predictor.model.weights_hash()
    image = noise(70, 90)
    assert equal_results(again(image), predictor(image))
    for own in (again, predictor):
        own.set_vocabulary("green square, sand")
    assert equal_results(again(image), predictor(image))
    if name == "PanopticPredictor":
        assert again.model.exponents == (0.35, 0.8) and again.trained == predictor.trained


def test_a_folder_holds_what_its_card_says_and_nothing_of_this_machine(saved):
    _, folder = saved("PanopticPredictor")
    assert {path.name for path in folder.iterdir()} == {*FOLDER_FILES}
    header, card = (folder / "README.md").read_text().split("---\n")[1:3]
    stated = yaml.safe_load(header)
    assert (stated["license"], stated["pipeline_tag"]) == ("apache-2.0", "image-segmentation")
    assert stated["datasets"] == ["mini_train_base_panoptic"] and "base_model" not in stated
    for said in ("mini-open-panoptic", "Apache-2.0 | comes with", "bit for bit", "commit"):
        assert said in card
    words = json.loads((folder / "vocabulary.json").read_text())
    assert words["seen"] == [False, False, True]
    assert [entry["isthing"] for entry in words["words"]["classes"]] == [True, True, False]
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            assert str(ROOT) not in path.read_text() and "output/" not in path.read_text()


def test_the_block_of_a_card_runs_as_printed(saved, tmp_path, monkeypatch):
    _, folder = saved("SemanticPredictor")
    Image.new("RGB", (176, 132)).save(tmp_path / "photo.jpg")
    (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    exec(block, {})
    assert (tmp_path / "overlay.png").is_file()


def test_a_card_has_the_address_of_the_project_and_the_repositories_that_weights_are_from(saved):
    config = load_config("semseg/catseg+openai_vitb16", ["MODEL.CLIP.WEIGHTS", "openai-vitb16"])
    text = pretrained.card(saved("SemanticPredictor")[0], config, None, "org/name")
    assert f"[clipself_seg]({pretrained.project_address()})" in text
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == [
        "timm/vit_base_patch16_clip_224.openai"
    ]


@pytest.mark.parametrize(
    "licences, common",
    [
        (["MIT", "MIT"], "mit"),
        (["Apache-2.0", "MIT"], "other"),
        (["S-Lab License 1.0, non-commercial"], "other"),
    ],
)
def test_a_card_has_the_licence_of_all_that_the_weights_are_made_of(licences, common):
    assert pretrained._common_licence(licences) == common


def test_a_folder_with_files_is_replaced_only_where_that_was_asked_for(saved, tmp_path):
    predictor, _ = saved("SemanticPredictor")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / ".mine.abcdefgh.part").mkdir()  # of a killed call
    with pytest.raises(InputError, match="has files: give a new folder, or overwrite=True"):
        predictor.save_pretrained(tmp_path / "mine")
    with pytest.raises(InputError, match="thesis.txt, which save_pretrained does not write"):
        predictor.save_pretrained(tmp_path / "mine", overwrite=True)
    (tmp_path / "mine" / "thesis.txt").rename(tmp_path / "mine" / "README.md")
    predictor.save_pretrained(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "README.md").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("broken", ["save_clip", "write_folder_config", "card", "_require_equal"])
def test_what_breaks_off_leaves_no_folder(saved, tmp_path, monkeypatch, broken):
    monkeypatch.setattr(pretrained, broken, full_disk)
    with pytest.raises(OSError, match="No space") as caught:
        saved("SemanticPredictor")[0].save_pretrained(tmp_path / "new")
    assert caught.value.filename == str(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_reads_back_otherwise_and_a_predictor_of_parts_are_not_saved(
    saved, tmp_path, monkeypatch
):
    predictor, _ = saved("SemanticPredictor")
    parts = SemanticPredictor(model=predictor.model, mapper=predictor.mapper)
    with pytest.raises(InputError, match="cannot be saved: it has no configuration"):
        parts.save_pretrained(tmp_path / "new")
    monkeypatch.setattr(np, "array_equal", lambda *_: False)
    with pytest.raises(InputError, match="or predicts otherwise: not saved"):
        predictor.save_pretrained(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_what_becomes_of_absent_words_is_no_part_of_a_folder(saved, tmp_path, monkeypatch):
    predictor, _ = saved("SemanticPredictor")
    predictor.set_vocabulary(WORDS, background="void|wall")
    monkeypatch.setattr(predictor, "absent", Absent("drop", 99.0, False))
    predictor.save_pretrained(tmp_path / "new")
    assert load(tmp_path / "new", device="cpu").absent is None


def test_damaged_and_missing_files_are_refused_by_name(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    del tensors["backbone.block_projections.0.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="the panoptic checkpoint .* lacks 1 tensor"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="model.safetensors"):
        load(folder)
    with pytest.raises(InputError, match="config.yaml is missing: give a folder that save_pre"):
        from_folder(PanopticPredictor, folder.parent)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"words": "/etc/hosts"}',
        '{"words": {"classes": [{"names": ["a"]}]}, "scores": true}',
        '{"words": {"classes": [{"names": ["a"]}]}, "threshold": "x"}',
    ],
)
def test_a_vocabulary_that_is_none_is_refused(folder, text):
    (folder / "vocabulary.json").write_text(text)
    with pytest.raises(InputError, match="vocabulary.json"):
        load(folder)


def test_words_without_end_are_not_embedded(folder, monkeypatch):
    monkeypatch.setattr(pretrained, "MOST_NAMES", 3)
    with pytest.raises(InputError, match="vocabulary.json has 4 names, 3 at most are read"):
        load(folder)


@pytest.mark.parametrize("key", ["DEC_LAYERS", "HIDDEN_DIM"])
def test_sizes_make_no_more_than_the_weights_hold(folder, key):
    change(folder, f"MODEL.MASK_FORMER.{key}", 4096)
    with pytest.raises(InputError, match="config.yaml is refused: its sizes ask for more than the"):
        load(folder)


def test_the_hub_gets_the_files_of_a_folder_in_one_commit(saved, monkeypatch):
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    uploaded = []

    def save(self, folder, license, name):
        folder.mkdir()
        (folder / "config.yaml").write_text(f"{license} {name}")

    def upload(*, folder_path, **how):
        uploaded.append({path.name: path.read_text() for path in folder_path.iterdir()})
        return mock.Mock(commit_url=f"{how['repo_id']}/commit/1")

    api.upload_folder.side_effect = upload
    monkeypatch.setattr("huggingface_hub.HfApi", lambda endpoint, token: api)
    predictor, _ = saved("SemanticPredictor")  # before saving is replaced
    monkeypatch.setattr(SemanticPredictor, "save_pretrained", save)
    address = predictor.push_to_hub("org/name", private=True, token="none", license="mit")
    assert address == "org/name/commit/1" and uploaded == [{"config.yaml": "mit org/name"}]
    api.create_repo.assert_called_once_with("org/name", private=True, exist_ok=True)


def test_a_repository_of_the_hub_is_fetched_once(saved, tmp_path, monkeypatch):
    predictor, folder = saved("DetectionPredictor")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path / "weights"))
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        server.push(files)
        Image.new("RGB", (96, 64)).save(tmp_path / "one.png")
        words = [str(tmp_path / "one.png"), "--words", "red star", "-o", str(tmp_path / "out")]
        assert predict.main([*words, "--model", "org/name", "--device", "cpu"]) == 0
        assert (tmp_path / "out" / "detections.json").exists()
        names = load("org/name").vocabulary.first_names
        assert names == ("red star", "blue ring", "grass")
        server.files.clear()
        again = load("hf-hub:org/name@main")
        with pytest.raises(InputError, match="open_clip_model.safetensors"):  # a file of weights
            load("hf-hub:org/other", config_file="zero_shot/base")
    assert again.model.weights_hash() == predictor.model.weights_hash()


def test_without_a_hub_it_is_said_at_once(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="no folder org/none is here, and hf-hub:org/none is not"):
        load("org/none")
    with pytest.raises(InputError, match="names nothing on the Hugging Face hub"):
        saved("SemanticPredictor")[0].push_to_hub("none")


def test_a_hub_that_refuses_is_named(saved, monkeypatch):
    refusing = mock.Mock()
    refusing.return_value.create_repo.side_effect = RuntimeError("401 Client Error.\nmore")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub")
    monkeypatch.setattr("huggingface_hub.HfApi", refusing)
    monkeypatch.setattr(SemanticPredictor, "save_pretrained", lambda *_, **__: None)
    with pytest.raises(InputError, match=r"http://hub/org/name .*\(401 Client Error\.\)"):
        saved("SemanticPredictor")[0].push_to_hub("org/name")


def test_predict_takes_a_folder_for_weights(saved, tmp_path, capsys):
    _, folder = saved("PanopticPredictor")
    Image.new("RGB", (160, 200)).save(tmp_path / "one.png")
    words = [str(tmp_path / "one.png"), "--output", str(tmp_path / "out")]
    words += ["--model", str(folder), "--words", "red star, grass", "--device", "cpu"]
    keys = ("TEST.TRAIN_VOCABULARY", "mini", "MODEL.FUSION.BETA", "0.5")
    assert predict.main([*words, "--opts", *keys]) == 0
    info = json.loads((tmp_path / "out" / "panoptic.json").read_text())["info"]
    assert (info["alpha"], info["beta"], info["trained"]) == (0.35, 0.5, "mini")
    assert predict.main([*words, "--task", "semantic"]) == 2
    assert f"{folder} does panoptic: leave out the task semantic" in capsys.readouterr().err


CONFIG_FILES = {"MODEL.WEIGHTS": "model.safetensors", "MODEL.CLIP.WEIGHTS": "clip.safetensors"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The configuration of a panoptic model, as a folder has it."""
    path = tmp_path_factory.mktemp("written") / "config.yaml"
    opts = ["MODEL.FUSION.ALPHA", "0.25", "INPUT.MAX_PIXELS", "999999999", "MODEL.DEVICE", "cpu"]
    cfg = load_config(ROOT / "configs/mini/panoptic.yaml", opts)
    write_folder_config(cfg, path, "ViT-Mini-8", CONFIG_FILES)
    return path.read_text()


@pytest.fixture
def plain(written, tmp_path):
    """A folder with it, and files of weights without content."""
    (tmp_path / "config.yaml").write_text(written)
    for file in FILE_KEYS.values():
        (tmp_path / file).touch()
    save_file({}, tmp_path / FILE_KEYS["MODEL.CLIP.WEIGHTS"])  # its head is read
    return tmp_path


parsed = functools.cache(yaml.safe_load)


def change(plain, key, value):
    """Sets a key in the folder's file."""
    tree = copy.deepcopy(parsed((plain / "config.yaml").read_text()))
    *sections, name = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    (plain / "config.yaml").write_text(yaml.safe_dump(tree))


def test_what_decides_a_prediction_is_written_and_nothing_of_the_machine(plain):
    cfg = read_folder_config(plain, ["MODEL.DEVICE", "cpu"])
    fusion = cfg.MODEL.FUSION
    assert (fusion.ALPHA, fusion.BETA, fusion.SOURCE) == (0.25, 0.8, "weights_beta")
    assert cfg.MODEL.WEIGHTS == str(plain / "model.safetensors")
    assert cfg.MODEL.CLIP.WEIGHTS == str(plain / "clip.safetensors")
    assert cfg.MODEL.CLIP_BRANCH.WEIGHTS == "" and cfg.MODEL.CLIP_BRANCH.TEMPLATES == "vild63"
    assert cfg.INPUT.MAX_PIXELS == load_config(None).INPUT.MAX_PIXELS
    tree = yaml.safe_load((plain / "config.yaml").read_text())
    assert tree.keys() == {"MODEL", "INPUT", "TEST"}


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS"])
def test_weights_that_are_missing_are_named(plain, key):
    (plain / FILE_KEYS[key]).unlink()
    with pytest.raises(InputError, match=f"config.yaml: {key} is .*, which is not beside it"):
        read_folder_config(plain)
    change(plain, key, "")
    with pytest.raises(InputError, match=f"config.yaml: it has no {key}: save_pretrained writes"):
        read_folder_config(plain)


@pytest.mark.parametrize("value", ["/etc/passwd", "../a.pt", "mini", "hf-hub:a/b", "http://a/b", 3])
@pytest.mark.parametrize("key", FILE_KEYS)
def test_a_folder_names_no_file_but_its_own(plain, key, value):
    change(plain, key, value)
    with pytest.raises(InputError, match=f"{key} is .*: a folder names nothing but its own"):
        read_folder_config(plain)


@pytest.mark.parametrize(
    "key",
    [*(key.name for key in KEYS.values() if key.folder is None), "OUTPUT_DIR", "DATASETS.TRAIN"],
)
def test_keys_of_files_and_of_training_are_refused(plain, key):
    change(plain, key, "")
    with pytest.raises(InputError, match=f"{key} is no key of a folder of save_pretrained"):
        read_folder_config(plain)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("_BASE_", "/etc/hosts", "may not name another one: remove _BASE_"),
        ("MODEL.CLIP.NAMES", "x", 'unknown key "MODEL.CLIP.NAMES"; did you mean'),
        ("MODEL.CLIP.NAME", "hf-hub:a/b", "may lead out of the folder: give a plain name"),
        ("TEST.PANOPTIC.ROWS", ["clip", ["/etc/x"]], "'/etc/x', which may lead out of the folder"),
        ("TEST.PANOPTIC.ROWS", "('clip', '/etc/x')", "'/etc/x')\": write a list or a number"),
        (
            "MODEL.MASK_FORMER.DEC_LAYERS",
            1 << 70,
            "of type int, and in a folder it is from -4096 to",
        ),
        ("MODEL.FUSION.ALPHA", float("nan"), "nan, and in a folder it is from -4096 to 4096"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "GeneralizedRCNN is registered, but has"),
        ("MODEL.META_ARCHITECTURE", "CLIPSelf", "CLIPSelf, which predicts nothing"),
        ("MODEL.META_ARCHITECTURE", ["CATSeg"], "unknown MODEL.META_ARCHITECTURE"),
    ],
)
def test_what_a_folder_may_not_say_is_refused_by_name(plain, key, value, message):
    change(plain, key, value)
    with pytest.raises(InputError) as refused:
        read_folder_config(plain)
    assert message in str(refused.value) and "config.yaml" in str(refused.value)


ANY = KEYS["MODEL.FVIT.NMS_IOU"].folder
BOUNDS = {
    key.name: key.folder
    for key in KEYS.values()
    if isinstance(key.folder, tuple) and key.folder != ANY
}


@pytest.mark.parametrize("key", BOUNDS)
def test_what_costs_more_than_the_weights_show_has_bounds(plain, key):
    for wrong in (BOUNDS[key][0] - 1, BOUNDS[key][1] + 1):
        change(plain, key, [wrong, 1] if key.endswith("RESOLUTION") else wrong)
        with pytest.raises(InputError, match=f"{key} is {wrong}, and in a folder it is from"):
            read_folder_config(plain)


def test_every_configuration_keeps_the_bounds():
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        values = dict(leaves(read_tree(file)))
        for key in values.keys() & BOUNDS.keys():
            assert not list(pretrained._problems_of_value(key, values[key], None)), file


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch run']",
        "MODEL: {WEIGHTS: !!python/object/new:os.system [touch run]}",
    ],
)
def test_nothing_in_a_configuration_runs(plain, text, monkeypatch):
    monkeypatch.chdir(plain)
    (plain / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="config.yaml is not a usable YAML file"):
        read_folder_config(plain)
    assert not (plain / "run").exists()


@pytest.mark.parametrize("file", ["config.yaml", "trained.json"])
def test_a_text_without_end_is_not_read(plain, file):
    change(plain, "TEST.TRAIN_VOCABULARY", "trained.json")
    with (plain / file).open("ab") as written:
        written.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match=f"{file} has .* {MOST_BYTES} at most are read"):
        from_folder(PanopticPredictor, plain)
