"""Weights by name: paths, addresses, the Hugging Face hub on a server of the loopback, and the entries of the zoo."""

from __future__ import annotations

import functools
import hashlib
import json
import re

import open_clip
import pytest

from clipself_seg.checkpoints import locate as module
from clipself_seg.checkpoints.locate import (
    HubName,
    fetch,
    hub_file,
    hub_folder,
    hub_name,
    is_remote,
    locate,
    published_file,
    weights_folder,
)
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.zoo import (
    SHIPPED_MODELS,
    SHIPPED_TAGS,
    Entry,
    official,
    suggestion,
    untrained,
    zoo,
)
from clipself_seg.clip.kinds import list_architectures
from clipself_seg.errors import InputError
from clipself_seg.yaml_files import find_file
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
    assert f": fetch them from {address} and save them as {folder}/model_base.pth, or set" in said
    assert "Connection refused" in said and len(said.splitlines()) == 1


def test_an_address_that_fails_is_said_once_in_a_short_sentence(folder):
    with pytest.raises(InputError) as caught:
        fetch(entry(f"{NOWHERE}/one.pt"))
    said = str(caught.value)
    assert said.count(NOWHERE) == 1 and len(said.split()) < 40
    assert f": fetch them from there and save them as {folder}/one.pt (700 bytes), or set" in said


def test_what_only_a_browser_gets_is_said_to_be_so(folder):
    with pytest.raises(InputError, match="from https://.* with a browser and save .*_patches.pt"):
        locate("clipself-eva02-vitb16-coco-patches")
    (folder / "eva_vitb16_coco_clipself_patches.pt").write_bytes(DATA)
    assert locate("clipself-eva02-vitb16-coco-patches").is_file()


def test_a_file_that_somebody_put_there_is_checked(folder):
    (folder / "model_large.pth").write_bytes(DATA)
    with pytest.raises(InputError, match="catseg-large, has 700 bytes, .*2298213993: delete it"):
        locate("catseg-large")


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
        said = (
            f"{server.address}/two.pt cannot .*status 404.*: fetch them from {NOWHERE}/two.pt and"
        )
        with pytest.raises(InputError, match=said):
            fetch(entry(f"{NOWHERE}/two.pt", file="two.pt"))
    assert [path for path, _ in server.asked] == ["/one.pt", "/two.pt"]


def test_half_an_address_is_refused(folder):
    with pytest.raises(InputError, match="is no address .*correct it"):
        locate("http://[::1")


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
        lambda *names, revision: str(cached) if names == wanted else None,
    )
    assert locate("ViT-B-16:laion2b_s34b_b88k") == cached
    assert published_file("ViT-B-16:laion2b_s34b_b88k", f"{wanted[0]}/") == cached


def test_a_tag_that_the_zoo_does_not_have_comes_from_the_hub_too(folder, monkeypatch, capsys):
    with serving() as server:
        server.files["/timm/x.openai/resolve/main/open_clip_pytorch_model.bin"] = DATA
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        path = published_file("ViT-X:openai", "timm/x.openai/")
    assert path == folder / "ViT-X-openai.safetensors" and path.read_bytes() == DATA
    assert "ViT-X:openai" not in zoo() and module.HUB_FILES[0] in server.asked[0][0]
    assert "licence" not in capsys.readouterr().err  # nothing says which


COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = HubName("org/name")
MODEL = "model.safetensors"


@pytest.fixture
def hub(monkeypatch):
    """A hub whose one repository has the files that it is given."""
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)

        def push(files, revision="main"):
            siblings = []
            for file, data in files.items():
                digits = hashlib.sha256(data).hexdigest()
                siblings.append({"rfilename": file, "size": len(data)})
                siblings[-1] |= {"lfs": {"size": len(data), "sha256": digits}}
                server.files[f"/org/name/resolve/{COMMIT}/{file}"] = data
            content = {"sha": COMMIT, "siblings": siblings}
            server.files[f"/api/models/org/name/revision/{revision}"] = json.dumps(content).encode()
            return server

        yield push


