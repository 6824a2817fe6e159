"""Write the generated tables of docs/: checkpoints (models.md), licences, kinds of CLIP and their weights (towers), and
what was measured of models (README, performance.md)."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import jobs
from clipself_seg.checkpoints.zoo import Entry, entry_of, zoo
from clipself_seg.clip.find_kind import KINDS, find_architecture, list_architectures
from clipself_seg.clip.runtime import without_values
from clipself_seg.clip.templates import templates_text
from clipself_seg.clip.tower_kind import Architecture
from clipself_seg.clip.training_free import ATTENTIONS, NONE
from clipself_seg.files import read_json, write_text
from lab.tables.page import markdown_table

ROOT = Path(__file__).resolve().parent.parent
# Title of a family -> expression for the names of its weights; a name is of the first that fits.
FAMILIES = {
    "CAT-Seg: pixels": "catseg-",
    "FC-CLIP, ODISE: segments": "fcclip-|odise-",
    "F-ViT: boxes": "fvit-",
    "CLIPSelf's CLIPs": "clipself-",
    "OpenAI CLIP": "openai-",
    "EVA-02 CLIP": "(?i)eva02-",
    "TIPSv2": "tipsv2-",
    "SigLIP 2": ".*-SigLIP2",
    "SigLIP": ".*-SigLIP",
    "PE-Core": "PE-Core-",
    "LAION, DataComp, DFN, MetaCLIP": ".*:",
    "Masks (--masks)": "sam|eomt|mask2former",
    "Parts of models": "",
}
# Licence of the weights of open_clip's tags by how they begin, as the cards of the zoo's entries of a family say; a
# line of the zoo goes before it. Of commonpool, yfcc15m and cc12m none was read.
LICENCES = {
    "metaclip": "CC BY-NC 4.0",
    "dfn": "apple-amlr, research only",
    "laion": "MIT",
    "datacomp": "MIT",
    "merged": "MIT",
    "webli": "Apache-2.0",
    "meta": "Apache-2.0",
}


def zoo_table() -> str:
    """A folded table for each family, a row for each official checkpoint."""
    heads = ["name", "size", "may I ship it: licence", "published"]
    tables = []
    for title, own in _by_family().items():
        head = f"<details><summary><b>{title}</b> ({len(own)})</summary>"
        table = markdown_table(heads, [*map(_row, own)])
        tables.append(f"{head}\n\n{table}\n\n</details>\n")
    return "\n".join(tables)


def _row(entry: Entry) -> list[str]:
    by_hand = "" if entry.addresses else " (by hand)"
    config = f"<br>`{entry.configs[0]}`" if entry.key == "MODEL.WEIGHTS" else ""
    numbers = entry.published or "none"
    name, licence = f"`{entry.name}`{by_hand}{config}", f"{entry.may_ship}: {entry.licence}"
    return [name, entry.how_large, licence, numbers]


def licences_table() -> str:
    """A row for each licence in a family of official checkpoints, with the pages where it was read."""
    rows = []
    for title, own in _by_family().items():
        for licence in dict.fromkeys(entry.licence for entry in own):
            entries = [entry for entry in own if entry.licence == licence]
            stated = [entry.licence_source.split(", ") for entry in entries]
            pages = dict.fromkeys(page for page, _ in stated)
            links = ", ".join(f"[{number}]({page})" for number, page in enumerate(pages, 1))
            read = ", ".join(sorted({read for _, read in stated}))
            names = _names(entry.name for entry in entries)
            rows.append([title, names, licence, entries[0].may_ship, f"{links}: {read}"])
    heads = ["family", "weights", "stated about the weights", "may I ship it", "stated on"]
    return markdown_table(heads, rows) + "\n"


def _by_family() -> dict[str, list[Entry]]:
    """Entries by the titles of `FAMILIES`."""
    families: dict[str, list[Entry]] = {title: [] for title in FAMILIES}
    for entry in zoo().values():
        title = next(title for title, name in FAMILIES.items() if re.match(name, entry.name))
        families[title].append(entry)
    return families


def kinds_table() -> str:
    """A row for each kind: pixels, texts, and what can be read of an image."""
    rows, models = [], {model.kind.name: model for model in _by_kind()}
    for kind in KINDS.values():
        with without_values():
            readouts = kind.build_image(models[kind.name], False).readouts
        dense = ", ".join(readouts.dense_kinds)
        names = (NONE, *ATTENTIONS) if readouts.attentions else (NONE,)
        attentions = ", ".join(names)
        masked = "yes" if readouts.masked_attention else "no"
        limited = math.isfinite(kind.largest_scale)
        factor = f"its own, at most {kind.largest_scale:g}" if limited else "its own"
        pixels = f"{_numbers(kind.mean)}; {_numbers(kind.std)}"
        sentences = templates_text(kind.templates)
        rows.append([kind.name, pixels, sentences, dense, attentions, masked, factor])
    read = ["`MODEL.CLIP.DENSE`", "`MODEL.CLIP.ATTENTION`", "masked attention"]
    heads = ["kind", "pixels, mean; std", "sentences", *read]
    return markdown_table([*heads, "factor of cosines in panoptic models"], rows) + "\n"


def weights_table() -> str:
    """A row for each model and licence of its weights, by kind; models without published weights are left out."""
    rows = [
        [*_about(architecture), _names(names), licence]
        for architecture in _by_kind()
        for licence, names in _weights(architecture).items()
    ]
    heads = ["model", "kind", "side, patch, E", "tokens of a text", "weights"]
    return markdown_table([*heads, "licence of the weights"], rows) + "\n"


def configs_table() -> str:
    """A row for each model that configurations of the project name, by kind, as the zoo lists them."""
    rows = []
    for name in (architecture.name for architecture in _by_kind()):
        named = dict.fromkeys(c for e in zoo().values() if e.model == name for c in e.configs)
        if named:
            rows.append([f"`{name}`", _names(named)])
    return markdown_table(["model", "configurations"], rows) + "\n"


def measured() -> dict[str, Any]:
    """Numbers of each model in docs/measured/models.json, see `bench.models.measure_models`."""
    return dict(read_json(ROOT / "docs/measured/models.json")["models"])


def models_table() -> str:
    """A row for each measured model of README's table."""
    rows = [
        [f"`{name}`", f"{one['seconds']:.1f}", one["tower"]]
        + [f"{one[key] / 1e9:.2f}" for key in ("products", "norms")]
        for name, one in measured().items()
    ]
    heads = ["model", "CPU-seconds of an image", "CLIP", "products, G multiply-adds", "norms, G"]
    return markdown_table(heads, rows) + "\n"


