"""Runs of ``clipself-seg train`` and ``eval``, named after what decides them: configuration, weights and data.

Whatever asks for the same run gets the same folder, and another value of any key gives another one: a number is never
that of other options.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipself_seg.checkpoints.locate import weights_folder
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, SHIPPED_TAGS, entry_of, shipped_files, zoo
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.config.load import load_config, values_and_defaults
from clipself_seg.config.weight_checks import WEIGHTS, refuse_addresses
from clipself_seg.data.datasets.records import sem_seg_records
from clipself_seg.data.datasets.table import DATASETS, MINI, ROOTS, DataSet
from clipself_seg.errors import InputError, shown
from clipself_seg.files import read_json
from clipself_seg.imports import typed_modules
from clipself_seg.training.tasks import task_of
from lab import ROOT
from lab.mini.writer import WorldSize, manifest_of
from lab.prepare.common import too_few_annotations
from lab.tables.table import FOLDER, RunOf, RunSpec

# Key of the configuration -> value.
Values = Mapping[str, Any]
CHUNK = 1 << 22  # bytes


def typed_sources() -> dict[str, list[Path]]:
    """Files of the modules of the variable: the module's file, or all Python files of the package that it is in.

    Returns:
        Name of the module or package -> its files, sorted; none for what is not a file.

    Raises:
        InputError: as `import_typed_modules`.
    """
    sources: dict[str, list[Path]] = {}
    for _, module in typed_modules():
        name = module.partition(".")[0]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            folders = map(Path, spec.submodule_search_locations)
            sources[name] = sorted(file for folder in folders for file in folder.rglob("*.py"))
        elif spec is not None and spec.has_location:
            sources[name] = [Path(str(spec.origin))]
    return sources


def _data_paths(files: DataSet) -> list[Path]:
    """Files and folders that a data set has to have."""
    return [files.path(need.relative) for need in files.needed(("instances", "semantic"))]


def missing_data(name: str, whole: bool = True) -> str:
    """The missing files of a data set, and how to get them.

    "" if all is there, if nobody knows, and of the mini worlds, which are drawn when they are needed.

    Args:
        whole: count images and annotations, too: a part of a data set has other numbers than the whole.
    """
    files = DATASETS.get(name)
    if files is None or files.root.variable == MINI.variable:
        return ""
    missing = [str(path) for path in _data_paths(files) if not path.exists()]
    if whole and not missing:
        # Of LVIS, whose images lie in both folders of COCO, each has to have some.
        parts = ("train2017", "val2017") if files.root is ROOTS["LVIS"] else ("",)
        for folder in filter(Path.is_dir, map(files.path, (files.images, files.annotations))):
            counts = [_count_files(folder / part) for part in parts]
            count = sum(counts) if all(counts) else 0
            if count < (files.official_count or 0):
                missing.append(f"{count} of {files.official_count} files in {folder}")
        missing += filter(None, [_too_few_annotations(name)])
    if not missing:
        return ""
    how = files.root.advice + (f", then {files.prepare}" if files.prepare else "")
    return f"{name}: {', '.join(missing)}: {how}"


@functools.lru_cache(maxsize=None)
def _too_few_annotations(name: str) -> str:
    return too_few_annotations(DATASETS[name])


@functools.lru_cache(maxsize=None)
def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def missing_weights(name: str) -> list[str]:
    """The way to get the weights of a name of the zoo, if they are not here and nothing fetches them."""
    entry, folder = zoo().get(name), weights_folder()
    if entry is None or entry.addresses or (folder / entry.file).exists():
        return []
    how = f"get {entry.file} from {' or '.join(entry.pages)}, and put it into {folder}"
    return [f"{name}: {how}; {size_and_licence(name, '')}"]


def size_and_licence(name: str, model: str) -> str:
    """Size and licence of the weights behind a name of the zoo, or a tag of open_clip.

    Args:
        name: value of a key in `WEIGHTS`.
        model: name of the CLIP.
    """
    entry = entry_of(name, model)
    size, licence = (entry.how_large, entry.licence) if entry else ("unknown", "not stated")
    return f"size: {size}; licence: {licence}"


def fingerprint(name: str) -> object:
    """The values that decide the content of a data set.

    Of the mini worlds, and of what a run itself prepares there, it is their manifest (sizes, seed and version
    of the generator), the standard one where no world is written yet. Of other data sets it is a hash of every
    annotation file, and the number of entries of every folder, without that of the images of an annotation file: what
    else is put into it decides nothing.
    """
    if name not in DATASETS:
        return "registered elsewhere"
    files = DATASETS[name]
    if files.root.variable != MINI.variable:
        paths = dict.fromkeys(_data_paths(files))
        if files.annotations:
            del paths[files.path(files.images)]
        return {path.name: _content(path) for path in paths}
    try:
        return read_json(MINI.drawn / "mini" / "manifest.json")
    except InputError:
        return manifest_of(WorldSize())


def _content(path: Path) -> int | str:
    if path.is_dir():
        return sum(1 for _ in os.scandir(path))
    return _hash_of(path) if path.is_file() else "absent"


@functools.lru_cache(maxsize=None)
def file_hash(path: Path, *_: int) -> str:
    """12 hexadecimal digits of the bytes of a file, read once for the same further values."""
    digest = hashlib.blake2b(digest_size=6)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# Keys whose values are files: what counts is what is in them.
FILE_KEYS = (*WEIGHTS, "MODEL.MASK_GENERATOR.OUTPUTS")
# Keys that no number depends on.
INDIFFERENT = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.LOG_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINT_KEEP",
)
# Words that write a run's data -> those that its name follows from, as the records of docs/tables/runs have them.
RECORDED: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("tools/mini.py", name): ("-m", f"clipself_seg.mini.{name}") for name in ("faded", "subjects")
} | {("tools/precompute.py", "region-text"): ("-m", "clipself_seg", "data", "region-text")}
DIGITS = 12
NAMED = "named "
# By configuration, as docs/tables/expected.md explains: hours of an A100 of a training, its memory with the images of
# each step, and seconds of an A100 of an image's evaluation.
COSTS: Mapping[str, Mapping[str, float]] = read_json(FOLDER / "costs.json")
HOURS, SECONDS = COSTS["hours of a training"], COSTS["seconds of an image"]
# On disk, of each number of an image tower that learns as a whole: two states of a training (value and two moments)
# and the weights of the whole model.
BYTES = 30


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A call of ``clipself-seg train`` or ``eval`` with everything that decides its numbers.

    Attributes:
        name: of its folder: configuration, seed, and hash of `settings`.
        config: file of the configuration, relative to the project.
        options: words of keys and values, without OUTPUT_DIR and what `needs` gives.
        needs: key -> run whose result is its value.
        evaluate: whether nothing is trained.
        seed: seed; None if no seed moves the numbers.
        settings: what `name` follows from: "config" (values that are not the default), "weights" and "data", and the
            sources of modules that a user imports.
        defaults: default of every key.
        result_file: what a training writes.
        minutes: core-minutes that are expected; 0 if that is not known.
        missing: what has to be there before, and is not, with the way to get it.
        prepare: words after ``python`` that write its data, {mini} for the folder of the mini worlds.
        imports: whether it has the modules of ``--import``.
    """

    name: str
    config: str
    options: tuple[str, ...]
    needs: Mapping[str, Run]
    evaluate: bool
    seed: int | None
    settings: Values
    defaults: Values
    result_file: str
    minutes: float
    missing: tuple[str, ...]
    prepare: tuple[str, ...]
    imports: bool = True

    @property
    def fetched(self) -> list[str]:
        """Weights that have names and are no files here, with their sizes and licences."""
        model = self.settings["config"].get("MODEL.CLIP.NAME", "")
        return [
            f"{key} {name}"
            + (f" ({model})" if key.startswith("MODEL.CLIP.") else "")
            + f"; {size_and_licence(name, model)}"
            for key, identity in self.settings["weights"].items()
            if identity.startswith(NAMED)
            and not missing_weights(name := identity.removeprefix(NAMED))
        ]

    @property
    def gigabytes(self) -> float:
        """Rough size of its folder, as if its ViT learnt as a whole; 0 of an evaluation."""
        name = {**self.defaults, **self.settings["config"]}["MODEL.CLIP.NAME"]
        if self.evaluate:
            return 0
        sizes = find_architecture(name).signature
        return BYTES * 12 * sizes.layers * sizes.width**2 / 1e9

    @property
    def has_numbers(self) -> bool:
        """True if it evaluates anything."""
        return bool(self.settings["config"].get("DATASETS.TEST"))

    def command(self, folder: Path, gpus: int = 1) -> list[str]:
        """The words to type after ``clipself-seg``.

        Args:
            folder: folder of all runs.
            gpus: processes.
        """
        words = ["eval" if self.evaluate else "train", "--config-file", self.config]
        words += [] if self.evaluate else ["--resume"]
        words += ["--num-gpus", str(gpus)] if gpus > 1 else []
        words += self.options
        for key, run in self.needs.items():
            words += [key, str(folder / run.name / run.result_file)]
        return [*words, "OUTPUT_DIR", str(folder / self.name)]

    def with_needs(self) -> Iterator[Run]:
        """Runs that it needs, directly or not, the first ones first, and itself."""
        for run in self.needs.values():
            yield from run.with_needs()
        yield self


