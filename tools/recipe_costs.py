"""Computes the operations and the memory of a training recipe from its configuration, without running it.

Shapes alone are computed with: tensors have no memory. A multiply-add is 2 operations. The memory of a step is
the largest sum of the bytes that are alive at once in its forward and backward pass, with attention fused, and
16 bits where the recipe has them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from bench.flops import TowerFlops, count_flops, step_flops, text_flops, tower_flops
from clipself_seg.checkpoints.dense_feature import TOKEN
from clipself_seg.clip.backbone import build_clip
from clipself_seg.clip.levers import stock_products
from clipself_seg.clip.tower import train_last_blocks
from clipself_seg.data.regions import grid_pairs
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.heads.panoptic.generator import (
    CaptionGenerator,
    Generator,
    GeneratorSizes,
    VectorGenerator,
)
from clipself_seg.heads.panoptic.plain_decoder import PlainDecoder
from clipself_seg.heads.windows import StridedWindows
from clipself_seg.models.build import architecture
from clipself_seg.models.panoptic.panoptic_config import build_plain_decoder, build_source

FORWARD_AND_BACKWARD = 3  # as many operations as a forward pass where all inputs have gradients
POSITIVE = 4  # one in so many RoIs is trained with a mask


class Recipe(NamedTuple):
    """The operations and the memory of a training.

    Attributes:
        images: number of images that all processes draw.
        flops: operations of an image's step.
        weights: bytes of weights, and of gradients and two moments of those that learn, in float32.
        step: bytes that the forward and backward pass of an image hold at once.
    """

    images: int
    flops: int
    weights: int
    step: int

    def memory(self, images: int) -> int:
        """Bytes of a GPU that trains on so many images a step, without what libraries and allocator add."""
        return self.weights + images * self.step


def recipe(cfg: CfgNode, half: bool) -> Recipe | None:
    """Computes what a configuration's training needs; None for one that only evaluates.

    Args:
        cfg: a configuration whose models have no files of weights.
        half: whether the recipe computes in 16 bits where autocast does.
    """
    if cfg.MODEL.META_ARCHITECTURE not in PARTS or not cfg.DATASETS.TRAIN:
        return None
    return Recipe(cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.MAX_ITER, *_step(cfg, half))


def _step(cfg: CfgNode, half: bool) -> tuple[int, int, int]:
    """Operations of an image's step, bytes of weights and of what the step holds."""
    # Recipes that differ in data and schedule alone have one computation.
    key = f"{cfg.MODEL} {cfg.INPUT} {half}"
    if key not in _computed:
        with stock_products():  # not as is fastest on this CPU
            _computed[key] = PARTS[cfg.MODEL.META_ARCHITECTURE](cfg, half)
    return _computed[key]


_computed: dict[str, tuple[int, int, int]] = {}

LABELLED = 36_781 / 5_000  # boxes of an image of COCO's val2017
VIEWS = 5  # of CAT-Seg: four windows and the whole image


