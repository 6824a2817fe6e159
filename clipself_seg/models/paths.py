"""``clipself://NAME``: models of the zoo and shipped ones by name, wherever Detectron2's `PathManager` takes a path.

``DetectionCheckpointer(model).load("clipself://catseg-base")``, or ``MODEL.WEIGHTS`` of a `DefaultPredictor`. It
stands for the name alone, in a file too, so that it leads to no other address than the zoo's.
"""

from __future__ import annotations

import logging
from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager

from clipself_seg.checkpoints.locate import fetch, weights_folder
from clipself_seg.checkpoints.needs import fetch_needed
from clipself_seg.checkpoints.zoo import SCHEME, SHIPPED, SHIPPED_CONFIGS, zoo
from clipself_seg.errors import InputError, nearest

logger = logging.getLogger(__name__)


class ModelHandler(PathHandler):
    """Finds the file of a model by its name, and fetches it once."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path.removeprefix(SCHEME)
        official = {one.name: one for one in zoo().values() if one.key == "MODEL.WEIGHTS"}
        if name not in (known := [*SHIPPED_CONFIGS, *official]):
            raise InputError(f'no model "{name[:200]}" for {SCHEME}: {nearest(name, known)}')
        config = SHIPPED_CONFIGS[name] if name in SHIPPED_CONFIGS else official[name].configs[0]
        if "detection" in config:
            raise InputError(
                f"Detectron2's checkpointer does not read the names in {name}: load it by clipself_seg.load, or "
                "by build_model of clipself_seg.models.build"
            )
        if name not in official:
            return _whole(name, config)
        for key, value in official[name].settings:
            logger.warning(
                f"{name} was measured with {key} {value}, which a checkpoint does not set: build the model from "
                f'load_config("{config}", ["MODEL.WEIGHTS", "{path}"])'
            )
        fetch_needed({"MODEL.WEIGHTS": name})
        return str(fetch(official[name]))


def _whole(name: str, config: str) -> str:
    """A file with all tensors of a shipped model, whose own file has those that training changed."""
    from clipself_seg.config import load_config
    from clipself_seg.models.build import build_model

    path = weights_folder() / "detectron2" / f"{name}.pth"
    newest = max(file.stat().st_mtime for file in SHIPPED.iterdir())
    if path.exists() and path.stat().st_mtime > newest:
        return str(path)
    keys = ["MODEL.WEIGHTS", name, "MODEL.DEVICE", "cpu"]
    model: Any = build_model(load_config(config, keys))
    model.export(path)
    return str(path)


PathManager.register_handler(ModelHandler(), allow_override=True)
