"""Classes of the pixels of an image, without torch: python model.py photo.jpg (numpy, onnxruntime, Pillow).

With a text tower beside it, class names follow: python model.py photo.jpg dog "grass|lawn" sky (and tokenizers).
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def resize(maps, height, width):
    """Maps (C, height, width) of maps (C, h, w): bilinear, not antialiased, pixels' centres at halves."""
    for axis, size in ((1, height), (2, width)):
        count = maps.shape[axis]
        at = ((np.arange(size) + 0.5) * count / size - 0.5).clip(0, count - 1)
        low, part = at.astype(int), np.float32(at % 1).reshape(-1, *[1] * (2 - axis))
        maps = maps.take(low, axis) * (1 - part) + maps.take(low + 1, axis, mode="clip") * part
    return maps


class Model:
    """The model of two files, `stem`.onnx and `stem`.json."""

    def __init__(self, stem):
        from onnxruntime import InferenceSession

        self.meta = json.loads(Path(f"{stem}.json").read_text("utf-8"))
        self.session = InferenceSession(f"{stem}.onnx", providers=["CPUExecutionProvider"])

    def read(self, path):
        """Pixels (3, h, w) in 0 to 255 at the model's size, and the size (H, W) of the image."""
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        short, long = self.meta["short_side"] or min(image.size), self.meta["long_side"]
        scale = min(short / min(image.size), long / max(image.size))
        size = [max(1, int(side * scale + 0.5)) for side in image.size]
        resized = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(resized, np.float32).transpose(2, 0, 1), (image.height, image.width)

    def scores(self, pixels, size, **texts):
        """Scores (K, H, W): the mean of windows, and of the whole image where windows lie on a canvas."""

        def run(part):
            return self.session.run(None, {"images": part[None], **texts})[0][0]

        side, stride, canvas = (self.meta[name] for name in ("window", "stride", "canvas"))
        if not side:
            return resize(run(pixels), *size)
        whole = run(resize(pixels, side, side)) if canvas else None
        pixels = resize(pixels, canvas, canvas) if canvas else pixels
        tops, lefts = (
            {min(start, max(0, n - side)) for start in range(0, max(0, n - side) + stride, stride)}
            for n in pixels.shape[1:]
        )
        sums, times = 0, np.zeros_like(pixels[:1])
        for place in (np.s_[:, y : y + side, x : x + side] for y in tops for x in lefts):
            scores = run(pixels[place])
            sums = sums if times.any() else np.zeros((len(scores), *times.shape[1:]), np.float32)
            sums[place] += scores
            times[place] += 1
        mean = (sums / times + resize(whole, canvas, canvas)) / 2 if canvas else sums / times
        return resize(mean, *size)


if __name__ == "__main__":
    stem, names, texts = Path(__file__).with_suffix(""), sys.argv[2:], {}
    model = Model(stem)
    if names:
        texts["texts"] = runpy.run_path(f"{stem}_texts.py")["Texts"](stem).embed(names)
    labels = model.scores(*model.read(sys.argv[1]), **texts).argmax(axis=0)
    for label, name in enumerate(names or model.meta["names"]):
        print(f"{(labels == label).mean():7.2%} {name}")
    small = np.uint8 if labels.max() < 256 else np.uint16
    Image.fromarray(labels.astype(small)).save(f"{Path(sys.argv[1]).stem}_labels.png")