def resolve(specs: Mapping[str, RunSpec], name: str, seed: int) -> Run:
    """A run of a table under a seed, which what it needs has as well.

    Args:
        specs: name -> run, of one scale.
        name: one of them.
        seed: seed; where nothing is trained the run is the same under every seed.

    Raises:
        InputError: as `load_config`.
    """
    spec = specs[name]
    needs: dict[str, Run] = {}
    options = dict(spec.options)
    missing = []
    for key, source in spec.weights.items():
        match source:
            case RunOf(other):
                needs[key] = resolve(specs, other, seed)
            case _:
                options[key] = source
                missing += missing_weights(source)
    moved = not spec.evaluate or any(run.seed is not None for run in needs.values())
    moved |= options.get("TEST.EXAMPLES.NUMBER", "0") != "0"  # which are drawn
    return make_run(
        spec.config,
        options,
        needs=needs,
        evaluate=spec.evaluate,
        seed=seed if moved else None,
        minutes=spec.minutes,
        missing=missing,
        prepare=spec.prepare,
        imports=spec.yours or not any(other.yours for other in specs.values()),
    )


def make_run(
    config: str,
    options: Mapping[str, str],
    *,
    needs: Mapping[str, Run] | None = None,
    evaluate: bool = False,
    seed: int | None = None,
    minutes: float = 0.0,
    missing: Sequence[str] = (),
    prepare: tuple[str, ...] = (),
    imports: bool = True,
) -> Run:
    """A run with its name.

    Args:
        config: file of the configuration, relative to the project or absolute.
        options: key -> value, as on a command line.
        needs: key -> run whose result is its value.
        evaluate: whether nothing is trained.
        seed: seed; None leaves the configuration's.
        minutes: core-minutes that are expected; 0 takes those of `COSTS`.
        missing: what is known to be missing.
        prepare: words that write its data.
        imports: whether it has the modules of ``--import``, which count then.

    Raises:
        InputError: as `load_config`; a word that a command line takes for an option.
    """
    needs = needs or {}
    seeded = dict(options) if seed is None else {**options, "SEED": str(seed)}
    words = tuple(word for pair in seeded.items() for word in pair)
    for word in (config, *words, *needs):
        if word.startswith("--"):
            raise InputError(f"a run of a table has {shown(word)}: give keys and values alone")
    values, defaults, result_file = _values(config, words)
    settings = _settings(values, defaults, needs, evaluate)
    if prepare:
        settings["prepare"] = [*RECORDED.get(prepare[:2], prepare[:2]), *prepare[2:]]
    if imports and (sources := typed_sources()):
        settings["imports"] = {
            name: _hash([(path.name, _hash_of(path)) for path in files])
            for name, files in sources.items()
        }
    here = (missing_data(name) for name in _data_sets(values, evaluate))
    stem = Path(config).stem + ("" if seed is None else f"_seed{seed}")
    return Run(
        name=f"{stem}-{_hash(settings)}",
        config=_in_project(config),
        options=words,
        needs=needs,
        evaluate=evaluate,
        seed=seed,
        settings=settings,
        defaults={key: defaults[key] for key in defaults if key not in (*FILE_KEYS, *INDIFFERENT)},
        result_file=result_file,
        minutes=minutes or _minutes(config, values, evaluate),
        missing=(*missing, *filter(None, here)),
        prepare=prepare,
        imports=imports,
    )


