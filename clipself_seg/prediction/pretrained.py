"""Predictors as folders: written whole, read back bit for bit, and exchanged by the Hugging Face hub.

    model.save_pretrained("my_model")
    model = clipself_seg.load("my_model")          # or "org/name" of the hub
    model.push_to_hub("org/name")

A folder has weights as safetensors, the configuration, the vocabulary and a model card. Nothing in it is executed,
nothing outside of it is read: `read_folder_config` says which keys it may have, and which values.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import safetensors.torch
import yaml
from detectron2.config import CfgNode

from clipself_seg.checkpoints.bounds import building_within, refusing
from clipself_seg.checkpoints.locate import HUB, endpoint, hub_name
from clipself_seg.checkpoints.read import STORED_METADATA, read_checkpoint
from clipself_seg.checkpoints.zoo import OPEN_LICENCES, SHIPPED_MODELS, SHIPPED_TAGS, entry_of
from clipself_seg.choice import CONFIG, FOLDER_FILES, PRETRAINED_FILES
from clipself_seg.clip import save_clip
from clipself_seg.clip.backbone import CLIPBackbone
from clipself_seg.config.declare import KEYS, Key
from clipself_seg.config.keys import default_config
from clipself_seg.config.load import load_config, values_and_defaults
from clipself_seg.config.weight_checks import WEIGHTS, fetch_addresses
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, in_short, shown
from clipself_seg.files import atomic_folder, atomic_path, read_json, write_json, write_text
from clipself_seg.models.build import registered_model
from clipself_seg.pages import TEMPLATES
from clipself_seg.provenance import provenance
from clipself_seg.schema import OBJECT, check
from clipself_seg.yaml_files import BASE_KEY, leaves, lists_for_tuples, read_tree

if TYPE_CHECKING:
    from clipself_seg.prediction.predictor import ImagePredictor

P = TypeVar("P", bound="ImagePredictor[Any]")
logger = logging.getLogger(__name__)

PAPER = "https://arxiv.org/abs/2310.01403"
ON_HUB = "https://huggingface.co/"
MODEL, CLIP = PRETRAINED_FILES
# Key -> the only file of the folder that it may name.
FILE_KEYS = {key.name: key.folder for key in KEYS.values() if isinstance(key.folder, str)}
BRANCH_CLIP = FILE_KEYS["MODEL.CLIP_BRANCH.WEIGHTS"]
VOCABULARY = "vocabulary.json"
TRAINED = FILE_KEYS["TEST.TRAIN_VOCABULARY"]
CARD = "README.md"
# What decides a prediction: the rest is training's, the machine's, or a file of its own.
SECTIONS = ("MODEL.", "INPUT.", "TEST.")

MOST_BYTES = 1 << 24  # of a file of text
MOST_NAMES = 20_000  # of classes and their synonyms; LVIS has 1,900


def save(
    predictor: ImagePredictor[Any],
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    license: str | None = None,
    name: str = "",
) -> None:
    """Writes a folder that `clipself_seg.load` reads, whole or not at all, and reads it back to compare.

    Args:
        predictor: to save.
        folder: folder that is new or empty.
        overwrite: replace a folder that an earlier call wrote.
        license: licence of the weights for the model card, such as "apache-2.0"; None for the
            one that all weights that these were made of share, otherwise "other".
        name: what the model card loads, such as "org/name" of the hub; empty for the name of the folder.

    Raises:
        InputError: the folder has files, the predictor was made of parts, or its weights are not for
            others (Stable Diffusion), or a value is one that a folder may not have.
        OSError: it cannot be written.
    """
    cfg, target = _sharable(predictor), Path(folder)
    with atomic_folder(target) as made:
        _require_free(target, overwrite)
        _write_parts(predictor, cfg, made)
        again = from_folder(type(predictor), made, ["MODEL.DEVICE", cfg.MODEL.DEVICE])
        _require_equal(predictor, again)
        write_text(made / CARD, card(predictor, cfg, license, name or target.name))
    logger.info("%s written, and read back: equal", target)


def push(
    predictor: ImagePredictor[Any],
    repository: str,
    *,
    private: bool | None = None,
    license: str | None = None,
    token: str | None = None,
    **upload: Any,
) -> str:
    """Uploads what `save_pretrained` writes to the Hugging Face hub (``HF_ENDPOINT``) in one commit.

    Args:
        predictor: to share.
        repository: "org/name"; it is made if it is not there.
        private: makes a new repository private, or not; None for the owner's default.
        license: as for `save_pretrained`.
        token: token of the hub; None takes the one that `hf auth login` stored.
        upload: further arguments of `huggingface_hub.HfApi.upload_folder`, such as `revision` and
            `commit_message`.

    Returns:
        Address of the commit.

    Raises:
        InputError: as `save_pretrained`; the hub refuses or does not answer.
    """
    from huggingface_hub import HfApi

    name = hub_name(f"{HUB}{repository}").repository
    api = HfApi(endpoint=endpoint(), token=token)
    with tempfile.TemporaryDirectory() as around:
        folder = Path(around) / "folder"
        predictor.save_pretrained(folder, license=license, name=name)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=name, folder_path=folder, **upload)
        except Exception as error:  # of several HTTP libraries, by the hub's version
            raise InputError(
                f"{endpoint()}/{name} did not take the folder ({in_short(error)}): log in by hf auth login, or "
                "save_pretrained and upload it yourself"
            ) from None
    return str(done.commit_url)


def from_folder(kind: type[P], folder: Path, opts: Sequence[str] = ()) -> P:
    """The predictor of a folder, with its vocabulary if that was set.

    Args:
        kind: class of the predictor.
        folder: folder of `save_pretrained`, or of anybody.
        opts: as for `read_folder_config`.

    Raises:
        InputError: as `read_folder_config`; a file is damaged or unsafe, or its sizes ask for more than the weights
            hold.
    """
    build: Any = kind  # by `configurable`
    _require_texts(folder)
    words = _read_vocabulary(folder / VOCABULARY) if (folder / VOCABULARY).exists() else None
    cfg = read_folder_config(folder, opts)
    files = [folder / file for file in (MODEL, CLIP, BRANCH_CLIP) if (folder / file).is_file()]
    with refusing(folder / CONFIG, "configuration of these weights"), building_within(files):
        predictor: P = build(cfg)
    if words is not None:
        with refusing(folder / VOCABULARY, "vocabulary of this model"):
            predictor.set_vocabulary(**words)
    return predictor


def _sharable(predictor: ImagePredictor[Any]) -> CfgNode:
    """The configuration of a predictor that can stand in a folder."""
    cfg, reason = predictor.config, ""
    if predictor.vocabulary is not None and predictor.vocabulary.examples:
        reason = "its words have examples, and a folder has words alone: set_vocabulary without"
    elif cfg is None:
        reason = "it has no configuration: make it by clipself_seg.load"
    elif cfg.MODEL.MASK_GENERATOR.SOURCE == "masks":
        reason = "MODEL.MASK_GENERATOR.SOURCE is masks, and there are no weights but its CLIP's: take save_clip"
    elif cfg.MODEL.MASK_GENERATOR.SOURCE == "diffusion":
        reason = (
            "MODEL.MASK_GENERATOR.SOURCE is diffusion, and Stable Diffusion's weights stay where they are: share "
            "model_final.pth, and the name of theirs"
        )
    if reason or cfg is None:
        raise InputError(f"this predictor cannot be saved: {reason}")
    return cfg


def _write_parts(predictor: ImagePredictor[Any], cfg: CfgNode, folder: Path) -> None:
    """Writes all files of a folder but the card."""
    model = predictor.model
    if type(model).weights_key == "MODEL.WEIGHTS":
        _write_weights(model, folder)
    save_clip(model.clip, folder / CLIP)
    if getattr(model, "branch_clip", model.clip) is not model.clip:
        save_clip(model.branch_clip, folder / BRANCH_CLIP)
    if predictor.trained is not None:
        write_json(folder / TRAINED, _content(predictor.trained))
    if given := predictor.given:
        seen = {} if given.seen is None else {"seen": given.seen.tolist()}
        words = {"words": _content(given.vocabulary)}
        write_json(folder / VOCABULARY, {**words, **given.asked, **seen})
    files = {key: file for key, file in FILE_KEYS.items() if (folder / file).exists()}
    name = model.clip.name if isinstance(model.clip, CLIPBackbone) else cfg.MODEL.CLIP.NAME
    write_folder_config(cfg, folder / CONFIG, name, files)


def _write_weights(model: Any, folder: Path) -> None:
    """Writes what the model's own export has."""
    model.export(folder / "exported.pth")
    checkpoint = read_checkpoint(folder / "exported.pth")
    stated = checkpoint.dense.entries_but_of_token()
    metadata = {STORED_METADATA: json.dumps(stated, sort_keys=True)} if stated else None
    with atomic_path(folder / MODEL) as temporary:
        whole = {name: tensor.contiguous().clone() for name, tensor in checkpoint.tensors.items()}
        safetensors.torch.save_file(whole, temporary, metadata=metadata)
    (folder / "exported.pth").unlink()


