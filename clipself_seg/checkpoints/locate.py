"""Finds the file of given weights: a path, a name of the zoo or of the hub, or a URL.

Names and addresses are fetched into one folder, once. ``CLIPSELF_SEG_WEIGHTS`` is another folder, or the
address of a mirror that has the files of the zoo under their own names. Values of a configuration are
never fetched as addresses: `clipself_seg.config.weights`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipself_seg.checkpoints.download import (
    SECONDS,
    NotFetched,
    check_file,
    download,
    is_address,
    one_at_a_time,
)
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, Entry, suggestion, zoo
from clipself_seg.errors import InputError, in_short, shown
from clipself_seg.files import home_expanded

VARIABLE = "CLIPSELF_SEG_WEIGHTS"
HUB = "hf-hub:"
HUGGING_FACE = "https://huggingface.co"
# What is looked for where no file is named. Open_clip's comes first: beside it ``model.safetensors`` is often the
# same CLIP in the layout of transformers.
FILES = ("open_clip_model.safetensors", "model.safetensors")
# What open_clip asks a repository of the hub for.
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".pkl", ".ckpt")
PART = "[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"


class HubName(NamedTuple):
    """A repository of the hub, and perhaps a file in it.

    Attributes:
        repository: "org/name".
        revision: branch, tag or commit.
        file: path in the repository; empty for the first of some that is there.
        kind: "model", or "space" for the files of a demo.
    """

    repository: str
    revision: str = "main"
    file: str = ""
    kind: str = "model"

    @property
    def page(self) -> str:
        """Address of what a person opens."""
        path = self.repository if self.kind == "model" else f"{self.kind}s/{self.repository}"
        return f"{endpoint()}/{path}/tree/{urllib.parse.quote(self.revision)}"

    @property
    def folder(self) -> Path:
        """Folder of the revision's files below the folder of weights."""
        prefix = "" if self.kind == "model" else f"{self.kind}s--"
        names = (prefix + self.repository, self.revision)
        return weights_folder().joinpath("hub", *(name.replace("/", "--") for name in names))


def is_remote(text: str) -> bool:
    """True for a text that stands for something that is fetched: an address, or a name of the hub."""
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


def hub_file(name: HubName) -> Path:
    """The file of a name, fetched if need be.

    Args:
        name: repository, revision and file; without a file the first of `FILES` that is there.

    Raises:
        NotFetched: the hub does not answer; says what to fetch, and where to put it.
        InputError: the repository has no such file, or another one came than the hub lists.
    """
    wanted = (name.file,) if name.file else FILES
    for file in wanted:
        if path := _present(name, file):
            return path
    with _saying_where(name, wanted):
        listing = _listing(name)
        for file in wanted:
            if file in listing.files:
                _fetch(name, [file], listing)
                return name.folder / file
    others = [file for file in listing.files if file.endswith((".safetensors", ".bin", ".pt"))]
    raise InputError(
        f"{name.page} has no {' and no '.join(wanted)}: "
        + (f"name a file, such as {HUB}{name.repository}:{others[0]}" if others else "give another")
    )


def hub_folder(name: HubName, needed: Sequence[str], others: Sequence[str]) -> Path:
    """The folder of a repository, fetched if need be; all files are of one commit.

    Args:
        name: repository and revision.
        needed: files that it has to have; a folder with them is complete.
        others: files that are fetched if the repository has them.

    Raises:
        NotFetched, InputError: as `hub_file`.
    """
    if folder := present_folder(name, needed):
        return folder
    with _saying_where(name, needed):
        listing = _listing(name)
        for file in needed:
            if file not in listing.files:
                raise InputError(
                    f"{name.page} has no {file}: name a repository that has it, or one file, as in "
                    f"{HUB}{name.repository}:model.safetensors"
                )
        # Needed ones last: what is interrupted lacks some.
        _fetch(name, [file for file in (*others, *needed) if file in listing.files], listing)
    return name.folder


def present_folder(name: HubName, needed: Sequence[str]) -> Path | None:
    """The folder of a repository on this machine, ours or of other programs; None if none has the needed files."""
    paths = [_present(name, file) for file in needed]
    folders = {path.parent for path in paths if path}
    return folders.pop() if all(paths) and len(folders) == 1 else None


def _present(name: HubName, file: str) -> Path | None:
    """A file of a repository in our folder, or in the cache of other programs that use the hub."""
    path = name.folder / file
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(
        name.repository, file, revision=name.revision, repo_type=name.kind
    )
    return Path(cached) if isinstance(cached, str) else None


class _Listing(NamedTuple):
    """The hub's description of a revision.

    Attributes:
        commit: of the revision.
        files: name of a file -> its size in bytes, None if the hub does not say, and its sha256, empty for small ones.
    """

    commit: str
    files: dict[str, tuple[int | None, str]]


def _listing(name: HubName) -> _Listing:
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise NotFetched("HF_HUB_OFFLINE is set")
    api = HfApi(endpoint=endpoint(), token=False)
    with _errors_of_hub(name):
        said: Any = api.repo_info(
            name.repository,
            revision=name.revision,
            repo_type=name.kind,
            files_metadata=True,
            timeout=SECONDS,
        )
        if said.sha is None or said.siblings is None:
            raise ValueError("no list of files")
    files = {one.rfilename: (one.size, one.lfs.sha256 if one.lfs else "") for one in said.siblings}
    return _Listing(said.sha, files)