def _minutes(config: str, values: Values, evaluate: bool) -> float:
    """Minutes of an A100 that a run on real data takes; 0 where nobody knows."""
    if not evaluate:
        return 60 * HOURS.get(config_name(config), 0)
    sets = [DATASETS[name] for name in values["DATASETS.TEST"] if name in DATASETS]
    images = sum(one.official_count or 0 for one in sets)
    return images * SECONDS.get(config_name(config), 0) / 60


def _settings(
    values: Values, defaults: Values, needs: Mapping[str, Run], evaluate: bool
) -> dict[str, object]:
    """The settings that decide a run: values of keys that are not the default, content of weights, and data."""
    own = {"files": _own_files(values)} if values["DATASETS.DATA"] else {}
    return own | {
        "config": {
            key: value
            for key, value in values.items()
            if key not in (*FILE_KEYS, *INDIFFERENT) and value != defaults[key]
        },
        "weights": {
            key: f"run {needs[key].name}" if key in needs else _identity(values[key])
            for key in FILE_KEYS
            if key in needs or values.get(key)
        },
        "data": {name: fingerprint(name) for name in _data_sets(values, evaluate)},
        "evaluate": evaluate,
    }


def _own_files(values: Values) -> str:
    """Hash of the names, sizes and times of a user's data, and of what describes them."""
    names = [name for name in values["DATASETS.TEST"] if name not in DATASETS]
    records = [record for name in names for record in sem_seg_records(name)]
    files = [record[key] for record in records for key in ("file_name", "sem_seg_file_name")]
    stats = [(path, os.stat(path)) for path in (*files, values["DATASETS.DATA"])]
    return _hash([(path, one.st_size, one.st_mtime_ns) for path, one in stats])


