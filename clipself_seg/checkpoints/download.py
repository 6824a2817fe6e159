"""Downloads files over HTTP: resumes interrupted downloads, and renames a file to its name once it is verified.

Libraries do less: iopath's PathManager neither resumes nor verifies, and huggingface_hub compares sizes and no hashes,
and sends a token unless told otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clipself_seg.errors import GOES_ON, InputError, in_short
from clipself_seg.files import FolderInUse, alone_in, read_json, write_json

VERSION = "version.json"
BLOCK = 1 << 20  # bytes
SECONDS = 20  # that a server may be silent
WAIT = 0.5  # seconds between two looks at what another process fetches
HEADERS = {"User-Agent": "clipself_seg", "Accept-Encoding": "identity"}
logger = logging.getLogger(__name__)


class NotFetched(InputError):
    """An address that does not answer with the file: no network, no such page, or it broke off."""


class _BrokenOff(Exception):
    """The connection ended before the file did."""


class _AnotherVersion(Exception):
    """What the server has is not what ``part`` is the beginning of."""


def is_address(text: str) -> bool:
    """Whether a text begins as an address of the network does; paths of Windows do not."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def download(address: str, path: Path, *, size: int | None = None, sha256: str = "") -> None:
    """Fetch a file, unless another process does; what an interrupted call got is kept and goes on.

    Args:
        address: http or https.
        path: file that is not there yet; its folder is made.
        size: bytes that it has to have, None for any.
        sha256: hexadecimal digits that its hash has to begin with.

    Raises:
        NotFetched: another kind of address, no connection, no such file, or it broke off.
        InputError: what came is a web page, or has another size or hash; it is not kept.
        OSError: it cannot be written.
    """
    _require_web(address)
    partial = path.with_name(f".{path.name}.partial")
    said = False
    while not path.exists():
        try:
            with alone_in(partial):
                if not path.exists():
                    _fetch(address, partial, size)
                    check_file(partial / "part", size, sha256, f"what {address} gave", discard=True)
                    os.replace(partial / "part", path)
        except FolderInUse:
            if not said:
                logger.info("%s: another process fetches it", path)
            said = True
            time.sleep(WAIT)
        except (FileNotFoundError, FileExistsError):
            if not path.exists():  # else who fetched it has just removed the folder of the part
                raise
    shutil.rmtree(partial, ignore_errors=True)


def fetch_bytes(address: str, most: int, what: str) -> bytes:
    """What an address gives, kept in memory alone: for small files that are used once, such as images.

    Args:
        address: http or https.
        most: bytes at most.
        what: what the file has to be, such as "an image", for messages.

    Raises:
        NotFetched: another kind of address, no connection, no such file, or it broke off.
        InputError: it is a web page, or larger.
    """
    _require_web(address)
    content = bytearray()
    with _open(address, what) as response:
        total = _extent(response, 0)[1]
        try:
            for block in _blocks(response):
                content += block
                if max(total or 0, len(content)) > most:
                    raise InputError(
                        f"{address} has more than {most} bytes: fetch the file, and give its path"
                    )
            if total is not None and len(content) != total:
                raise _BrokenOff(f"of {total}")
        except _BrokenOff as error:
            raise NotFetched(
                f"{address} broke off after {len(content)} bytes ({error}): call again, it begins anew"
            ) from None
    return bytes(content)


def _require_web(address: str) -> None:
    if re.match("https?://", address, re.IGNORECASE) is None:
        raise NotFetched(
            f"{address} is no http or https address: fetch the file, and give its path"
        )


def check_file(path: Path, size: int | None, sha256: str, what: str, discard: bool = False) -> None:
    """Refuse a file of another size or hash than was published.

    Args:
        path: the file.
        size: bytes, None for any.
        sha256: digits that its hash has to begin with, empty for any.
        what: what to call it.
        discard: delete it if it is another one, so that the next call begins anew.

    Raises:
        InputError: says both values.
    """
    status = path.stat()
    if size is not None and status.st_size != size:
        reason = f"has {status.st_size} bytes, and the official file has {size}"
    elif sha256 and not (own := file_sha256(path)).startswith(sha256):
        reason = f"has the sha256 {own[:16]}..., and that of the official file is {sha256[:16]}"
    else:
        return
    if discard:
        path.unlink()
    raise InputError(
        f"{what} {reason}: {'nothing is kept' if discard else 'delete it'}, fetch it again"
    )


