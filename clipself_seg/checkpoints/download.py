"""Downloads files from http and https addresses by httpx; they are complete and checked before they get their names.

Files of the Hugging Face hub come by huggingface_hub instead, see `checkpoints.locate`. torch.hub's
``download_url_to_file`` would wait for a silent server without end, keep a file that was cut off, and follow a
redirect from https to http.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clipself_seg.errors import InputError, in_short
from clipself_seg.files import atomic_path

BLOCK = 1 << 20  # bytes
SECONDS = 20  # that a server may be silent
HEADERS = {"User-Agent": "clipself_seg", "Accept-Encoding": "identity"}


class NotFetched(InputError):
    """An address that does not answer with the file: no network, no such page, or it broke off."""


def is_address(text: str) -> bool:
    """True for a text that begins as an address of the network does; paths of Windows do not."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def is_offline() -> bool:
    """True if ``HF_HUB_OFFLINE=1``, which keeps all that is fetched here from the network, is set."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def download(address: str, path: Path, *, size: int | None = None, sha256: str = "") -> None:
    """Fetches a file, unless it is there; of several processes that want it, one fetches it and the others wait.

    A file beside it stays as their lock. Its sha256 stays beside it, see `digest_at_first`.

    Args:
        address: http or https.
        path: where it comes to; its folder is made.
        size: bytes that it has to have, None for any.
        sha256: hexadecimal digits that its hash has to begin with.

    Raises:
        NotFetched: another kind of address, no connection, no such file, or it broke off.
        InputError: what came is a web page, or has another size or hash; it is not kept.
        OSError: it cannot be written.
    """
    from huggingface_hub.utils import WeakFileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                for block in _blocks(address, size):
                    file.write(block)
            check_file(temporary, size, sha256, f"what {address} gave", then="nothing is kept")
            _digest_file(path).write_text(file_sha256(temporary))


def check_file(
    path: Path, size: int | None, sha256: str, what: str, then: str = "delete it"
) -> None:
    """Refuses a file of another size or hash than was published.

    Args:
        path: the file.
        size: bytes, None for any.
        sha256: digits that its hash has to begin with, empty for any.
        what: name of the file in messages.
        then: end of a message about the file.

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
    raise InputError(f"{what} {reason}: {then}, fetch it again")


def file_sha256(path: Path) -> str:
    """Hexadecimal digits of the hash of a file, computed once for each state of it."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


def digest_at_first(path: Path) -> str:
    """The hash of a file when it was fetched: a blob's name in the hub's cache, or what `download` wrote beside it.

    Empty where neither is there.
    """
    blob, written = path.resolve().name, _digest_file(path)
    if re.fullmatch("[0-9a-f]{64}", blob):
        return blob
    return written.read_text() if written.is_file() else ""


def _digest_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Hash of a file as it is; a file of another size or time of change is another one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _blocks(address: str, most: int | None) -> Iterator[bytes]:
    """The content of an address, in blocks, with a progress bar.

    Redirects lead to web addresses alone, and never from an encrypted one to one that is not.

    Args:
        address: http or https.
        most: bytes at most, None for any number.

    Raises:
        NotFetched: another kind of address, no connection, no such file, or it breaks off.
        InputError: it is a web page, or larger than `most`.
    """
    if re.match("https?://", address, re.IGNORECASE) is None:
        raise NotFetched(
            f"{address} is no http or https address: fetch the file, and give its path"
        )
    if is_offline():
        raise NotFetched(f"{address} is not fetched, since HF_HUB_OFFLINE is set")
    import httpx  # a while, which only fetching needs

    def stay_encrypted(request: httpx.Request) -> None:
        if address.lower().startswith("https") and request.url.scheme != "https":
            raise httpx.UnsupportedProtocol(f"it leads to {str(request.url)[:200]}")

    got, begun = 0, False
    how: dict[str, Any] = {"event_hooks": {"request": [stay_encrypted]}, "headers": HEADERS}
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=SECONDS, **how) as client,
            client.stream("GET", address) as response,
        ):
            response.raise_for_status()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise InputError(
                    f"{address} is a web page, not a file of weights: open it, and take the address of the file"
                )
            total, begun = int(response.headers.get("Content-Length", 0)), True
            with tqdm(desc="fetched", total=total, unit="B", unit_scale=True, disable=None) as bar:
                for block in response.iter_raw(BLOCK):
                    got += len(block)
                    if most is not None and max(got, total) > most:
                        raise InputError(
                            f"{address} has more than {most} bytes: fetch the file, and give its path"
                        )
                    bar.update(len(block))
                    yield block
    except InputError:
        raise
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise NotFetched(f"{address} cannot be fetched (status {status})") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        done = "broke off" if begun else "cannot be fetched"
        raise NotFetched(f"{address} {done} ({in_short(error)})") from None
