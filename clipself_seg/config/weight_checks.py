"""Checks before anything is built that the weights of a configuration exist; only names of the zoo are downloaded.

A file may come from anybody, so an address in it, or a name of the hub, is not fetched; one that was typed is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from detectron2.config import CfgNode

from clipself_seg.checkpoints.locate import is_remote, locate, refuse_lost
from clipself_seg.checkpoints.mask_models import is_mask_model_name, mask_model_folder
from clipself_seg.checkpoints.zoo import SCHEME, zoo
from clipself_seg.config.keys import KEYS
from clipself_seg.errors import InputError

# Keys of files that are read into a model.
WEIGHTS = tuple(name for name, key in KEYS.items() if key.weights)
MASKS, OF_MASKS = "MODEL.MASK_GENERATOR.OUTPUTS", "MODEL.MASK_GENERATOR.SOURCE"
# Keys whose values may be fetched, where somebody typed them.
FETCHED = (*WEIGHTS, MASKS)


def refuse_addresses(
    cfg: CfgNode, keys: Collection[str] = FETCHED, source: Callable[..., str] | None = None
) -> None:
    """Refuses weights that are an address, or a name of the hub, and masks of a model by its name.

    Args:
        cfg: any configuration.
        keys: the keys of `FETCHED` to look at.
        source: says what set a key, for the message.

    Raises:
        InputError: names the key.
    """
    for key in keys:
        if _is_fetched(cfg, key):
            origin = f"{source(key)}: " if source else ""
            what, option = ("name", "--masks") if key == MASKS else ("address", "--model")
            raise InputError(
                f"{origin}{key} is the {what} {_value(cfg, key)[:200]}, which is fetched only where it is typed "
                f"({option}, {key} on the command line, an argument in Python): fetch it, and name the file"
            )


def fetch_addresses(cfg: CfgNode) -> CfgNode:
    """Fetches typed addresses and names of the hub. Returns the configuration with their files' paths in place.

    Raises:
        InputError: one cannot be fetched.
    """
    fetch = {MASKS: mask_model_folder}
    keys = [key for key in FETCHED if _is_fetched(cfg, key)]
    files = {key: str(fetch.get(key, locate)(_value(cfg, key))) for key in keys}
    if files:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.merge_from_list([item for pair in files.items() for item in pair])
        cfg.freeze()
    return cfg


def require_weights(cfg: CfgNode) -> None:
    """Looks for all files of weights, and fetches those that are names of the zoo.

    Tags of CLIPs are left to `load_clip`, which knows them.

    Raises:
        InputError: a file is not there, or a name cannot be fetched; an address.
    """
    refuse_addresses(cfg)
    for key in WEIGHTS:
        value = _value(cfg, key)
        if value in zoo():
            locate(value)
        else:
            refuse_lost(value)


def _is_fetched(cfg: CfgNode, key: str) -> bool:
    value = _value(cfg, key)
    if key != MASKS:
        return is_remote(value)
    return _value(cfg, OF_MASKS) == "masks" and is_mask_model_name(value)


def _value(cfg: CfgNode, key: str) -> str:
    """The value of a key, or nothing where a configuration of another project does not have it."""
    for part in key.split("."):
        cfg = getattr(cfg, part, "")
    return cfg.removeprefix(SCHEME) if isinstance(cfg, str) else ""
