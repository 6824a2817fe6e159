"""Ten classes of `mini` as a user's own data: images whose colours have faded, labels of these classes alone.

    python tools/mini.py faded [output/mini_world]

writes beside `mini`, for what a fine-tuning gains and forgets (docs/finetuning.md):

{root}/faded/{train,val}/000000.jpg                    scenes of mini with a third of their colours, val has 60
{root}/faded/stuffthingmaps/{train,val}/000000.png     index in the vocabulary mini_ten, 255 elsewhere
{root}/faded/annotations/instances_{train,val}.json    boxes and masks of the ten classes
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.files import read_json, write_json
from lab.mini.writer import VOID, save_pixels

KEPT = 0.35  # of the colours; the rest is grey of the tint
TINT = np.array([1.1, 0.95, 0.7])
GREY = np.array([0.299, 0.587, 0.114])
SCENES = {"train": None, "val": 60}


def fade(pixels: np.ndarray) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 with faded colours."""
    grey = (pixels @ GREY)[..., None] * TINT
    return (KEPT * pixels + (1 - KEPT) * grey).clip(0, 255).astype(np.uint8)


def write_faded(root: Path) -> None:
    """Write the scenes and their labels, unless they are there; the same files for the same world.

    Args:
        root: folder of both mini worlds, complete.
    """
    ten, names = Vocabulary.load("mini_ten"), list(Vocabulary.load("mini").first_names)
    label_of = np.full(256, VOID, dtype=np.uint8)
    label_of[[names.index(name) for name in ten.first_names]] = np.arange(len(ten))
    source, target = root / "mini", root / "faded"
    manifest = source / "manifest.json", target / "manifest.json"
    if manifest[1].exists() and read_json(manifest[1]) == read_json(manifest[0]):
        return
    shutil.rmtree(target, ignore_errors=True)
    for split, count in SCENES.items():
        file = f"annotations/instances_{split}.json"
        content, wanted = read_json(source / file), ten.dataset_id_to_index
        images = sorted(content["images"], key=lambda image: image["id"])[:count]
        kept = {image["id"] for image in images}
        objects = [one for one in content["annotations"] if one["image_id"] in kept]
        for image in images:
            stem = Path(image["file_name"]).stem
            scene, label_map = f"{split}/{stem}.jpg", f"stuffthingmaps/{split}/{stem}.png"
            save_pixels(fade(read_image(source / scene)), target / scene, quality=95)
            save_pixels(label_of[read_indices(source / label_map)], target / label_map)
        content["images"] = images
        content["categories"] = [c for c in content["categories"] if c["id"] in wanted]
        content["annotations"] = [one for one in objects if one["category_id"] in wanted]
        write_json(target / file, content)
    write_json(manifest[1], read_json(manifest[0]))
