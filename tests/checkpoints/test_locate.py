"""Weights by name: paths, addresses, the Hugging Face hub on a server of the loopback, and the entries of the zoo."""

import functools
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import open_clip
import pytest
from detectron2.utils.file_io import PathManager

import clipself_seg.models.paths  # noqa: F401  teaches it clipself://
from clipself_seg.checkpoints import locate as module
from clipself_seg.checkpoints.download import NotFetched
from clipself_seg.checkpoints.locate import (
    HubName,
    fetch,
    hub_file,
    hub_folder,
    hub_name,
    is_remote,
    locate,
    present_file,
    present_hub_file,
    published_as,
    published_file,
    weights_folder,
)
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.zoo import (
    SHIPPED_MODELS,
    SHIPPED_TAGS,
    Entry,
    official,
    same_weights,
    suggestion,
    untrained,
    zoo,
)
from clipself_seg.clip.find_kind import list_architectures
from clipself_seg.errors import InputError
from clipself_seg.yaml_files import find_file
from tests.weight_server import COMMIT, serving

DATA = b"\x80eights" * 100  # begins as a pickle does
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
        f": fetch it from {address} and save it as {folder}/model_base.pth (819132441 bytes), or set"
        in said
    )
    assert "Connection refused" in said and len(said.splitlines()) == said.count("fetch ") == 1


def test_an_address_that_fails_is_said_once_in_a_short_sentence(folder):
    with pytest.raises(InputError) as caught:
        fetch(entry(f"{NOWHERE}/one.pt"))
    said = str(caught.value)
    assert said.count(NOWHERE) == 1 and len(said.split()) < 40
    assert f": fetch it from there and save it as {folder}/one.pt (700 bytes), or set" in said


def test_what_only_a_browser_gets_is_said_to_be_so(folder):
    with pytest.raises(
        InputError, match="fetch it with a browser from https://.* and save .*_patches.pt"
    ):
        locate("clipself-eva02-vitb16-coco-patches")
    (folder / "eva_vitb16_coco_clipself_patches.pt").write_bytes(DATA)
    assert locate("clipself-eva02-vitb16-coco-patches").is_file()


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
        said = f"{server.address}/two.pt cannot .*status 404.*: fetch it from {NOWHERE}/two.pt"
        with pytest.raises(InputError, match=said):
            fetch(entry(f"{NOWHERE}/two.pt", file="two.pt"))
    assert [path for path, _ in server.asked] == ["/one.pt", "/two.pt"]


def test_a_file_in_place_of_the_folder_of_weights_is_said(tmp_path, monkeypatch):
    (file := tmp_path / "model.pth").touch()
    monkeypatch.setenv(module.VARIABLE, str(file))
    with pytest.raises(InputError, match="CLIPSELF_SEG_WEIGHTS names the file .*model.pth: give"):
        weights_folder()


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
        ("/%00", "weights"),
        ("/..%5c..%5cx.pt", "x.pt"),
        ("/%2Fetc%2f.hidden.pt", "hidden.pt"),
        (f"/{'n' * 260}.pt", f"{'n' * 97}.pt"),
        (f"/{'%E6%A8%A1' * 90}.pt", f"{'模' * 32}.pt"),
        ("/a-1+b_2.PT", "a-1+b_2.PT"),
    ],
)
def test_no_address_leads_out_of_its_folder(address, name, folder, monkeypatch):
    monkeypatch.setattr(
        module.download, "download", lambda _, path: path.parent.mkdir(parents=True)
    )
    path = locate(NOWHERE + address)
    assert path.name == name and path.parent.parent == folder / "addresses"


