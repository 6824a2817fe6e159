"""Prompt templates for class names: ViLD's 63, FC-CLIP's 14, OpenAI's 80, TCL's 9, or a single one."""

from __future__ import annotations

from clipself_seg.errors import InputError, nearest

# The prompts that ViLD published (Gu et al., 2022). {article} is "a" or "an", {} the class.
VILD_63 = (
    "There is {article} {} in the scene.",
    "There is the {} in the scene.",
    "a photo of {article} {} in the scene.",
    "a photo of the {} in the scene.",
    "a photo of one {} in the scene.",
    "itap of {article} {}.",
    "itap of my {}.",
    "itap of the {}.",
    "a photo of {article} {}.",
    "a photo of my {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    "a good photo of {article} {}.",
    "a good photo of the {}.",
    "a bad photo of {article} {}.",
    "a bad photo of the {}.",
    "a photo of a nice {}.",
    "a photo of the nice {}.",
    "a photo of a cool {}.",
    "a photo of the cool {}.",
    "a photo of a weird {}.",
    "a photo of the weird {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of a clean {}.",
    "a photo of the clean {}.",
    "a photo of a dirty {}.",
    "a photo of the dirty {}.",
    "a bright photo of {article} {}.",
    "a bright photo of the {}.",
    "a dark photo of {article} {}.",
    "a dark photo of the {}.",
    "a photo of a hard to see {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of {article} {}.",
    "a low resolution photo of the {}.",
    "a cropped photo of {article} {}.",
    "a cropped photo of the {}.",
    "a close-up photo of {article} {}.",
    "a close-up photo of the {}.",
    "a jpeg corrupted photo of {article} {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of {article} {}.",
    "a blurry photo of the {}.",
    "a pixelated photo of {article} {}.",
    "a pixelated photo of the {}.",
    "a black and white photo of the {}.",
    "a black and white photo of {article} {}.",
    "a plastic {}.",
    "the plastic {}.",
    "a toy {}.",
    "the toy {}.",
    "a plushie {}.",
    "the plushie {}.",
    "a cartoon {}.",
    "the cartoon {}.",
    "an embroidered {}.",
    "the embroidered {}.",
    "a painting of the {}.",
    "a painting of a {}.",
)

# The prompts that OpenAI published for zero-shot ImageNet (Radford et al., 2021), in their order.
OPENAI_80 = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

# The nine of TCL (Cha et al., 2023), which TIPSv2's authors label pixels with: seven of the 80, and two for several.
TCL_9 = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)


# Those that FC-CLIP (arXiv 2308.02487) took of ViLD's; four of them end without a full stop.
VILD_14 = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    *(f"a photo of a {size} {{}}." for size in ("small", "medium", "large")),
    *(f"This is a photo of a {size} {{}}." for size in ("small", "medium", "large")),
    *(f"There is a {size} {{}} in the scene." for size in ("small", "medium", "large")),
)


def _with_this_is(template: str) -> str:
    """ViLD makes whole sentences of what begins with an article."""
    return "This is " + template if template.startswith(("a", "the")) else template


TEMPLATES: dict[str, tuple[str, ...]] = {
    "vild63": tuple(_with_this_is(template) for template in VILD_63),
    "vild14": VILD_14,
    "openai80": OPENAI_80,
    "tcl9": TCL_9,
    "single": ("a photo of a {}",),
    "cat_seg": ("A photo of a {} in the scene",),
    "odise": ("a photo of a {}.",),
    "bare": ("{}",),
}


# Sets whose authors put a class name in as it stands: CAT-Seg, ODISE and FC-CLIP.
AS_IT_STANDS = frozenset({"cat_seg", "odise", "bare", "vild14"})


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

    Raises:
        InputError: there are no templates of that name.
    """
    if templates not in TEMPLATES:
        raise InputError(f'no templates "{templates}": {nearest(templates, TEMPLATES)}')
    if clean is None:
        clean = templates not in AS_IT_STANDS
    written = clean_name(name) if clean else name
    return [template.format(written, article=article(name)) for template in TEMPLATES[templates]]


def templates_text(name: str) -> str:
    """A set of templates in words: the sentence if it has one, else its name and their number."""
    sentences = TEMPLATES[name]
    return f'"{sentences[0]}"' if len(sentences) == 1 else f"{name}, {len(sentences)} sentences"
