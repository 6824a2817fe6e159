"""Declarations of the configuration's keys: all about a key in one place.

    fvit = Section("MODEL.FVIT", of=["FViT"])
    # A detection needs a higher score.
    fvit.key("SCORE_THRESHOLD", 0.01, within(0, 1))

`keys.py` and the files `*_keys.py` declare them, with the sentence that explains a key as the comment above it;
`relations.py` has what two keys must be together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import get_cfg

from clipself_seg.errors import nearest, shown
from clipself_seg.imports import OR_IMPORT
from clipself_seg.yaml_files import leaves

# The models of this package; the evaluation, the data and the trainer of a model's task count as the model.
MODELS = (
    "RegionReader",
    "ImageClassifier",
    "CLIPSelf",
    "ZeroShotSegmenter",
    "CATSeg",
    "OpenPanoptic",
    "FViT",
)
EVERY = ("every model",)
# A head of Detectron2 that stands on a `CLIPBackbone`.
HEADS = ("a head on CLIPBackbone",)
# Sections whose keys a model of another project may read, whatever is declared here.
OWN_SECTIONS = ("MODEL.", "INPUT.")
BACKBONE = "MODEL.CLIP.BACKBONE"
STOCK = dict(leaves(get_cfg()))  # Detectron2's keys with their defaults
LARGEST_NUMBER = 4096  # of a folder, far above that of any published model


@dataclass(frozen=True)
class Check:
    """Values that a key may have: in words, and as the test of one."""

    wanted: str
    holds: Callable[[Any], bool]


def at_least(least: int) -> Check:
    """Numbers from `least`."""
    return Check("0 or more" if least == 0 else f"at least {least}", lambda value: value >= least)


def within(least: float, most: float) -> Check:
    """Numbers from `least` to `most`, both included."""
    return Check(f"in [{least}, {most}]", lambda value: least <= value <= most)


def multiple_of(divisor: int) -> Check:
    """Whole numbers above 0 that a number divides."""
    return Check(f"a multiple of {divisor}", lambda value: value > 0 and value % divisor == 0)


def each(check: Check, count: int | None = None, *, whole: bool = False) -> Check:
    """Lists of numbers that pass a check.

    Args:
        check: of one of them.
        count: the required number of values; None for any number.
        whole: True if they have to be whole numbers.
    """
    types = int if whole else int | float

    def holds(values: Sequence[Any]) -> bool:
        numbers = all(isinstance(v, types) and not isinstance(v, bool) for v in values)
        return count in (None, len(values)) and numbers and all(map(check.holds, values))

    several = {None: "", 2: "two ", 4: "four "}.get(count, f"{count} ")
    return Check(f"{several}{'whole ' if whole else ''}numbers, each {check.wanted}", holds)


def names_of(things: str) -> Check:
    """Lists of names of data sets, files or features."""
    return Check(things, lambda values: all(isinstance(name, str) for name in values))


NOT_NEGATIVE = Check("0 or more, and finite", lambda value: 0 <= value < math.inf)
POSITIVE = Check("greater than 0, and finite", lambda value: 0 < value < math.inf)


@dataclass(frozen=True, eq=False)
class Key:
    """All that is known of a key but its explanation, which is the comment above its declaration.

    Attributes:
        name: full name.
        default: value where nothing sets it; its type is that of all values.
        check: values that it may have; None for any of its type.
        choices: words that it may be; of a list, words of which it has one at least.
        extensible: modules of --import may add choices.
        of: names of the models that read it.
        when: (key, value): models that have that key read this one only if it has that value.
        free: a resumed run may change it, since it does not decide what is learnt.
        folder: what the configuration in a stranger's folder may set: the least and the largest number, so that none
            costs much more time or memory than the weights show; the one file of the folder that the key may name; or
            None, nothing.
        weights: names a file of weights.
        clip_backbone: `CLIPBackbone` reads it, and a backbone of somebody else's does only if it says so.
    """

    name: str
    default: Any
    check: Check | None = None
    choices: tuple[str, ...] = ()
    extensible: bool = False
    of: Sequence[str] = EVERY
    when: tuple[str, object] | None = None
    free: bool = False
    folder: tuple[float, float] | str | None = (-LARGEST_NUMBER, LARGEST_NUMBER)
    weights: bool = False
    clip_backbone: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest number in a configuration that came in a folder."""
        return self.folder if isinstance(self.folder, tuple) else (-LARGEST_NUMBER, LARGEST_NUMBER)

    def read_by(self, model: str | None) -> bool:
        """True if a model of this package reads the key with some value of the others."""
        return model in self.of or EVERY[0] in self.of

    def problem(self, value: Any) -> str:
        """The sentence, behind the key's name, that refuses a value of the right type; "" if it is a good one."""
        if self.check is not None and not self.check.holds(value):
            return f"must be {self.check.wanted}, got {shown(value)}"
        if not self.choices:
            return ""
        several = isinstance(self.default, tuple)
        if several and not value:
            return f"is empty: give some of {', '.join(self.choices)}"
        for word in value if several else (value,):
            if word not in self.choices:
                hint = nearest(str(word), filter(None, self.choices))
                hint += OR_IMPORT if self.extensible else ""
                return f'cannot {"have" if several else "be"} "{str(word)[:200]}"; {hint}'
        return ""


