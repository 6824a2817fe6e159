"""Models of README's table: seconds of an image, and operations of their towers. docs/measured/models.json has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bench.case import IMAGE_SIZE
from bench.flops import PRODUCTS, counted_by_fvcore
from clipself_seg.choice import find_model
from clipself_seg.prediction.load import load
from clipself_seg.provenance import provenance

NAMES = (
    "catseg-base",
    "fcclip-convnext-large",
    "fvit-eva02-vitb16-lvis-patches",
    "clipself-eva02-vitb16-coco-patches",
)
WORDS, SIDE = "dog, grass, sky", 1024


def measure_models(only: Sequence[str], report: Callable[[str], None]) -> dict[str, Any]:
    """Measures models with random weights, on one thread of the CPU.

    Args:
        only: names of `NAMES`; () for all.
        report: called with the progress.

    Returns:
        "models" (by name: "seconds" of the processor for an image of noise that is not the first one; "tower", its
        CLIP; and the operations of its dense features for a square of `SIDE` pixels, a multiply-add as one:
        "products", which `count_flops` counts too, and "norms") and "provenance".
    """
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)
    models: dict[str, Any] = {}
    for name in only or NAMES:
        choice = find_model(name, None, None)
        random = [*choice.opts, "MODEL.CLIP.WEIGHTS", "random" if choice.clip else ""]
        model = load("random", config_file=choice.config_file, opts=random, device="cpu")
        model(pixels, WORDS)
        begin = time.process_time()
        model(pixels, WORDS)
        seconds = time.process_time() - begin
        counts = counted_by_fvcore(model.model.clip.visual, torch.zeros(1, 3, SIDE, SIDE))
        products = sum(counts[operator] for operator in PRODUCTS)
        models[name] = {"seconds": seconds, "tower": model.config.MODEL.CLIP.NAME}
        models[name] |= {"products": products, "norms": counts.total() - products}
        report(f"{name}: {models[name]}")
    return {"models": models, "provenance": provenance(seed=0)}
