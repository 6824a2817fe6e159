"""What stands for weights: paths, names of the zoo, addresses; folders and mirrors."""

from __future__ import annotations

import hashlib

import pytest

from clipself_seg.checkpoints import locate as module
from clipself_seg.checkpoints.locate import fetch, locate, published_file, weights_folder
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, Entry, zoo
from clipself_seg.errors import InputError
from tests.weight_server import serving

DATA = b"weights" * 100
NOWHERE = "http://127.0.0.1:9"  # the port of "discard", where nobody listens


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of weights."""
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    return tmp_path


def entry(*addresses: str, **values) -> Entry:
    """An entry of the zoo with the hash of `DATA`."""
    sha256 = hashlib.sha256(DATA).hexdigest()
    known = {"name": "one", "file": "one.pt", "sha256": sha256, "size": len(DATA)}
    return Entry(**known | {"addresses": addresses} | values)


def test_paths_and_shipped_models_are_what_they_are(folder):
    assert str(locate("none/a.pt")) == "none/a.pt"
    assert locate("mini-fvit") == SHIPPED_MODELS["mini-fvit"]


def test_a_file_in_the_folder_is_taken_without_a_network(folder):
    (folder / "model_base.pth").write_bytes(DATA)
    assert locate("catseg-base") == folder / "model_base.pth"


def test_a_file_of_the_name_in_the_current_folder_comes_first(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catseg-base").write_bytes(DATA)
    assert str(locate("catseg-base")) == "catseg-base"


def test_offline_it_says_what_to_fetch_and_where_to_put_it(folder):
    with pytest.raises(InputError) as caught:
        locate("catseg-base")
    said = str(caught.value)
    address = "https://huggingface.co/spaces/hamacojr/CAT-Seg-weights/resolve/main/model_base.pth"
    assert (
        f"fetch model_base.pth from {address} and put it into {folder} under that name, or set"
        in said
    )
    assert "Connection refused" in said and len(said.splitlines()) == 1


def test_what_only_a_browser_gets_is_said_to_be_so(folder):
    with pytest.raises(InputError, match="fetch eva_vitb16_coco_clipself_patches.pt from https://"):
        locate("clipself-eva02-vitb16-coco-patches")
    (folder / "eva_vitb16_coco_clipself_patches.pt").write_bytes(DATA)
    assert locate("clipself-eva02-vitb16-coco-patches").is_file()


def test_a_file_that_somebody_put_there_is_checked(folder):
    (folder / "ViT-B-16.pt").write_bytes(DATA)
    with pytest.raises(InputError, match="openai-vitb16, has 700 bytes, .*350837078: delete it"):
        locate("openai-vitb16")


def test_the_next_address_is_tried_where_one_fails(folder):
    with serving(one_pt=DATA) as server:
        path = fetch(entry(f"{NOWHERE}/one.pt", f"{server.address}/one.pt"))
    assert path == folder / "one.pt" and path.read_bytes() == DATA


def test_a_wrong_file_of_one_address_is_an_error_whatever_others_have(folder):
    with serving(one_pt=DATA[::-1]) as server:
        with pytest.raises(InputError, match="one.pt gave has the sha256"):
            fetch(entry(f"{server.address}/one.pt", f"{NOWHERE}/one.pt"))
    assert not (folder / "one.pt").exists()


def test_a_mirror_stands_in_for_all_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serving(one_pt=DATA) as server:
        monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", f"{server.address}/")
        assert fetch(entry(f"{NOWHERE}/one.pt")) == tmp_path / "clipself_seg" / "one.pt"
        assert fetch(entry(pages=("https://page",))) == weights_folder() / "one.pt"
        with pytest.raises(InputError, match=f"{server.address}/two.pt cannot .*status 404"):
            fetch(entry(f"{NOWHERE}/two.pt", file="two.pt"))
    assert [path for path, _ in server.asked] == ["/one.pt", "/two.pt"]


def test_an_address_has_a_folder_of_its_own(folder):
    with serving(a_pt=DATA) as server:
        path = locate(f"{server.address}/a.pt?download=1")
        server.files["/b/a.pt"] = DATA[::-1]
    assert path.name == "a.pt" and path.read_bytes() == DATA
    with pytest.raises(InputError, match="cannot be fetched .*; fetch it yourself, and give its"):
        locate(f"{NOWHERE}/a.pt")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/%2e%2e", "weights"),
        ("/x/..", "weights"),
        ("/%00", "weights"),
        ("/..%5c..%5cx.pt", "x.pt"),
        ("/%2Fetc%2f.hidden.pt", "hidden.pt"),
        (f"/{'n' * 260}.pt", f"{'n' * 97}.pt"),
        (f"/{'%E6%A8%A1' * 90}.pt", f"{'模' * 32}.pt"),
        ("/a-1+b_2.PT", "a-1+b_2.PT"),
    ],
)
def test_no_address_leads_out_of_its_folder(address, name, folder, monkeypatch):
    monkeypatch.setattr(module, "download", lambda _, path: path.parent.mkdir(parents=True))
    path = locate(NOWHERE + address)
    assert path.name == name and path.parent.parent == folder / "addresses"


def test_what_the_hub_has_cached_is_taken(folder, tmp_path, monkeypatch):
    cached = tmp_path / "blob"
    cached.write_bytes(DATA)
    wanted = ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "open_clip_pytorch_model.bin")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda *names: str(cached) if names == wanted else None,
    )
    assert locate("ViT-B-16:laion2b_s34b_b88k") == cached
    assert published_file("ViT-B-16:laion2b_s34b_b88k", f"{wanted[0]}/") == cached


def test_a_tag_that_the_zoo_does_not_have_comes_from_the_hub_too(folder, monkeypatch):
    with serving() as server:
        server.files["/timm/x.openai/resolve/main/open_clip_pytorch_model.bin"] = DATA
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        path = published_file("ViT-X:openai", "timm/x.openai/")
    assert path == folder / "ViT-X-openai.safetensors" and path.read_bytes() == DATA
    assert "ViT-X:openai" not in zoo() and module.HUB_FILES[0] in server.asked[0][0]
