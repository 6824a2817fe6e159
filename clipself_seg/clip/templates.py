"""Sentences around class names, read from ``templates.json``: ``{}`` is the class, ``{article}`` "a" or "an".

- ``vild63``: what ViLD published (Gu et al., 2022), whole sentences made of what begins with an article;
- ``vild14``: those of ViLD's that FC-CLIP took (arXiv 2308.02487); four of them end without a full stop;
- ``openai80``: what OpenAI published for zero-shot ImageNet (Radford et al., 2021), in their order;
- ``imagenet80``: the same, around names as they stand, as OpenAI and open_clip classify whole images;
- ``tcl9``: the nine of TCL (Cha et al., 2023), which TIPSv2's authors label pixels with: seven of the 80, and two for
  several;
- ``cat_seg``, ``odise``: the one of CAT-Seg and of ODISE; ``single``, ``bare``: a plain one, and the name alone.
"""

from __future__ import annotations

import json
from pathlib import Path

TEMPLATES: dict[str, tuple[str, ...]] = {
    name: tuple(sentences)
    for name, sentences in json.loads(
        Path(__file__).with_name("templates.json").read_text(encoding="utf-8")
    ).items()
}
TEMPLATES["imagenet80"] = TEMPLATES["openai80"]
NOUN_TEMPLATES = "vild63"  # around nouns of boxes, which a student learns
# Sets whose authors put a class name in as it stands: CAT-Seg, ODISE, FC-CLIP, and OpenAI for whole images.
AS_IT_STANDS = frozenset({"cat_seg", "odise", "bare", "vild14", "imagenet80"})


def clean_name(name: str) -> str:
    """A class name as it is written in a sentence: ``sports_ball/bat`` is "sports ball or bat"."""
    return name.replace("_", " ").replace("/", " or ").lower().rstrip(".")


def article(name: str) -> str:
    """The article before `name`, from its first letter as given: capitals count as consonants."""
    return "an" if name.startswith(("a", "e", "i", "o", "u")) else "a"


def class_prompts(name: str, templates: str = "vild63", clean: bool | None = None) -> list[str]:
    """The sentences for one class name.

    Args:
        name: one name of the class, as the vocabulary spells it.
        templates: a key of `TEMPLATES`.
        clean: write the name as `clean_name` does, else as it is; None: as the templates' authors do, `AS_IT_STANDS`.
    """
    if clean is None:
        clean = templates not in AS_IT_STANDS
    written = clean_name(name) if clean else name
    return [template.format(written, article=article(name)) for template in TEMPLATES[templates]]


def templates_text(name: str) -> str:
    """A set of templates in words: the sentence if it has one, else its name and their number."""
    sentences = TEMPLATES[name]
    return f'"{sentences[0]}"' if len(sentences) == 1 else f"{name}, {len(sentences)} sentences"
