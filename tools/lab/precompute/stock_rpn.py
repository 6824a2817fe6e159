"""Detectron2's region proposal network on any of its backbones, with the interface of this project's models.

It is `ProposalNetwork` with the members of `models.model_protocols`. Where F-ViT proposes boxes on CLIP's features,
this one stands on a ResNet with a feature pyramid, or on whatever ``MODEL.BACKBONE.NAME`` says. Runs of it import this
module (``--import``), as `precompute.py` does for its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, ProposalNetwork
from detectron2.structures import Boxes, Instances
from torch import Tensor

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.read import fit
from clipself_seg.checkpoints.training_state import trained_tensors
from clipself_seg.clip.precision import autocast
from clipself_seg.config.load import precision_from_config
from clipself_seg.config.relations import RELATIONS, whole_batches
from clipself_seg.config.weight_checks import refuse_addresses
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.extend import register_key
from clipself_seg.models.model_base import ModelBase, load_backbone, on_host, save_atomically
from clipself_seg.models.model_protocols import Group
from clipself_seg.models.optimizer_groups import by_rate_and_kind

# Weights of the backbone of a StockRPN: a .pth, .safetensors or .pkl file, such as Detectron2's
# ImageNetPretrained/torchvision/R-50.pkl. A checkpoint of the whole model holds them.
WEIGHTS_KEY = "MODEL.STOCK_RPN.BACKBONE_WEIGHTS"
register_key(WEIGHTS_KEY, "")
RELATIONS.append(whole_batches("StockRPN", "for batch norms would see parts of a batch"))


@META_ARCH_REGISTRY.register()
class StockRPN(ProposalNetwork, ModelBase):
    """Class-agnostic boxes of objects; its classes, of the training data, only say which objects are annotated."""

    has_masks = False

    @configurable
    def __init__(
        self, *, backbone_multiplier: float, precision: torch.dtype | None = None, **parts: object
    ) -> None:
        """
        Args:
            backbone_multiplier: multiple of the base learning rate at which the backbone learns; 0 keeps it
                frozen.
            precision: dtype of autocast in training, or None.
            **parts: arguments of Detectron2's `ProposalNetwork`.
        """
        super().__init__(**parts)
        self.backbone_multiplier = backbone_multiplier
        self.precision = precision
        if not backbone_multiplier:
            _bottom_up(self.backbone).requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``MODEL.{BACKBONE, RESNETS, FPN, ANCHOR_GENERATOR, RPN, PIXEL_MEAN, PIXEL_STD}`` as Detectron2 does,
        ``MODEL.STOCK_RPN`` and ``SOLVER.{AMP, BACKBONE_MULTIPLIER}``.

        Raises:
            InputError: weights of the backbone that do not fit.
        """
        parts = super().from_config(cfg)
        refuse_addresses(cfg, [WEIGHTS_KEY])
        if path := cfg.MODEL.STOCK_RPN.BACKBONE_WEIGHTS:
            load_backbone(_bottom_up(parts["backbone"]), path, WEIGHTS_KEY)
        return {
            **parts,
            "backbone_multiplier": cfg.SOLVER.BACKBONE_MULTIPLIER,
            "precision": precision_from_config(cfg),
        }

    @classmethod
    def task(cls) -> str:
        """Returns "detection", whose data it trains on."""
        return "detection"

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuse any evaluation of detections, which have classes."""
        raise InputError(
            "StockRPN knows no classes, so there are no detections to evaluate: python tools/precompute.py proposals "
            "writes its boxes"
        )

    @classmethod
    def training_config(cls, cfg: CfgNode) -> CfgNode:
        """The configuration as it is.

        Raises:
            InputError: data sets to evaluate; a ResNet of which something would be random and stay so.
        """
        if cfg.DATASETS.TEST:
            cls.require_trained(cfg)
        resnets = cfg.MODEL.RESNETS
        fixed = cfg.MODEL.BACKBONE.FREEZE_AT > 0 or resnets.NORM == "FrozenBN"
        given = cfg.MODEL.WEIGHTS or cfg.MODEL.STOCK_RPN.BACKBONE_WEIGHTS
        if "resnet" in cfg.MODEL.BACKBONE.NAME and fixed and not given:
            raise InputError(
                f"the ResNet would be random with parts that never train, and diverge: give {WEIGHTS_KEY}, such as "
                "Detectron2's ImageNetPretrained/torchvision/R-50.pkl; to begin with nothing, set "
                "MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN"
            )
        return cfg

    def stays_frozen(self) -> Iterable[torch.nn.Module]:
        """The backbone, unless it learns: its batch norms would go on counting."""
        return () if self.backbone_multiplier else (_bottom_up(self.backbone),)

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Give the classes of the training data."""
        if vocabulary is not None:
            self.set_vocabulary(vocabulary)

    def optimizer_groups(self, solver: CfgNode) -> list[Group]:
        """Parameter groups: weight decay for all but norms (``WEIGHT_DECAY_NORM``), the backbone with its own rate."""
        multipliers = [(_bottom_up(self.backbone), self.backbone_multiplier)]
        return by_rate_and_kind(self, solver, multipliers)

    def forward(self, samples: Sequence[Sample]) -> Any:
        """Losses in training, proposals in evaluation.

        Args:
            samples: for each image "image" (3, h, w) RGB in 0..255. In training "boxes" (k, 4) XYXY in pixels of
                it; in evaluation "height" and "width" of the original image, by default those of the image itself.

        Returns:
            Losses by name, scalars; or for each image "proposals", Detectron2's `Instances` with
            "proposal_boxes" and "objectness_logits", the best first.
        """
        if not self.training:
            return super().forward(samples)
        with autocast(self.device, self.precision):
            return super().forward([s | {"instances": _instances(s)} for s in samples])

    @torch.no_grad()
    def propose(self, samples: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
        """Proposals, in evaluation mode.

        Args:
            samples: as for `forward`.

        Returns:
            For each image boxes (m, 4) in pixels of the original image, the best first, and their scores (m,)
            in [0, 1].
        """
        proposals = [output["proposals"] for output in self(samples)]
        return [(p.proposal_boxes.tensor, p.objectness_logits.sigmoid()) for p in proposals]

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads what `export` or a Detectron2 training of `ProposalNetwork` has written, strictly.

        Raises:
            InputError: missing, unexpected or misshapen tensors.
        """
        # Anchors follow from the configuration.
        anchors = {n: t for n, t in self.state_dict().items() if "anchor_generator" in n}
        given = {n: t for n, t in tensors.items() if "anchor_generator" not in n}
        own = {n: t for n, t in self.state_dict().items() if n not in anchors}
        remedy = "it is no StockRPN of this configuration"
        self.load_state_dict(anchors | fit(given, own, source, remedy=remedy))

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes all weights under Detectron2's names, atomically."""
        save_atomically(path, {"model": on_host(self.state_dict())})

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""
        trained = trained_tensors(self)
        return hash_tensors({n: t for n, t in self.state_dict().items() if n not in trained})


def _bottom_up(backbone: Any) -> Any:
    """The backbone below its feature pyramid, if it has one."""
    return getattr(backbone, "bottom_up", backbone)


def _instances(sample: Sample) -> Instances:
    """The objects of a sample, which are of one class here."""
    instances = Instances(tuple(sample["image"].shape[1:]))
    instances.gt_boxes = Boxes(sample["boxes"])
    return instances
