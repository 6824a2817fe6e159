"""Models of other projects that find masks, by what a user types: their repositories, licences and folders.

    sam2, eomt, mask2former, ...      a repository of the hub, see `MASK_MODELS`
    facebook/sam2.1-hiera-tiny        another one of these families
    hf-hub:org/name@revision          any other one
    ./sam2                            a folder: of a model if it has config.json and model.safetensors, else of masks

Only what somebody typed is fetched (`config.weight_checks`), and only safetensors and settings.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from clipself_seg.checkpoints import locate
from clipself_seg.checkpoints.download import NotFetched
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.errors import InputError


class MaskModel(NamedTuple):
    """A model that finds masks.

    Attributes:
        repository: of the hub.
        family: beginning of the names of its family's repositories.
    """

    repository: str
    family: str


MASK2FORMER = "facebook/mask2former-"
# By their names in the zoo.
MASK_MODELS = {
    "sam2": MaskModel("facebook/sam2.1-hiera-large", "facebook/sam2"),
    "sam3": MaskModel("facebook/sam3", "facebook/sam3"),
    "eomt": MaskModel("tue-mps/coco_panoptic_eomt_large_640", "tue-mps/coco_"),
    "eomt-dinov3": MaskModel("tue-mps/eomt-dinov3-coco-panoptic-large-640", "tue-mps/eomt-dinov3-"),
    "mask2former": MaskModel(f"{MASK2FORMER}swin-base-coco-panoptic", MASK2FORMER),
}
MODEL_CONFIG, MODEL_WEIGHTS = NEEDED = ("config.json", "model.safetensors")
# Pattern of REPOSITORY@REVISION -> why nothing of it is read, and the way out.
NOT_READ = {
    r"facebook/sam3\.1": "has one file, of other names than are read: take SAM 3, --masks facebook/sam3",
    "tue-mps/.*_dinov3@": "has but differences from DINOv3's gated weights, in a pickle: take --masks eomt-dinov3",
    f"{MASK2FORMER}swin-large-coco-panoptic@main": "has its safetensors in another revision: take --masks "
    f"hf-hub:{MASK2FORMER}swin-large-coco-panoptic@a4edee47b1b2662241ceed627430aa22d0647bd0",
}
# Settings of the images, by newer and older versions of transformers.
IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")


def is_mask_model_name(given: str) -> bool:
    """True for a text that names a model that is fetched: one of `MASK_MODELS`, of their families, or ``hf-hub:...``.

    What is there as a path is one, unless it is a name of `MASK_MODELS` (./sam2 is the folder).
    """
    families = tuple(model.family for model in MASK_MODELS.values())
    of_family = given.startswith(families) and not os.path.exists(given)
    return of_family or given in MASK_MODELS or given.startswith(locate.HUB)


def has_mask_model(folder: str | os.PathLike[str]) -> bool:
    """True for a folder that has a model, and not masks.

    Raises:
        InputError: its weights are missing, in shards or a pickle, or its settings are missing.
    """
    own = [file for file in (*NEEDED, "pytorch_model.bin") if Path(folder, file).is_file()]
    if own and own[:2] != [*NEEDED]:
        raise InputError(
            f"{folder} has the {own[0]} of a model, and only a whole {MODEL_WEIGHTS} beside {MODEL_CONFIG} is read: "
            'save it anew by transformers\' save_pretrained, with max_shard_size="100GB"'
        )
    return bool(own)


def mask_model(given: str) -> tuple[locate.HubName, str]:
    """The repository of a model that is named, see `is_mask_model_name`, and its licence.

    That is stated by the zoo of the family, else it says where to read it.

    Raises:
        InputError: it names nothing on the hub, a file, or a repository of `NOT_READ` that is not here.
    """
    typed = MASK_MODELS[given].repository if given in MASK_MODELS else given
    name = locate.hub_name(locate.HUB + typed.removeprefix(locate.HUB))
    if name.file:
        raise InputError(f"{given} names a file: name the repository, hf-hub:{name.repository}")
    for pattern, why in NOT_READ.items():
        asked = f"{name.repository}@{name.revision}"
        if re.match(pattern, asked) and not locate.present_folder(name, NEEDED):
            raise InputError(f"{name.repository} {why}")
    known = (n for n, model in MASK_MODELS.items() if name.repository.startswith(model.family))
    stated = next((zoo()[n].licence for n in known), "")
    return name, stated or f"see {locate.HUGGING_FACE}/{name.repository}"


def mask_model_folder(given: str) -> Path:
    """The folder of a model that is named, see `is_mask_model_name`, fetched if need be.

    Raises:
        NotFetched: it cannot be fetched, or is gated; says what to do.
        InputError: it has no safetensors.
    """
    name, licence = mask_model(given)
    gated = licence.endswith(", gated")  # the hub asks who takes it
    if gated and not locate.present_folder(name, NEEDED):
        raise NotFetched(
            f"{name.repository} is gated ({licence.removesuffix(', gated')}) and not on this machine: accept its "
            f"licence at {locate.HUGGING_FACE}/{name.repository}, then run `hf download {name.repository} "
            f"{' '.join((*NEEDED, IMAGE_SETTINGS[1]))}` and this again, or put these files into {name.folder}"
        )
    return locate.hub_folder(name, NEEDED, IMAGE_SETTINGS)
