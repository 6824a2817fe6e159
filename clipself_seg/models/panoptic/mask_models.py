"""Masks of an image by models of transformers', without their classes: SAM 2 and 3, EoMT, Mask2Former.

**SAM 2, and the tracker of SAM 3**, are asked at the points of a grid, as by SAM's automatic generator: each point
gives three masks. One stays if the IoU that the model predicts for it and its stability are high; of masks whose boxes
overlap much the one of the highest predicted IoU stays, which is its score. Stability and boxes are those of the masks
at the model's resolution. **EoMT and Mask2Former** give a mask for each query, with a score of 1 less the probability
of "no object"; it stays from one half on, whatever its class.

Masks may overlap, as given ones do (`data.given_masks`); the same rule decides, see `UnnamedMasks`.

Shapes: n masks, H x W pixels of the image, h x w of the model's masks.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
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
MOST_SIZE = 1 << 16  # number in the settings of a model
MOST_SIDE = 1 << 12  # of an image in pixels, as a model takes it
# Keys whose number adds cells or pixels to every map or image, whatever the weights are -> the largest one that is
# taken: published models have 0, 3, 32 and none, and images of up to 1024 x 2560 pixels.
MOST_OF = {
    "fpn_padding": 8,
    "patch_padding": 16,
    "size_divisor": 128,
    "pad_size": 2048,
    "size": 2560,
    "shortest_edge": 2048,
    "height": 2048,
    "width": 2048,
}
# Errors of transformers and torch where settings contradict each other.
AT_ODDS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# What settings may not have: each would fetch or run something beside the weights.
REFUSED = (
    "auto_map",
    "backbone",
    "use_timm_backbone",
    "use_pretrained_backbone",
    "quantization_config",
    "fusion_config",
    "attn_implementation",
    "experts_implementation",
    "per_layer_config",
)
# What a stored config.json of tue-mps's EoMT (refs/pr/3) names as its "backbone": the tower that is built anyway.
EOMT_TOWER = "vit_large_patch14_reg4_dinov2"
# Tensors that older files have besides (facebook/mask2former-*, of 2023): tables of a Swin that follow from its sizes.
# What files of models of videos have is transformers' own list.
TABLES = "relative_position_index"
TYPES = ("dtype", "torch_dtype")  # everything here is float32
# Images are resized whatever the settings say: a photograph as it is may need more memory than there is.
WHOLE = {"do_pad": False, "do_resize": True}
PADDED = {"do_pad": True, "do_split_image": False, "do_resize": True}


def masks_at_points(network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of SAM 2 or of SAM 3's tracker at the points of a grid.

    Args:
        network: the model.
        pixels: (1, 3, H, W) of the processor.

    Returns:
        Logits (n, h, w), positive inside, and scores (n,) in [0, 1].
    """
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
    best = nms(masks_to_boxes(masks > 0), iou, MOST_BOX_IOU)
    return masks[best], iou[best].clamp(0, 1)


