"""Files of the Hugging Face hub, on a server of the loopback: chosen, resumed, checked, and asked for once."""

from __future__ import annotations

import hashlib
import json

import pytest

from clipself_seg.checkpoints.locate import HubName, hub_file, hub_folder, hub_name, is_remote
from clipself_seg.errors import InputError
from tests.weight_server import serving

DATA = b"weights" * 100
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = HubName("org/name")
MODEL = "model.safetensors"
NOWHERE = "http://127.0.0.1:9"


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
    with pytest.raises(InputError, match="has no card.json: it is none of save_pretrained's"):
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