def test_names_have_a_repository_and_perhaps_revision_and_file():
    assert hub_name("hf-hub:org/name") == NAME and NAME.revision == "main"
    assert hub_name("hf-hub:o/n@v1:a/b.pt") == HubName("o/n", "v1", "a/b.pt")
    assert hub_name("hf-hub:o/n:b.pt") == HubName("o/n", file="b.pt")
    assert is_remote("hf-hub:o/n") and is_remote("http://a/b") and not is_remote("o/n")


@pytest.mark.parametrize(
    "text",
    ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:../b", "hf-hub:a/b:../c", "hf-hub:a--b/c"]
    + ["hf-hub:a/b@../x", "hf-hub:a/b:/etc/x", "hf-hub:a/b:.x", "hf-hub:a/b@", "hf-hub:a/b\n"]
    + ["hf-hub:a/b.", "hf-hub:a-/b", "hf-hub:a/b.git", "hf-hub:a/b.git:c"],
)
def test_other_names_are_refused(text):
    with pytest.raises(InputError, match="names nothing on the .* hub: give hf-hub:organisation/"):
        hub_name(text)


def test_a_file_is_fetched_once_and_open_clips_comes_first(hub, tmp_path):
    server = hub({MODEL: b"of transformers", "open_clip_model.safetensors": DATA})
    path = hub_file(NAME, tmp_path)
    assert path == tmp_path / "org--name" / "main" / "open_clip_model.safetensors"
    assert path.read_bytes() == DATA and len(server.asked) == 2
    server.files.clear()
    assert hub_file(NAME, tmp_path) == path and len(server.asked) == 2


def test_a_revision_and_a_named_file_have_places_of_their_own(hub, tmp_path):
    hub({"other.bin": DATA}, "v1")
    path = hub_file(HubName("org/name", "v1", "other.bin"), tmp_path)
    assert path == tmp_path / "org--name" / "v1" / "other.bin"
    with pytest.raises(InputError, match="has no open_clip_model.safetensors and no .*other.bin"):
        hub_file(HubName("org/name", "v1"), tmp_path)


def test_an_interrupted_file_goes_on_of_the_same_commit(hub, tmp_path):
    server = hub({MODEL: DATA})
    listing = server.files["/api/models/org/name/revision/main"]
    server.breaks = [len(listing), 300, 0]
    with pytest.raises(InputError, match="broke off after 300 bytes.* into .*org--name"):
        hub_file(NAME, tmp_path)
    server.files["/api/models/org/name/revision/main"] = b"{}"  # there is a newer commit
    assert hub_file(NAME, tmp_path).read_bytes() == DATA
    assert server.asked[-1] == (f"/org/name/resolve/{COMMIT}/model.safetensors", "bytes=300-")


def test_another_file_than_the_hub_lists_is_not_kept(hub, tmp_path):
    server = hub({MODEL: DATA})
    server.files[f"/org/name/resolve/{COMMIT}/model.safetensors"] = DATA[::-1]
    with pytest.raises(InputError, match="gave has the sha256 .*nothing is kept"):
        hub_file(NAME, tmp_path)
    assert not list((tmp_path / "org--name" / "main").glob("*.safetensors"))


def test_offline_it_says_at_once_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    folder = tmp_path / "org--name" / "main"
    said = f"fetch .*model.safetensors from {NOWHERE}/org/name/tree/main into {folder}"
    with pytest.raises(InputError, match=f"Connection refused.*{said}"):
        hub_file(NAME, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set: fetch its files from"):
        hub_folder(NAME, tmp_path, ["config.yaml"])
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(DATA)
    assert hub_file(NAME, tmp_path) == folder / "model.safetensors"


def test_what_others_have_cached_is_taken(hub, tmp_path, monkeypatch):
    cached = {("org/name", "model.safetensors", "main"): "/cache/blob"}
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, file, revision: cached.get((name, file, revision)),
    )
    assert str(hub_file(NAME, tmp_path)) == "/cache/blob"


