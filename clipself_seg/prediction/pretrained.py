"""Predictors as folders: written whole, read back bit for bit, and exchanged by the Hugging Face hub.

    predictor.save_pretrained("my_model")
    predictor = Predictor.from_pretrained("my_model")          # or "org/name" of the hub
    predictor.push_to_hub("org/name")

A folder has weights as safetensors, the configuration, the vocabulary and a model card. Nothing in it is executed,
nothing outside of it is read (`pretrained_config.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
from detectron2.config import CfgNode

from clipself_seg.checkpoints.bounds import building_within, refusing
from clipself_seg.checkpoints.download import NotFetched
from clipself_seg.checkpoints.hub import HUB, endpoint, hub_folder, hub_name
from clipself_seg.checkpoints.locate import repositories
from clipself_seg.checkpoints.read import STORED_METADATA, read_checkpoint
from clipself_seg.clip import save_clip
from clipself_seg.config.weights import weights_key
from clipself_seg.data.vocabulary import Vocabulary, parse_vocabulary
from clipself_seg.errors import InputError, in_short, shown
from clipself_seg.files import atomic_path, read_json, write_json
from clipself_seg.prediction.pretrained_card import card
from clipself_seg.prediction.pretrained_config import (
    BRANCH_CLIP,
    CARD,
    CLIP,
    CONFIG,
    FILE_KEYS,
    FILES,
    MODEL,
    PREDICTORS,
    TRAINED,
    VOCABULARY,
    read_folder_config,
    require_text,
    write_folder_config,
)

logger = logging.getLogger(__name__)

Own = TypeVar("Own", bound="Pretrained")
MOST_NAMES = 20_000  # of classes and their synonyms; LVIS has 1,900
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


class Pretrained:
    """A predictor that can be saved, read back and shared.

    Attributes:
        config: configuration that it was made of; None for one of parts.
        asked: arguments of the last `set_vocabulary`; None before it.
        trained: training vocabulary, where the weights do not name it.
    """

    config: CfgNode | None
    asked: dict[str, Any] | None = None
    trained: Vocabulary | None = None
    model: Any

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, overwrite: bool = False, license: str = "other"
    ) -> None:
        """Write a folder that `from_pretrained` reads, whole or not at all, and read it back to compare.

        Args:
            folder: folder that is new or empty.
            overwrite: replace a folder that an earlier call wrote.
            license: licence of the weights for the model card, such as "apache-2.0"; the weights that these were
                made of have conditions, too.

        Raises:
            InputError: the folder has files, the predictor was made of parts, or its weights are not for
                others (Stable Diffusion), or a value is one that a folder may not have.
            OSError: it cannot be written.
        """
        target = Path(folder)
        _require_free(target, overwrite)
        cfg = self._configuration()
        target.parent.mkdir(parents=True, exist_ok=True)
        with _beside(target) as made:
            _write_parts(self, cfg, made)
            _require_equal(self, load_pretrained(made, device=cfg.MODEL.DEVICE))
            with atomic_path(made / CARD) as temporary:
                temporary.write_text(card(self, cfg, made, license), encoding="utf-8")
            _put(made, target)
        logger.info("%s written, and read back: equal", target)

    @classmethod
    def from_pretrained(
        cls: type[Own], source: str | os.PathLike[str], *, device: str | None = None
    ) -> Own:
        """A predictor of a folder or of a repository of the hub, see `load_pretrained`.

        Raises:
            InputError: as `load_pretrained`; it is of another kind.
        """
        return load_kind(cls, source, [] if device is None else ["MODEL.DEVICE", device])

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        message: str = "Upload a predictor of clipself_seg",
        license: str = "other",
        token: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub (``HF_ENDPOINT``) in one commit.

        Args:
            repository: "org/name"; it is made if it is not there.
            private: whether a new repository is private; None for the owner's default.
            revision: branch that is there, None for the main one.
            message: message of the commit.
            license: as for `save_pretrained`.
            token: token of the hub; None takes the one that `hf auth login` stored.

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
            self.save_pretrained(folder, license=license)
            try:
                api.create_repo(name, private=private, exist_ok=True)
                done = api.upload_folder(
                    repo_id=name, folder_path=folder, revision=revision, commit_message=message
                )
            except Exception as error:  # of several HTTP libraries, by the hub's version
                raise InputError(
                    f"{endpoint()}/{name} did not take the folder ({in_short(error)}): log in by hf auth login, or "
                    "save_pretrained and upload it yourself"
                ) from None
        return str(done.commit_url)

    def _configuration(self) -> CfgNode:
        """The configuration, if it and the model can stand in a folder."""
        if self.config is None:
            raise InputError(
                "this predictor was made of parts: only one of a configuration is saved"
            )
        if self.config.MODEL.MASK_GENERATOR.SOURCE == "masks":
            raise InputError(
                "MODEL.MASK_GENERATOR.SOURCE is masks, and the model has no weights but its CLIP's: take save_clip"
            )
        if self.config.MODEL.MASK_GENERATOR.SOURCE == "diffusion":
            raise InputError(
                "MODEL.MASK_GENERATOR.SOURCE is diffusion, and Stable Diffusion's weights stay where they are: share "
                "model_final.pth, and the name of theirs"
            )
        return self.config


def is_pretrained(weights: str | os.PathLike[str]) -> bool:
    """Whether weights are a folder, or a repository of the hub without a file in it."""
    given = os.fspath(weights)
    return Path(given).is_dir() or given.startswith(HUB) and not hub_name(given).file


def load_kind(kind: type[Own], source: str | os.PathLike[str], opts: Sequence[str] = ()) -> Own:
    """As `load_pretrained`, a predictor of one kind.

    Args:
        kind: its class.
        source: as for `load_pretrained`.
        opts: further keys and values in turn.

    Raises:
        InputError: as `load_pretrained`; it is of another kind.
    """
    predictor = _load(source, opts)
    if not isinstance(predictor, kind):
        name = type(predictor).__name__
        option = next(option for _, own, option in PREDICTORS.values() if own == name)
        raise InputError(
            f"{source} is of a {name}, not of a {kind.__name__}: call {name}.from_pretrained, or predict {option}"
        )
    return predictor


def load_pretrained(source: str | os.PathLike[str], *, device: str | None = None) -> Any:
    """The predictor of a folder, with its vocabulary if that was set; its architecture decides the class.

    Args:
        source: folder of `Pretrained.save_pretrained`; or a repository of the hub, "org/name", with "@revision"
            behind it where it is not the main one, which is fetched once.
        device: "cpu" or "cuda"; None is a GPU if there is one.

    Raises:
        InputError: no such folder or repository, a file is missing, damaged or unsafe, or the configuration
            asks for what a folder may not.
    """
    return _load(source, [] if device is None else ["MODEL.DEVICE", device])


def _load(source: str | os.PathLike[str], opts: Sequence[str]) -> Pretrained:
    folder = _folder(os.fspath(source))
    cfg = read_folder_config(folder, opts)
    weights = [folder / file for file in (MODEL, CLIP, BRANCH_CLIP) if (folder / file).is_file()]
    module, name, _ = PREDICTORS[cfg.MODEL.META_ARCHITECTURE]
    build = getattr(importlib.import_module(f"clipself_seg.prediction.{module}"), name)
    with refusing(folder / CONFIG, "configuration of these weights"), building_within(weights):
        predictor: Pretrained = build(cfg)
    if (folder / VOCABULARY).exists():
        predictor.set_vocabulary(**_read_vocabulary(folder / VOCABULARY))  # type: ignore[attr-defined]
    return predictor


def _folder(source: str) -> Path:
    """The folder of a path or of a name of the hub."""
    if Path(source).is_dir():
        return Path(source)
    if source.startswith(HUB):
        return hub_folder(hub_name(source), repositories(), FILES)
    if not HUB_NAME.fullmatch(source):
        raise InputError(
            f"no folder {source}: give one that save_pretrained wrote, or org/name of the hub"
        )
    try:
        return hub_folder(hub_name(f"{HUB}{source}"), repositories(), FILES)
    except NotFetched as error:
        raise NotFetched(f"no folder {source} is here, and {error}") from None


def _write_parts(predictor: Pretrained, cfg: CfgNode, folder: Path) -> None:
    """Write all files of a folder but the card."""
    model = predictor.model
    if weights_key(cfg.MODEL.META_ARCHITECTURE) == "MODEL.WEIGHTS":
        _write_weights(model, folder)
    save_clip(model.clip, folder / CLIP)
    own_branch = getattr(model, "branch_clip", model.clip) is not model.clip
    if own_branch:
        save_clip(model.branch_clip, folder / BRANCH_CLIP)
    if predictor.trained is not None:
        write_json(folder / TRAINED, _content(predictor.trained))
    if predictor.asked is not None:
        words = _content(predictor.asked["words"])
        more = {key: value for key, value in predictor.asked.items() if key != "words"}
        seen = getattr(predictor, "seen", None)
        more |= {} if seen is None else {"seen": np.asarray(seen).tolist()}
        write_json(folder / VOCABULARY, {"words": words, **more})
    files = {key: file for key, file in FILE_KEYS.items() if (folder / file).exists()}
    with atomic_path(folder / CONFIG) as temporary:
        write_folder_config(cfg, temporary, model.clip.name, files)


def _write_weights(model: Any, folder: Path) -> None:
    """Write what the model's own export has."""
    model.export(folder / "exported.pth")
    checkpoint = read_checkpoint(folder / "exported.pth")
    stated = checkpoint.dense.entries_but_of_token()
    metadata = {STORED_METADATA: json.dumps(stated, sort_keys=True)} if stated else None
    with atomic_path(folder / MODEL) as temporary:
        whole = {name: tensor.contiguous().clone() for name, tensor in checkpoint.tensors.items()}
        safetensors.torch.save_file(whole, temporary, metadata=metadata)
    (folder / "exported.pth").unlink()


