"""Fetching a file from a server that may break off, lie or be away."""

import functools
import hashlib
import os
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from clipself_seg.checkpoints.download import (
    NotFetched,
    check_file,
    download,
    is_address,
)
from clipself_seg.errors import InputError
from tests.weight_server import serving

DATA = os.urandom(5000)
NOWHERE = "http://127.0.0.1:9"  # the port of "discard", where nobody listens
SHA256 = hashlib.sha256(DATA).hexdigest()


def test_a_whole_file_is_fetched_and_checked_and_nothing_else_stays(tmp_path):
    with serving(a_pt=DATA) as server:
        path = tmp_path / "new" / "a.pt"
        download(f"{server.address}/a.pt", path, size=5000, sha256=SHA256[:8])
        beside = {".a.pt.lock", ".a.pt.sha256"}
        assert path.read_bytes() == DATA and {*os.listdir(path.parent)} == {"a.pt", *beside}
        download(f"{server.address}/a.pt", path)  # it is there
    assert len(server.asked) == 1


def test_what_breaks_off_is_not_kept(tmp_path):
    with serving(a_pt=DATA) as server:
        server.breaks = [1000]
        with pytest.raises(NotFetched, match="a.pt broke off .*received 1000 bytes?"):
            download(f"{server.address}/a.pt", tmp_path / "a.pt")
        assert os.listdir(tmp_path) == [".a.pt.lock"]
        download(f"{server.address}/a.pt", tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == DATA


def test_a_wrong_hash_or_size_is_refused_and_not_kept(tmp_path):
    with serving(a_pt=DATA) as server:
        address = f"{server.address}/a.pt"
        with pytest.raises(InputError, match="has the sha256 .* of the official file is ffffffff"):
            download(address, tmp_path / "a.pt", sha256="ffffffff")
        with pytest.raises(InputError, match="a.pt has more than 4999 bytes"):
            download(address, tmp_path / "a.pt", size=4999)
        with pytest.raises(InputError, match="gave has 5000 bytes, and the official file has 5001"):
            download(address, tmp_path / "a.pt", size=5001)
        assert os.listdir(tmp_path) == [".a.pt.lock"]
        download(address, tmp_path / "a.pt", sha256=SHA256)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with serving(a_pt=DATA) as server:
        with pytest.raises(OSError, match=f"{tmp_path}/file"):
            download(f"{server.address}/a.pt", tmp_path / "file" / "a.pt")


def test_a_page_is_no_file_of_weights(tmp_path):
    with serving(a_pt=b"<html>") as server:
        server.kind = "text/html; charset=utf-8"
        with pytest.raises(InputError, match="is a web page, not a file of weights"):
            download(f"{server.address}/a.pt", tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()


def test_no_server_and_no_file_are_said_at_once(tmp_path):
    with serving() as server:
        with pytest.raises(NotFetched, match=r"/a.pt cannot be fetched \(status 404\)"):
            download(f"{server.address}/a.pt", tmp_path / "a.pt")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/a.pt"
        with pytest.raises(NotFetched, match="cannot be fetched .*Connection refused"):
            download(address, tmp_path / "a.pt")


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://host/a.pt", "HF://a/b"])
def test_other_kinds_of_addresses_are_refused(address, tmp_path):
    assert is_address(address)
    with pytest.raises(NotFetched, match="is no http or https address"):
        download(address, tmp_path / "a.pt")


@pytest.mark.parametrize("place", ["file:///etc/hostname", "ftp://127.0.0.1:9/a.pt"])
def test_an_address_that_leads_elsewhere_than_the_web_is_not_followed(place, tmp_path):
    with serving() as server:
        server.redirects["/a.pt"] = place
        with pytest.raises(NotFetched, match="cannot be fetched .*unsupported protocol"):
            download(f"{server.address}/a.pt", tmp_path / "a.pt")
        server.files["/b.pt"] = DATA
        server.redirects["/a.pt"] = f"{server.address}/b.pt"
        download(f"{server.address}/a.pt", tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == DATA


def test_an_address_is_taken_as_it_is_read_in_a_browser(tmp_path):
    with serving() as server:
        server.files["/Z%C3%BCrich%201%20a.jpg"] = DATA
        for name in ("Zürich 1 a.jpg", "Zürich%201 a.jpg#part", "Z%C3%BCrich%201%20a.jpg"):
            download(f"{server.address}/{name}", tmp_path / name)
            assert (tmp_path / name).read_bytes() == DATA
    with pytest.raises(NotFetched, match="cannot be fetched .*Invalid"):
        download("http://[::1/a.jpg", tmp_path / "a.jpg")


def test_paths_are_no_addresses():
    assert not any(map(is_address, ("a.pt", "C:/a.pt", "C:\\a.pt", "hf-hub:a/b", "/a//b", "c://a")))


def test_processes_that_want_one_file_fetch_it_once(tmp_path):
    code = "import sys; from pathlib import Path; import clipself_seg.checkpoints.download as d; "
    code += "d.download(sys.argv[1], Path('a.pt'))"
    with serving(a_pt=DATA) as server:
        address = f"{server.address}/a.pt"
        other = subprocess.Popen([sys.executable, "-c", code, address], cwd=tmp_path)
        threads = [
            threading.Thread(target=download, args=(address, tmp_path / "a.pt")) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert other.wait(30) == 0
    assert len(server.asked) == 1


def test_a_file_is_hashed_again_when_it_changes(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(DATA)
    check_file(path, 5000, SHA256, "it")
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="it has the sha256 .*: delete it, fetch it again"):
        check_file(path, 5000, SHA256, "it")


def test_an_encrypted_address_leads_to_no_other_one(monkeypatch, tmp_path):
    def answer(request):
        plain = {"Location": "http://a.example/c.pt"}
        return httpx.Response(
            302 if request.url.scheme == "https" else 200,
            headers=plain,
            stream=httpx.ByteStream(b""),
        )

    client = functools.partial(httpx.Client, transport=httpx.MockTransport(answer))
    monkeypatch.setattr(httpx, "Client", client)
    with pytest.raises(NotFetched, match="it leads to http://a.example/c.pt"):
        download("https://a.example/b.pt", tmp_path / "b.pt")
    download("http://a.example/b.pt", tmp_path / "b.pt")
    assert (tmp_path / "b.pt").read_bytes() == b""