def test_a_folder_has_the_wanted_files_that_there_are(hub, tmp_path):
    server = hub({"config.yaml": b"a", MODEL: DATA, "more.py": b"print()"})
    wanted = ["config.yaml", "model.safetensors", "vocabulary.json"]
    folder = hub_folder(NAME, tmp_path, wanted)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.yaml", "model.safetensors", "files.json"}
    (folder / "model.safetensors").write_bytes(DATA[1:])
    with pytest.raises(InputError, match="model.safetensors, a file of org/name, has 699 bytes"):
        hub_folder(NAME, tmp_path, wanted)
    assert len(server.asked) == 3
    with pytest.raises(InputError, match="has no card.json: it is no folder of save_pretrained"):
        hub_folder(NAME, tmp_path, ["card.json"])


def test_a_folder_that_somebody_put_there_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    folder = tmp_path / "org--name" / "main"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    assert hub_folder(NAME, tmp_path, ["config.yaml", "model.safetensors"]) == folder


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"sha": "x", "siblings": []}', b"[" * 9999])
def test_an_answer_that_is_no_list_of_files_is_refused(hub, tmp_path, content):
    server = hub({MODEL: DATA})
    server.files["/api/models/org/name/revision/main"] = content
    with pytest.raises(InputError, match="no list of a repository's files: .*HF_ENDPOINT"):
        hub_file(NAME, tmp_path)
    assert not list(tmp_path.rglob("files.json"))


ENTRIES = zoo().values()


def test_names_and_files_are_unlike_each_other_and_shipped_ones():
    assert len({entry.file.lower() for entry in ENTRIES}) == len(ENTRIES) > 50
    assert not zoo().keys() & {*SHIPPED_TAGS, *SHIPPED_MODELS, "openai", "random"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry):
    assert entry.addresses or entry.pages
    assert all(a.startswith("https://") and "/blob/" not in a for a in entry.addresses)
    assert entry.licence and entry.source
    assert re.fullmatch("([0-9a-f]{8,64})?", entry.sha256) and entry.size != 0
    assert all(map(find_file, entry.configs))
    assert not entry.model or entry.model in list_architectures()


def test_whether_weights_may_be_shipped_follows_from_a_licence_of_their_own():
    answers = {name: zoo()[name].may_ship for name in ("tipsv2-b14", "catseg-base", "odise-label")}
    assert answers == {"tipsv2-b14": "yes", "catseg-base": "ask", "odise-label": "no"}
    assert zoo()["openai-vitb16"].may_ship == zoo()["resnet101"].may_ship == "ask"
    assert zoo()["ViT-B-16-quickgelu:metaclip_400m"].may_ship == "no"


def test_names_of_tags_are_tags():
    tags = [entry for entry in ENTRIES if ":" in entry.name]
    assert len(tags) == 51
    for entry in tags:
        model, tag = entry.name.split(":")
        assert model == entry.model
        repository = open_clip.get_pretrained_cfg(model, tag)["hf_hub"]
        assert f"/{repository}resolve/main/" in entry.addresses[0]


def test_a_missing_file_of_an_official_name_is_called_by_its_name():
    with pytest.raises(InputError, match='at in/model_base.pth; .*"catseg-base" is the name of'):
        read_checkpoint("in/model_base.pth")
    assert suggestion("catseg-bsae").endswith('did you mean "catseg-base"?')
    assert suggestion("mini-fvitt").endswith('did you mean "mini-fvit"?')
    assert suggestion("mini-clipself").endswith("it belongs in MODEL.CLIP.WEIGHTS")


def test_configurations_know_their_official_checkpoints():
    assert official("MODEL.WEIGHTS", "configs/semseg/catseg+openai_vitb16.yaml") == "catseg-base"
    assert official("MODEL.WEIGHTS", "a/catseg+openai_vitb16.yaml") == ""
    assert official("MODEL.WEIGHTS", "") == ""
    assert official("MODEL.WEIGHTS", "semseg/").startswith("catseg-base, catseg-large, catseg-v1-")
    assert official("MODEL.WEIGHTS", "detection/").endswith(", ...")


def test_a_model_without_weights_names_those_that_fit_its_clip():
    of = functools.partial(untrained, "aggregation", folder="semseg/", shipped="mini-cat-seg")
    assert str(of(clip="ViT-Mini-8")).endswith("or mini-cat-seg, which comes with the project")
    assert "or an official one: catseg-base, " in str(of(clip="ViT-B-16"))