def _content(vocabulary: Vocabulary) -> dict[str, Any]:
    """A vocabulary as `Vocabulary.load` reads it."""
    classes = [
        {key: value for key, value in dataclasses.asdict(entry).items() if value is not None}
        for entry in vocabulary.classes
    ]
    stated = {"name": vocabulary.name, "about": vocabulary.about, "classes": classes}
    return stated | {"allow_duplicate_names": True}


def _read_vocabulary(path: Path) -> dict[str, Any]:
    """Arguments of `set_vocabulary`, as a file of anybody's has them."""
    content = read_json(path, "vocabulary file")
    check(content, {"words": OBJECT}, path, "fetch it again")
    words = Vocabulary.of(content["words"], origin=str(path))
    if (count := sum(len(entry.names) for entry in words.classes)) > MOST_NAMES:
        raise InputError(
            f"{path} has {count} names, {MOST_NAMES} at most are read: set_vocabulary takes more"
        )
    return {key: value for key, value in content.items() if key != "seen"} | {"words": words}


def write_folder_config(cfg: CfgNode, path: Path, clip_name: str, files: Mapping[str, str]) -> None:
    """Writes the values that decide a prediction, all of them, so that no later default changes it.

    Args:
        cfg: of the predictor.
        path: file to write.
        clip_name: name of the model's CLIP, as ``MODEL.CLIP.NAME``.
        files: keys of `FILE_KEYS` that the folder has, with their file.
    """
    values = {
        key: value
        for key, (value, _) in values_and_defaults(cfg).items()
        if _may_say(key) and key not in FILE_KEYS
    }
    of_clip = {"MODEL.CLIP.NAME": clip_name, "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED": ""}
    values |= dict.fromkeys(FILE_KEYS, "") | of_clip | dict(files)
    write_text(path, yaml.safe_dump(_tree(values), sort_keys=True))


