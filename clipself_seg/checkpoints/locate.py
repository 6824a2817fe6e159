"""Finds the file of given weights: a path, a name of the zoo or of the hub, or a URL.

Names and addresses are fetched into one folder, once. ``CLIPSELF_SEG_WEIGHTS`` is another folder, or the
address of a mirror that has the files of the zoo under their own names. Values of a configuration are
never fetched as addresses: `clipself_seg.config.weights`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clipself_seg.checkpoints.download import (
    NotFetched,
    check_file,
    download,
    fetch_bytes,
    is_address,
)
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, Entry, suggestion, zoo
from clipself_seg.errors import InputError, shown
from clipself_seg.files import home_expanded, read_json, write_json

VARIABLE = "CLIPSELF_SEG_WEIGHTS"
HUB = "hf-hub:"
HUGGING_FACE = "https://huggingface.co"
# What is looked for where no file is named. Open_clip's comes first: beside it ``model.safetensors`` is often the
# same CLIP in the layout of transformers.
FILES = ("open_clip_model.safetensors", "model.safetensors")
# What open_clip asks a repository of the hub for.
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
LISTING = "files.json"
# Keys of files that are read into a model, those that most are looked for in first.
WEIGHTS = (
    "MODEL.WEIGHTS",
    "MODEL.CLIP.WEIGHTS",
    "MODEL.CLIP.VISUAL_INIT",
    "MODEL.CLIPSELF.STUDENT_WEIGHTS",
    "MODEL.CLIP_BRANCH.WEIGHTS",
    "MODEL.CAT_SEG.BACKBONE_WEIGHTS",
    "MODEL.STOCK_RPN.BACKBONE_WEIGHTS",
    "MODEL.DIFFUSION.WEIGHTS",
)
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".pkl", ".ckpt")
MOST_LISTED = 1 << 24  # bytes of a listing
PART = "[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"


class HubName(NamedTuple):
    """A repository of the hub, and perhaps a file in it.

    Attributes:
        repository: "org/name".
        revision: branch, tag or commit.
        file: path in the repository; empty for the first of some that is there.
    """

    repository: str
    revision: str = "main"
    file: str = ""

    @property
    def page(self) -> str:
        """Address of what a person opens."""
        return f"{endpoint()}/{self.repository}/tree/{urllib.parse.quote(self.revision)}"

    def folder(self, root: Path) -> Path:
        """Folder of the revision's files below that of all repositories."""
        names = (self.repository, self.revision)
        return root.joinpath(*(name.replace("/", "--") for name in names))


class Listed(NamedTuple):
    """What the hub says of a file.

    Attributes:
        size: bytes, None where it does not say.
        sha256: hexadecimal digits; empty for small files, which have none there.
    """

    size: int | None = None
    sha256: str = ""


def is_remote(text: str) -> bool:
    """Whether a text stands for something that is fetched: an address, or a name of the hub."""
    return is_address(text) or text.startswith(HUB)


