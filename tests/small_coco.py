"""The first images of the real COCO validation split as an archive of their own."""

from __future__ import annotations

import json
import shutil


def write_small_coco(data_dir, root, count):
    """Images, panoptic PNGs and JSON, instances, below `root`/coco, which is returned."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True)
    for kind in ("instances", "panoptic"):
        name = f"annotations/{kind}_val2017.json"
        content = json.loads((data_dir / "coco" / name).read_text())
        content["images"] = sorted(content["images"], key=lambda image: image["id"])[:count]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [e for e in content["annotations"] if e["image_id"] in ids]
        (folder / name).write_text(json.dumps(content))
    for entry in content["annotations"]:
        stem = entry["file_name"].removesuffix(".png")
        for name in (f"val2017/{stem}.jpg", f"panoptic_val2017/{stem}.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(data_dir / "coco" / name, folder / name)
    return folder
