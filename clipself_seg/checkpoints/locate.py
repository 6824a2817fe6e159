"""Finds the file of given weights: a path, a name of the zoo or of the hub, or a URL.

Names and addresses are fetched into one folder, once. ``CLIPSELF_SEG_WEIGHTS`` is another folder, or the
address of a mirror that has the files of the zoo under their own names. Values of a configuration are
never fetched as addresses: `clipself_seg.config.weights`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import urllib.parse
from pathlib import Path

from clipself_seg.checkpoints.download import NotFetched, check_file, download, is_address
from clipself_seg.checkpoints.hub import HUB, HUGGING_FACE, endpoint, hub_file, hub_name
from clipself_seg.checkpoints.shipped import SHIPPED_MODELS
from clipself_seg.checkpoints.zoo import Entry, zoo
from clipself_seg.files import home_expanded

VARIABLE = "CLIPSELF_SEG_WEIGHTS"
# What open_clip asks a repository of the hub for.
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
logger = logging.getLogger(__name__)


def locate(weights: str | os.PathLike[str]) -> Path:
    """The file of weights, fetched if need be.

    Args:
        weights: a path; a name of the shipped models or of the zoo; ``hf-hub:org/name``, see `hub_name`; an
            http or https address. What is none of them is taken for a path, which need not exist.

    Raises:
        InputError: it cannot be fetched, or is not the file that was published.
    """
    given = os.fspath(weights)
    if given in SHIPPED_MODELS:
        return SHIPPED_MODELS[given]
    if is_address(given):
        return _from_address(given)
    if given.startswith(HUB):
        return hub_file(hub_name(given), repositories())
    if given in zoo() and not Path(given).exists():
        return fetch(zoo()[given])
    return Path(given)


def weights_folder() -> Path:
    """Where fetched weights are and files may be put: ``CLIPSELF_SEG_WEIGHTS``, or one of the user's cache."""
    given = os.environ.get(VARIABLE, "")
    if given and not is_address(given):
        return home_expanded(given, f"give {VARIABLE} a whole path")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return home_expanded(cache, f"give {VARIABLE} a folder") / "clipself_seg"


def repositories() -> Path:
    """Folder of what is fetched from the hub by name."""
    return weights_folder() / "hub"


def fetch(entry: Entry) -> Path:
    """The checked file of an entry, from the folder of weights, the mirror or its own addresses.

    Raises:
        InputError: it is nowhere, or not the file that was published; says what to fetch, and where to
            put it.
    """
    path = weights_folder() / entry.file
    present = path if path.exists() else _hub_cache(entry)
    if present is not None:
        if present.is_file():
            check_file(present, entry.size, entry.sha256, f"{present}, the file of {entry.name},")
        return present
    failed = []
    for address in _addresses(entry):
        logger.info(
            "%s: fetching %s into %s; licence: %s", entry.name, address, path, entry.licence
        )
        try:
            download(address, path, size=entry.size, sha256=entry.sha256)
            return path
        except NotFetched as error:
            failed.append(str(error))
    origin = " or ".join(entry.addresses or entry.pages)
    size = f" ({entry.size} bytes)" if entry.size else ""
    raise NotFetched(
        f"weights {entry.name} are not on this machine"
        + "".join(f"; {reason}" for reason in failed)
        + f": fetch {entry.file}{size} from {origin} and put it into {path.parent} under that name, or set "
        f"{VARIABLE} to the folder or mirror that has it"
    )


def published_file(name: str, repository: str) -> Path:
    """The file of an open_clip tag, as `fetch` gives that of an entry.

    Args:
        name: model and tag, as the zoo has them.
        repository: where open_clip says that it is on the Hugging Face hub.
    """
    stem = f"{HUGGING_FACE}/{repository.rstrip('/')}/resolve/main"
    addresses = tuple(f"{stem}/{file}" for file in HUB_FILES)
    entry = Entry(name=name, file=f"{name.replace(':', '-')}.safetensors", addresses=addresses)
    return fetch(zoo().get(name, entry))


def _hub_cache(entry: Entry) -> Path | None:
    """The file where other programs that use the Hugging Face hub have it already."""
    for address in entry.addresses:
        if match := re.fullmatch(f"{HUGGING_FACE}/([^/]+/[^/]+)/resolve/main/([^/]+)", address):
            from huggingface_hub import try_to_load_from_cache

            if isinstance(cached := try_to_load_from_cache(*match.groups()), str):
                return Path(cached)
    return None


def _addresses(entry: Entry) -> list[str]:
    mirror = os.environ.get(VARIABLE, "")
    if is_address(mirror):
        return [f"{mirror.rstrip('/')}/{urllib.parse.quote(entry.file)}"]
    return [
        (
            endpoint() + address.removeprefix(HUGGING_FACE)
            if address.startswith(f"{HUGGING_FACE}/")
            else address
        )
        for address in entry.addresses
    ]


def _file_name(address: str) -> str:
    """What an address calls its file, as a name that is no path, not hidden and of 100 bytes at most."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(address).path)
    name = re.sub(r"[^\w.+-]", "", re.split(r"[/\\]", path)[-1])
    return name.encode()[-100:].decode(errors="ignore").lstrip(".") or "weights"


def _from_address(address: str) -> Path:
    """The file of an address, under its own name in a folder of that address alone."""
    digits = hashlib.sha256(address.encode()).hexdigest()[:12]
    path = weights_folder() / "addresses" / digits / _file_name(address)
    if not path.exists():
        try:
            download(address, path)
        except NotFetched as error:
            raise NotFetched(f"{error}; fetch it yourself, and give its path") from None
    return path
