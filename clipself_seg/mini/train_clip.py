"""Contrastive training of the mini CLIP on crops of mini scenes and captions of what they show."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipself_seg.mini.concepts import WORLDS, Concept
from clipself_seg.mini.crops import choose_mentions, sample_crops, write_caption
from clipself_seg.mini.scenes import draw_scene

logger = logging.getLogger(__name__)

ARCHITECTURE = Path(__file__).parent.parent / "clip" / "architectures" / "ViT-Mini-8.json"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

Key = tuple[tuple[str | None, str | None, str | None], ...]


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the weights.

    Args:
        scenes: scenes to draw crops from; three quarters are of `mini`, the rest of `mini2`.
        batch: crops a step.
        learning_rate: peak, after `warmup` steps; cosine to zero.
    """

    scenes: int = 12000
    steps: int = 4500
    batch: int = 128
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.1
    warmup: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class CropSet:
    """Pre-rendered crops: `pixels` is (N, side, side, 3) uint8, the lists say what each shows."""

    pixels: np.ndarray
    things: list[tuple[Concept, ...]]
    stuff: list[tuple[Concept, ...]]
    subject: list[bool]


def keep_freed_memory() -> None:
    """Tell glibc not to hand large blocks back to the system after every step.

    The activations of a step are then reused without page faults, which takes a quarter of the time
    on a CPU. Elsewhere than on glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, (1 << 31) - 1)


def _render(job: tuple[int, range, int]) -> CropSet:
    import cv2

    cv2.setNumThreads(1)
    seed, indices, side = job
    crops = []
    for index in indices:
        # The stream of a scene depends on its own number only: any number of processes draws the same.
        rng = np.random.default_rng([seed, 7, index])
        scene = draw_scene(rng, WORLDS["mini2" if index % 4 == 3 else "mini"])
        crops += sample_crops(rng, scene, side)
    return CropSet(
        np.stack([crop.pixels for crop in crops]),
        [crop.things for crop in crops],
        [crop.stuff for crop in crops],
        [crop.subject for crop in crops],
    )


def render_crops(*, scenes: int, side: int, seed: int, processes: int = 2) -> CropSet:
    """Draw scenes and cut the training crops out of them, in `processes` processes."""
    jobs = [(seed, range(start, min(start + 100, scenes)), side) for start in range(0, scenes, 100)]
    parts = []
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for done, part in enumerate(pool.imap(_render, jobs), 1):
            parts.append(part)
            if done % 20 == 0:
                logger.info("scenes drawn: %d / %d", min(done * 100, scenes), scenes)
    return CropSet(
        np.concatenate([part.pixels for part in parts]),
        [things for part in parts for things in part.things],
        [stuff for part in parts for stuff in part.stuff],
        [subject for part in parts for subject in part.subject],
    )


def _key(things: tuple[Concept, ...], stuff: tuple[Concept, ...]) -> Key:
    """What a caption means, whatever its words and their order."""
    return tuple(sorted(((c.colour, c.shape, c.texture) for c in things + stuff), key=str))


def caption_batch(
    rng: np.random.Generator, crops: CropSet, indices: np.ndarray
) -> tuple[list[str], Tensor]:
    """Captions of a batch, a caption of every class besides, and which caption is true of which crop.

    Returns:
        T distinct texts, and (len(indices), T) float targets: rows sum to 1, spread over all texts
        with the meaning that was chosen for the crop.
    """
    keys: list[Key] = []
    texts: dict[str, Key] = {}
    for index in indices:
        mentions = choose_mentions(rng, crops.things[index], crops.stuff[index], crops.subject[index])
        keys.append(_key(*mentions))
        texts[write_caption(rng, *mentions)] = keys[-1]
    # The classes' own captions are negatives of every step: a small batch then sees all of them.
    for spec in WORLDS.values():
        for concept in spec.concepts:
            mentions = ((concept,), ()) if concept.isthing else ((), (concept,))
            texts[write_caption(rng, *mentions)] = _key(*mentions)
    numbers = {key: number for number, key in enumerate(dict.fromkeys([*keys, *texts.values()]))}
    rows = torch.tensor([numbers[key] for key in keys])
    columns = torch.tensor([numbers[key] for key in texts.values()])
    same = (rows[:, None] == columns[None, :]).float()
    return list(texts), same / same.sum(1, keepdim=True)


def contrastive_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """InfoNCE in both directions when several texts may be true of a crop and several crops of a text.

    Args:
        logits: (B, T).
        targets: (B, T) as from `caption_batch`; texts that are true of no crop are negatives only.
    """
    to_text = -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()
    columns = targets.sum(0) > 0
    back = (targets[:, columns] > 0).float().t()
    back = back / back.sum(1, keepdim=True)
    to_image = -(back * F.log_softmax(logits[:, columns].t(), dim=1)).sum(1).mean()
    return 0.5 * (to_text + to_image)


def build_clip() -> nn.Module:
    """The mini CLIP with open_clip's modules and random weights."""
    from open_clip.model import CLIP

    config = json.loads(ARCHITECTURE.read_text())
    return CLIP(**config)


def encode_short_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """Text features from the first columns of the token table only.

    Attention is causal and the feature is read at the end-of-text token, so the padding behind the
    longest text changes nothing; leaving it out makes the text tower several times cheaper.
    """
    length = int(tokens.argmax(1).max()) + 1
    tokens = tokens[:, :length]
    x_BLD = model.token_embedding(tokens) + model.positional_embedding[:length]
    x_BLD = model.transformer(x_BLD, attn_mask=model.attn_mask[:length, :length])
    x_BLD = model.ln_final(x_BLD)
    return x_BLD[torch.arange(len(x_BLD)), tokens.argmax(1)] @ model.text_projection


def normalise(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float with CLIP's mean and deviation."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    return images.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _optimiser(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6)


def _batches(crops: CropSet, settings: TrainSettings) -> Iterator[tuple[np.ndarray, list[str], Tensor]]:
    rng = np.random.default_rng([settings.seed, 8])
    order = np.empty(0, np.int64)
    for _ in range(settings.steps):
        if len(order) < settings.batch:
            order = rng.permutation(len(crops.pixels))
        indices, order = order[: settings.batch], order[settings.batch :]
        pixels = crops.pixels[indices]
        if rng.random() < 0.5:
            pixels = pixels[:, :, ::-1].copy()
        yield pixels, *caption_batch(rng, crops, indices)


def train(model: nn.Module, crops: CropSet, settings: TrainSettings) -> Iterator[tuple[int, float]]:
    """Train in place; yields (step, loss) after every step."""
    import open_clip

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    optimiser = _optimiser(model, settings)
    model.train()
    for step, (pixels, texts, targets) in enumerate(_batches(crops, settings)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        image_BD = F.normalize(model.visual(normalise(pixels)), dim=-1)
        text_TD = F.normalize(encode_short_text(model, tokenizer(texts)), dim=-1)
        loss = contrastive_loss(model.logit_scale.exp() * image_BD @ text_TD.t(), targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        yield step, float(loss.detach())


def train_and_log(model: nn.Module, crops: CropSet, settings: TrainSettings) -> float:
    """Train with a line of progress every 50 steps; returns the seconds taken."""
    start, smooth = time.perf_counter(), None
    for step, loss in train(model, crops, settings):
        smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
        if (step + 1) % 50 == 0:
            passed = time.perf_counter() - start
            left = passed / (step + 1) * (settings.steps - step - 1)
            logger.info("step %d / %d  loss %.3f  eta %d:%02d", step + 1, settings.steps, smooth, *divmod(int(left), 60))
    return time.perf_counter() - start
