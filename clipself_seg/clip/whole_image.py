"""Dense features of an image of any size, as arrays."""

from __future__ import annotations

import numpy as np
import torch

from clipself_seg.clip.model import DenseCLIP
from clipself_seg.data.images import fit_size, letterbox_image


def whole_image_features(clip: DenseCLIP, image: np.ndarray, side: int) -> np.ndarray:
    """Unit-length dense features of an image without the padding, (E, h, w).

    Args:
        clip: model; the features are computed on its device.
        image: (H, W, 3) uint8 RGB.
        side: longest side in pixels that the image is resized to, a multiple of `clip.patch_size`. The
            last row or column of cells may be partly padding.
    """
    square = letterbox_image(image, side).transpose(2, 0, 1).copy()
    images = clip.preprocess(torch.from_numpy(square)[None].to(clip.logit_scale.device))
    with torch.no_grad():
        dense: np.ndarray = clip.encode_dense(images)[0].cpu().numpy()
    fitted = fit_size(image.shape[1], image.shape[0], side)
    width, height = (-(-pixels // clip.patch_size) for pixels in fitted)
    return dense[:, :height, :width]
