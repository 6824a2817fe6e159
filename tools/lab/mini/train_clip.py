"""Contrastive training of the mini CLIP on crops of scenes and captions of their content."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from clipself_seg.checkpoints.zoo import MINI_CLIP, MINI_CLIPS
from clipself_seg.clip import CLIP, load_clip
from lab.mini.concepts import WORLDS, Concept
from lab.mini.crops import Crop, choose_mentions, leave_out_colours, sample_crops, write_caption
from lab.mini.scenes import draw_scene
from lab.parallel import run_in_parallel

Key = tuple[tuple[str | None, str | None, str | None], ...]


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Settings that decide the weights.

    Attributes:
        scenes: number of scenes to draw crops from; three quarters are of `mini`, the rest of `mini2`.
        steps: number of training steps.
        batch: number of crops of a step.
        learning_rate: peak, reached after `warmup` steps; then it falls to zero along a cosine.
        weight_decay: weight decay of matrices; biases and norms have none.
        warmup: number of steps over which the learning rate rises.
        seed: seed of scenes, crops and captions.
    """

    scenes: int = 9000
    steps: int = 3300
    batch: int = 128
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.1
    warmup: int = 150
    seed: int = 0


# Tag -> settings of the weights that come with the project. An image tower alone learns with less.
RECIPES = dict.fromkeys(MINI_CLIPS, TrainSettings(steps=2400, batch=64)) | {
    "mini": TrainSettings(),
    "mini-resnet": TrainSettings(steps=3600, batch=64),
}


def _render(job: tuple[int, range, int]) -> list[Crop]:
    seed, indices, side = job
    crops: list[Crop] = []
    for index in indices:
        # Random choices of a scene depend on its own number only, whatever the number of processes.
        rng = np.random.default_rng([seed, 7, index])
        scene = draw_scene(rng, WORLDS["mini2" if index % 4 == 3 else "mini"])
        crops += sample_crops(rng, scene, side)
    return crops


def render_crops(*, scenes: int, side: int, seed: int, processes: int = 2) -> list[Crop]:
    """Draw scenes and cut the training crops out of them.

    Args:
        scenes: number of scenes.
        side: side of the crops in pixels.
        seed: seed of scenes and crops.
        processes: number of processes to work in; it does not change the result.
    """
    jobs = [(seed, range(start, min(start + 100, scenes)), side) for start in range(0, scenes, 100)]
    parts = run_in_parallel(_render, jobs, processes=processes, label="draw 100 scenes each")
    return [crop for part in parts for crop in part]


def _key(things: tuple[Concept, ...], stuff: tuple[Concept, ...]) -> Key:
    """Classes that a caption mentions, whatever its words and their order."""
    return tuple(sorted(((c.colour, c.shape, c.texture) for c in things + stuff), key=str))


def caption_batch(rng: np.random.Generator, crops: Sequence[Crop]) -> tuple[list[str], Tensor]:
    """Captions of a batch and of every class, and the captions that are true of each crop.

    Args:
        rng: generator that decides the captions.
        crops: crops of the batch.

    Returns:
        T distinct texts, and (len(crops), T) float targets: rows sum to 1, spread evenly over all
        texts with the meaning that was chosen for the crop.
    """
    keys: list[Key] = []
    texts: dict[str, Key] = {}
    for crop in crops:
        things, stuff = choose_mentions(rng, crop.things, crop.stuff, crop.subject)
        mentions = leave_out_colours(rng, things), stuff
        keys.append(_key(*mentions))
        texts[write_caption(rng, *mentions)] = keys[-1]
    # Captions of every class are negatives of every step, which a small batch alone would not have.
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
    """InfoNCE in both directions, with several texts for a crop and several crops for a text.

    Args:
        logits: scaled cosines of B crops and T texts, (B, T).
        targets: (B, T) from `caption_batch`; texts that are true of no crop are negatives only.
    """
    to_text = -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()
    columns = targets.sum(0) > 0
    back = (targets[:, columns] > 0).float().t()
    back = back / back.sum(1, keepdim=True)
    to_image = -(back * F.log_softmax(logits[:, columns].t(), dim=1)).sum(1).mean()
    return 0.5 * (to_text + to_image)


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Learning rate of a step: linear warm-up, then cosine to zero."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _optimiser(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6)


def _batches(
    crops: Sequence[Crop], settings: TrainSettings
) -> Iterator[tuple[np.ndarray, list[str], Tensor]]:
    rng = np.random.default_rng([settings.seed, 8])
    order = np.empty(0, np.int64)
    for _ in range(settings.steps):
        if len(order) < settings.batch:
            order = rng.permutation(len(crops))
        batch = [crops[index] for index in order[: settings.batch]]
        order = order[settings.batch :]
        pixels = np.stack([crop.pixels for crop in batch])
        if rng.random() < 0.5:
            pixels = pixels[:, :, ::-1].copy()
        yield pixels, *caption_batch(rng, batch)


def untrained_clip(tag: str, seed: int) -> CLIP:
    """A CLIP of the mini worlds with random weights, in `mini`'s case of both towers.

    The others have the text tower and the scale of `mini`, both frozen, so that all of them read the same texts.

    Args:
        tag: one of `MINI_CLIPS`.
        seed: decides the weights.
    """
    torch.manual_seed(seed)
    clip = load_clip(MINI_CLIPS[tag], None)
    if clip.name != MINI_CLIP:
        mini = load_clip(MINI_CLIP, "mini").requires_grad_(False)
        clip.text = mini.text
        clip.logit_scale = mini.logit_scale
        _thaw_batch_norms(clip.visual)
    return clip


def _thaw_batch_norms(module: nn.Module) -> None:
    """Puts batch norms that learn in the place of those that are frozen, as nobody trains a ResNet without."""
    for name, child in module.named_children():
        if isinstance(child, FrozenBatchNorm2d):
            setattr(module, name, nn.BatchNorm2d(len(child.weight), eps=child.eps))
        else:
            _thaw_batch_norms(child)


def train(
    clip: CLIP, crops: Sequence[Crop], settings: TrainSettings
) -> Iterator[tuple[int, float]]:
    """Train a CLIP in place and yield (step, loss) after every step.

    Args:
        clip: as of `untrained_clip`.
        crops: crops of `settings`.
        settings: what decides the weights.
    """
    optimiser = _optimiser(clip, settings)
    clip.train()
    for step, (pixels, texts, targets) in enumerate(_batches(crops, settings)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        images = clip.preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        cosines = clip.encode_image(images) @ clip.encode_text(texts).t()
        loss = contrastive_loss(clip.logit_scale.exp() * cosines, targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))
        yield step, float(loss.detach())
