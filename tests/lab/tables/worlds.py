"""A small table, and finished runs of made-up numbers."""

import json
from pathlib import Path

TABLE = """
title: "Table 9: a small one"
about: For tests.
figure: curve
columns:
  boxes:
    title: Boxes
    mini: mini_val_panoptic/*/boxes.thing.top1
    real: coco_2017_val_panoptic/*/boxes.thing.top1
mini:
  original:
    config: configs/mini/regions.yaml
    options: &small
      INPUT.REGIONS.STUDENT_SIZE: 64
      TEST.REGIONS.READ: "('boxes',)"
      TEST.REGIONS.TEMPLATES: single
    evaluate: True
    minutes: 0.1
  patches:
    config: configs/mini/patches.yaml
    options: {<<: *small, SOLVER.MAX_ITER: 1, SOLVER.IMS_PER_BATCH: 2}
    minutes: 0.2
real:
  original: {config: configs/regions/coco+eva02_vitb16.yaml, evaluate: True}
rows:
  original: {title: original CLIP, run: original, paper: {boxes: 18.2}}
  patches: {title: "CLIPSelf, patches", run: patches, paper: {boxes: 72.1}, absent: {real: for tests}}
claims:
  - {says: Patches are better., columns: [boxes], order: original < patches, why: One step is not enough.}
"""

FOLLOWED = (
    TABLE.replace("figure: curve", "figure: plane\npoints: [[boxes, miou], [boxes_half, miou]]")
    .replace(
        "mini:\n  original",
        """  boxes_half: {title: "Boxes, alpha 0.5", mini: mini_val_panoptic/*/alpha_0.5-boxes.thing.top1}
  miou: {title: mIoU, of: pixels, mini: mini_val_sem_seg/mIoU}
further:
  pixels:
    weights: MODEL.CLIP.WEIGHTS
    keep: [MODEL.CLIP.DENSE]
    mini:
      config: configs/mini/zero_shot.yaml
      options: {DATASETS.TEST: "('mini_val_sem_seg',)"}
      evaluate: True
      minutes: 0.3
mini:
  original""",
        1,
    )
    .replace("SOLVER.MAX_ITER: 1,", "SOLVER.MAX_ITER: 1, MODEL.CLIP.DENSE: value,")
)
"""The same with a run that follows each row's, and a plane."""


def write_table(folder: Path, text: str = TABLE, name: str = "9") -> Path:
    """The file of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def finish(store, run, numbers: dict) -> None:
    """Let a run be finished, with results below the data sets' names."""
    folder = store.begin(run)
    written = {
        "results": numbers,
        "provenance": {"commit": "abc", "weights_hash": "123", "seed": 0},
    }
    (folder / "results.json").write_text(json.dumps(written))
    if not run.evaluate:
        (folder / run.result_file).write_text("")
    store.end(run, 90.0)
