"""What a model needs that is not on this machine: said with sizes and licences before the first file is fetched.

Nothing heavy is imported, so that a machine without a network, or without a package, says so at once.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipself_seg.checkpoints import locate, mask_models
from clipself_seg.checkpoints.download import NotFetched
from clipself_seg.checkpoints.file_kinds import require_readable
from clipself_seg.checkpoints.zoo import SCHEME, Entry, entry_of, zoo
from clipself_seg.errors import MissingPackage, require_installed

ARCHITECTURES = Path(__file__).parent.parent / "clip" / "architectures"
# Files of tokenizers, and the packages that read them.
TOKENIZERS = {"tokenizer.json": "tokenizers", "tokenizer.model": "sentencepiece"}
UNKNOWN = "not known here"  # of licences


class Part(NamedTuple):
    """Files of one publisher that a model needs.

    Attributes:
        entry: what is known of them: name, size and licence.
        by_hand: a person's way to the files, and the place for them.
        fetch: fetches them.
    """

    entry: Entry
    by_hand: str
    fetch: Callable[[], object]

    def __str__(self) -> str:
        entry = self.entry
        by_hand = "" if entry.addresses else ", by hand"
        return f"{entry.name} (size {entry.how_large}{by_hand}; {entry.terms})"


def fetch_needed(values: Mapping[str, Any], texts: bool = True) -> None:
    """Fetches what a configuration needs, and says before in a line what it is, how large, and by which licences.

    Args:
        values: keys and values of the configuration.
        texts: False if no text is embedded, which takes no tokenizer.

    Raises:
        MissingPackage: one that the parts need is not installed; nothing is fetched.
        NotFetched: no network, and so on; says of each part that is missing where to get it, and where to put it.
        InputError: as `locate`; a file that is here was cut off.
    """
    fetch_parts(missing_parts(values, texts), lambda: require_packages(values, texts))


def missing_parts(values: Mapping[str, Any], texts: bool = True) -> list[Part]:
    """Files that a configuration needs and that are not on this machine, see `fetch_needed`."""
    parts = [*_weights(values), *_masks(_mask_model(values))]
    tokenizers = _tokenizers(values) if texts else {}
    for name, licence in tokenizers.items():
        if not locate.present_hub_file(name):
            parts.append(_of_hub(name, f"tokenizer of {name.repository}", licence))
    return parts


def require_packages(values: Mapping[str, Any], texts: bool = True) -> None:
    """Refuses a configuration whose model of masks or tokenizer needs a package that is not installed.

    Raises:
        MissingPackage: says what brings it.
    """
    if _mask_model(values):
        require_installed("transformers", "a model that finds masks", "masks")
    tokenizers = _tokenizers(values) if texts else {}
    for name in tokenizers:
        require_installed(
            TOKENIZERS[name.file], f"the tokenizer of {name.repository}", "tokenizers"
        )


def say_parts(parts: Iterable[Part]) -> None:
    """Says on the terminal in a line what is to be fetched, its whole size, and by which licences; nothing of none."""
    said = {str(part): part.entry for part in parts}
    if not said:
        return
    sizes = [(entry.size or 0) / 1e6 or entry.megabytes for entry in said.values()]
    total = f"{sum(filter(None, sizes)):,.0f} MB" if any(sizes) else "of unknown size"
    more = " and more" if any(sizes) and None in sizes else ""
    sys.stderr.write(f"to be fetched, {total}{more}: {'; '.join(said)}\n")


def fetch_parts(parts: Iterable[Part], require: Callable[[], object] = lambda: None) -> None:
    """Fetches parts, see `fetch_needed`; those that take a person first, so that nothing is fetched in vain.

    Args:
        parts: what is missing.
        require: refuses what cannot be used here, before anything is fetched.
    """
    left = sorted(parts, key=lambda part: bool(part.entry.addresses))
    say_parts(left)
    try:
        require()
        while left:
            left[0].fetch()
            del left[0]
    except (MissingPackage, NotFetched) as error:
        # What could not be fetched is in the error already.
        left = left[isinstance(error, NotFetched) :]
        by_hand = f"; by hand: {'; '.join(part.by_hand for part in left)}" if left else ""
        raise type(error)(f"{error}{by_hand}") from None


def _weights(values: Mapping[str, Any]) -> Iterator[Part]:
    """Weights that keys name by the zoo or the hub, by a tag of the CLIP whose NAME stands beside them, too.

    Raises:
        InputError: a file that is here was cut off, or is not the one that was published.
    """
    named = []
    for key, value in values.items():
        if key.endswith("WEIGHTS"):
            beside = values.get(f"{key.removesuffix('WEIGHTS')}NAME")
            clip = beside or values.get("MODEL.CLIP.NAME", "")
            named.append((str(value).removeprefix(SCHEME), clip))
    for name, clip in dict.fromkeys(named):
        if entry := entry_of(name, clip):
            if locate.present_file(entry):
                locate.fetch(entry)  # compares it with what was published
            else:
                yield part_of(entry)
        elif name.startswith(locate.HUB) and not locate.present_hub_file(
            hub := locate.hub_name(name)
        ):
            yield _of_hub(hub, name, UNKNOWN)


def _of_hub(name: locate.HubName, title: str, licence: str) -> Part:
    """A file of the hub."""
    entry = Entry(name=title, file=name.file, addresses=(name.page,), licence=licence)
    by_hand = f"{name.file or locate.ANY_FILE} of {name.page} into {name.folder}"
    return Part(entry, by_hand, functools.partial(locate.hub_file, name))


def part_of(entry: Entry) -> Part:
    """The file of an entry."""
    origin = (entry.addresses or entry.pages)[0]
    by_hand = f"{origin} as {locate.weights_folder() / entry.file}"
    return Part(entry, by_hand, functools.partial(locate.fetch, entry))


def _mask_model(values: Mapping[str, Any]) -> str:
    """The model that finds masks, by its name, or ""."""
    given = str(values.get("MODEL.MASK_GENERATOR.OUTPUTS", ""))
    read = values.get("MODEL.MASK_GENERATOR.SOURCE") == "masks"
    return given if read and mask_models.is_mask_model_name(given) else ""


def _masks(given: str) -> Iterator[Part]:
    """The folder of a model that finds masks."""
    if not given:
        return
    name, licence = mask_models.mask_model(given)
    if folder := locate.present_folder(name, mask_models.NEEDED):
        require_readable(folder / mask_models.MODEL_WEIGHTS)
    else:
        unknown = Entry(name=given, file="", addresses=(name.page,), licence=licence)
        files = ", ".join((*mask_models.NEEDED, mask_models.IMAGE_SETTINGS[0]))
        by_hand = f"{files} of {name.page} into {name.folder}"
        models = mask_models.MASK_MODELS.items()
        family = (zoo()[n] for n, known in models if known.repository == name.repository)
        entry = next(family, unknown)
        yield Part(entry, by_hand, functools.partial(mask_models.mask_model_folder, given))


def open_clip_folder() -> Path:
    """Folder of the installed open_clip, which is not imported."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")
    return Path(spec.origin).parent


