"""Official checkpoints by name, their entries in ``zoo.yaml``, what comes with the project, and messages about both."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import yaml

from clipself_seg.errors import InputError, nearest

SHIPPED = Path(__file__).parent.parent / "mini" / "weights"
MINI_CLIP = "ViT-Mini-8"  # architecture of the first CLIP that knows the generated worlds
# Tag -> architecture of the CLIPs that know them, which have one text tower.
MINI_CLIPS = {
    "mini": MINI_CLIP,
    "mini-eva": "EVA-Mini-8",
    "mini-large": "ViT-Mini-L-8",
    "mini-eva-large": "EVA-Mini-L-8",
    "mini-resnet": "RN-Mini",
}
# Tags of the weights that come with the project: the file with the text tower and, last, that of the image tower.
# A wheel has those of `IN_WHEEL` alone (setup.cfg), a clone of the repository all.
SHIPPED_TAGS = {
    "mini": ("vit_mini_8",),
    "mini-clipself": ("vit_mini_8", "vit_mini_8_clipself"),
    "mini-clipself-proposals": ("vit_mini_8", "vit_mini_8_clipself_proposals"),
    "mini-eva": ("vit_mini_8", "eva_mini_8"),
    "mini-large": ("vit_mini_8", "vit_mini_l_8"),
    "mini-eva-large": ("vit_mini_8", "eva_mini_l_8"),
    "mini-resnet": ("vit_mini_8", "rn_mini"),
}
IN_WHEEL = ("mini", "mini-clipself", "mini-clipself-proposals")
# Tag for MODEL.WEIGHTS -> file.
SHIPPED_MODELS = {
    "mini-cat-seg": SHIPPED / "cat_seg_mini.safetensors",
    "mini-open-panoptic": SHIPPED / "open_panoptic_mini.safetensors",
    "mini-fvit": SHIPPED / "fvit_mini.safetensors",
}
# Such a tag -> its configuration.
SHIPPED_CONFIGS = {
    "mini-cat-seg": "mini/semseg",
    "mini-open-panoptic": "mini/panoptic",
    "mini-fvit": "mini/detection",
}
ZOO = Path(__file__).resolve().parent.parent / "zoo.yaml"
ABOUT = 0.02  # of a size that a page rounds, or that is that of the model's numbers
MOST = 4  # names in a message
SCHEME = "clipself://"  # before a name of the zoo or of a shipped model, where Detectron2 reads MODEL.WEIGHTS
# Licences of weights that let anybody ship them -> their names on the hub; that of a repository alone leaves it open.
OPEN_LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC BY 4.0": "cc-by-4.0"}
# Parts of licences that forbid it.
CLOSED = ("non-commercial", "-NC", "research only")
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # an eighth of the time with libyaml


def shipped_model(tag: str) -> str:
    """Name of the model whose weights a tag of `SHIPPED_TAGS` stands for."""
    return MINI_CLIPS.get(tag, MINI_CLIP)


def shipped_files(tag: str) -> list[Path]:
    """Files of a tag of `SHIPPED_TAGS`, last that of the image tower.

    Raises:
        InputError: they are not here, as in a wheel.
    """
    files = _files(tag)
    if lost := [path for path in files if not path.is_file()]:
        raise InputError(
            f'the weights "{tag}" are not here ({lost[-1]}): a wheel has {", ".join(IN_WHEEL)} alone, the others lie '
            "in clipself_seg/mini/weights of a clone of the repository"
        )
    return files


def shipped_tags() -> list[str]:
    """Tags of `SHIPPED_TAGS` whose files are here."""
    return [tag for tag in SHIPPED_TAGS if all(map(Path.is_file, _files(tag)))]


def _files(tag: str) -> list[Path]:
    return [SHIPPED / f"{stem}.safetensors" for stem in SHIPPED_TAGS[tag]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A checkpoint that others published, as the head of ``zoo.yaml`` explains.

    Attributes:
        name: name that stands for it in place of a path.
        file: name in the folder of weights; of Stable Diffusion, of a folder there.
        addresses: addresses to fetch it from; the first that answers is taken.
        pages: pages for a person to open where no plain request gets it.
        size: bytes; None where nobody says them all.
        megabytes: size, rounded, where `size` is None; None where nobody says it.
        sha256: hexadecimal digits, all or the first of them; empty where nobody says it.
        licence: of the weights.
        licence_source: address where it is stated, and when that was read.
        key: configuration key that takes it.
        model: name of the CLIP; empty for what is none.
        same: name of another entry of the same weights, whose file stands for this one's; empty for none.
        activation: "quick_gelu" where neither the file nor the name of the CLIP says it; else empty.
        distilled: True if it is a CLIP that was distilled, and no original one.
        configs: files that it goes with, such as "semseg/catseg+openai_vitb16".
        tasks: of a CLIP that is a good choice for them without training.
        settings: keys and values, other than the files', that the published numbers were measured with.
        published: numbers at their source; empty where nobody prints any.
        numbers: those of them that an evaluation here has, nested as its results are.
        source: where its address and numbers were read.
    """

    name: str
    file: str
    addresses: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    size: int | None = None
    megabytes: int | None = None
    sha256: str = ""
    licence: str = ""
    licence_source: str = ""
    key: str = "MODEL.CLIP.WEIGHTS"
    model: str = ""
    same: str = ""
    activation: str = ""
    distilled: bool = False
    configs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    settings: tuple[tuple[str, object], ...] = ()
    published: str = ""
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    source: str = ""

    def may_have(self, size: int) -> bool:
        """True if its file may have that many bytes: those that are published, about, or any where nobody says it."""
        if self.size is None and self.megabytes:
            return abs(size / 1e6 - self.megabytes) <= ABOUT * self.megabytes
        return self.size in (None, size)

    @property
    def may_ship(self) -> str:
        """Answers whether a product may contain them: "yes", "no", or "ask" where the licence leaves it open."""
        if any(part in self.licence for part in CLOSED):
            return "no"
        return "yes" if self.licence in OPEN_LICENCES else "ask"

    @property
    def terms(self) -> str:
        """The licence and what it lets one do, for what is said before a fetch."""
        return f"licence {self.licence}, may ship: {self.may_ship}"

    @property
    def how_large(self) -> str:
        """Size for a person: "819 MB", "about 599 MB" where it is rounded, or "not published"."""
        if self.size:
            return f"{self.size / 1e6:,.0f} MB"
        return f"about {self.megabytes:,} MB" if self.megabytes else "not published"