def read_folder_config(folder: Path, opts: Sequence[str] = ()) -> CfgNode:
    """The configuration of a folder, with the paths of its files.

    Args:
        folder: of `save_pretrained`, or of anybody.
        opts: further keys and values in turn, which somebody typed: they may be anything.

    Raises:
        InputError: a file is missing, or a key is not one that a folder may set, or not to this value.
    """
    path = folder / CONFIG
    values = dict(leaves(read_tree(path)))
    there = {file.name for file in folder.iterdir()}
    if problem := next(_problems(values, there), None):
        raise InputError(f"{path}: {problem}")
    files = {key: str(folder / file) for key, file in FILE_KEYS.items() if values.get(key)}
    typed = [word for pair in files.items() for word in pair]
    return fetch_addresses(load_config(path, [*typed, *opts]))


def _require_texts(folder: Path) -> None:
    """Refuses a folder without a configuration, or with a larger text than any that `save_pretrained` writes."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder / CONFIG} is missing: give a folder that save_pretrained wrote")
    for path in (folder / file for file in (CONFIG, VOCABULARY, TRAINED)):
        if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(
                f"{path} has {size} bytes, {MOST_BYTES} at most are read: give another"
            )


def _problems(values: Mapping[str, object], there: Collection[str]) -> Iterator[str]:
    """Keys and values that a folder's configuration may not have, in words; unknown keys `load_config` refuses."""
    defaults = dict(leaves(default_config()))
    if BASE_KEY in values:
        yield f"a folder's configuration may not name another one: remove {BASE_KEY}"
    for key, value in values.items():
        if not _may_say(key):
            yield f"{key} is no key of a folder of save_pretrained: remove it"
        if key in FILE_KEYS:
            if value not in ("", FILE_KEYS[key]):
                own = FILE_KEYS[key]
                yield f"{key} is {shown(value)}: a folder names nothing but its own {own}"
            if value and FILE_KEYS[key] not in there:
                yield f"{key} is {FILE_KEYS[key]}, which is not beside it: fetch it too"
        elif value != (default := lists_for_tuples(defaults.get(key, ""))):
            yield from _problems_of_value(key, value, default)
    kind = values.get("MODEL.META_ARCHITECTURE")
    try:
        model: Any = registered_model(str(kind))
    except InputError as error:
        yield str(error)
        return
    if not getattr(model, "purpose", ""):
        yield f"MODEL.META_ARCHITECTURE is {kind}, which predicts nothing"
    for key in sorted({model.weights_key, "MODEL.CLIP.WEIGHTS"}, reverse=True):
        if not values.get(key):
            yield f"it has no {key}: save_pretrained writes {FILE_KEYS[key]}"


