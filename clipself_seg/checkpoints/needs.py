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
# Files of tokenizers, the first that a repository has, and the packages that read them.
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
    return [
        *_weights(values),
        *_masks(_mask_model(values)),
        *(_tokenizer(_tokenizer_of(values), values) if texts else ()),
    ]


def require_packages(values: Mapping[str, Any], texts: bool = True) -> None:
    """Refuses a configuration whose model of masks or tokenizer needs a package that is not installed.

    Raises:
        MissingPackage: says what brings it.
    """
    if _mask_model(values):
        require_installed("transformers", "a model that finds masks", "masks")
    if texts and (tokenizer := _tokenizer_of(values)):
        package = TOKENIZERS[tokenizer.file]
        require_installed(package, f"the tokenizer of {tokenizer.repository}", "tokenizers")


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
    """Weights that keys name by the zoo or the hub.

    Raises:
        InputError: a file that is here was cut off, or is not the one that was published.
    """
    clip = values.get("MODEL.CLIP.NAME", "")
    names = (str(value) for key, value in values.items() if key.endswith("WEIGHTS"))
    for name in dict.fromkeys(name.removeprefix(SCHEME) for name in names):
        if entry := entry_of(name, clip):
            if locate.present_file(entry):
                locate.fetch(entry)  # compares it with what was published
            else:
                yield part_of(entry)
        elif name.startswith(locate.HUB) and not locate.present_hub_file(
            hub := locate.hub_name(name)
        ):
            title = Entry(name=name, file=hub.file, addresses=(hub.page,), licence=UNKNOWN)
            by_hand = f"{hub.file or locate.ANY_FILE} of {hub.page} into {hub.folder}"
            yield Part(title, by_hand, functools.partial(locate.hub_file, hub))


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
    name, model = mask_models.mask_model(given)
    if folder := locate.present_folder(name, mask_models.NEEDED):
        require_readable(folder / mask_models.MODEL_WEIGHTS)
    else:
        unknown = Entry(name=given, file="", addresses=(name.page,), licence=model.licence)
        files = ", ".join((*mask_models.NEEDED, mask_models.IMAGE_SETTINGS[0]))
        by_hand = f"{files} of {name.page} into {name.folder}"
        models = mask_models.MASK_MODELS.items()
        family = (zoo()[n] for n, known in models if known.repository == name.repository)
        entry = next(family, unknown)
        yield Part(entry, by_hand, functools.partial(mask_models.mask_model_folder, given))


def _tokenizer_of(values: Mapping[str, Any]) -> locate.HubName | None:
    """The tokenizer's file of a configuration's CLIP; None of one with CLIP's byte pairs."""
    clip = values.get("MODEL.CLIP.NAME", "")
    spec = importlib.util.find_spec("open_clip")
    configs = [ARCHITECTURES / f"{clip}.json"]
    if spec and spec.origin:
        configs.append(Path(spec.origin).parent / "model_configs" / f"{clip}.json")
    for place, path in enumerate(configs):
        if path.is_file():
            text = json.loads(path.read_text(encoding="utf-8"))["text_cfg"]
            if repository := text.get("hf_tokenizer_name"):
                names = [locate.HubName(repository, file=file) for file in TOKENIZERS]
                here = (name for name in names if locate.present_folder(name, [name.file]))
                # TIPSv2's, which open_clip does not know, are SentencePiece's.
                return next(here, names[1 - place])
    return None


def _tokenizer(name: locate.HubName | None, values: Mapping[str, Any]) -> Iterator[Part]:
    """The file of a tokenizer, which has the licence of its CLIP."""
    if name is None or locate.present_folder(name, [name.file]):
        return
    clip = entry_of(str(values.get("MODEL.CLIP.WEIGHTS", "")), values["MODEL.CLIP.NAME"])
    licence = clip.licence if clip else UNKNOWN
    title = f"tokenizer of {name.repository}"
    entry = Entry(name=title, file=name.file, addresses=(name.page,), licence=licence)
    by_hand = f"{name.file} of {name.page} into {name.folder}"
    yield Part(entry, by_hand, functools.partial(locate.hub_file, name))