@functools.cache
def zoo() -> dict[str, Entry]:
    """Every entry by name, in the order of the file."""
    tree = yaml.load(ZOO.read_text(encoding="utf-8"), Loader=YAML_LOADER)
    for values in tree.values():
        values["settings"] = [*values.get("settings", {}).items()]
        values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return {name: Entry(name=name, **values) for name, values in tree.items()}


def same_weights(entry: Entry) -> list[Entry]:
    """The entries of the same weights, the given one first."""
    others = [one for one in zoo().values() if one.same == entry.name or entry.same == one.name]
    return [entry, *others]


def entry_of(name: str, clip: str) -> Entry | None:
    """The entry of weights that a configuration names, by its name or by open_clip's tag; None if there is none.

    OpenAI's have names, and the tag "openai" in files of the same names.

    Args:
        name: value of a key in `config.weight_checks.WEIGHTS`.
        clip: name of the configuration's CLIP, to which a tag belongs.
    """
    file = f"{clip.removesuffix('-quickgelu')}-{name}.safetensors"
    of_tag = (entry for entry in zoo().values() if entry.file == file)
    return zoo().get(name) or zoo().get(f"{clip}:{name}") or next(of_tag, None)


def suggestion(given: str) -> str:
    """The end of a message about weights that are not there: the entry that somebody may mean.

    Args:
        given: a path or a name, as it was given.
    """
    file = os.path.basename(given).lower()
    for entry in zoo().values():
        if file == entry.file.lower():
            return f'"{entry.name}" is the name of the official file, by which it is fetched'
    if given in SHIPPED_TAGS:
        return f'"{given}" is a CLIP that comes with this project: it belongs in MODEL.CLIP.WEIGHTS'
    names = {*zoo(), *SHIPPED_TAGS, *SHIPPED_MODELS}
    return f"or a name of an official checkpoint or of one of this project (docs/models.md): {nearest(given, names)}"


def official(key: str, config: str | os.PathLike[str]) -> str:
    """Names of the checkpoints that a configuration goes with, for a message; empty if there are none.

    Args:
        key: configuration key that takes them.
        config: name of one below ``configs/``, or of a folder there for all that is in it, such as "semseg/".
    """
    place = os.fspath(config)
    entries = [entry for entry in zoo().values() if entry.key == key]
    names = [e.name for e in entries if place and any(c.startswith(place) for c in e.configs)]
    return ", ".join(names[:MOST]) + (", ..." if len(names) > MOST else "")


def untrained(part: str, *, folder: str, shipped: str, clip: str) -> InputError:
    """The error of a model that would predict without ``MODEL.WEIGHTS``; says which ones would do.

    Args:
        part: the part of the model that is random then.
        folder: of the configurations of such models, such as "semseg/".
        shipped: name of the shipped model on the mini CLIP.
        clip: ``MODEL.CLIP.NAME``, which decides whether that one or the official ones fit.
    """
    fitting = f"an official one: {official('MODEL.WEIGHTS', folder)}"
    if clip == MINI_CLIP:
        fitting = f"{shipped}, which comes with the project"
    return InputError(
        f"MODEL.WEIGHTS is empty, so the {part} is random: give a trained checkpoint, such as the model_final.pth "
        f"of train_net.py, --resume, or {fitting}"
    )
