"""Ten classes of `mini` as a user's own data: images whose colours have faded, labels of these classes alone.

    python -m clipself_seg.mini.faded output/mini_world

writes beside `mini`, for what a fine-tuning gains and forgets (docs/finetuning.md):

{root}/faded/{train,val}/000000.jpg                    scenes of mini with a third of their colours, val has 60
{root}/faded/stuffthingmaps/{train,val}/000000.png     index in the vocabulary mini_ten, 255 elsewhere
{root}/faded/annotations/instances_{train,val}.json    boxes and masks of the ten classes
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.files import naming_path, read_json, write_json

KEPT = 0.35  # of the colours; the rest is grey of the tint
TINT = np.array([1.1, 0.95, 0.7])
GREY = np.array([0.299, 0.587, 0.114])
SCENES = {"train": None, "val": 60}
VOID = 255


def fade(pixels: np.ndarray) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 with faded colours."""
    grey = (pixels @ GREY)[..., None] * TINT
    return (KEPT * pixels + (1 - KEPT) * grey).clip(0, 255).astype(np.uint8)


def write_faded(root: Path) -> None:
    """Write the scenes and their labels, unless they are there; the same files for the same world.

    Args:
        root: folder of both mini worlds, complete.
    """
    ten, names = load_vocabulary("mini_ten"), list(load_vocabulary("mini").names)
    label_of = np.full(256, VOID, dtype=np.uint8)
    label_of[[names.index(name) for name in ten.names]] = np.arange(len(ten))
    source, target = root / "mini", root / "faded"
    manifest = source / "manifest.json", target / "manifest.json"
    if manifest[1].exists() and read_json(manifest[1]) == read_json(manifest[0]):
        return
    shutil.rmtree(target, ignore_errors=True)
    for split, count in SCENES.items():
        file = f"annotations/instances_{split}.json"
        instances = read_json(source / file)
        images = sorted(instances["images"], key=lambda image: image["id"])[:count]
        for image in images:
            stem = Path(image["file_name"]).stem
            file_name, label_map = Path(split, f"{stem}.jpg"), f"stuffthingmaps/{split}/{stem}.png"
            labels = label_of[read_indices(source / label_map)]
            contents: dict[str | Path, np.ndarray] = {
                file_name: fade(read_image(source / file_name)),
                label_map: labels,
            }
            for name, pixels in contents.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                with naming_path(target / name):
                    Image.fromarray(pixels).save(target / name, quality=95)
        kept = {image["id"] for image in images}
        write_json(
            target / file,
            instances
            | {
                "images": images,
                "categories": [
                    c for c in instances["categories"] if c["id"] in ten.dataset_id_to_index
                ],
                "annotations": [
                    one
                    for one in instances["annotations"]
                    if one["category_id"] in ten.dataset_id_to_index and one["image_id"] in kept
                ],
            },
        )
    write_json(manifest[1], read_json(manifest[0]))


if __name__ == "__main__":
    write_faded(Path(sys.argv[1]))
