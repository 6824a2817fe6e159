"""Pictures of a training for TensorBoard: what the model predicts for one image, every ``VIS_PERIOD`` steps."""

from __future__ import annotations

import os

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.utils import comm

from clipself_seg.evaluation.evaluation_base import classes_kept
from clipself_seg.models.build import architecture
from clipself_seg.prediction.task_predictors import PREDICTORS


class DrawPredictions(HookBase):
    """Draws what the model predicts for the first training image, with the training vocabulary."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self._predictor = PREDICTORS[architecture(cfg).task()]

    def after_step(self) -> None:
        """Draws in the first process, which alone writes to TensorBoard."""
        trainer = self.trainer
        if (trainer.iter + 1) % self.cfg.VIS_PERIOD or not comm.is_main_process():
            return
        file = trainer.records[0]["file_name"]
        with classes_kept(trainer.model), inference_context(trainer.model):
            predictor = self._predictor(self.cfg, model=trainer.model)
            predictor.set_vocabulary(trainer.vocabulary)
            drawn = np.asarray(predictor(file).overlay())
        trainer.storage.put_image(f"predictions/{os.path.basename(file)}", drawn.transpose(2, 0, 1))