@functools.lru_cache(maxsize=None)
def _values(
    config: str, words: tuple[str, ...]
) -> tuple[dict[str, object], dict[str, object], str]:
    """Values and defaults of the keys that decide a run, and the name of what a training writes."""
    cfg = load_config(_config_file(config), words)
    refuse_addresses(cfg)  # a table is a file, too
    both = values_and_defaults(cfg)
    values = {key: value for key, (value, _) in both.items()}
    defaults = {key: default for key, (_, default) in both.items()}
    return values, defaults, task_of(cfg).result_file


def config_name(config: str) -> str:
    """Name of a configuration of the project, such as "distill/coco_patches+eva02_vitb16"."""
    return Path(config).with_suffix("").as_posix().removeprefix("configs/")


def _in_project(config: str) -> str:
    """The name by which the project's folder, where runs work, has a configuration."""
    elsewhere = not (ROOT / config).is_file() and Path(config).is_file()
    return str(Path(config).absolute()) if elsewhere else config


def _config_file(config: str) -> Path:
    """The file of the project, or one of the user's."""
    return ROOT / config if (ROOT / config).is_file() else Path(config)


def _data_sets(values: Values, evaluate: bool) -> list[str]:
    trained = [] if evaluate else values["DATASETS.TRAIN"]
    drawn = values["TEST.EXAMPLES.DATASETS"] if values["TEST.EXAMPLES.NUMBER"] else []
    return sorted({*trained, *drawn, *values["DATASETS.TEST"]})


def _identity(value: str) -> str:
    """The substitute for the value of a key in `FILE_KEYS`: hashes of files, and the name of anything else."""
    if value in SHIPPED_TAGS:
        return "+".join(_hash_of(path) for path in shipped_files(value))
    path = SHIPPED_MODELS.get(value, ROOT / value)
    return _hash_of(path) if path.is_file() else f"{NAMED}{value}"


def _hash_of(path: Path) -> str:
    status = path.stat()
    return file_hash(path, status.st_size, status.st_mtime_ns)


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=DIGITS // 2).hexdigest()


def defaults_name(run: Run) -> str:
    """Name of the file that keeps the defaults under which a run was made."""
    return f"defaults-{_hash(run.defaults)}.json"
