"""Objects of a video over its frames: BoT-SORT of the package trackers says which boxes are one object.

What it is called is decided when all frames are seen: by the class with the highest mean score over the frames where
a model has found it.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from clipself_seg.data.masks import Rle, mask_as_json
from clipself_seg.errors import of_extra
from clipself_seg.files import write_json, write_text
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.journal import Json, Written
from clipself_seg.prediction.results import PanopticSegmentation, Prediction, colours_of
from clipself_seg.prediction.video import Video, predicted_frames, written_frames
from clipself_seg.prediction.writers import ResultFiles

OF_TRACKS = ("overlays",)  # formats that a video has with --track


def track_video(
    results: ResultFiles, source: ImageFile, *, save: Sequence[str], every: int, batch_size: int
) -> Written:
    """Follows the objects of a video: tracks/NAME.json, tracks/NAME.txt, and overlays/NAME.mp4 with all frames.

    Args:
        results, source, every, batch_size: see `video.predict_video`.
        save: formats to write, of `OF_TRACKS`.

    Raises:
        MissingPackage: the extra `video` is not installed.
        InputError, OSError: as `predict_video`.
    """
    bot_sort = of_extra("trackers", "--track", "video").BoTSORTTracker
    with contextlib.closing(Video(source.path, results.max_pixels)) as video:
        # In thirtieths of a second: an object may be lost for a second, or three looks of the model.
        lost = math.ceil(30 * max(1, 3 * every / video.rate))
        # The motion of the camera counts from frame to frame; over several it would count twice.
        tracker = bot_sort(lost, video.rate, minimum_consecutive_frames=1, enable_cmc=every == 1)
        tracks = Tracks(tracker, every)
        for number, result in predicted_frames(results, video, every, batch_size):
            tracks.add(number, result)
        tracks.add_left_out(video.position)
    files = [f"tracks/{source.name}.json", f"tracks/{source.name}.txt"]
    write_json(results.folder / files[0], tracks.to_coco(source.name, results.categories))
    write_text(results.folder / files[1], tracks.to_mot())
    if "overlays" in save:
        files.append(f"overlays/{source.name}.mp4")
        source.require_other(results.folder / files[-1])
        names = results.predictor.names
        with (
            contextlib.closing(Video(source.path, results.max_pixels)) as again,
            written_frames(results.folder / files[-1], video.rate) as add,
        ):
            for number, image in tqdm(again.frames(1), "overlay", len(tracks.frames), unit="frame"):
                add(tracks.overlay(number, image, names))
    video.require_whole()
    return Written(files, {"frames": len(tracks.frames), "every": every, "rate": video.rate})


def _detections(boxes: np.ndarray) -> Any:
    """Boxes (n, 4) XYXY as trackers takes them, without scores: many of open vocabularies are below its thresholds."""
    supervision = of_extra("supervision", "--track", "video")
    return supervision.Detections(boxes, data={"row": np.arange(len(boxes))})


class Sighting(NamedTuple):
    """An object in a frame.

    Attributes:
        box: x, y, width and height in pixels.
        mask: COCO's run lengths; None in a frame at which the model did not look, and of a model without masks.
    """

    box: list[float]
    mask: Rle | None = None


class Tracks:
    """The objects of a video.

    Attributes:
        frames: of each frame, number of an object, which counts from 1 -> where it is.
        scores: number of an object -> label and score of its class in each frame where the model saw it.
        size: width and height of a frame.
    """

    def __init__(self, tracker: Any, every: int) -> None:
        """
        Args:
            tracker: of the package trackers.
            every: the model looks at one frame of so many.
        """
        self._tracker = tracker
        self._every = every
        self.size = (0, 0)
        self.frames = list[dict[int, Sighting]]()
        self.scores = defaultdict[int, list[tuple[int, float]]](list)

    def add(self, number: int, result: Prediction) -> None:
        """Adds a frame, and those in front of it that were left out; stuff is no object.

        An object is one from the second time on that it is found, or from the first frame of the video.

        Args:
            number: of the frame, from 0.
            result: prediction for it.
        """
        self.size = result.image.shape[1], result.image.shape[0]
        self.add_left_out(number)
        regions = result.streamed_regions()
        rows, boxes = np.arange(len(regions.boxes)), regions.boxes_xywh()
        if isinstance(result, PanopticSegmentation):
            rows = np.flatnonzero([segment.isthing for segment in result.segments])
        given = _detections(regions.boxes[rows])
        tracked = self._tracker.update(given, result.image[..., ::-1])  # it takes BGR
        seen = dict[int, Sighting]()
        # In the order of the prediction; trackers counts from 0, and -1 is no object yet.
        for place, identity in sorted(zip(tracked.data.get("row", ()), tracked.tracker_id)):
            if identity >= 0:
                row, object_id = rows[place], int(identity) + 1
                mask = None if regions.masks is None else mask_as_json(regions.masks[row])
                seen[object_id] = Sighting(boxes[row].tolist(), mask)
                score = int(regions.labels[row]), float(regions.scores[row])
                self.scores[object_id].append(score)
        self.frames.append(seen)

    def add_left_out(self, end: int) -> None:
        """Adds the frames in front of number `end` at which the model does not look: boxes are the tracker's."""
        while len(self.frames) < end:
            self._tracker.update(_detections(np.zeros((0, 4))))
            seen = dict[int, Sighting]()
            for track in self._tracker.tracks:
                if track.tracker_id >= 0 and track.time_since_update < self._every:
                    first, last = track.get_state_bbox().reshape(2, 2).clip(0, self.size)
                    seen[track.tracker_id + 1] = Sighting(
                        [*first.tolist(), *(last - first).tolist()]
                    )
            self.frames.append(seen)

    def named(self) -> dict[int, tuple[int, float]]:
        """Number of each object -> label of its class, and the mean of that score over the frames where it was seen."""
        named = {}
        for number, scores in sorted(self.scores.items()):
            labels, values = zip(*scores)
            sums = np.bincount(labels, values)
            named[number] = int(sums.argmax()), float(sums.max()) / len(scores)
        return named

    def to_coco(self, name: str, categories: Sequence[Json]) -> Json:
        """COCO's format for videos, as YouTube-VIS has it: an annotation an object, with a list over the frames.

        Args:
            name: of the video; its frames are called NAME/000000.jpg and so on.
            categories: COCO's entry of each class.
        """
        annotations = []
        for number, (label, score) in self.named().items():
            seen = [frame.get(number) for frame in self.frames]
            boxes, masks = [one and one.box for one in seen], [one and one.mask for one in seen]
            areas = [mask and int(rle.area(mask)) for mask in masks]
            class_id = categories[label]["id"]
            one: Json = {"id": number, "video_id": 1, "category_id": class_id, "score": score}
            one |= {"segmentations": masks, "bboxes": boxes, "areas": areas, "iscrowd": 0}
            annotations.append(one)
        width, height = self.size
        files = [f"{name}/{number:06d}.jpg" for number in range(len(self.frames))]
        video = {"id": 1, "width": width, "height": height, "length": len(files)}
        videos = [video | {"file_names": files}]
        return {"videos": videos, "annotations": annotations, "categories": list(categories)}

    def to_mot(self) -> str:
        """MOT's text: frame from 1, object, left, top, width, height and score of each box, and three times -1."""
        named, lines = self.named(), []
        for frame, seen in enumerate(self.frames, start=1):
            for number, (box, _) in seen.items():
                sides = ",".join(f"{side:.2f}" for side in box)
                lines.append(f"{frame},{number},{sides},{named[number][1]:.4f},-1,-1,-1\n")
        return "".join(lines)

    def overlay(self, number: int, image: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """A frame with its objects, (H, W, 3) uint8 RGB: each has a colour of its own in all frames.

        Args:
            number: of the frame, from 0.
            image: its pixels.
            names: of the classes.
        """
        from clipself_seg.visualization.overlays import box_overlay  # 0.3 s of matplotlib

        named, seen = self.named(), self.frames[number]
        colours = dict(zip(named, colours_of(tuple(f"object {one}" for one in named))))
        own = np.array([colours[one] for one in seen], np.uint8).reshape(-1, 3)
        boxes = np.array([one.box for one in seen.values()]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        titles = [f"{names[named[one][0]]} {one}" for one in seen]
        masks = [rle.decode(one.mask) > 0 for one in seen.values() if one.mask]
        given = boxes, None, titles, np.ones(len(seen), bool), masks
        return np.asarray(box_overlay(image, *given, legend=False, enlarge=False, colours=own))
