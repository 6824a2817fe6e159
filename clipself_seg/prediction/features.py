"""Writes features of a CLIP: dense features of images, and embeddings of the images and of boxes in them.

Shapes: E channels, h x w cells of an image, n boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipself_seg.checkpoints.download import file_sha256
from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.annotations import proposal_records
from clipself_seg.data.images import MAX_PIXELS, letterbox_crops, letterbox_image
from clipself_seg.data.mappers.samples import box_tensor, chw, stated_size
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path, write_json
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.journal import Json, Written
from clipself_seg.prediction.loop import Index
from clipself_seg.provenance import provenance

Arrays = dict[str, np.ndarray]


class FeatureResults:
    """features/NAME.npz of each image, and features.json.

    An NPZ has "dense" (E, h, w), "image" (E,) and "box_embeddings" (n, E), as far as they were asked for, all of unit
    length; "boxes" (n, 4) XYXY in pixels; "size", height and width of the image in pixels; and "cell", the side of a
    cell in pixels of the image: the cell in row i and column j begins at (j * cell, i * cell). The last row or column
    may go beyond the image.
    """

    def __init__(
        self,
        *,
        clip: DenseCLIP,
        folder: str | Path,
        side: int,
        dtype: str = "float16",
        save: Sequence[str] = ("dense",),
        boxes: str | Path | None = None,
    ) -> None:
        """
        Args:
            clip: model; it computes on its device.
            folder: folder for the results.
            side: longest side in pixels that images are resized to for the dense features.
            dtype: type of the features in the files, "float16" or "float32".
            save: which features are written, out of "dense" and "image".
            boxes: file in COCO's instances format, whose boxes are read from the dense features; it names images by
                their paths below the folder that was given.

        Raises:
            InputError: the patch of the model does not divide `side`; as `proposal_records`.
        """
        clip.check_side(side)
        self.clip = clip.eval()
        self.folder = Path(folder)
        self.max_pixels = MAX_PIXELS
        self.boxes = boxes
        records = [] if boxes is None else proposal_records(boxes, "")
        self._records = {Path(record["file_name"]).as_posix(): record for record in records}
        self.settings: Json = {
            "model": clip.name,
            "weights": clip.weights_hash(),
            "patch_size": clip.patch_size,
            "size": side,
            "dtype": dtype,
            "save": sorted(save),
            "boxes": None if boxes is None else file_sha256(Path(boxes)),
        }
        self.provenance: Mapping[str, object] = provenance()
        self._side = side
        self._dtype = dtype
        self._save = save

    @torch.inference_mode()
    def predict(
        self, images: Sequence[np.ndarray], sources: Sequence[ImageFile] = ()
    ) -> list[Arrays]:
        """What the file of each image (H, W, 3) uint8 RGB has.

        Raises:
            InputError: the file of boxes does not list an image, or with another size.
        """
        return [self._arrays(image, source) for image, source in zip(images, sources, strict=True)]

    def _arrays(self, image: np.ndarray, source: ImageFile) -> Arrays:
        clip, (height, width) = self.clip, image.shape[:2]
        features: Arrays = {}
        if "dense" in self._save:
            features["dense"] = whole_image_features(clip, image, self._side)
        if "image" in self._save:
            whole = letterbox_crops(image, np.array([[0, 0, width, height]]), clip.image_size)
            features["image"] = clip.encode_image(self._pixels(whole))[0].cpu().numpy()
        exact: Arrays = {
            "size": np.array([height, width]),
            "cell": np.array(clip.patch_size * max(height, width) / self._side),
        }
        if self.boxes is not None:
            exact["boxes"] = boxes = self._boxes(source, width, height)
            relative = box_tensor(boxes, width, height)
            square = self._pixels(letterbox_image(image, self._side)[None])
            features["box_embeddings"] = clip.encode_boxes(square, [relative]).cpu().numpy()
        return {name: array.astype(self._dtype) for name, array in features.items()} | exact

    def _pixels(self, images: np.ndarray) -> Tensor:
        """Normalised images of (B, H, W, 3) uint8, on the model's device."""
        return self.clip.preprocess(chw(images).to(self.clip.device))

    def _boxes(self, source: ImageFile, width: int, height: int) -> np.ndarray:
        record = self._records.get(source.file_name)
        if record is None or stated_size(record) not in (None, (width, height)):
            raise InputError(
                f'{self.boxes} does not list "{source.file_name}" with {width} x {height} pixels: correct it, or '
                "leave the image out"
            )
        boxes: np.ndarray = record["proposals"]
        return boxes

    def write(self, source: ImageFile, result: Arrays) -> Written:
        """Write the file of an image."""
        name = f"features/{source.name}.npz"
        with atomic_path(self.folder / name) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **result)
        return Written([name], {"size": result["size"].tolist()})

    def write_index(self, index: Index) -> None:
        """Write features.json: the settings, and the file of each image by its name."""
        images = {
            source.name: {"file": str(source.path), **entry} for source, entry in index.images
        }
        content = {**self.settings, "provenance": index.provenance, "images": images}
        write_json(self.folder / "features.json", content | index.outcome())