def evaluation(cfg: CfgNode) -> float | None:
    """Operations of an image in evaluation, without texts and metrics; None where they are not computed.

    Models whose training is computed take a third of its step. The image of zero-shot segmentation is of 4:3.

    Args:
        cfg: a configuration whose models have no files of weights.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name in ("CATSeg", "FViT"):
        views = VIEWS if name == "CATSeg" else 1
        return views * _step(cfg, half=False)[0] / FORWARD_AND_BACKWARD
    if name == "OpenPanoptic":
        return None
    side, windows = max(cfg.TEST.REGIONS.SIZES or (cfg.INPUT.REGIONS.STUDENT_SIZE,)), 1
    if name == "ZeroShotSegmenter":
        layout = StridedWindows(cfg.MODEL.ZERO_SHOT.WINDOW, cfg.MODEL.ZERO_SHOT.STRIDE)
        short = cfg.INPUT.MIN_SIZE_TEST
        side, windows = layout.size, len(layout.corners((short, short * 4 // 3)))
    with FakeTensorMode(allow_non_fake_inputs=True), stock_products():
        clip = build_clip(cfg, WEIGHTS="", DENSE=TOKEN)
        flops = tower_flops(clip.visual, side - side % clip.patch_size, clip.image_size)
    if name == "ImageClassifier":
        return flops.image
    crops = LABELLED if name == "RegionReader" and "crops" in cfg.TEST.REGIONS.READ else 0
    return windows * flops.dense + crops * flops.image


def _distillation(cfg: CfgNode, half: bool) -> tuple[int, int, int]:
    side, blocks = cfg.INPUT.REGIONS.STUDENT_SIZE, cfg.MODEL.CLIP.TRAINABLE_BLOCKS
    with FakeTensorMode(allow_non_fake_inputs=True):
        teacher, student = (build_clip(cfg, WEIGHTS="", DENSE=TOKEN) for _ in range(2))
        flops = tower_flops(teacher.visual, side, teacher.image_size)
        teacher.requires_grad_(False)
        tower: Any = student.visual
        train_last_blocks(tower, blocks)
        parameters = [*teacher.parameters(), *tower.parameters()]
        peak = _peak(lambda: [tower.dense(torch.zeros(1, 3, side, side))], parameters, half)
    depth = len(tower.blocks)
    learning = (depth if blocks < 0 else blocks) / depth
    crops = _mean_regions(cfg) if cfg.MODEL.CLIPSELF.TARGET == "crops" else 0
    total = flops.dense + learning * flops.dense_backward + crops * flops.image
    total += _further_terms(cfg, flops, crops, learning)
    return int(total), _weights(parameters), peak


def _further_terms(cfg: CfgNode, flops: TowerFlops, crops: float, learning: float) -> float:
    """Operations of MODEL.CLIPSELF.OBJECTIVES beside CROPS, without a backbone of timm and the losses themselves."""
    weights = cfg.MODEL.CLIPSELF.OBJECTIVES
    whole = float(weights.WHOLE_IMAGES > 0)
    own = whole + crops * (weights.OWN_CROPS > 0)
    backward = learning * flops.dense_backward / flops.dense
    images = own * (1 + backward) + whole  # the teacher sees whole images, too
    original = cfg.MODEL.CLIPSELF.CORRELATION.TEACHER == "original"
    return images * flops.image + original * flops.dense


def _mean_regions(cfg: CfgNode) -> float:
    """Counts the regions of an image, in the mean over the grids, or as many proposals as are drawn at most."""
    keys = cfg.INPUT.REGIONS
    if keys.SOURCE != "grid":
        return float(keys.MAX_REGIONS)
    pairs = grid_pairs(keys.MAX_SPLIT, keys.GRID_PAIRS)
    most = keys.MAX_REGIONS or keys.MAX_SPLIT**2
    return sum(min(rows * columns, most) for rows, columns in pairs) / len(pairs)


def _cat_seg(cfg: CfgNode, half: bool) -> tuple[int, int, int]:
    model: Any = architecture(cfg)
    model = model(cfg).train()
    model.set_vocabulary(Vocabulary.load("coco_stuff_171"))
    model.aggregator.classes_at_once = 0  # groups are for the cache of a CPU
    flops = step_flops(model, 1)
    if any(parameter.requires_grad for parameter in model.clip.text.parameters()):
        flops += text_flops(model, torch.device("cuda"), training=True)
    side, sizes = cfg.INPUT.CROP.SIZE[0], model.aggregator.sizes
    with FakeTensorMode(allow_non_fake_inputs=True):
        text = torch.zeros(len(model.names), sizes.prompts, sizes.text, requires_grad=True)
        model.texts.embed = lambda names, examples=(): text
        parameters = list(model.parameters())
        window = torch.zeros(1, 3, side, side)
        peak = _peak(lambda: [model.window_logits(window)], parameters, half)
    return flops, _weights(parameters), peak


def _detector(cfg: CfgNode, half: bool) -> tuple[int, int, int]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: Any = architecture(cfg)
        model = model(cfg).train()
        parameters = list(model.parameters())

        def step() -> list[Tensor]:
            return _detector_outputs(model, cfg)

        peak = _peak(step, parameters, half)
        return _flops(step), _weights(parameters), peak


def _detector_outputs(model: Any, cfg: CfgNode) -> list[Tensor]:
    """Makes outputs of all layers for an image, whose cost does not depend on which boxes come."""
    side, keys = cfg.INPUT.DETECTION.SIDE, cfg.MODEL.FVIT
    levels, _ = model.features(torch.zeros(1, 3, side, side), dense=False)
    logits, deltas = model.rpn_head(levels)

    def rois(number: int, cells: int) -> Tensor:
        one: Tensor = levels[0][:, :, :1, :1]
        return one.expand(number, keys.CHANNELS, cells, cells) * 1.0

    outputs = [*logits, *deltas, *model.roi_head.bbox_head(rois(keys.ROIS_PER_IMAGE, 7))]
    if model.roi_head.mask_head is not None:
        outputs.append(model.roi_head.mask_head(rois(keys.ROIS_PER_IMAGE // POSITIVE, 14)))
    return outputs


def _generator(cfg: CfgNode, half: bool) -> tuple[int, int, int]:
    side = cfg.INPUT.IMAGE_SIZE
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = build_clip(cfg).requires_grad_(False)
        source: Any = build_source(cfg, clip)
        generator: Generator
        if cfg.MODEL.MASK_GENERATOR.KIND == "plain":
            generator = build_plain_decoder(cfg, clip, source)
        else:
            shape: dict[str, Any] = {"channels": source.channels, "text_width": clip.embed_dim}
            if cfg.MODEL.MASK_GENERATOR.VARIANT == "fcclip":
                queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
                generator = VectorGenerator(**shape, sizes=GeneratorSizes(queries=queries))
            else:
                generator = CaptionGenerator(**shape)
        parameters = [*clip.parameters(), *source.parameters(), *generator.parameters()]

        def step() -> list[Tensor]:
            predictions = generator(source(torch.zeros(1, 3, side, side)), every_layer=True)
            outputs = (value for made in predictions for value in vars(made).values())
            return [value for value in outputs if value is not None]

        peak = _peak(step, parameters, half)
        if isinstance(generator, PlainDecoder):
            # Not by `_flops`: torch takes the gradient of a depthwise convolution for that of a dense one.
            maps = source(torch.zeros(1, 3, side, side))
            tower = count_flops(lambda: source(torch.zeros(1, 3, side, side)))
            own = count_flops(lambda: generator(maps))
            return tower + FORWARD_AND_BACKWARD * own, _weights(parameters), peak
        return _flops(step), _weights(parameters), peak


PARTS: dict[str, Callable[[CfgNode, bool], tuple[int, int, int]]] = {
    "CLIPSelf": _distillation,
    "CATSeg": _cat_seg,
    "FViT": _detector,
    "OpenPanoptic": _generator,
}


def _weights(parameters: Iterable[nn.Parameter]) -> int:
    """Counts bytes of weights, 4 for each number, and 12 more for each one that learns."""
    own = {id(parameter): parameter for parameter in parameters}.values()
    return sum(p.numel() * (16 if p.requires_grad else 4) for p in own)


class _Alive(TorchDispatchMode):
    """Follows the storages that operations make, until nobody holds them."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self.known = weakref.WeakSet(p.untyped_storage() for p in parameters)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, and follows its outputs."""
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._follow, made)
        return made

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        self.known.add(storage)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size


def _peak(step: Callable[[], Sequence[Tensor]], parameters: Iterable[Tensor], half: bool) -> int:
    """Most bytes that are alive at once in a step and its backward pass, weights apart."""
    with _Alive(parameters) as alive:
        _forward_and_backward(step, half)
    return alive.most


def _flops(step: Callable[[], Sequence[Tensor]]) -> int:
    """Operations of a step and its backward pass."""
    return count_flops(lambda: _forward_and_backward(step))


def _forward_and_backward(step: Callable[[], Sequence[Tensor]], half: bool = False) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        outputs = [output.float().sum() for output in step() if output.requires_grad]
    torch.stack(outputs).sum().backward()
