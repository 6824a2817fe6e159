"""The kinds of towers, all published weights that load into them, and their configurations, for ``docs/towers.md``."""

from __future__ import annotations

import math
from collections.abc import Iterable

from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip.kind import Architecture
from clipself_seg.clip.kinds import KINDS, find_architecture, list_architectures
from clipself_seg.clip.text_bank import templates_text
from clipself_seg.clip.training_free import ATTENTIONS, NONE
from clipself_seg.tables.page import markdown_table

NOTHING = "nothing stated"
# Licence of the weights of open_clip's tags by how they begin, as open_clip's docs/PRETRAINED.md and the publishers say
# by family; a line of the zoo goes before it.
FAMILIES = {
    "openai": "MIT (the repository's)",
    "laion": NOTHING,
    "datacomp": NOTHING,
    "commonpool": NOTHING,
    "yfcc15m": NOTHING,
    "cc12m": NOTHING,
    "metaclip": "CC-BY-NC",
    "dfn": "Apple's own",
    "merged": "MIT",
    "webli": "Apache-2.0",
    "meta": "Apache-2.0",
}


def kinds_table() -> str:
    """A row for each kind: pixels, texts, and what can be read of an image."""
    rows = []
    for kind in KINDS.values():
        dense = ", ".join(kind.readouts.dense_kinds)
        names = (NONE, *ATTENTIONS) if kind.readouts.attentions else (NONE,)
        attentions = ", ".join(names)
        masked = "yes" if kind.readouts.masked_attention else "no"
        limited = math.isfinite(kind.largest_scale)
        factor = f"its own, at most {kind.largest_scale:g}" if limited else "its own"
        pixels, sentences = f"{_numbers(kind.mean)}; {_numbers(kind.std)}", templates_text(
            kind.templates
        )
        rows.append([kind.name, pixels, sentences, dense, attentions, masked, factor])
    heads = [
        "kind",
        "pixels, mean; std",
        "sentences",
        "`MODEL.CLIP.DENSE`",
        "`MODEL.CLIP.ATTENTION`",
    ]
    heads += ["masked attention", "factor of cosines in panoptic models"]
    return markdown_table(heads, rows) + "\n"


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


def _by_kind() -> list[Architecture]:
    architectures, kinds = map(find_architecture, list_architectures()), [*KINDS.values()]
    return sorted(architectures, key=lambda own: kinds.index(own.kind))


def _about(architecture: Architecture) -> list[str]:
    _, _, patch_size, embed_dim = architecture.kind.sizes(architecture)
    side = architecture.vision.get("image_size", 224)
    tokens = architecture.text["context_length"]
    repository = architecture.text.get("hf_tokenizer_name")
    by = f", `{repository}`" if repository else ""
    sizes = f"{side}, {patch_size}, {embed_dim}"
    return [f"`{architecture.name}`", architecture.kind.name, sizes, f"{tokens}{by}"]


def _weights(architecture: Architecture) -> dict[str, list[str]]:
    """Names of a model's weights by their licence."""
    import open_clip

    name, known = architecture.name, zoo()
    tags = open_clip.list_pretrained_tags_by_model(name)
    named = {tag: _licence(tag, f"{name}:{tag}") for tag in tags}
    named |= {e.name: e.licence for e in known.values() if e.model == name and ":" not in e.name}
    by_licence: dict[str, list[str]] = {}
    for weights, licence in named.items():
        by_licence.setdefault(licence, []).append(weights)
    return by_licence


def _licence(tag: str, name: str) -> str:
    if name in zoo():
        return zoo()[name].licence
    return next((text for start, text in FAMILIES.items() if tag.startswith(start)), NOTHING)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in dict.fromkeys(values))


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