def _fetch(name: HubName, files: Sequence[str], listing: _Listing) -> None:
    """Fetch files of the listed commit, and check them before they come into our folder, the last one last.

    huggingface_hub compares the size alone, and not the hash that the hub lists. No token is sent.
    """
    from huggingface_hub import hf_hub_download

    with one_at_a_time(name.folder):
        if all((name.folder / file).is_file() for file in files):
            return  # another process has fetched them meanwhile
        coming = name.folder / ".coming"
        for file in files:
            size, sha256 = listing.files[file]
            megabytes = f", {size / 1e6:.0f} MB" if size else ""
            sys.stderr.write(f"fetching {file}{megabytes} of {name.page} into {name.folder}\n")
            with _errors_of_hub(name):
                hf_hub_download(
                    name.repository,
                    file,
                    revision=listing.commit,
                    repo_type=name.kind,
                    local_dir=coming,
                    endpoint=endpoint(),
                    token=False,
                )
            try:
                what = f"{file} of {name.page}"
                check_file(coming / file, size, sha256, what, then="nothing is kept")
            except InputError:
                (coming / file).unlink()
                raise
        for file in files:
            (name.folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(coming / file, name.folder / file)
        shutil.rmtree(coming)


@contextlib.contextmanager
def _errors_of_hub(name: HubName) -> Iterator[None]:
    """Turn errors of huggingface_hub, and of the HTTP library that its version uses, into `NotFetched`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        reason = f"{type(error).__name__}: {in_short(error)}"
        raise NotFetched(f"{name.page} cannot be fetched ({reason})") from None


@contextlib.contextmanager
def _saying_where(name: HubName, wanted: Sequence[str]) -> Iterator[None]:
    """Let `NotFetched` say what to fetch by hand, and where to put it."""
    try:
        yield
    except NotFetched as error:
        raise NotFetched(
            f"{HUB}{name.repository} is not on this machine; {error}: fetch {' or '.join(wanted)} from "
            f"{name.page} into {name.folder}, or give the path where you have it"
        ) from None


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
        return hub_file(hub_name(given))
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


def fetch(entry: Entry) -> Path:
    """The checked file of an entry, from the folder of weights, the mirror or its own addresses.

    Raises:
        InputError: it is nowhere, or not the file that was published; says what to fetch, and where to
            put it.
    """
    if (present := present_file(entry)) is not None:
        check_entry(present, entry)
        return present
    own = weights_folder() / entry.file
    addresses = _addresses(entry)
    if addresses:
        megabytes = f", {entry.size / 1e6:.0f} MB" if entry.size else ""
        licence = f"; licence: {entry.licence}" if entry.licence else ""
        sys.stderr.write(f"fetching {entry.name}{megabytes} from {addresses[0]}{licence}\n")
    failed = []
    for address in addresses:
        try:
            if name := _hub_address(address):
                return _fetch_published(name, entry)
            download(address, own, size=entry.size, sha256=entry.sha256)
            return own
        except NotFetched as error:
            failed.append(str(error))
    said = "; ".join([f"weights {entry.name} are not on this machine", *dict.fromkeys(failed)])
    origins = entry.addresses or [f"{page} with a browser" for page in entry.pages]
    origin = " or ".join(origin for origin in origins if origin not in said) or "there"
    size = f" ({entry.size} bytes)" if entry.size else ""
    raise NotFetched(
        f"{said}: fetch them from {origin} and save them as {own}{size}, or set {VARIABLE} to the folder or "
        "mirror that has them"
    )


def _fetch_published(name: HubName, entry: Entry) -> Path:
    """The file of an entry from the hub, if what the hub lists is what was published."""
    listing = _listing(name)
    if name.file not in listing.files:
        raise NotFetched(f"{name.page} has no {name.file}")
    size, sha256 = listing.files[name.file]
    if entry.size not in (None, size) or not sha256.startswith(entry.sha256):
        raise InputError(
            f"{name.file} of {name.page} has {size} bytes and the sha256 {sha256[:16]}, and the official file "
            f"{entry.size or 'any number'} and {entry.sha256[:16]}: give the right file's path"
        )
    _fetch(name, [name.file], listing)
    return name.folder / name.file


def present_file(entry: Entry) -> Path | None:
    """Where the file of an entry is: in the folder of weights or the hub's cache; None if nowhere."""
    own = weights_folder() / entry.file
    if own.exists():
        return own
    names = filter(None, map(_hub_address, entry.addresses))
    return next((path for name in names if (path := _present(name, name.file))), None)


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


def _hub_address(address: str) -> HubName | None:
    """The file of the hub that an address leads to; None if it leads elsewhere."""
    pattern = f"{HUGGING_FACE}/(spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"
    match = re.fullmatch(pattern, address)
    if match is None:
        return None
    return HubName(match[2], match[3], match[4], "space" if match[1] else "model")


def _addresses(entry: Entry) -> Sequence[str]:
    mirror = os.environ.get(VARIABLE, "")
    if is_address(mirror):
        return [f"{mirror.rstrip('/')}/{urllib.parse.quote(entry.file)}"]
    return entry.addresses


def _file_name(address: str) -> str:
    """The name that an address gives its file, as a name that is no path, not hidden and of 100 bytes at most."""
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
