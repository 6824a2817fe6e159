"""What ``train_net.py`` does in each process: prepare, then train or evaluate, then write the result."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from clipself_seg import models
from clipself_seg.data.builtin import distillation_records
from clipself_seg.data.mappers import DistillMapper
from clipself_seg.engine.checkpoint import CheckpointFolder, unpack_model
from clipself_seg.engine.region_evaluation import RegionEvaluation
from clipself_seg.engine.settings import TrainingSettings
from clipself_seg.engine.trainer import Trainer
from clipself_seg.errors import InputError, nearest
from clipself_seg.evaluation.report import write_results
from clipself_seg.files import atomic_path
from clipself_seg.provenance import provenance
