"""The model card of a saved predictor: what it is, where it comes from, what was compared, and how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from detectron2.config import CfgNode

from clipself_seg.checkpoints.download import file_sha256
from clipself_seg.checkpoints.shipped import SHIPPED_MODELS, SHIPPED_TAGS
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.config.weights import WEIGHTS
from clipself_seg.provenance import provenance

if TYPE_CHECKING:
    from clipself_seg.prediction.pretrained import Pretrained

# MODEL.META_ARCHITECTURE -> task of the hub, and what the model does.
KINDS = {
    "CATSeg": ("image-segmentation", "open-vocabulary semantic segmentation (CAT-Seg)"),
    "ZeroShotSegmenter": (
        "image-segmentation",
        "open-vocabulary semantic segmentation by CLIP as it is, without training",
    ),
    "OpenPanoptic": (
        "image-segmentation",
        "open-vocabulary panoptic segmentation (ODISE's method)",
    ),
    "FViT": ("object-detection", "open-vocabulary detection (F-ViT)"),
}
CARD = """\
---
{header}---

{title}
{underline}

A predictor of [clipself_seg](https://arxiv.org/abs/2310.01403) for {what}, on {clip}.

## Use

```python
from clipself_seg.prediction.semantic import Predictor

predictor = Predictor.from_pretrained("org/name")    # this folder, or its name on the hub
predictor.set_vocabulary("dog|puppy, grass, sky")    # {vocabulary}
result = predictor("photo.jpg")
```

## Weights

| made of | licence as stated by its publisher |
| --- | --- |
{origins}

Weights that are made of others go under their conditions, too. Stated for these: {license}.

| file | bytes | sha256 |
| --- | ---: | --- |
{files}

## Parity

When this folder was saved it was read back: {compared}. The numbers of the
official models that clipself_seg is compared with are those of `tests/parity` at the commit below.

## Provenance

{made}. All values of its configuration are in `config.yaml`.
"""


def card(predictor: Pretrained, cfg: CfgNode, folder: Path, license: str) -> str:
    """The card of a predictor, whose folder has all other files and was compared.

    Args:
        predictor: predictor that is saved.
        cfg: its configuration.
        folder: folder of its files.
        license: licence of the weights, of which its owner decides.
    """
    task, what = KINDS[cfg.MODEL.META_ARCHITECTURE]
    header = {
        "library_name": "clipself_seg",
        "license": license,
        "pipeline_tag": task,
        "tags": ["clipself_seg", "open-vocabulary", "clip", cfg.MODEL.META_ARCHITECTURE.lower()],
    }
    model = predictor.model
    weights = model.weights_hash()
    compared = f"the weights have the same hash, `{weights}`"
    vocabulary = "it was saved without one"
    if predictor.asked is not None:
        vocabulary = f"it was saved with {len(predictor.asked['words'])} classes"
        compared += ", and an image of noise (128 x 192) gave the same result, bit for bit"
    title = f"{cfg.MODEL.META_ARCHITECTURE} on {model.clip.name}"
    record = provenance(weights_hash=weights)
    made = ", ".join(
        f"{key} {record[key]}" for key in ("version", "commit", "python", "torch", "date")
    )
    return CARD.format(
        header=yaml.safe_dump(header, sort_keys=True),
        title=title,
        underline="=" * len(title),
        what=what,
        clip=f"{model.clip.name} (hash `{model.clip.weights_hash()}`)",
        vocabulary=vocabulary,
        origins="\n".join(_origins(cfg)),
        license=license,
        files="\n".join(_files(folder)),
        compared=compared,
        made=f"Written by clipself_seg, {made}",
    )


def _origins(cfg: CfgNode) -> list[str]:
    """A row for each weights that the configuration names, without folders of this machine."""
    rows = []
    for key in WEIGHTS:
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value:
            entry = zoo().get(value) or zoo().get(f"{cfg.MODEL.CLIP.NAME}:{value}")
            licence = entry.licence if entry else "not known here"
            if value in SHIPPED_MODELS or value in SHIPPED_TAGS:
                licence = "Apache-2.0, comes with clipself_seg"
            rows.append(f"| `{key}` {value if entry else Path(value).name} | {licence} |")
    return rows or ["| random weights | |"]


def _files(folder: Path) -> list[str]:
    rows = []
    for path in sorted(folder.glob("*.safetensors")):
        rows.append(f"| `{path.name}` | {path.stat().st_size} | `{file_sha256(path)}` |")
    return rows
