"""Finds the file of given weights: a path, a name of the zoo or of the hub, or a URL.

Names and addresses are fetched into one folder, once, those of the hub into a cache below it.
``CLIPSELF_SEG_WEIGHTS`` is another folder, or the address of a mirror that has the files of the zoo under their own
names. Values of a configuration are never fetched as addresses: `clipself_seg.config.weight_checks`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipself_seg.checkpoints import download
from clipself_seg.checkpoints.download import NotFetched, check_file, digest_at_first
from clipself_seg.checkpoints.file_kinds import require_readable
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, Entry, same_weights, suggestion, zoo
from clipself_seg.errors import InputError, in_short, shown
from clipself_seg.files import home_expanded

VARIABLE = "CLIPSELF_SEG_WEIGHTS"
HUB = "hf-hub:"
HUGGING_FACE = "https://huggingface.co"
# The same CLIP in transformers' layout, which takes its config.json to say the activation, often lies beside
# open_clip's file; timm's ``model.safetensors`` is the image tower alone.
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
# Of one repository the same weights: timm's, and two of LAION's.
OPEN_CLIP_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
FILES = (*OPEN_CLIP_FILES, *TRANSFORMERS_FILES)  # what is looked for where no file is named
ANY_FILE = f"{' or '.join(FILES)} (of the last two config.json, too)"
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
        """Folder below that of weights where a person may put files of the revision."""
        prefix = "" if self.kind == "model" else f"{self.kind}s--"
        names = (prefix + self.repository, self.revision)
        return weights_folder().joinpath("hub", *(name.replace("/", "--") for name in names))


def is_remote(text: str) -> bool:
    """True for a text that stands for something that is fetched: an address, or a name of the hub."""
    return download.is_address(text) or text.startswith(HUB)


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
    if path := present_hub_file(name):
        return path
    wanted = (name.file,) if name.file else FILES
    try:
        with _said(name, name.file or ANY_FILE):
            return _fetch(name, wanted)
    except FileNotFoundError:
        raise InputError(
            f"{name.page} has no {' and no '.join(wanted)}: name a file, as in {HUB}{name.repository}:weights.pt"
        ) from None


def hub_folder(name: HubName, needed: Sequence[str], others: Sequence[str]) -> Path:
    """The folder of a repository, fetched if need be; all files are of one commit.

    Args:
        name: repository and revision.
        needed: files that it has to have; a folder with them is complete.
        others: files that are fetched if the repository has them.

    Raises:
        NotFetched, InputError: as `hub_file`.
    """
    from huggingface_hub import snapshot_download

    if folder := present_folder(name, needed):
        return folder
    with _said(name, " and ".join([*needed, *others[:1]])), _errors_of_hub(name):
        how = _of_hub(name)
        # Needed ones last: what is interrupted lacks some.
        for files in filter(None, ([*others], [*others, *needed])):
            folder = Path(snapshot_download(name.repository, allow_patterns=files, **how))
    assert folder is not None
    for file in needed:
        if not (folder / file).is_file():
            raise InputError(
                f"{name.page} has no {file}: name a repository that has it, or one file, as in "
                f"{HUB}{name.repository}:model.safetensors"
            )
    for path in filter(Path.is_file, folder.rglob("*")):
        _check_digest(path, name)
    return folder


def present_folder(name: HubName, needed: Sequence[str]) -> Path | None:
    """The folder of a repository on this machine, ours or of other programs; None if none has the needed files."""
    paths = [_present(name, file) for file in needed]
    folders = {path.parent for path in paths if path}
    return folders.pop() if all(paths) and len(folders) == 1 else None


def _present(name: HubName, file: str) -> Path | None:
    """A file of a repository where a person put it, in our cache, or in that of other programs that use the hub."""
    path = name.folder / file
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache

    for cache in (weights_folder() / "hub", None):
        cached = try_to_load_from_cache(
            name.repository, file, cache_dir=cache, revision=name.revision, repo_type=name.kind
        )
        if isinstance(cached, str):
            return Path(cached)
    return None


def _of_hub(name: HubName) -> dict[str, Any]:
    """Arguments of huggingface_hub's functions that fetch; no token is sent.

    Asks the hub for its first page before: without a network huggingface_hub would try again for half a minute.
    """
    from huggingface_hub.utils import get_session

    cache = weights_folder() / "hub"
    if not download.is_offline():
        get_session().head(endpoint(), timeout=download.SECONDS)
    how = {"revision": name.revision, "repo_type": name.kind, "cache_dir": cache}
    return {**how, "endpoint": endpoint(), "token": False, "etag_timeout": download.SECONDS}


def _fetch(name: HubName, wanted: Sequence[str]) -> Path:
    """Fetches the first of some files that a repository has, and checks it; of transformers' files config.json too.

    Raises:
        FileNotFoundError: the repository has none of them.
        NotFetched, InputError: as `hub_file`.
    """
    with _errors_of_hub(name):
        how = _of_hub(name)
        path = next(filter(None, (_downloaded(name, file, how) for file in wanted)), None)
        if path is not None and path.name in TRANSFORMERS_FILES:
            _downloaded(name, "config.json", how)
    if path is None:
        raise FileNotFoundError(f"{name.page} has no {' and no '.join(wanted)}")
    _check_digest(path, name)
    return path


def _downloaded(name: HubName, file: str, how: Mapping[str, Any]) -> Path | None:
    """A file of the hub, fetched; None if the repository does not have it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(name.repository, file, **how))
    except RemoteEntryNotFoundError:
        return None


