"""Names of models that find masks: what they stand for, licence and gate before anything is fetched."""

import pytest

from clipself_seg.checkpoints.mask_models import (
    MASK_MODELS,
    has_mask_model,
    is_mask_model_name,
    mask_model_folder,
)
from clipself_seg.config import load_config
from clipself_seg.config.weight_checks import fetch_addresses, refuse_addresses
from clipself_seg.data.given_masks import MaskFolder
from clipself_seg.errors import InputError
from tests.checkpoints import test_locate

hub = test_locate.hub

FILES = {"config.json": b"{}", "model.safetensors": b"of masks", "README.md": b"no"}
KEY = "MODEL.MASK_GENERATOR.OUTPUTS"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_is_no_path_and_a_path_no_name(folder):
    (folder / "sam2").mkdir()
    (folder / "facebook/sam2.1").mkdir(parents=True)
    for name in (*MASK_MODELS, "facebook/sam2.1-hiera-tiny", "hf-hub:a/b"):
        assert is_mask_model_name(name)
    for path in ("./sam2", "facebook/sam2.1", "masks/train", "", str(folder)):
        assert not is_mask_model_name(path)
    assert not has_mask_model(folder / "sam2")


def test_a_model_in_shards_or_a_pickle_is_refused_and_no_folder_of_masks(folder):
    for name in ("config.json", "model.safetensors.index.json"):
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match="config.json of a model, and only a whole model.safeten"):
        MaskFolder(folder)
    (folder / "model.safetensors").write_text("")
    assert has_mask_model(folder)


def test_settings_and_safetensors_alone_are_fetched(hub, capsys):
    hub.push(FILES)
    place = mask_model_folder("hf-hub:org/name")
    assert has_mask_model(place) and not (place / "README.md").exists()
    assert capsys.readouterr().err.startswith("fetching from http")
    assert not [path for path, _ in hub.asked if path.endswith("README.md")]
    count = len(hub.asked)
    assert mask_model_folder("hf-hub:org/name") == place and len(hub.asked) == count > 0
    assert not capsys.readouterr().err


def test_what_has_no_safetensors_is_refused(hub):
    hub.push({"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    with pytest.raises(InputError, match="has no model.safetensors: name a repository that has"):
        mask_model_folder("hf-hub:org/name")
    with pytest.raises(InputError, match="names a file: name the repository, hf-hub:a/b"):
        mask_model_folder("hf-hub:a/b:model.safetensors")


def test_what_has_other_files_than_are_read_is_refused_before_it_is_asked_for(hub):
    for name in ("facebook/sam3.1", "hf-hub:facebook/sam3.1"):
        assert is_mask_model_name(name)
        with pytest.raises(
            InputError, match="one file, of other names than.*--masks facebook/sam3"
        ):
            mask_model_folder(name)
    assert not hub.asked


def test_a_gated_model_is_not_asked_for_and_taken_from_where_it_was_fetched(
    hub, folder, monkeypatch
):
    with pytest.raises(InputError, match="gated .SAM License.*hf download facebook/sam3 "):
        mask_model_folder("sam3")
    assert not hub.asked
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    there = lambda repository, file, **_: str(folder / file)  # noqa: E731
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", there)
    assert mask_model_folder("sam3") == folder and not hub.asked


def test_names_in_files_are_refused_and_typed_ones_fetched(hub, folder):
    base = "_BASE_: mini/panoptic_masks.yaml\nMODEL:\n  MASK_GENERATOR:\n    OUTPUTS: "
    hub.push(FILES)
    for name in ("sam2", "hf-hub:org/name"):
        (folder / "own.yaml").write_text(f"{base}{name}\n")
        with pytest.raises(InputError, match=f"own.yaml: {KEY} is the name {name}, which is"):
            load_config(folder / "own.yaml")
    cfg = load_config(folder / "own.yaml", [KEY, "hf-hub:org/name"])
    with pytest.raises(InputError, match="fetched only where it is typed"):
        refuse_addresses(cfg)
    assert not hub.asked
    fetched = fetch_addresses(cfg)
    assert has_mask_model(fetched.MODEL.MASK_GENERATOR.OUTPUTS)
    refuse_addresses(fetched)
