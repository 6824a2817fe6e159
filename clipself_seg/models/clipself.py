"""CLIPSelf: trains a CLIP so that its dense features of a region match its own embedding of the region's crop.

Shapes: B images, R regions of all images, n regions of one image, E embedding, h x w cells of the
    dense features.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import Tensor, nn

from clipself_seg.clip import VisionLanguageBackbone, save_clip
from clipself_seg.clip.backbone import build_clip
from clipself_seg.clip.runtime import on_device
from clipself_seg.clip.tower import (
    DENSE,
    KEYS,
    QUERIES,
    ImageTower,
    TransformerTower,
    train_last_blocks,
)
from clipself_seg.config.load import evaluation_precision, precision_from_config
from clipself_seg.config.relations import require_valid
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.heads.distillation_losses import Average
from clipself_seg.models import distillation
from clipself_seg.models.model_protocols import Classes, Group, Memory, Outputs
from clipself_seg.models.optimizer_groups import matrices_and_vectors
from clipself_seg.models.region_reader import RegionReader


@dataclasses.dataclass(frozen=True)
class DistillationTraining:
    """Settings of CLIPSelf's training.

    Attributes:
        trainable_blocks: number of last blocks that train, -1 for all; see `train_last_blocks`.
        loss_average: set over which losses of regions are averaged, see `region_mean` (D3).
        sync_gradients: True if the loss is averaged over the regions of all processes (D5).
        precision: dtype of autocast, or None.
    """

    trainable_blocks: int = -1
    loss_average: Average = "regions"
    sync_gradients: bool = True
    precision: torch.dtype | None = None


@META_ARCH_REGISTRY.register()
class CLIPSelf(RegionReader):
    """Student and teacher start as the same CLIP; the teacher never changes (CLIPSelf, section 3).

    In training, `forward` returns the losses of a batch, which its target makes. In evaluation it is a
    `RegionReader` of ``alpha * student + (1 - alpha) * original``, mixed once by `eval`. Both towers stay in
    evaluation mode all the time: there is no dropout, and batch norms are frozen.

    Attributes:
        clip: the mixture in evaluation, the teacher in training.
        teacher: the original CLIP, frozen; its text tower embeds the vocabulary.
        student: the image tower that learns.
        target: the student's target, see `models.distillation`.
    """

    epochs = 6
    memory = Memory(weights=(1.8, 6.1), step=(1.1, 3.0), recomputed=(0.5, 1.2))

    @configurable
    def __init__(
        self,
        *,
        clip: VisionLanguageBackbone,
        student: VisionLanguageBackbone | None = None,
        target: distillation.Target | None = None,
        training: DistillationTraining | None = None,
        alpha: float = 1.0,
        read: Sequence[str] = ("boxes", "masks", "crops"),
        templates: str = "vild63",
        test_precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            clip: CLIP that becomes the teacher, both towers.
            student: CLIP that the student starts from; None starts from a copy of the teacher.
            target: target of the student's training; None is CLIPSelf's own, of crops.
            training: settings of training, those by default if None.
            alpha: weight of the student in the mixture that is evaluated and exported, in [0, 1] (D4).
            read: readouts in evaluation, out of `clipself_seg.config.READOUTS`.
            templates: prompts around a class name, a name in `templates.TEMPLATES`.
            test_precision: dtype of autocast in evaluation, or None.
        """
        super().__init__(clip=clip, read=read, templates=templates, precision=test_precision)
        training = training or DistillationTraining()
        assert training.trainable_blocks != 0, "trains nothing"
        self.teacher = clip
        learner = clip.copy() if student is None else student
        self._learner = (learner,)  # a tuple: of its parts the image tower alone is registered
        self.student: ImageTower = learner.visual
        self.target: distillation.Target = (
            distillation.WeightedObjectives({"CROPS": 1.0}) if target is None else target
        )
        features = [name for name in self.target.reads if name != distillation.IMAGE] or [DENSE]
        attention = distillation.IMAGE in self.target.reads
        self._check_reads(features)
        if self.student.dense_feature.gated and DENSE not in self.target.reads:
            raise InputError(
                f"MODEL.CLIP.DENSE is {self.student.dense_feature}, and what the student is trained for reads no dense "
                "features: the gate would not learn; take another DENSE"
            )
        blocks = training.trainable_blocks
        train_last_blocks(self.student, blocks, features, attention=attention)
        self._check_frozen_parts()
        self.alpha = alpha
        self.training_settings = training

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``MODEL.CLIP``, ``MODEL.CLIPSELF``, ``INPUT.REGIONS``, ``TEST.{REGIONS,
        PRECISION}`` and ``SOLVER``."""
        require_valid(cfg, "CLIPSelf")
        clip = build_clip(cfg)
        clip.check_side(cfg.INPUT.REGIONS.STUDENT_SIZE)
        start = cfg.MODEL.CLIPSELF.STUDENT_WEIGHTS
        student = build_clip(cfg, WEIGHTS=start) if start else None
        return {
            "clip": clip,
            "student": student,
            "target": distillation.build_target(cfg),
            "training": DistillationTraining(
                trainable_blocks=cfg.MODEL.CLIP.TRAINABLE_BLOCKS,
                loss_average=cfg.MODEL.CLIPSELF.LOSS_AVERAGE,
                sync_gradients=cfg.SOLVER.SYNC_GRADIENTS,
                precision=precision_from_config(cfg),
            ),
            "alpha": cfg.MODEL.CLIPSELF.ALPHA,
            "read": cfg.TEST.REGIONS.READ,
            "templates": cfg.TEST.REGIONS.TEMPLATES,
            "test_precision": evaluation_precision(cfg),
        }

    def _check_reads(self, features: Sequence[str]) -> None:
        """Refuses a target of features that this kind of tower has not."""
        missing = [name for name in features if name not in self.student.feature_shapes()]
        if missing:
            raise InputError(
                f"{self.teacher.name} has no {' or '.join(missing)} of a last block, which "
                "MODEL.CLIPSELF.OBJECTIVES.CONTEXT compares: leave it 0, or distil a ViT; COHERENCE and SPATIAL do "
                "without"
            )

    def _check_frozen_parts(self) -> None:
        """Refuses a student whose frozen weights are not the teacher's: the mixture would be of two CLIPs."""
        pairs = zip(self.student.named_parameters(), self.teacher.visual.parameters(), strict=True)
        frozen: list[tuple[str, Tensor, Tensor]] = [
            (name, own, original) for (name, own), original in pairs if not own.requires_grad
        ]
        originals = _unread_rows(self.teacher.visual, self.target.reads)
        unread = _unread_rows(self.student, self.target.reads)
        frozen += [(name, own, originals[name]) for name, own in unread.items()]
        for name, own, original in frozen:
            if not torch.equal(own, original):
                raise InputError(
                    f"MODEL.CLIPSELF.STUDENT_WEIGHTS: {name} does not train and differs from MODEL.CLIP.WEIGHTS; start "
                    "from a student of the same CLIP, and go on with those of MODEL.CLIPSELF.OBJECTIVES that trained it"
                )

    @property
    def learner(self) -> VisionLanguageBackbone:
        """The CLIP whose image tower is the student."""
        return self._learner[0]

    def stays_frozen(self) -> Iterable[nn.Module]:
        """All: there is no dropout, and batch norms are frozen."""
        return self.clip, self.teacher, self.student

    def train(self, mode: bool = True) -> CLIPSelf:
        """Switches the training mode; ``eval()`` mixes the weights that are evaluated, once.

        After unsynchronised training every process must call it: all evaluate the first one's
        student.
        """
        super().train(mode)
        self.clip = self.teacher if mode else self.ensembled_clip()
        if not mode and not self.training_settings.sync_gradients and comm.get_world_size() > 1:
            for parameter in self.clip.visual.parameters():
                dist.broadcast(parameter.data, 0)
        return self

    def forward(  # type: ignore[override]  # in training it gives losses
        self,
        samples: Sequence[Sample],
        *,
        classes: Classes | None = None,
        read: Sequence[str] | None = None,
        dense: bool = False,
    ) -> dict[str, Tensor] | list[Outputs]:
        """Losses of a batch in training, see `losses`; scores of regions against classes in evaluation, see
        `RegionReader.forward`, for the readouts `read`, and the dense features if `dense` says so.
        """
        if self.training:
            return self.losses(samples)
        return super().forward(samples, classes=classes, read=read, dense=dense)

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Losses of the target for some images, with their weight.

        Args:
            samples: for each image "image" uint8 (3, S, S), and what the target reads besides.
        """
        settings, synchronised = self.training_settings, self.training_settings.sync_gradients
        average = settings.loss_average
        step = distillation.Step(
            samples=samples,
            images=self.teacher.preprocess(torch.stack(on_device(samples, "image", self.device))),
            student=self.learner,
            teacher=self.teacher,
            precision=settings.precision,
            average=average,
            synchronised=synchronised,
            region_count=(
                distillation.count_over_processes(samples, average, self.device)
                if synchronised
                else None
            ),
            reads=self.target.reads,
        )
        return self.target.losses(step)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Restores weights that weight decay changes though the loss does not reach them.

        OpenAI's layout packs query, key and value of a block into one matrix. Query and key of the
        last block get no gradient on the dense path and have to stay the original's.
        """
        originals = _unread_rows(self.teacher.visual, self.target.reads)
        for name, trained in _unread_rows(self.student, self.target.reads).items():
            trained.copy_(originals[name])

    @torch.no_grad()
    def ensembled_clip(self) -> VisionLanguageBackbone:
        """A CLIP whose image tower is ``alpha * student + (1 - alpha) * original``.

        The text tower is the teacher's own. Weights that did not train are bit-identical to the
        original's. A gate is mixed with that of the start, which is 1 everywhere.
        """
        clip = self.teacher.copy()
        for mixed, trained in zip(clip.visual.parameters(), self.student.parameters(), strict=True):
            if trained.requires_grad:
                mixed.lerp_(trained, self.alpha)
        clip.distilled = clip.visual.dense_feature
        return clip

    def weights_hash(self) -> str:
        """Hash of the weights that are evaluated and exported."""
        return self.ensembled_clip().weights_hash()

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Gives the target the classes that it needs, see `Target.setup_training`."""
        self.target.setup_training(self.teacher, vocabulary)

    def optimizer_groups(self, solver: CfgNode) -> list[Group]:
        """Parameter groups: matrices with weight decay, vectors without."""
        return matrices_and_vectors(self.parameters(), solver.WEIGHT_DECAY)

    def original_hash(self) -> str:
        """Hash of the weights that the run started from."""
        return self.teacher.weights_hash()

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the mixed weights as a plain CLIP checkpoint that `load_clip` reads."""
        save_clip(self.ensembled_clip(), path)


def _unread_rows(tower: ImageTower, reads: Sequence[str]) -> dict[str, Tensor]:
    """Query and key rows of the last block's packed matrix and bias that the target does not read, by name.

    Empty where the tower packs none, or where image embeddings are read, for which the last block attends.
    """
    if not isinstance(tower, TransformerTower) or tower.pooled or distillation.IMAGE in reads:
        return {}
    attention: Any = tower.blocks[-1].attn
    if not hasattr(attention, "in_proj_weight"):
        return {}
    return {
        f"{kind} of the last block's {part}": rows
        for part in ("in_proj_weight", "in_proj_bias")
        for kind, rows in zip((QUERIES, KEYS), getattr(attention, part).chunk(3))
        if kind not in reads
    }
