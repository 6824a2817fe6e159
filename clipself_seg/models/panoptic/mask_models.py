"""Masks of an image by models of transformers', without their classes: SAM 2 and 3, EoMT, Mask2Former.

**SAM 2, and the tracker of SAM 3**, are asked at the points of a grid, as by SAM's automatic generator: each point gives
three masks. One stays if the IoU that the model predicts for it and its stability are high; of masks whose boxes
overlap much the one of the highest predicted IoU stays, which is its score. Stability and boxes are those of the masks
at the model's resolution. **EoMT and Mask2Former** give a mask for each query, with a score of 1 less the probability
of "no object"; it stays from one half on, whatever its class.

Masks may overlap, as given ones do (`data.given_masks`); the same rule decides, see `UnnamedMasks`.

Shapes: n masks, H x W pixels of the image, h x w of the model's masks.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clipself_seg.checkpoints.bounds import building_within, open_safetensors, refusing
from clipself_seg.checkpoints.mask_models import IMAGE_SETTINGS, MODEL_CONFIG, MODEL_WEIGHTS
from clipself_seg.data.given_masks import MOST_BYTES, MOST_MASKS, GivenMasks
from clipself_seg.errors import InputError, in_short, of_extra, shown
from clipself_seg.files import read_json
from clipself_seg.heads.panoptic.panoptic_merge import resize_masks

logger = logging.getLogger(__name__)

POINTS = 32  # of a row and of a column of the grid
POINTS_AT_ONCE = 64
LEAST_IOU = 0.8  # predicted, of a mask that stays; these are SAM 2's
LEAST_STABILITY = 0.95  # fraction of a mask's pixels that stay with a threshold higher by 2 logits
MOST_BOX_IOU = 0.7
MOST_VOID = 0.5
MOST_SIDE = 4096  # pixels of an image as a model takes it
# What settings may not have: each would fetch or run something beside the weights.
REFUSED = ("auto_map", "backbone", "use_timm_backbone", "use_pretrained_backbone")
REFUSED += ("quantization_config", "fusion_config", "attn_implementation")
REFUSED += ("experts_implementation", "per_layer_config")
TYPES = ("dtype", "torch_dtype")  # everything here is float32


class FoundMasks(NamedTuple):
    """What a model finds in an image.

    Attributes:
        logits: (n, h, w) over the canvas, positive inside.
        scores: (n,) in [0, 1].
        canvas: rows and columns that the masks cover.
        image: rows and columns of the image at the top left of the canvas.
    """

    logits: Tensor
    scores: Tensor
    canvas: tuple[int, int]
    image: tuple[int, int]


def masks_at_points(network: Any, pixels: Tensor, inside: tuple[int, int]) -> FoundMasks:
    """Masks of SAM 2 or SAM 3's tracker at the points of a grid of `pixels` (1, 3, H, W), all of them the image."""
    from torchvision.ops import masks_to_boxes, nms

    maps = network.get_image_embeddings(pixels)
    steps = (torch.arange(POINTS, device=pixels.device) + 0.5) / POINTS
    columns, rows = torch.meshgrid(steps * pixels.shape[3], steps * pixels.shape[2], indexing="xy")
    logits, scores = [], []
    for points in torch.stack([columns, rows], -1).reshape(-1, 2).split(POINTS_AT_ONCE):
        asked = network(image_embeddings=list(maps), input_points=points[None, :, None])
        iou = asked.iou_scores.flatten()
        masks = asked.pred_masks.flatten(0, 2)[iou >= LEAST_IOU]
        surely, perhaps = ((masks > edge).sum((1, 2)) for edge in (1, -1))
        stable = (surely > 0) & (surely >= LEAST_STABILITY * perhaps)
        logits.append(masks[stable])
        scores.append(iou[iou >= LEAST_IOU][stable])
    masks, iou = torch.cat(logits), torch.cat(scores)
    shape = (masks.shape[1], masks.shape[2])
    best = nms(masks_to_boxes(masks > 0), iou, MOST_BOX_IOU)
    return FoundMasks(masks[best], iou[best].clamp(0, 1), shape, shape)