KEYS: dict[str, Key] = {}  # by their full names


class Section:
    """Declares keys below one name, which share what is said of the section.

    Args:
        name: such as "MODEL.FVIT"; "" for keys by their full names.
        **shared: attributes of `Key`, which a key may have otherwise.
    """

    def __init__(self, name: str = "", **shared: Any) -> None:
        self.name = name
        self.prefix = f"{name}." if name else ""
        self.shared = shared

    def key(self, name: str, default: Any, check: Check | None = None, **about: Any) -> None:
        """Declares a key of the project, or another default of one of Detectron2.

        Args:
            name: what stands behind the section's name.
            default: value where nothing sets it.
            check: values that it may have.
            **about: further attributes of `Key`.
        """
        declared = Key(self.prefix + name, default, check, **(self.shared | about))
        name, problem = declared.name, declared.problem(default)
        assert name not in KEYS, f"{name} is declared twice"
        assert {*declared.of} <= {*EVERY, *HEADS, *MODELS}, f"{name}: no model {declared.of}"
        assert not problem or name in STOCK, f"{name} {problem}"
        KEYS[name] = declared

    def stock(self, name: str, check: Check | None = None, **about: Any) -> None:
        """Declares a key of Detectron2 that is read here with Detectron2's default."""
        self.key(name, STOCK[self.prefix + name], check, **about)

    def all_stock(self) -> None:
        """Declares all keys that Detectron2 has below the name, and that are not declared yet."""
        for name in STOCK:
            if name.startswith(self.prefix) and name not in KEYS:
                self.stock(name.removeprefix(self.prefix))


def covers(names: Iterable[str], name: str) -> bool:
    """True if some names have that of a key, or one that ends with "." is the section around it."""
    return any(name.startswith(one) if one.endswith(".") else name == one for one in names)


def is_read(name: str, model: str) -> bool:
    """True if a key decides anything in this project, with this model or with another one.

    All keys of a model of another project count.
    """
    return name in KEYS or (model not in MODELS and name.startswith(OWN_SECTIONS))


def why_unread(name: str, values: Mapping[str, object], model: str | None) -> str | None:
    """The reason why a key has no effect, for a message; None if the key is used, or if that cannot be told.

    Args:
        name: full name.
        values: value of every key.
        model: ``MODEL.META_ARCHITECTURE``; None if nothing names one.
    """
    key = KEYS.get(name, Key(name, None, of=()))
    ours = model is None or model in MODELS
    if ours and name not in KEYS:
        return "nothing reads it"
    reads = () if ours else reads_of_others(str(model))
    if model is None or reads is None:
        return None
    if not key.read_by(model) and not covers(reads, name):
        readers = f", it is for {' and '.join(key.of)}" if key.of else ""
        return f"{model} does not read it{readers}"
    if key.when is not None:
        condition, value = key.when
        if KEYS[condition].read_by(model) and values[condition] != value:
            return f"{model} reads it with {condition} {value} alone"
    return None


def reads_of_others(model: str) -> Sequence[str] | None:
    """The attribute `reads` of a model of another project: names of keys and sections; None if it has none."""
    from detectron2.modeling import META_ARCH_REGISTRY  # takes a second

    names: Sequence[str] | None = getattr(dict(META_ARCH_REGISTRY).get(model), "reads", None)
    return names


def backbone_reads(backbone: str, name: str) -> bool:
    """True if an entry of BACKBONE_REGISTRY reads a key of ``MODEL.CLIP``, as its attribute `reads` says.

    That of the default entry is made of the declarations, which are asked in its place: it need not be imported.
    """
    if backbone == KEYS[BACKBONE].default:
        return KEYS[name].clip_backbone
    from detectron2.modeling import BACKBONE_REGISTRY  # takes a second

    return covers(getattr(dict(BACKBONE_REGISTRY).get(backbone), "reads", ()), name)


def is_free(name: str) -> bool:
    """True if a resumed run may change a key."""
    return name in KEYS and KEYS[name].free