def endpoint() -> str:
    """Address of the hub: ``HF_ENDPOINT``, or Hugging Face's own."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUGGING_FACE


def hub_name(text: str) -> HubName:
    """Reads ``hf-hub:org/name@revision:file``, of which revision and file may be left out.

    Raises:
        InputError: it is of another form.
    """
    match = re.fullmatch(
        rf"{HUB}(?!.*(--|\.\.|\.git([@:]|$)))(?P<repository>{PART}/{PART})"
        rf"(@(?P<revision>{PART}(/{PART})*))?(:(?P<file>{PART}(/{PART})*))?",
        text,
    )
    if match is None:
        raise InputError(
            f"{text[:200]} names nothing on the Hugging Face hub: give {HUB}organisation/name, "
            f"with @revision and :file behind it where they are needed"
        )
    return HubName(**{part: value for part, value in match.groupdict().items() if value})


def hub_file(name: HubName, root: Path) -> Path:
    """The file of a name, fetched if need be.

    Args:
        name: repository, revision and file; without a file the first of `FILES` that is there.
        root: folder of all repositories.

    Raises:
        InputError: it is not there or cannot be fetched, with what to fetch and where to put it; or another file
            came than the hub lists.
    """
    wanted = (name.file,) if name.file else FILES
    folder = name.folder(root)
    for file in wanted:
        if (folder / file).is_file():
            return folder / file
        if cached := _cached(name.repository, file, name.revision):
            return cached
    commit, listed = _listing(name, folder, wanted)
    for file in wanted:
        if file in listed:
            return _fetched(name, file, folder, commit, listed[file])
    others = [file for file in listed if file.endswith((".safetensors", ".bin", ".pt"))]
    raise InputError(
        f"{name.page} has no {' and no '.join(wanted)}: "
        + (f"name a file, such as {HUB}{name.repository}:{others[0]}" if others else "give another")
    )


def hub_folder(name: HubName, root: Path, files: Sequence[str]) -> Path:
    """The folder of a repository with those of some files that it has, fetched if need be.

    Args:
        name: repository and revision.
        root: folder of all repositories.
        files: names; the first has to be there.

    Raises:
        InputError: as `hub_file`.
    """
    folder = name.folder(root)
    if (folder / files[0]).is_file() and not (folder / LISTING).exists():
        return folder  # somebody put it there
    commit, listed = _listing(name, folder, ("its files",))
    if files[0] not in listed:
        raise InputError(
            f"{name.page} has no {files[0]}: it is no folder of save_pretrained; name a file of it, as in "
            f"{HUB}{name.repository}:model.safetensors, and the configuration that it goes with"
        )
    for file in files:
        if file in listed:
            _fetched(name, file, folder, commit, listed[file])
    return folder


def _fetched(name: HubName, file: str, folder: Path, commit: str, listed: Listed) -> Path:
    """A file of a commit, checked by what the hub lists of it."""
    path = folder / file
    if path.exists():
        check_file(path, listed.size, listed.sha256, f"{path}, a file of {name.repository},")
        return path
    place = urllib.parse.quote(f"{name.repository}/resolve/{commit}/{file}")
    size = f", {listed.size / 1e6:.0f} MB" if listed.size else ""
    sys.stderr.write(f"fetching {file}{size} of {name.page} into {path}\n")
    try:
        download(f"{endpoint()}/{place}", path, size=listed.size, sha256=listed.sha256)
    except NotFetched as error:
        raise _nowhere(name, (file,), folder, str(error)) from None
    return path


def _listing(name: HubName, folder: Path, wanted: Sequence[str]) -> tuple[str, dict[str, Listed]]:
    """Commit and files of a revision, asked for once.

    Args:
        name: repository and revision.
        folder: folder of its files.
        wanted: files that are looked for, for the message.

    Raises:
        InputError: the hub does not answer, or with something else.
    """
    path = folder / LISTING
    if path.exists():
        return _read_listing(read_json(path, "list of files"), f"{path}, delete it")
    revision = urllib.parse.quote(name.revision, safe="")
    address = f"{endpoint()}/api/models/{name.repository}/revision/{revision}?blobs=true"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _nowhere(name, wanted, folder, "HF_HUB_OFFLINE is set")
    try:
        content = json.loads(fetch_bytes(address, MOST_LISTED, "a list of files"))
    except NotFetched as error:
        raise _nowhere(name, wanted, folder, str(error)) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        content = None
    listing = _read_listing(content, f"what {address} gave, set HF_ENDPOINT to a hub")
    write_json(path, content)
    return listing


def _read_listing(content: object, origin: str) -> tuple[str, dict[str, Listed]]:
    match content:
        case {"sha": str(commit), "siblings": [*siblings]} if re.fullmatch("[0-9a-f]{40}", commit):
            return commit, dict(_listed(sibling) for sibling in siblings if sibling)
    raise InputError(f"no list of a repository's files: {origin}")


def _listed(sibling: object) -> tuple[str, Listed]:
    """Name of a file and what is said of it; what is of another form says nothing."""
    match sibling:
        case {"rfilename": str(file), "lfs": {"size": int(size), "sha256": str(digits)}}:
            return file, Listed(size, digits)
        case {"rfilename": str(file), "size": int(size)}:
            return file, Listed(size)
        case {"rfilename": str(file)}:
            return file, Listed()
    return "", Listed()


def _nowhere(name: HubName, wanted: Sequence[str], folder: Path, reason: str) -> NotFetched:
    files = " or ".join(wanted)
    return NotFetched(
        f"{HUB}{name.repository} is not on this machine; {reason}: fetch {files} from {name.page} into "
        f"{folder}, or give the path where you have it"
    )


def _cached(repository: str, file: str, revision: str = "main") -> Path | None:
    """The file where other programs that use the hub have it already."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def cached_folder(name: HubName, files: Sequence[str]) -> Path | None:
    """The folder of a repository where other programs that use the hub have it; None unless it has all of the files."""
    paths = [_cached(name.repository, file, name.revision) for file in files]
    return paths[0].parent if all(paths) and paths[0] else None


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


