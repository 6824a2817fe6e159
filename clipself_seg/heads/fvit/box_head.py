"""The box head of F-ViT: scores of RoIs against text, class-agnostic deltas, and their losses.

Shapes: n RoIs, K classes, E width of CLIP's embeddings. The background is the last row of the text.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.heads.fvit.boxes import encode_boxes
from clipself_seg.heads.fvit.feature_pyramid import CHANNELS
from clipself_seg.heads.fvit.layers import ConvNorm, kaiming_normal, xavier_uniform

SIDE = 7
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""What deltas are multiplied by: 1 / (0.1, 0.1, 0.2, 0.2)."""
EPS = 1e-12


class BoxHead(nn.Module):
    """Four convolutions, two shared layers, and a layer for each of class embedding and deltas.

    The names are those of the official checkpoints.
    """

    def __init__(self, embed_dim: int, channels: int = CHANNELS, temperature: float = 50.0) -> None:
        """
        Args:
            embed_dim: E.
            channels: channels of the pyramid.
            temperature: factor of the cosines that training begins with.
        """
        super().__init__()
        self.shared_convs = nn.Sequential(*(ConvNorm(channels, channels, 3) for _ in range(4)))
        sizes = (channels * SIDE**2, embed_dim)
        self.shared_fcs = nn.ModuleList(nn.Linear(size, embed_dim) for size in sizes)
        self.cls_fcs = nn.ModuleList([nn.Linear(embed_dim, embed_dim)])
        self.reg_fcs = nn.ModuleList([nn.Linear(embed_dim, embed_dim)])
        self.fc_reg = nn.Linear(embed_dim, 4)
        self.detect_temperature = nn.Parameter(torch.tensor(float(temperature)))
        kaiming_normal(self.shared_convs)
        for layers in (self.shared_fcs, self.cls_fcs, self.reg_fcs):
            xavier_uniform(layers)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        nn.init.zeros_(self.fc_reg.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class embeddings (n, E), unit length, and deltas (n, 4), of features (n, channels, 7, 7).

        A class embedding is what a ReLU leaves; where it leaves nothing it is 0 (the official code divides
        by 0 there).
        """
        hidden = self.shared_convs(features) if len(features) else features
        hidden = hidden.flatten(1)
        for layer in self.shared_fcs:
            hidden = F.relu(layer(hidden))
        classes = F.relu(self.cls_fcs[0](hidden)).float()
        deltas = self.fc_reg(F.relu(self.reg_fcs[0](hidden)))
        return F.normalize(classes, dim=1, eps=EPS), deltas.float()

    def logits(self, embeddings: Tensor, text: Tensor, temperature: float | None = None) -> Tensor:
        """Logits (n, K + 1) of class embeddings (n, E) against the text (K + 1, E).

        Args:
            embeddings: (n, E), unit length.
            text: (K + 1, E), unit length.
            temperature: factor of the cosines; None for the learned one.
        """
        scale = self.detect_temperature.float() if temperature is None else temperature
        return scale * (embeddings @ text.T)


class RoITargets(NamedTuple):
    """Targets of the losses for the sampled RoIs of a batch, positives of an image before its negatives.

    Attributes:
        labels: (n,) class of each, K for background.
        positive: (p,) int64, which of them have an object, ascending.
        boxes: (n, 4) the RoIs.
        objects: (n, 4) the boxes of their objects; rows of negatives do not matter.
    """

    labels: Tensor
    positive: Tensor
    boxes: Tensor
    objects: Tensor


def box_losses(
    logits: Tensor,
    deltas: Tensor,
    targets: RoITargets,
    trained: Tensor,
    background_weight: float,
) -> tuple[Tensor, Tensor]:
    """Classification and box loss, both divided by the number of RoIs, scalars.

    Args:
        logits: (n, K + 1).
        deltas: (n, 4).
        targets: of the n RoIs.
        trained: (K,) bool, classes that training shows; the others leave the softmax.
        background_weight: weight of RoIs without an object.
    """
    columns = torch.cat([trained, trained.new_ones(1)])
    masked = logits.float().masked_fill(~columns, -torch.inf)
    negative_log = F.cross_entropy(masked, targets.labels, reduction="none")
    positive = targets.positive
    weights = torch.full_like(negative_log, background_weight).index_fill(0, positive, 1.0)
    wanted = encode_boxes(targets.boxes[positive], targets.objects[positive], DELTA_WEIGHTS)
    distance = (deltas[positive] - wanted).abs().sum()
    count = max(len(logits), 1)
    return (weights * negative_log).sum() / count, distance / count