def masks_of_queries(network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the queries of EoMT or Mask2Former that are an object or stuff of any class, as `masks_at_points`."""
    said = network(pixel_values=pixels)
    scores = 1 - said.class_queries_logits[0].softmax(-1)[:, -1]
    kept = scores >= 1 - MOST_VOID
    return said.masks_queries_logits[0][kept], scores[kept]


class Kind(NamedTuple):
    """A kind of model: its classes in transformers, and the function that asks it for masks.

    Attributes:
        network: name of the class of the model.
        processor: name of the class that resizes and normalises images.
        ask: gives logits and scores of masks.
        options: further arguments of the processor.
    """

    network: str
    processor: str
    ask: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    options: Mapping[str, bool] = WHOLE


SAM2 = Kind("Sam2Model", "Sam2ImageProcessor", masks_at_points)
SAM3 = Kind("Sam3TrackerModel", "Sam3ImageProcessor", masks_at_points)
FORMER = "Mask2FormerForUniversalSegmentation"
# Value of "model_type" -> kind; the hub's files of SAM's are those of models of videos, which have the others inside.
KINDS = {
    **{"sam2": SAM2, "sam2_video": SAM2, "sam3_tracker": SAM3, "sam3_video": SAM3},
    "eomt": Kind("EomtForUniversalSegmentation", "EomtImageProcessor", masks_of_queries, PADDED),
    "eomt_dinov3": Kind(
        "EomtDinov3ForUniversalSegmentation", "EomtImageProcessor", masks_of_queries, PADDED
    ),
    "mask2former": Kind(FORMER, "Mask2FormerImageProcessor", masks_of_queries),
}
PARTS = (*(name.partition("_")[0] for name in KINDS), "swin")


class OtherMasks(nn.Module):
    """A model of transformers', frozen, which finds the masks of an image.

    Attributes:
        kind: its classes.
        network: the model.
        processor: resizes and normalises images.
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

        Raises:
            InputError: the image is too narrow, or settings of the model or of its images contradict each other.
        """
        size = (image.shape[1], image.shape[2])
        try:
            pixels = self.pixels(image)
            logits_nhw, scores_n = self.kind.ask(self.network, pixels)
        except torch.OutOfMemoryError:
            raise
        except AT_ODDS as error:
            raise InputError(
                f"{self.kind.network} takes no image of {size[0]} x {size[1]} pixels ({in_short(error)}): cut it, or "
                "see its settings"
            ) from None
        most = min(MOST_MASKS, MOST_BYTES // (size[0] * size[1]))
        if len(logits_nhw) > most:
            logger.warning("of %d masks the best %d stay", len(logits_nhw), most)
        order = scores_n.argsort(descending=True, stable=True)[:most]
        canvas, inside = self._covered(logits_nhw, pixels, size)
        masks, scores = np.empty((len(order), *size), bool), list[float]()
        for logits, score in zip(logits_nhw[order], scores_n[order].tolist()):
            drawn = resize_masks(logits[None], canvas, inside, size)[0] > 0
            if drawn.any():
                masks[len(scores)] = drawn.cpu().numpy()
                scores.append(score)
        return GivenMasks(masks[: len(scores)], np.array(scores, np.float32))

    def pixels(self, image: Tensor) -> Tensor:
        """The pixels (1, 3, h, w) that the model sees of an image (3, H, W) uint8 RGB, on its device."""
        options = {"input_data_format": "channels_first", "return_tensors": "pt"}
        inputs = self.processor([image], **options, **self.kind.options)
        pixels: Tensor = inputs["pixel_values"].to(next(self.network.parameters()).device)
        return pixels

    def _covered(self, logits: Tensor, pixels: Tensor, size: tuple[int, int]) -> Any:
        """Rows and columns of the canvas that masks cover, and of the image at its top left."""
        covered = logits if self.kind.ask is masks_at_points else pixels
        canvas = tuple(covered.shape[-2:])
        if not self.kind.options["do_pad"]:
            return canvas, canvas
        from transformers.image_transforms import get_size_with_aspect_ratio

        sides = self.processor.size
        return canvas, get_size_with_aspect_ratio(size, sides.shortest_edge, sides.longest_edge)

    def settings(self) -> dict[str, object]:
        """Settings that decide the masks beside weights and version of this project; JSON."""
        import transformers

        return {"model": self.kind.network, "transformers": transformers.__version__}


def load_mask_model(folder: str | os.PathLike[str]) -> OtherMasks:
    """Reads a model from a folder as transformers' `save_pretrained` writes it, in float32 on the CPU.

    Nothing is fetched, nothing but safetensors is read, and no code that the folder has or names is run.

    Args:
        folder: with config.json, model.safetensors, and preprocessor_config.json or processor_config.json.

    Raises:
        InputError: a model of another kind, of settings that would fetch or run more, or larger than its weights;
            weights that are damaged or missing; settings of images of another family; transformers is not installed.
    """
    transformers = of_extra("transformers", "a model that finds masks", "masks")
    path, weights = Path(folder, MODEL_CONFIG), Path(folder, MODEL_WEIGHTS)
    with refusing(path, "settings of a model"):
        content = read_json(path, "settings")
        name = content.get("model_type")
        if (kind := KINDS.get(str(name))) is None:
            raise InputError(
                f'{path}: its "model_type" is {shown(name)}, masks come from {", ".join(KINDS)}'
            )
        if name == "eomt" and content.get("backbone") == EOMT_TOWER:
            del content["backbone"]
        # Of SAM 3 the tracker alone, whose settings are a part of the file's.
        config = _cleaned(content.get("tracker_config", content), path, MOST_SIZE)
    network, processor = getattr(transformers, kind.network), getattr(transformers, kind.processor)
    with refusing(weights, f"weights of its {MODEL_CONFIG}"), building_within([weights]):
        # Their progress bar is of no use: it runs on the settings' tensors in memory. Of missing tensors we speak.
        with open_safetensors(weights) as file, contextlib.redirect_stderr(io.StringIO()), _quiet():
            loaded, said = network.from_pretrained(
                None,
                config=network.config_class.from_dict(config),
                state_dict={name: file.get_tensor(name) for name in file.keys()},
                dtype=torch.float32,
                output_loading_info=True,
            )
    others = [n for n in said["unexpected_keys"] if not n.endswith(TABLES)]
    for what, names in (("lacks", said["missing_keys"]), ("has unknown", others)):
        if names:
            raise InputError(
                f"{weights} {what} {len(names)} tensors, such as {min(names)}: fetch it and {MODEL_CONFIG} anew"
            )
    images = next((p for n in IMAGE_SETTINGS if (p := Path(folder, n)).is_file()), None)
    if images is None:
        raise InputError(f"{folder} has no {' and no '.join(IMAGE_SETTINGS)}: fetch them too")
    with refusing(images, "settings of images"):
        content = read_json(images, "settings")
        content = _cleaned(content.get("image_processor", content), images, MOST_SIDE)
        stated = str(content.get("image_processor_type", kind.processor))
        if not stated.startswith(kind.processor[:4]):  # classes of a family begin alike
            raise InputError(f"{images} is of {stated}: fetch that of {name}, of {kind.processor}")
        return OtherMasks(kind, loaded, processor.from_dict(content))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from writing a table of tensors that the weights lack."""
    from transformers.utils import logging as their

    before = their.get_verbosity()
    their.set_verbosity_error()
    try:
        yield
    finally:
        their.set_verbosity(before)


def _cleaned(value: Any, path: Path, most: int) -> Any:
    """Settings without private ones and types of numbers.

    Args:
        value: of JSON.
        path: its file, for messages.
        most: largest number that may stand there.

    Raises:
        InputError: they have what would fetch or run something.
    """
    if isinstance(value, list):
        return [_cleaned(part, path, most) for part in value]
    if isinstance(value, int | float) and value > most:
        raise InputError(f"{path} has the number {value}, {most} is the largest that is taken")
    if not isinstance(value, dict):
        return value
    for key in REFUSED:
        if value.get(key):
            raise InputError(
                f'{path} sets "{key}", which may fetch or run something: take it out, or another model'
            )
    # transformers 5.18 and older write "" for the parts of SAM that have no file of their own.
    if not str(part := value.get("model_type") or PARTS[0]).startswith(PARTS):
        raise InputError(f'{path} has a part of "model_type" {shown(part)}, which none has here')
    kept = {k: v for k, v in value.items() if not k.startswith("_") and k not in TYPES}
    return {k: _cleaned(part, path, min(most, MOST_OF.get(k, most))) for k, part in kept.items()}