def refuse_lost(given: str) -> None:
    """Refuse weights that can be nothing but a path, if no file is there; names and addresses pass.

    Raises:
        InputError: names the path, and the official checkpoint that may be meant.
    """
    path = not is_remote(given) and (os.sep in given or given.endswith(SUFFIXES))
    if path and not os.path.exists(given):
        raise no_checkpoint(given)


def no_checkpoint(given: str) -> InputError:
    """The error about a path where no checkpoint is, with the official one that may be meant."""
    remedy = f"give the path of a .pt or .safetensors file; {suggestion(given)}"
    if given.startswith(HUB):
        remedy = (
            "a name of the Hugging Face hub is fetched only where it is typed as weights: give it there, or "
            "download the file, and give its path"
        )
    return InputError(f"no checkpoint at {given}; {remedy}")


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
    if (present := present_file(entry)) is not None:
        check_entry(present, entry)
        return present
    failed = []
    for address in _addresses(entry):
        size = f", {entry.size / 1e6:.0f} MB" if entry.size else ""
        licence = f"; licence: {entry.licence}" if entry.licence else ""
        sys.stderr.write(f"fetching {entry.name}{size} from {address} into {path}{licence}\n")
        try:
            download(address, path, size=entry.size, sha256=entry.sha256)
            return path
        except NotFetched as error:
            failed.append(str(error))
    said = "; ".join([f"weights {entry.name} are not on this machine", *failed])
    origins = entry.addresses or [f"{page} with a browser" for page in entry.pages]
    origin = " or ".join(origin for origin in origins if origin not in said) or "there"
    size = f" ({entry.size} bytes)" if entry.size else ""
    raise NotFetched(
        f"{said}: fetch them from {origin} and save them as {path}{size}, or set {VARIABLE} to the folder or "
        "mirror that has them"
    )


def present_file(entry: Entry) -> Path | None:
    """Where the file of an entry is: in the folder of weights or the hub's cache; None if nowhere."""
    path = weights_folder() / entry.file
    return path if path.exists() else _hub_cache(entry)


def check_entry(path: Path, entry: Entry) -> None:
    """Refuse a file that is not the one that was published; a folder passes.

    Raises:
        InputError: another size or hash.
    """
    if path.is_file():
        check_file(path, entry.size, entry.sha256, f"{path}, the file of {entry.name},")


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
        match = re.fullmatch(f"{HUGGING_FACE}/([^/]+/[^/]+)/resolve/main/([^/]+)", address)
        if match and (cached := _cached(match[1], match[2])):
            return cached
    return None


def _addresses(entry: Entry) -> list[str]:
    mirror = os.environ.get(VARIABLE, "")
    if is_address(mirror):
        return [f"{mirror.rstrip('/')}/{urllib.parse.quote(entry.file)}"]
    return [re.sub(f"^{HUGGING_FACE}(?=/)", endpoint(), address) for address in entry.addresses]


def _file_name(address: str) -> str:
    """What an address calls its file, as a name that is no path, not hidden and of 100 bytes at most."""
    try:
        path = urllib.parse.unquote(urllib.parse.urlsplit(address).path)
    except ValueError as error:
        raise NotFetched(f"{shown(address)} is no address ({error}): correct it") from None
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