def file_sha256(path: Path) -> str:
    """Hexadecimal digits of the hash of a file, computed once for each state of it."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Hash of a file as it is; a file of another size or time of change is another one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _fetch(address: str, partial: Path, size: int | None) -> None:
    """Fill ``partial/part``, and go on where the connection breaks off after some of it; anew of another version."""
    part, notes = partial / "part", partial / VERSION
    before = _length(part)
    while True:
        try:
            return _ask(address, part, notes, size)
        except _AnotherVersion:
            part.unlink(missing_ok=True)
            notes.unlink(missing_ok=True)
        except _BrokenOff as error:
            got, kept = _length(part), _version(notes, address)["tag"]
            if got <= before:
                raise NotFetched(
                    f"{address} broke off after {got} bytes ({error}): "
                    + (GOES_ON if kept else "call again, it begins anew")
                ) from None
            then = "goes on" if kept else "begins anew"
            logger.warning("%s broke off after %d bytes (%s): %s", address, got, error, then)
            before = got


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _ask(address: str, part: Path, notes: Path, size: int | None) -> None:
    """One request for what ``part`` lacks, or for all where the server keeps no version."""
    noted = _version(notes, address)
    start = _length(part) if noted["tag"] else 0
    if start and start == noted["total"]:
        return
    ranges = {"Range": f"bytes={start}-", "If-Range": noted["tag"]} if start else {}
    with _open(address, "a file of weights", ranges) as response:
        start, total = _extent(response, start)
        tag = _tag(response)
        if start:  # servers that ignore If-Range send the rest of whatever they have
            total = noted["total"] if total is None else total
            if tag != noted["tag"] or noted["total"] not in (None, total):
                raise _AnotherVersion
        if size is not None and total not in (None, size):
            raise InputError(
                f"{address} has {total} bytes, and the official file has {size}: it is another one; "
                "give the right file's path"
            )
        if not start:  # else, killed here, the new notes would stand beside the old part
            part.unlink(missing_ok=True)
        write_json(notes, {"address": address, "tag": tag, "total": total})
        most = size if total is None else total
        progress = tqdm(
            desc="fetched", initial=start, total=total, unit="B", unit_scale=True, disable=None
        )
        with part.open("r+b" if start else "wb") as file, progress:
            file.seek(start)
            for block in _blocks(response):
                file.write(block)
                progress.update(len(block))
                if most is not None and file.tell() > most:
                    part.unlink()
                    raise InputError(
                        f"{address} sends more than {most} bytes, nothing is kept: give the right file's path"
                    )
            file.flush()
            os.fsync(file.fileno())
            got = file.tell()
    if total is not None and got != total:
        raise _BrokenOff(f"of {total}")


def _extent(response: http.client.HTTPResponse, start: int) -> tuple[int, int | None]:
    """The byte that an answer begins with, and the bytes of the whole file, None where it does not say.

    Args:
        response: the answer.
        start: the byte that was asked for.

    Raises:
        _AnotherVersion: it is a part of the file, and another one than was asked for.
    """
    ranges = response.headers.get("Content-Range") or ""
    part = re.fullmatch(rf"bytes {start}-[0-9]+/([0-9]{{1,18}}|\*)", ranges)
    if start and part is None:
        if response.status == http.client.PARTIAL_CONTENT:
            raise _AnotherVersion
        start = 0  # all of it comes, perhaps because it is another version
    if part is not None and part[1] != "*":
        return start, int(part[1])
    length = response.headers.get("Content-Length") or ""
    return start, start + int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _tag(response: http.client.HTTPResponse) -> str:
    """What stands for the version of the file, byte for byte; empty where the server keeps none."""
    tags = [response.headers.get(name) or "W/" for name in ("ETag", "Last-Modified")]
    return next((tag for tag in tags if not tag.startswith("W/")), "")  # W: about the same


def _version(notes: Path, address: str) -> dict[str, Any]:
    """What the server said about the file that ``part`` is the beginning of."""
    try:
        version = read_json(notes)
    except InputError:
        version = None
    match version:
        case {"address": noted, "tag": str(), "total": int() | None} if noted == address:
            return version
    return {"tag": "", "total": None}


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to web addresses only, and never from an encrypted one to one that is not."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise urllib.error.URLError(f"it leads to {newurl[:200]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(
    address: str, what: str, ranges: dict[str, str] | None = None
) -> http.client.HTTPResponse:
    """The answer to a request.

    Args:
        address: http or https.
        what: what it has to be, for the message about a web page.
        ranges: headers that ask for a range of bytes.

    Raises:
        NotFetched: there is none, or it is an error.
        InputError: it is a web page.
        _AnotherVersion: the file has no such range of bytes.
    """
    try:
        request = urllib.request.Request(_quoted(address), headers=HEADERS | (ranges or {}))
        response = urllib.request.build_opener(_Redirects).open(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and ranges:
            raise _AnotherVersion from None
        raise NotFetched(f"{address} cannot be fetched (status {error.code})") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = in_short(getattr(error, "reason", None) or error)
        raise NotFetched(f"{address} cannot be fetched ({reason})") from None
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise InputError(
            f"{address} is a web page, not {what}: open it, and take the address of the file"
        )
    return response


def _quoted(address: str) -> str:
    """The address with spaces and letters beyond ASCII behind its host as browsers send them."""
    begin = re.match("[^/]*//[^/?#]*", address)
    end = begin.end() if begin else 0
    rest = re.sub("[^!-~]+", lambda part: urllib.parse.quote(part[0]), address[end:])
    return address[:end] + rest


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What a response holds; errors of the network are kept apart from those of the disk."""
    try:
        while block := response.read(BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(in_short(error)) from None
