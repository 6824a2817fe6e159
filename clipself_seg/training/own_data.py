"""What a training or an evaluation takes from ``DATASETS.DATA``: the data sets of its task."""

from __future__ import annotations

import os
from collections.abc import Callable

from detectron2.config import CfgNode

from clipself_seg.models.build import registered_data


def with_data(cfg: CfgNode, by_hand: Callable[[str], bool]) -> CfgNode:
    """The configuration with the data sets of ``DATASETS.DATA``, which are registered in this process.

    Args:
        cfg: configuration; nothing changes where the key is empty.
        by_hand: whether somebody set a key, whose value then stays.

    Raises:
        InputError: as `register_data`.
    """
    data = registered_data(cfg)
    if data is None:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.DATA = os.path.abspath(os.path.expanduser(cfg.DATASETS.DATA))
    for key, names in (("TRAIN", (data.train,)), ("TEST", data.test)):
        if not by_hand(f"DATASETS.{key}"):
            cfg.DATASETS[key] = names
    cfg.freeze()
    return cfg