def _content(vocabulary: Vocabulary) -> dict[str, Any]:
    """A vocabulary as `load_vocabulary` reads it."""
    classes = [
        {key: value for key, value in dataclasses.asdict(entry).items() if value is not None}
        for entry in vocabulary.classes
    ]
    stated = {"name": vocabulary.name, "about": vocabulary.about, "classes": classes}
    return stated | {"allow_duplicate_names": True}


def _read_vocabulary(path: Path) -> dict[str, Any]:
    """Arguments of `set_vocabulary`."""
    require_text(path)
    content = read_json(path, "vocabulary file")
    match content:
        case {"words": words, **more}:
            asked: dict[str, Any] = {
                str(key): value for key, value in more.items() if key != "seen"
            }
            types = {"background": str | None, "threshold": float | int | None}
            if all(key in types and isinstance(value, types[key]) for key, value in asked.items()):
                vocabulary = parse_vocabulary(words, str(path))
                if (count := sum(len(entry.names) for entry in vocabulary.classes)) > MOST_NAMES:
                    raise InputError(
                        f"{path} has {count} names, {MOST_NAMES} at most are read: set_vocabulary takes more"
                    )
                return asked | {"words": vocabulary}
    raise InputError(
        f"{path} is {shown(content)}, not a vocabulary of save_pretrained: fetch it again"
    )


