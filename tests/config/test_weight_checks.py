"""Weights that a configuration names: addresses of files are refused, names are looked for first."""

import pytest

from clipself_seg.config import load_config
from clipself_seg.config.weight_checks import WEIGHTS, fetch_addresses, require_weights
from clipself_seg.errors import InputError
from tests.weight_server import serving

ADDRESS = "https://example.org/a.pth"


@pytest.mark.parametrize("address", [ADDRESS, "hf-hub:org/name"])
@pytest.mark.parametrize("key", WEIGHTS)
def test_an_address_in_a_file_or_its_base_is_refused_by_name(key, address, tmp_path):
    section = key.split(".")
    text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(section))
    base = tmp_path / "base.yaml"
    base.write_text(f"{text.rstrip()} {address}\n")
    (tmp_path / "a.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(InputError, match=f"base.yaml: {key} is the address {address}"):
        load_config(tmp_path / "a.yaml")
    assert load_config(tmp_path / "a.yaml", [key, ""]).MODEL


def test_a_typed_address_is_fetched_and_its_file_stands_in_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    with serving(a_pth=b"\x80weights") as server:
        cfg = load_config(None, ["MODEL.WEIGHTS", f"{server.address}/a.pth"])
        with pytest.raises(InputError, match="MODEL.WEIGHTS is the address"):
            require_weights(cfg)
        assert not server.asked
        fetched = fetch_addresses(cfg)
    assert fetched.MODEL.WEIGHTS.startswith(str(tmp_path)) and fetched.is_frozen()
    require_weights(fetched)


def test_a_typed_name_of_the_hub_is_fetched_like_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    path = tmp_path / "hub" / "org--name" / "main" / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    cfg = load_config(None, ["MODEL.CLIP.WEIGHTS", "hf-hub:org/name"])
    with pytest.raises(InputError, match="MODEL.CLIP.WEIGHTS is the address hf-hub:org/name"):
        require_weights(cfg)
    assert fetch_addresses(cfg).MODEL.CLIP.WEIGHTS == str(path)


def test_a_file_may_name_an_entry_which_is_looked_for(tmp_path, monkeypatch, stand_ins):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "a.yaml").write_text("MODEL:\n  WEIGHTS: catseg-base\n")
    cfg = load_config(tmp_path / "a.yaml")
    with pytest.raises(InputError, match="catseg-base is not on this machine"):
        require_weights(cfg)
    (tmp_path / "model_base.pth").write_bytes(b"\x80weights")
    require_weights(cfg)
    assert fetch_addresses(cfg) is cfg


@pytest.mark.parametrize("key", WEIGHTS)
def test_a_file_that_is_not_there_is_said_before_anything_is_built(key):
    with pytest.raises(InputError, match="no checkpoint at none/a.pt; .*official checkpoint"):
        require_weights(load_config(None, [key, "none/a.pt"]))
