"""Names of models that find masks: what they stand for, licence and gate before anything is fetched."""

import pytest

from clipself_seg.checkpoints.locate import HubName
from clipself_seg.checkpoints.mask_models import (
    MASK_MODELS,
    has_mask_model,
    is_mask_model_name,
    mask_model_folder,
)
from clipself_seg.checkpoints.needs import missing_parts
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


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_without_its_settings_is_refused_and_no_folder_of_masks(folder, file):
    (folder / file).touch()
    with pytest.raises(InputError, match=f"has the {file} of a model, and only .* beside config"):
        MaskFolder(folder)


def test_a_file_in_place_of_masks_is_said_to_be_one(folder):
    (folder / "sam2.1_hiera_large.pt").touch()
    with pytest.raises(InputError, match='large.pt" .a file, of which no masks are read'):
        MaskFolder("sam2.1_hiera_large.pt")


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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "tue-mps/coco_panoptic_eomt_large_640_dinov3",
            "DINOv3's gated weights, in a pickle: take --masks eomt-dinov3",
        ),
        (
            "hf-hub:tue-mps/ade_semantic_eomt_large_512_dinov3",
            "DINOv3's gated weights, in a pickle: take --masks eomt-dinov3",
        ),
        (
            "facebook/mask2former-swin-large-coco-panoptic",
            "take --masks hf-hub:facebook/mask2former-swin-large-coco-panoptic@a4edee47b1b2662241ceed",
        ),
    ],
)
def test_what_has_no_safetensors_is_refused_with_what_to_take_unless_they_are_here(hub, name, said):
    with pytest.raises(InputError, match=said):
        mask_model_folder(name)
    with pytest.raises(InputError, match=said):
        missing_parts({KEY: name, "MODEL.MASK_GENERATOR.SOURCE": "masks"})
    assert not hub.asked
    folder = HubName(name.removeprefix("hf-hub:")).folder
    folder.mkdir(parents=True)
    for file, data in FILES.items():
        (folder / file).write_bytes(data)
    assert mask_model_folder(name) == folder


def test_the_revision_with_safetensors_that_is_named_is_not_refused(hub):
    revision = "a4edee47b1b2662241ceed627430aa22d0647bd0"
    repository = "facebook/mask2former-swin-large-coco-panoptic"
    hub.push(FILES, name=repository, revision=revision, commit=revision)
    assert mask_model_folder(f"hf-hub:{repository}@{revision}").is_dir()


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