def _require_equal(own: Pretrained, other: Pretrained) -> None:
    """Refuse a folder that would give another predictor than the one that is saved."""
    hashes = [predictor.model.weights_hash() for predictor in (own, other)]
    if hashes[0] != hashes[1]:
        raise InputError(
            f"the weights {hashes[0]} are {hashes[1]} when they are read back: not saved"
        )
    if own.asked is not None and not _equal(*(p(probe()) for p in (own, other))):  # type: ignore[operator]
        raise InputError("what is read back does not predict the same: not saved")


def probe() -> np.ndarray:
    """The image (128, 192, 3) that a saved predictor and the one that is read back are compared on; of a size of the
    mini worlds, whose models warn of others."""
    return np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)


def _equal(one: Any, other: Any) -> bool:
    """Whether two results hold the same, bit for bit."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one):
        return _equal(tuple(vars(one).values()), tuple(vars(other).values()))
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _require_free(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file: give a folder")
    names = {path.name for path in target.iterdir()}
    if names and not overwrite:
        raise InputError(f"{target} has files: give a new folder, or overwrite=True")
    if others := sorted(names - {*FILES}):
        raise InputError(
            f"{target} has {others[0]}, which save_pretrained does not write: give another folder"
        )


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder beside another one, which goes if it was not put in its place."""
    around = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    made = around / "folder"
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(around, ignore_errors=True)


def _put(made: Path, target: Path) -> None:
    """Give a finished folder its name, in place of an earlier one."""
    earlier = made.with_name("earlier")
    if target.exists():
        os.replace(target, earlier)
    try:
        os.replace(made, target)
    except BaseException:
        if earlier.exists():
            os.replace(earlier, target)
        raise