def tokenizer_files(repository: str) -> list[locate.HubName]:
    """The files that may be a repository's tokenizer, those that are here first.

    TIPSv2's repositories have SentencePiece's alone, others a tokenizer.json.
    """
    files = reversed(TOKENIZERS) if repository.startswith("google/tipsv2-") else TOKENIZERS
    names = [locate.HubName(repository, file=file) for file in files]
    return sorted(names, key=lambda name: locate.present_hub_file(name) is None)


def _tokenizers(values: Mapping[str, Any]) -> dict[locate.HubName, str]:
    """Files of the tokenizers of a configuration's CLIPs, with the CLIPs' licences; none of CLIP's byte pairs."""
    folders = (ARCHITECTURES, open_clip_folder() / "model_configs")
    licences: dict[locate.HubName, str] = {}
    for section in ("MODEL.CLIP", "MODEL.CLIP_BRANCH"):
        clip = values.get(f"{section}.NAME", "")
        path = next(filter(Path.is_file, (folder / f"{clip}.json" for folder in folders)), None)
        text = json.loads(path.read_text(encoding="utf-8"))["text_cfg"] if path else {}
        if repository := text.get("hf_tokenizer_name"):
            entry = entry_of(str(values.get(f"{section}.WEIGHTS", "")), clip)
            licence = entry.licence if entry else UNKNOWN
            licences.setdefault(tokenizer_files(repository)[0], licence)
    return licences