NAME = HubName("org/name")
MODEL = "model.safetensors"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and an empty folder of weights, for somebody who has a token."""
    with serving() as server:
        monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
        monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        # It is told which program asks, for which it asks the hub too.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server
        assert not server.secrets


def test_an_entry_on_the_hub_comes_from_there_with_its_hash(hub, tmp_path, capsys, stand_ins):
    hub.push({"model_base.pth": DATA}, name="hamacojr/CAT-Seg-weights", kind="space")
    path = locate("catseg-base")
    assert path.read_bytes() == DATA and path.is_relative_to(tmp_path / "hub")
    assert "fetching catseg-base from https://huggingface.co/spaces/" in capsys.readouterr().err
    assert locate("catseg-base") == path and present_file(zoo()["catseg-base"])[0] == path
    hub.push({"one.pt": DATA})
    address = "https://huggingface.co/org/name/resolve/main/one.pt"
    with pytest.raises(InputError, match="has 700 bytes, and the official file has 699"):
        fetch(entry(address, size=699))
    with pytest.raises(InputError, match="has the sha256 .*, and that of the official file is abc"):
        fetch(entry(address, sha256="abc"))
    assert fetch(entry(address)).read_bytes() == DATA


def test_a_tag_that_the_zoo_does_not_have_comes_from_the_hub_too(hub, capsys):
    hub.push({"open_clip_pytorch_model.bin": DATA}, name="timm/x.openai")
    path = published_file("timm/x.openai/")
    assert path.name == "open_clip_pytorch_model.bin" and path.read_bytes() == DATA
    assert "licence" not in capsys.readouterr().err  # nothing says which


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
    hub.push({MODEL: b"of transformers", "open_clip_model.safetensors": DATA})
    path = hub_file(NAME)
    assert path.is_relative_to(tmp_path / "hub") and path.name == "open_clip_model.safetensors"
    assert path.read_bytes() == DATA and os.listdir(path.parent) == [path.name]
    count = len(hub.asked)
    hub.files.clear()
    assert hub_file(NAME) == path and len(hub.asked) == count


@pytest.mark.parametrize(
    "there, first",
    [
        # timm's resnet50x4_clip.openai: model.safetensors is the image tower alone
        (["model.safetensors", "open_clip_model.safetensors"], "open_clip_model.safetensors"),
        # laion's, before and after they were converted
        (["open_clip_pytorch_model.bin", "pytorch_model.bin"], "open_clip_pytorch_model.bin"),
        (
            ["open_clip_pytorch_model.bin", "open_clip_pytorch_model.safetensors", MODEL],
            "open_clip_pytorch_model.safetensors",
        ),
        # openai/clip-vit-base-patch32, whose config.json says the activation
        (["config.json", "pytorch_model.bin"], "pytorch_model.bin"),
    ],
)
def test_open_clips_file_comes_before_transformers_with_one_look_at_the_network(
    hub, monkeypatch, there, first
):
    probes, session = [], huggingface_hub.utils.get_session()
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: probes.append(1) or session)
    hub.push(dict.fromkeys(there, DATA))
    path = hub_file(NAME)
    assert path.name == first and len(probes) == 1
    assert (path.parent / "config.json").is_file() == ("config.json" in there)


def test_offline_nothing_is_asked_for(hub, monkeypatch):
    hub.push({"one.pt": DATA, **dict.fromkeys(module.FILES, DATA)})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", None)
    hub.files["/two.pt"] = DATA
    for given in ("hf-hub:org/name", f"{hub.address}/two.pt", "swin-base", "openai-vitb16"):
        with pytest.raises(NotFetched, match="not fetched, since HF_HUB_OFFLINE is set"):
            locate(given)
    with pytest.raises(NotFetched, match="HF_HUB_OFFLINE is set"):
        PathManager.get_local_path("clipself://catseg-base")
    assert not hub.asked


EVA = ("eva02-vitb16", "EVA02-B-16:merged2b_s8b_b131k")


@pytest.mark.parametrize("here, asked", [EVA, EVA[::-1]])
def test_one_file_stands_for_the_same_weights_by_any_name(folder, here, asked, stand_ins):
    path = folder / zoo()[here].file
    path.write_bytes(DATA)
    repository = "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k/"
    assert locate(asked) == locate(here) == published_file(repository) == path


def test_a_file_of_the_same_weights_is_checked_by_its_own_size(folder):
    (folder / zoo()[EVA[0]].file).write_bytes(DATA)
    with pytest.raises(InputError, match="the file of eva02-vitb16, has 700 bytes, .* 299522626:"):
        locate(EVA[1])


def test_a_tag_of_two_models_is_one_file(folder):
    path = folder / "ViT-B-16-openai.safetensors"
    path.write_bytes(DATA)
    for name in ("ViT-B-16", "ViT-B-16-quickgelu"):
        repository = open_clip.get_pretrained_cfg(name, "openai")["hf_hub"]
        assert published_file(repository) == locate("openai-vitb16") == path


def test_same_weights_are_entries_of_one_model():
    pairs = [(entry, zoo()[entry.same]) for entry in zoo().values() if entry.same]
    assert len(pairs) == 3
    for one, other in pairs:
        assert one.model == other.model and not other.same
        assert same_weights(one) == [one, other] and same_weights(other) == [other, one]
    assert same_weights(zoo()["catseg-base"]) == [zoo()["catseg-base"]]


def test_a_file_is_compared_with_what_was_fetched_at_first(folder):
    with serving(one_pt=DATA) as server:
        silent = entry(f"{server.address}/one.pt", sha256="", size=None)
        path, typed = fetch(silent), locate(f"{server.address}/one.pt")
        assert fetch(silent) == path
        for changed in (path, typed):
            changed.write_bytes(DATA[::-1])
        with pytest.raises(InputError, match="one.pt, the file of one, has the sha256"):
            fetch(silent)
        with pytest.raises(InputError, match="one.pt gave, has the sha256"):
            locate(f"{server.address}/one.pt")


def test_a_file_is_known_by_its_place_or_its_hash(folder, tmp_path_factory, monkeypatch):
    one = entry(model="ViT-L-14")
    monkeypatch.setattr(module, "zoo", lambda: {"one": one})
    copy = tmp_path_factory.mktemp("elsewhere") / "other.pt"
    copy.write_bytes(DATA)
    assert published_as(copy, "ViT-L-14") is one and published_as(copy, "ViT-B-16") is None
    copy.write_bytes(DATA[::-1])
    assert published_as(copy, "ViT-L-14") is None
    (folder / "one.pt").symlink_to(copy)
    assert published_as(copy, "ViT-L-14") is one


LAION = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"


@pytest.mark.parametrize("file", [*module.FILES])
def test_a_file_of_the_hub_is_known_by_its_repository(hub, file, tmp_path):
    hub.push({file: DATA, "config.json": b"{}"}, name=LAION)
    paths = [hub_file(HubName(LAION, file=name)) for name in ("", file)]
    place = HubName(LAION, "v1").folder
    place.mkdir(parents=True)
    (place / file).write_bytes(DATA[::-1])
    for path in (*paths, place / file):
        entry = published_as(path, "ViT-L-14")
        assert entry and entry.name == "ViT-L-14:laion2b_s32b_b82k"
        assert published_as(path, "ViT-B-16") is None
    (tmp_path / file).write_bytes(DATA[::-1])
    assert published_as(tmp_path / file, "ViT-L-14") is None


@pytest.mark.parametrize("file", module.OPEN_CLIP_FILES)
def test_any_of_open_clips_files_that_is_here_is_that_of_the_tag(hub, file, stand_ins):
    repository = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    hub.push({file: DATA}, name=repository)
    path = hub_file(HubName(repository))
    assert locate("ViT-B-16:laion2b_s34b_b88k") == published_file(repository) == path


def test_of_another_file_of_open_clips_no_hash_is_published(hub):
    repository, tag = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "ViT-B-16:laion2b_s34b_b88k"
    hub.push(dict.fromkeys(module.OPEN_CLIP_FILES, DATA), name=repository)
    other = locate(f"hf-hub:{repository}:open_clip_pytorch_model.safetensors")
    assert locate(tag) == other
    locate(f"hf-hub:{repository}:open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match="has the sha256 .*that of the official file is 1f16b1"):
        locate(tag)


def test_a_folder_in_place_of_a_file_is_said_with_the_weights_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("clip-vit-base-patch32")
    with pytest.raises(InputError, match="patch32 is a folder: give the file of weights in it$"):
        read_checkpoint("clip-vit-base-patch32")
    for name in ("config.json", MODEL):
        (tmp_path / "clip-vit-base-patch32" / name).touch()
    said = f"is a folder: give the file of weights in it, clip-vit-base-patch32/{MODEL}$"
    with pytest.raises(InputError, match=said):
        read_checkpoint("clip-vit-base-patch32")


def test_a_file_of_quite_another_size_than_the_published_one_is_not_hashed(folder, monkeypatch):
    one = entry(model="ViT-L-14", size=None, megabytes=1710)
    monkeypatch.setattr(module, "zoo", lambda: {"one": one})
    monkeypatch.setattr(module.download, "file_sha256", lambda path: pytest.fail("hashed"))
    (folder / "other.pt").write_bytes(DATA)
    assert published_as(folder / "other.pt", "ViT-L-14") is None
    assert one.may_have(1_709_812_345) and not one.may_have(855_000_000)


def test_a_revision_and_a_file_may_be_named(hub):
    hub.push({"a/other.bin": DATA}, revision="v1")
    path = hub_file(HubName("org/name", "v1", "a/other.bin"))
    assert path.read_bytes() == DATA and path.parent.name == "a"
    with pytest.raises(InputError, match="has no open_clip_model.safetensors and no .*name a file"):
        hub_file(HubName("org/name", "v1"))


def test_a_file_that_is_cut_off_goes_on(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.push({MODEL: DATA})
    hub.breaks = [300]
    assert hub_file(NAME).read_bytes() == DATA
    assert hub.asked[-1] == ("/org/name/resolve/main/model.safetensors", "bytes=300-")


def test_a_file_that_is_always_cut_off_is_not_kept(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.push({MODEL: DATA})
    hub.breaks = 20 * [0]
    with pytest.raises(
        NotFetched, match="cannot be fetched .*peer closed.*: fetch .* into .*org--"
    ):
        hub_file(NAME)
    assert not [path for path in tmp_path.rglob("model.safetensors*") if path.suffix != ".lock"]
    hub.breaks = []
    assert hub_file(NAME).read_bytes() == DATA


def test_another_file_than_the_hub_lists_is_not_kept(hub, tmp_path):
    hub.push({MODEL: DATA})
    hub.headers = {"ETag": f'"{hashlib.sha256(DATA[::-1]).hexdigest()}"'}
    with pytest.raises(InputError, match="has the sha256 .*nothing is kept, fetch it again"):
        hub_file(NAME)
    assert not list(tmp_path.rglob(MODEL))


@pytest.mark.parametrize("place", ["file:///etc/hostname", "ftp://127.0.0.1:9/a.pt"])
def test_the_hub_leads_to_web_addresses_alone_and_no_token_goes_there(place, hub):
    hub.push({MODEL: DATA})
    leads = f"/org/name/resolve/main/{MODEL}"
    hub.redirects[leads] = place
    with pytest.raises(NotFetched, match="cannot be fetched .UnsupportedProtocol"):
        hub_file(NAME)
    with serving(blob=DATA) as other:
        hub.redirects[leads] = f"{other.address}/blob"
        assert hub_file(NAME).read_bytes() == DATA
        assert other.asked and not other.secrets


def test_processes_that_want_one_repository_fetch_it_once(hub):
    hub.push({MODEL: DATA})
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(hub_file, 4 * [NAME]))
    assert len(paths) == 1 and paths.pop().read_bytes() == DATA
    assert [path for path, _ in hub.asked].count(f"/org/name/resolve/main/{MODEL}") == 1


def test_offline_it_says_at_once_what_to_fetch_and_where_to_put_it(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    folder = tmp_path / "hub" / "org--name" / "main"
    place = f"from {NOWHERE}/org/name/tree/main into {folder}"
    said = f"fetch .*pytorch_model.bin .of the last two config.json, too. {place}"
    with pytest.raises(InputError, match=f"Connection refused.*{said}"):
        hub_file(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set: fetch config.yaml from"):
        hub_folder(NAME, ["config.yaml"], [])
    with pytest.raises(InputError, match="fetch a.json and b.bin and c.json from"):  # all of them
        hub_folder(NAME, ["a.json", "b.bin"], ["c.json", "d.json"])
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(DATA)
    assert hub_file(NAME) == folder / "model.safetensors"


def test_a_folder_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "hub").touch()
    hub.push({MODEL: DATA})
    with pytest.raises(OSError, match=f"{tmp_path}/hub"):
        hub_file(NAME)


def test_what_others_have_cached_is_taken(hub, stand_ins):
    repository, file = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "open_clip_pytorch_model.bin"
    hub.push({file: DATA}, name=repository)
    cached = huggingface_hub.hf_hub_download(repository, file, endpoint=hub.address, token=False)
    hub.files.clear()
    assert str(hub_file(HubName(repository, file=file))) == cached
    assert str(hub_folder(HubName(repository), [file], [MODEL])) == os.path.dirname(cached)
    assert str(locate("ViT-B-16:laion2b_s34b_b88k")) == cached
    assert str(published_file(f"{repository}/")) == cached


def test_of_others_transformers_file_is_taken_with_its_config_alone(hub):
    """timm fetches ``model.safetensors``, its image tower, without that."""
    hub.push({MODEL: b"of timm", "config.json": b"{}", "open_clip_model.safetensors": DATA})

    def fetch(file):
        return huggingface_hub.hf_hub_download("org/name", file, endpoint=hub.address, token=False)

    cached = fetch(MODEL)
    assert present_hub_file(NAME) is None
    assert str(present_hub_file(NAME._replace(file=MODEL))) == cached  # which somebody named
    config = fetch("config.json")
    assert str(present_hub_file(NAME)) == cached
    os.remove(config)
    assert hub_file(NAME).read_bytes() == DATA


def test_a_folder_has_the_wanted_files_of_one_commit(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    files = {"config.yaml": b"old", MODEL: DATA, "more.py": b"print()"}
    hub.push(files)
    hub.breaks = [5000, 5000] + 20 * [0]  # all but the weights
    wanted = (["config.yaml"], ["vocabulary.json", MODEL])
    with pytest.raises(NotFetched):
        hub_folder(NAME, ["config.yaml", MODEL], ["vocabulary.json"])
    hub.breaks = []
    hub.push({**files, "config.yaml": b"new"}, commit=COMMIT[::-1])
    folder = hub_folder(NAME, *wanted)
    assert sorted(os.listdir(folder)) == ["config.yaml", MODEL]
    assert (folder / "config.yaml").read_bytes() == b"new"
    hub.files.clear()
    assert hub_folder(NAME, *wanted) == folder


ENTRIES = zoo().values()


def test_names_and_files_are_unlike_each_other_and_shipped_ones():
    assert len({entry.file.lower() for entry in ENTRIES}) == len(ENTRIES) > 50
    assert not zoo().keys() & {*SHIPPED_TAGS, *SHIPPED_MODELS, "openai", "random"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry):
    assert entry.addresses or entry.pages
    assert all(a.startswith("https://") and "/blob/" not in a for a in entry.addresses)
    assert entry.source and not (entry.size and entry.megabytes)
    assert entry.licence and re.fullmatch(r"https://\S+, read 20\d\d-\d\d", entry.licence_source)
    assert re.fullmatch("([0-9a-f]{8,64})?", entry.sha256) and entry.size != 0
    assert all(map(find_file, entry.configs))
    assert not entry.model or entry.model in list_architectures()


@pytest.mark.parametrize(
    ("answer", "licences"),
    [
        ("yes", ["MIT", "Apache-2.0", "CC BY 4.0"]),
        (
            "ask",
            ["MIT (the repository's)", "CreativeML OpenRAIL-M", "SAM License, gated", "unknown"],
        ),
        ("no", ["apple-amlr, research only", "CC BY-NC 4.0", "S-Lab License 1.0, non-commercial"]),
    ],
)
def test_whether_weights_may_be_shipped_follows_from_a_licence_of_their_own(answer, licences):
    assert {entry(licence=licence).may_ship for licence in licences} == {answer}
    assert any(entry.licence in licences for entry in ENTRIES)


def test_a_size_is_exact_about_or_not_published():
    sizes = [entry(), entry(size=None, megabytes=1410), entry(size=None)]
    assert [one.how_large for one in sizes] == ["0 MB", "about 1,410 MB", "not published"]


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
    assert official("MODEL.WEIGHTS", "semseg/catseg+openai_vitb16") == "catseg-base"
    assert official("MODEL.WEIGHTS", "my/own.yaml") == ""
    assert official("MODEL.WEIGHTS", "") == ""
    assert official("MODEL.WEIGHTS", "semseg/").startswith("catseg-base, catseg-large, catseg-v1-")
    assert official("MODEL.WEIGHTS", "detection/").endswith(", ...")


def test_a_model_without_weights_names_those_that_fit_its_clip():
    of = functools.partial(untrained, "aggregation", folder="semseg/", shipped="mini-cat-seg")
    assert str(of(clip="ViT-Mini-8")).endswith("or mini-cat-seg, which comes with the project")
    assert "or an official one: catseg-base, " in str(of(clip="ViT-B-16"))