def masks_of_queries(network: Any, pixels: Tensor, inside: tuple[int, int]) -> FoundMasks:
    """Masks of the queries of EoMT or Mask2Former that are an object or stuff of any class.

    Args:
        network: the model.
        pixels: (1, 3, H, W), the image at the top left.
        inside: rows and columns of the image.
    """
    said = network(pixel_values=pixels)
    found = 1 - said.class_queries_logits[0].softmax(-1)[:, -1]
    kept = found >= 1 - MOST_VOID
    canvas = (pixels.shape[2], pixels.shape[3])
    return FoundMasks(said.masks_queries_logits[0][kept], found[kept], canvas, inside)


class Kind(NamedTuple):
    """Classes of transformers' of a kind of model, and what asks it for masks.

    Attributes:
        network: name of the class of the model.
        processor: name of the class that resizes and normalises images.
        ask: gives the masks of an image of some size.
        options: further arguments of the processor.
    """

    network: str
    processor: str
    ask: Callable[[Any, Tensor, tuple[int, int]], FoundMasks]
    options: dict[str, object] = {}


SAM2 = Kind("Sam2Model", "Sam2ImageProcessor", masks_at_points)
SAM3 = Kind("Sam3TrackerModel", "Sam3ImageProcessor", masks_at_points)
# Value of "model_type" -> kind; the first models of a file of SAM's are those of videos.
KINDS = {
    "sam2": SAM2,
    "sam2_video": SAM2,
    "sam3_tracker": SAM3,
    "sam3_video": SAM3,
    "eomt": Kind(
        "EomtForUniversalSegmentation",
        "EomtImageProcessor",
        masks_of_queries,
        {"do_split_image": False, "do_pad": True},
    ),
    "mask2former": Kind(
        "Mask2FormerForUniversalSegmentation", "Mask2FormerImageProcessor", masks_of_queries
    ),
}
PARTS = tuple(name.partition("_")[0] for name in KINDS) + ("swin",)


