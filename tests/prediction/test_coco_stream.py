"""A file that is written annotation by annotation is JSON of one shape, to the byte."""

from __future__ import annotations

import io
import json

from clipself_seg.prediction.coco_stream import CocoStream


def test_a_file_is_whole_with_its_images():
    file = io.StringIO()
    stream = CocoStream(file, {"seed": 0}, [{"id": 1, "name": "object"}])
    for box in ([0.0, 1.5, 2, 3], [1, 1, 1, 1]):
        stream.add({"image_id": "a", "bbox": box})
    stream.finish([{"id": "a"}])
    assert stream.count == 2 and json.loads(file.getvalue())["images"] == [{"id": "a"}]
    assert file.getvalue() == (
        '{"info": {"seed": 0}, "categories": [{"id": 1, "name": "object"}],\n"annotations": [\n'
        '{"image_id": "a", "bbox": [0.0, 1.5, 2, 3], "id": 1},\n'
        '{"image_id": "a", "bbox": [1, 1, 1, 1], "id": 2}\n],\n"images": [{"id": "a"}]}\n'
    )
