"""A clip of shapes of the mini world that move over grass, and where each of them is."""

import cv2
import numpy as np

from clipself_seg.data.masks import tight_box
from lab.mini.scenes import _draw_thing, _finish
from lab.mini.shapes import Pose, shape_alpha, surface
from lab.mini.textures import TEXTURES

SIZE = (144, 192)
# Colour and shape, centre in the first and in the last frame.
MOVING = (
    ("red", "star", (40, 40), (150, 45)),
    ("blue", "ring", (35, 105), (155, 100)),
    ("yellow", "heart", (155, 75), (45, 110)),
)


def moving_shapes(path, count=24, rate=12.0):
    """Writes a video; the box (x, y, width, height) of each shape in each frame, of those that can be seen."""
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, SIZE[::-1])
    truth = []
    for number in range(count):
        rng = np.random.default_rng(3)  # the same noise and light in all frames
        image, seen = TEXTURES["grass"](rng, *SIZE), []
        for colour, shape, first, last in MOVING:
            centre = np.array(first) + (np.array(last) - first) * number / (count - 1)
            pose = Pose(centre=tuple(centre), radius=22.0, angle=0.0, stretch=1.0)
            alpha = shape_alpha(shape, pose, SIZE)
            image = _draw_thing(rng, image, alpha, surface(shape, pose, SIZE), colour)
            left, top, right, bottom = tight_box(alpha > 0.5)
            seen.append((left, top, right - left, bottom - top))
        truth.append(seen)
        writer.write(_finish(rng, image)[..., ::-1])
    writer.release()
    return truth