def speed_table() -> str:
    """A row for each job in docs/measured/speed.json, as `benchmark.py all` prints them."""
    return jobs.table(read_json(ROOT / "docs/measured/speed.json")["jobs"]) + "\n"


def with_seconds(text: str) -> str:
    """README with the measured seconds in its table of models."""
    for name, one in measured().items():
        place = rf"(\n\| `{name}` \| [^|]*?)(; \d+ s)?(?= \|)"
        text = re.sub(place, rf"\g<1>; {one['seconds']:.0f} s", text)
    return text


def _by_kind() -> list[Architecture]:
    architectures, kinds = map(find_architecture, list_architectures()), [*KINDS.values()]
    return sorted(architectures, key=lambda own: kinds.index(own.kind))


def _about(architecture: Architecture) -> list[str]:
    sizes = architecture.signature
    side = architecture.vision.get("image_size", 224)
    tokens = architecture.text["context_length"]
    repository = architecture.text.get("hf_tokenizer_name")
    by = f", `{repository}`" if repository else ""
    numbers = f"{side}, {sizes.patch_size}, {sizes.embed_dim}"
    return [f"`{architecture.name}`", architecture.kind.name, numbers, f"{tokens}{by}"]


def _weights(architecture: Architecture) -> dict[str, list[str]]:
    """Names of a model's weights by their licence."""
    import open_clip

    name, known = architecture.name, zoo()
    tags = open_clip.list_pretrained_tags_by_model(name)
    named = {tag: _licence(tag, name) for tag in tags}
    named |= {e.name: e.licence for e in known.values() if e.model == name and ":" not in e.name}
    by_licence: dict[str, list[str]] = {}
    for weights, licence in named.items():
        by_licence.setdefault(licence, []).append(weights)
    return by_licence


def _licence(tag: str, model: str) -> str:
    if entry := entry_of(tag, model):
        return entry.licence
    stated = (text for start, text in LICENCES.items() if tag.startswith(start))
    return next(stated, "nothing stated")


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in dict.fromkeys(values))


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


PAGES = {
    "docs/tables/models.md": {"zoo": zoo_table},
    "docs/licences.md": {"licences": licences_table},
    "docs/performance.md": {"speed": speed_table, "models": models_table},
    "docs/towers.md": {"kinds": kinds_table},
    "docs/tables/towers.md": {"weights": weights_table, "configs": configs_table},
}


def main() -> int:
    """Replace what is between the marks of each table; the status is 1 where they are missing."""
    for page, tables in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, make in tables.items():
            between = re.compile(rf"(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)", re.DOTALL)
            new = f"\n{make()}\n".replace("\\", r"\\")
            text, count = between.subn(new, text)
            if not count:
                return 1
        write_text(ROOT / page, text)
    readme = ROOT / "README.md"
    write_text(readme, with_seconds(readme.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(main())