class OtherMasks(nn.Module):
    """A model of transformers', frozen, which finds the masks of an image.

    Attributes:
        kind: its classes.
        network: the model.
        processor: what resizes and normalises images.
    """

    def __init__(self, kind: Kind, network: nn.Module, processor: Any) -> None:
        super().__init__()
        self.kind = kind
        self.network = network.eval().requires_grad_(False)
        self.processor = processor

    @torch.no_grad()
    def forward(self, image: Tensor) -> GivenMasks:
        """The masks of an image (3, H, W) uint8 RGB with their scores, the best first.

        Of more than are read from a file (`data.given_masks`) the best stay, and a warning says so.
        """
        size = (image.shape[1], image.shape[2])
        device = next(self.network.parameters()).device
        options = {"input_data_format": "channels_first", "return_tensors": "pt"}
        try:
            inputs = self.processor([image], **options, **self.kind.options)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.kind.network} takes no image of {size[0]} x {size[1]} pixels ({in_short(error)}): cut it"
            ) from None
        pixels = inputs["pixel_values"].to(device)
        found = self.kind.ask(self.network, pixels, self._inside(inputs, size))
        most = min(MOST_MASKS, MOST_BYTES // (size[0] * size[1]))
        if len(found.scores) > most:
            logger.warning("of %d masks the best %d stay", len(found.scores), most)
        order = found.scores.argsort(descending=True, stable=True)[:most]
        masks, scores = np.empty((len(order), *size), bool), list[float]()
        for logits, score in zip(found.logits[order], found.scores[order].tolist()):
            pixels = resize_masks(logits[None], found.canvas, found.image, size)[0] > 0
            if pixels.any():
                masks[len(scores)] = pixels.cpu().numpy()
                scores.append(score)
        return GivenMasks(masks[: len(scores)], np.array(scores, np.float32))

    def _inside(self, inputs: Any, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of what a processor made of an image, without padding."""
        if "pixel_mask" in inputs:
            inside = inputs["pixel_mask"][0].bool()
            return int(inside.any(1).sum()), int(inside.any(0).sum())
        if self.kind.ask is masks_at_points:
            return size  # not read
        from transformers.image_transforms import get_size_with_aspect_ratio

        sides = self.processor.size
        rows, columns = get_size_with_aspect_ratio(size, sides.shortest_edge, sides.longest_edge)
        return rows, columns

    def settings(self) -> dict[str, object]:
        """What decides the masks beside the weights; JSON."""
        import transformers

        settings: dict[str, object] = {"transformers": transformers.__version__}
        settings["model"] = self.kind.network
        if self.kind.ask is masks_of_queries:
            return settings | {"most void": MOST_VOID}
        rule = {"points": POINTS**2, "least IoU": LEAST_IOU, "least stability": LEAST_STABILITY}
        return settings | rule | {"most IoU of boxes": MOST_BOX_IOU}


def load_mask_model(folder: str | os.PathLike[str]) -> OtherMasks:
    """Read a model from a folder as transformers' `save_pretrained` writes it, in float32 on the CPU.

    Nothing is fetched, nothing but safetensors is read, and no code that the folder has or names is run.

    Args:
        folder: with config.json, model.safetensors, and preprocessor_config.json or processor_config.json.

    Raises:
        InputError: a model of another kind, of settings that would fetch or run more, or larger than its weights;
            weights that are damaged or missing; transformers is not installed.
    """
    transformers = of_extra("transformers", "masks of other models", "masks")
    path, weights = Path(folder, MODEL_CONFIG), Path(folder, MODEL_WEIGHTS)
    content = _settings(path)
    if (kind := KINDS.get(str(content.get("model_type")))) is None:
        raise InputError(
            f'{path}: its "model_type" is {shown(content.get("model_type"))}, masks come from {", ".join(KINDS)}'
        )
    network, processor = getattr(transformers, kind.network), getattr(transformers, kind.processor)
    # Of SAM 3 the tracker alone, whose settings are a part of the file's.
    config = _cleaned(content.get("tracker_config", content), path)
    with refusing(weights, f"weights of its {MODEL_CONFIG}"), building_within([weights]):
        with _quiet(transformers), open_safetensors(weights) as file:
            loaded, said = network.from_pretrained(
                None,
                config=network.config_class.from_dict(config),
                state_dict={name: file.get_tensor(name) for name in file.keys()},
                dtype=torch.float32,
                output_loading_info=True,
            )
    if lacking := sorted(said["missing_keys"]):
        raise InputError(f"{weights} lacks {len(lacking)} tensors, such as {lacking[0]}")
    images = next((p for n in IMAGE_SETTINGS if (p := Path(folder, n)).is_file()), None)
    if images is None:
        raise InputError(f"{folder} has no {' and no '.join(IMAGE_SETTINGS)}: fetch them too")
    settings = _settings(images)
    settings = _cleaned(settings.get("image_processor", settings), images, MOST_SIDE)
    with refusing(images, "settings of images"):
        made = processor.from_dict(settings)
    return OtherMasks(kind, loaded, made)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' bars and reports of loading from the terminal."""
    log = transformers.utils.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()


def _settings(path: Path) -> dict[str, Any]:
    content = read_json(path, "settings")
    if not isinstance(content, dict):
        raise InputError(f"{path} is {shown(content)}, no settings: fetch it again")
    return content


def _cleaned(value: Any, path: Path, most: float = float("inf")) -> Any:
    """Settings without private ones and types of numbers.

    Args:
        value: of JSON.
        path: its file, for messages.
        most: largest whole number that may stand there.

    Raises:
        InputError: they have what would fetch or run something.
    """
    if isinstance(value, list):
        return [_cleaned(part, path, most) for part in value]
    if isinstance(value, int) and value > most:
        raise InputError(f"{path} has the number {value}, {most} is the largest that is taken")
    if not isinstance(value, dict):
        return value
    for key in REFUSED:
        if value.get(key):
            raise InputError(
                f'{path} sets "{key}", which may fetch or run something: take it out, or another model'
            )
    if not str(part := value.get("model_type", PARTS[0])).startswith(PARTS):
        raise InputError(f'{path} has a part of "model_type" {shown(part)}, which none has here')
    kept = {k: v for k, v in value.items() if not k.startswith("_") and k not in TYPES}
    return {key: _cleaned(part, path, most) for key, part in kept.items()}