def _may_say(key: str) -> bool:
    """True of the keys that a folder's configuration may have."""
    return key.startswith(SECTIONS) and (key not in KEYS or KEYS[key].folder is not None)


def _problems_of_value(key: str, value: object, default: object) -> Iterator[str]:
    """Values that may be a path or an address, and numbers that no model has; a default may be any number."""
    # Detectron2 would read it as Python.
    if isinstance(value, str) and not isinstance(default, str):
        yield f"{key} is the text {shown(value)}: write a list or a number"
    least, most = KEYS.get(key, Key(key, None)).bounds
    for item in _items(value):
        if isinstance(item, str) and any(mark in item for mark in "/\\:~"):
            yield f"{key} is {shown(item)}, which may lead out of the folder: give a plain name"
        if isinstance(item, int | float) and not least <= item <= most:
            yield f"{key} is {shown(item)}, and in a folder it is from {least} to {most}: correct the file"


def _items(value: object) -> Iterator[object]:
    """Yields the values of a list and of the lists in it, or the value itself."""
    if isinstance(value, list):
        for item in value:
            yield from _items(item)
    else:
        yield value


def _tree(values: Mapping[str, object]) -> dict[str, Any]:
    """Nested sections of full keys."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def project_address() -> str:
    """The address of the project, as its installation has it out of setup.cfg; not installed, that of the paper."""
    try:
        stated = importlib.metadata.metadata("clipself_seg").get_all("Project-URL", [])
    except importlib.metadata.PackageNotFoundError:
        stated = []
    return next((url.split(", ")[1] for url in stated if url.startswith("Source")), PAPER)


def card(predictor: ImagePredictor[Any], cfg: CfgNode, license: str | None, name: str) -> str:
    """The card of a predictor, whose folder has all other files and was compared.

    Args:
        predictor: predictor that is saved.
        cfg: its configuration.
        license: licence of the weights, of which its owner decides; None for that of their origins.
        name: what `clipself_seg.load` takes.
    """
    made_of = origins(cfg)
    license = license or _common_licence([licence for _, licence, _ in made_of])
    kind = "object-detection" if predictor.task == "detection" else "image-segmentation"
    header = {
        "library_name": "clipself_seg",
        "license": license,
        "pipeline_tag": kind,
        "tags": ["clipself_seg", "open-vocabulary", "clip", cfg.MODEL.META_ARCHITECTURE.lower()],
        "base_model": _base_models(cfg),
        "datasets": list(cfg.DATASETS.TRAIN),
    }
    model = predictor.model
    record = provenance(weights_hash=model.weights_hash())
    made = ", ".join(
        f"{key} {record[key]}" for key in ("version", "commit", "python", "torch", "date")
    )
    template = (TEMPLATES / "model_card.md.txt").read_text("utf-8")
    return template.format(
        header=yaml.safe_dump({key: value for key, value in header.items() if value}),
        address=project_address(),
        name=json.dumps(name),
        title=f"{cfg.MODEL.META_ARCHITECTURE} on {model.clip.name}",
        what=type(model).purpose,
        clip=f"{model.clip.name} (hash `{model.clip.weights_hash()}`)",
        origins="\n".join(f"| {' | '.join(row)} |" for row in made_of),
        license=license,
        weights=record["weights_hash"],
        made=f"Written by clipself_seg, {made}",
    )


def _common_licence(licences: Sequence[str]) -> str:
    """The hub's name of the licence of all, or "other"."""
    names = {OPEN_LICENCES.get(licence, "other") for licence in licences}
    return names.pop() if len(names) == 1 else "other"