def _check_digest(path: Path, name: HubName) -> None:
    """Removes and refuses a file whose sha256 differs from the hub's, which is the name of large files in its cache.

    huggingface_hub compares the size alone.
    """
    try:
        origin = f"{path.name} of {name.page}"
        check_file(path, None, digest_at_first(path), origin, "nothing is kept")
    except InputError:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _errors_of_hub(name: HubName) -> Iterator[None]:
    """Turns errors of huggingface_hub, and of the HTTP library that it uses, into `NotFetched`."""
    try:
        yield
    # Which HTTP library it uses, and whether xet's, depends on its version: their errors have no common base.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        if download.is_offline():
            raise NotFetched(f"{name.page} is not fetched, since HF_HUB_OFFLINE is set") from None
        cause = error.__cause__ or error
        raise NotFetched(
            f"{name.page} cannot be fetched ({type(cause).__name__}: {in_short(cause)})"
        ) from None


@contextlib.contextmanager
def _said(name: HubName, wanted: str) -> Iterator[None]:
    """Says on the terminal what is fetched; if it cannot be, where a person gets it, and where to put it."""
    sys.stderr.write(f"fetching from {name.page} into {weights_folder() / 'hub'}\n")
    try:
        yield
    except NotFetched as error:
        raise NotFetched(
            f"{HUB}{name.repository} is not on this machine; {error}: fetch {wanted} from {name.page} into "
            f"{name.folder}, or give the path where you have it"
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
    if download.is_address(given):
        return _from_address(given)
    if given.startswith(HUB):
        return hub_file(hub_name(given))
    if given in zoo() and not Path(given).exists():
        return fetch(zoo()[given])
    return Path(given)


def refuse_lost(given: str) -> None:
    """Refuses weights that can be nothing but a path, if no file is there or it cannot be read; names pass.

    Raises:
        InputError: names the path, and the official checkpoint that may be meant.
    """
    if is_remote(given) or not (os.sep in given or given.endswith(SUFFIXES)):
        return
    if not os.path.exists(given):
        raise no_checkpoint(given)
    require_readable(Path(given))


def no_checkpoint(given: str) -> InputError:
    """The error about a path where no checkpoint is, with the official one that may be meant, or a folder's file."""
    if os.path.isdir(given):
        files = sorted(path for path in Path(given).iterdir() if path.suffix in SUFFIXES)
        first = f", {files[0]}" if files else ""
        return InputError(f"{given} is a folder: give the file of weights in it{first}")
    remedy = f"give the path of a .pt or .safetensors file; {suggestion(given)}"
    if given.startswith(HUB):
        remedy = (
            "a name of the Hugging Face hub is fetched only where it is typed as weights: give it there, or "
            "download the file, and give its path"
        )
    return InputError(f"no checkpoint at {given}; {remedy}")


def weights_folder() -> Path:
    """The folder of fetched weights and of a user's own files: ``CLIPSELF_SEG_WEIGHTS``, or one of the user's cache.

    Raises:
        InputError: the variable names a file.
    """
    given = os.environ.get(VARIABLE, "")
    if given and not download.is_address(given):
        folder = home_expanded(given, f"give {VARIABLE} a whole path")
        if folder.is_file():
            raise InputError(f"{VARIABLE} names the file {folder}: give the folder that it is in")
        return folder
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return home_expanded(cache, f"give {VARIABLE} a folder") / "clipself_seg"


def fetch(entry: Entry) -> Path:
    """The checked file of an entry, from the folder of weights, the mirror or its own addresses.

    Raises:
        InputError: it is nowhere, or not the file that was published; says what to fetch, and where to
            put it.
    """
    if here := present_file(entry):
        check_entry(*here)
        return here[0]
    own = weights_folder() / entry.file
    mirror, addresses = os.environ.get(VARIABLE, ""), entry.addresses
    if download.is_address(mirror):
        addresses = (f"{mirror.rstrip('/')}/{urllib.parse.quote(entry.file)}",)
    if addresses:
        sys.stderr.write(f"fetching {entry.name} from {addresses[0]}\n")
    failed = []
    for address in addresses:
        try:
            if name := _hub_address(address):
                path = _fetch(name, [name.file])
                check_entry(path, entry)
                return path
            download.download(address, own, size=entry.size, sha256=entry.sha256)
            return own
        except (NotFetched, FileNotFoundError) as error:
            failed.append(str(error))
    said = "; ".join([f"{entry.name} is not on this machine", *dict.fromkeys(failed)])
    how = "" if entry.addresses else " with a browser"
    origin = " or ".join(a for a in entry.addresses or entry.pages if a not in said) or "there"
    size = f" ({entry.size} bytes)" if entry.size else ""
    raise NotFetched(
        f"{said}: fetch it{how} from {origin} and save it as {own}{size}, or set {VARIABLE} to the folder or "
        "mirror that has it"
    )


def own_file(entry: Entry) -> Path | None:
    """Path of an entry's file by its own name, in the folder of weights or the hub's cache; None if neither has it.

    Of open_clip's files in the cache any will do.
    """
    own = weights_folder() / entry.file
    if own.exists():
        return own
    names = filter(None, map(_hub_address, entry.addresses))
    alike = dict.fromkeys(OPEN_CLIP_FILES, OPEN_CLIP_FILES)
    wanted = ((name, file) for name in names for file in (name.file, *alike.get(name.file, ())))
    return next((path for name, file in wanted if (path := _present(name, file))), None)


def present_file(entry: Entry) -> tuple[Path, Entry] | None:
    """Path of the file of an entry, or of another one of the same weights, that is on this machine; None if none is.

    Whose file it is stands beside it.
    """
    files = ((own_file(one), one) for one in same_weights(entry))
    return next(((path, one) for path, one in files if path), None)


def present_hub_file(name: HubName) -> Path | None:
    """The file that `hub_file` would give, if it is on this machine; None if it would be fetched.

    Of what other programs have fetched, a ``model.safetensors`` that nobody named is transformers' where its
    config.json lies beside it; without that it may be timm's image tower alone.
    """
    if name.file:
        return _present(name, name.file)
    for path in filter(None, (_present(name, file) for file in FILES)):
        own = path.name not in TRANSFORMERS_FILES or path.is_relative_to(weights_folder() / "hub")
        if own or path.with_name("config.json").is_file():
            return path
    return None


def check_entry(path: Path, entry: Entry, hashed: bool = True) -> None:
    """Refuses a file that is not the one that was published, or that was fetched at first; a folder passes.

    Args:
        path: of the entry's file, or of another one of open_clip's in the hub's cache.
        entry: what is known of the file of its first address.
        hashed: False to leave out the hash, which takes seconds for a gigabyte.

    Raises:
        InputError: another size or hash; it was cut off, or is of a kind that is not read.
    """
    if path.is_file():
        other = path.name in OPEN_CLIP_FILES and not entry.addresses[0].endswith(f"/{path.name}")
        sha256 = ("" if other else entry.sha256) or digest_at_first(path)
        what = f"{path}, the file of {entry.name},"
        check_file(path, entry.size, sha256 if hashed else "", what)
        require_readable(path)


def published_as(path: Path, model: str) -> Entry | None:
    """The entry of the zoo whose file a path leads to: by its repository in the hub's cache, its place or its hash.

    A hash takes seconds for a gigabyte, and nothing else tells LAION's ViT-L/14, which has other pixels, from OpenAI's
    of the same size. It is computed for a file that has the size of such an entry, and once.

    Args:
        path: of any file.
        model: name of its CLIP.
    """
    if not path.is_file():
        return None
    entries = [entry for entry in zoo().values() if entry.model == model]
    # models--org--name/snapshots/COMMIT/file of the hub's cache, or `HubName.folder`
    cached = re.search(r"/(models--)?([^/]+)--([^/]+)/(snapshots/)?[^/]+/([^/]+)$", path.as_posix())
    known = entries_of(HubName(f"{cached[2]}/{cached[3]}", file=cached[5])) if cached else ()
    for entry in entries:
        if entry in known or (own := own_file(entry)) and path.samefile(own):
            return entry
    size = path.stat().st_size
    sized = [entry for entry in entries if len(entry.sha256) == 64 and entry.may_have(size)]
    return next((entry for entry in sized if entry.sha256 == download.file_sha256(path)), None)


def published_file(repository: str) -> Path:
    """The file of an open_clip tag: that of the zoo's entry, or what its repository has.

    Args:
        repository: where open_clip says that it is on the Hugging Face hub.
    """
    name = HubName(repository.rstrip("/"))
    return next(map(fetch, entries_of(name)), None) or hub_file(name)


def entries_of(name: HubName) -> list[Entry]:
    """The entries of the zoo of a repository, and of the file if one is named, of any revision.

    Files that `hub_file` takes where no file is named are of the same weights.
    """
    return [
        entry
        for entry in zoo().values()
        for own in filter(None, map(_hub_address, entry.addresses))
        if own.repository == name.repository
        and (name.file in ("", own.file) or {name.file, own.file} <= {*FILES})
    ]


def _hub_address(address: str) -> HubName | None:
    """The file of the hub that an address leads to; None if it leads elsewhere."""
    pattern = f"{HUGGING_FACE}/(spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"
    match = re.fullmatch(pattern, address)
    return match and HubName(match[2], match[3], match[4], "space" if match[1] else "model")


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
    if path.exists():
        check_file(path, None, digest_at_first(path), f"{path}, which {address} gave,")
        return path
    try:
        download.download(address, path)
    except NotFetched as error:
        raise NotFetched(f"{error}; fetch it yourself, and give its path") from None
    return path