def _base_models(cfg: CfgNode) -> list[str]:
    """Repositories of the hub from which the weights are that the configuration names."""
    values = dict(leaves(cfg))
    entries = [entry_of(values[key], cfg.MODEL.CLIP.NAME) for key in WEIGHTS if values[key]]
    addresses = [address for entry in entries if entry for address in entry.addresses]
    paths = [address.removeprefix(ON_HUB) for address in addresses if address.startswith(ON_HUB)]
    return sorted({"/".join(path.split("/")[:2]) for path in paths})


def origins(cfg: CfgNode) -> list[tuple[str, str, str]]:
    """Name, licence and its source of all weights that the configuration names, without folders of this machine."""
    rows, values = [], dict(leaves(cfg))
    for key in WEIGHTS:
        if value := values[key]:
            entry = entry_of(value, cfg.MODEL.CLIP.NAME)
            stated = (entry.licence, entry.licence_source) if entry else ("not known here", "")
            if value in SHIPPED_MODELS or value in SHIPPED_TAGS:
                stated = ("Apache-2.0", "comes with clipself_seg")
            rows.append((f"`{key}` {value if entry else Path(value).name}", *stated))
    return rows or [("random weights", "", "")]


def _require_equal(own: ImagePredictor[Any], other: ImagePredictor[Any]) -> None:
    """Refuses a folder that would give another predictor than the one that is saved."""
    same = own.model.weights_hash() == other.model.weights_hash()
    if same and own.given is not None:
        # Of a size of the mini worlds, whose models warn of others.
        other.absent = own.absent  # which belongs to the call: a folder has none
        noise = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
        same = all(map(np.array_equal, own(noise).regions(), other(noise).regions()))
    if not same:
        raise InputError("what is read back has other weights, or predicts otherwise: not saved")


def _require_free(target: Path, overwrite: bool) -> None:
    reason = ""
    if target.is_dir():
        names = {path.name for path in target.iterdir()}
        if names and not overwrite:
            reason = "has files: give a new folder, or overwrite=True"
        elif others := sorted(names - {*FOLDER_FILES}):
            reason = f"has {others[0]}, which save_pretrained does not write: give another folder"
    elif target.exists():
        reason = "is a file: give a folder"
    if reason:
        raise InputError(f"{target} {reason}")
