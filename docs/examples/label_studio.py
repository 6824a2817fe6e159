"""Predictions as pre-annotations for Label Studio, and its JSON export as label maps; numpy, Pillow and pycocotools.

    python label_studio.py to output/predict/coco.json tasks.json photos/
    python label_studio.py from export.json masks "dog, grass, sky"

`to` reads a coco.json, or a detections.json: a region with a mask becomes a brush stroke, one without a rectangle. The
third word is put before the names of the images, with a slash between them: Label Studio finds them below its folder of
local files. `from` writes a PNG for each image, whose values count the words from 0, and 255 is not labelled; it prints
the line `names` for the file of --data. Where strokes overlap, the last of the export wins; skipped annotations do not
count.
"""

import json
import os
import posixpath
import re
import sys
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

LOCAL, UPLOADS = "/data/local-files/?d=", "/data/upload/"
WORD, LENGTHS = 8, (3, 4, 8, 16)  # bits of a value, and of the lengths of runs
VOID = 255


def stroke(mask):
    """Label Studio's run-length encoding of a mask (H, W) of 0 and 1: of its RGBA pixels, as a list of bytes."""
    pixels = np.repeat(mask.ravel() * np.uint8(255), 4)
    starts = np.append(0, np.flatnonzero(np.diff(pixels)) + 1)
    bits = [f"{pixels.size:032b}{WORD - 1:05b}"] + [f"{length - 1:04b}" for length in LENGTHS]
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), pixels.size]):
        for first in range(start, end, 1 << LENGTHS[-1]):
            run = min(end - first, 1 << LENGTHS[-1])
            bits.append(f"1{len(LENGTHS) - 1:02b}{run - 1:016b}{pixels[start]:08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def painted(code, height, width):
    """The mask (H, W) bool of a stroke."""
    text, place = "".join(f"{byte:08b}" for byte in code), 0

    def number(bits):
        nonlocal place
        place += bits
        return int(text[place - bits : place], 2)

    pixels = np.zeros(number(32), np.uint8)
    word = number(5) + 1
    lengths = [number(4) + 1 for _ in LENGTHS]
    done = 0
    while done < len(pixels):
        is_run = number(1)
        end = done + number(lengths[number(2)]) + 1
        values = number(word) if is_run else [number(word) for _ in range(end - done)]
        pixels[done:end] = values
        done = end
    return pixels.reshape(height, width, 4)[..., 3] > 127


def region(entry, image, name, brush="mask", box="box", to_name="image"):
    """An annotation in COCO's format as a part of a prediction, for the controls of a labelling interface."""
    width, height = image["width"], image["height"]
    if "segmentation" in entry:
        kind, control = "brushlabels", brush
        value = {"format": "rle", "rle": stroke(coco_mask.decode(entry["segmentation"]))}
    else:
        kind, control = "rectanglelabels", box
        scales = {"x": width, "y": height, "width": width, "height": height}
        percent = [100 * number / side for number, side in zip(entry["bbox"], scales.values())]
        value = dict(zip(scales, percent))
    score = {"score": entry["score"]} if "score" in entry else {}
    return score | {
        "type": kind,
        "from_name": control,
        "to_name": to_name,
        "original_width": width,
        "original_height": height,
        "value": value | {kind: [name]},
    }


def to_tasks(source, target, folder):
    """Write the tasks of a file of predictions."""
    with open(source, encoding="utf-8") as file:
        coco = json.load(file)
    names = {category["id"]: category["name"] for category in coco["categories"]}
    results = {image["id"]: [] for image in coco["images"]}
    sizes = {image["id"]: image for image in coco["images"]}
    for entry in coco["annotations"]:
        part = region(entry, sizes[entry["image_id"]], names[entry["category_id"]])
        results[entry["image_id"]].append(part)
    tasks = [
        {
            "data": {"image": LOCAL + quote(posixpath.join(folder, image["file_name"]))},
            "predictions": [{"model_version": "clipself_seg", "result": results[image["id"]]}],
        }
        for image in coco["images"]
    ]
    with open(target, "w", encoding="utf-8") as file:
        json.dump(tasks, file)


def from_export(source, target, words):
    """Write a label map for each image of an export in Label Studio's own JSON that has strokes; print their names."""
    labels = {word.strip(): number for number, word in enumerate(words.split(","))}
    os.makedirs(target, exist_ok=True)
    with open(source, encoding="utf-8") as file:
        tasks = json.load(file)
    written = set()
    for task in tasks:
        counted = [made for made in task["annotations"] if not made.get("was_cancelled")]
        result = [part for made in counted for part in made["result"]]
        strokes = [part for part in result if part["type"] == "brushlabels"]
        if not strokes:
            continue
        height, width = strokes[0]["original_height"], strokes[0]["original_width"]
        label_map = np.full((height, width), VOID, np.uint8)
        for part in strokes:
            label = part["value"]["brushlabels"][0]
            if label not in labels:
                raise SystemExit(f'{source} has the label "{label}", no word of yours: add it')
            label_map[painted(part["value"]["rle"], height, width)] = labels[label]
        image = unquote(task["data"]["image"])
        name = os.path.splitext(os.path.basename(image))[0]
        if UPLOADS in image:  # Label Studio puts eight digits before the name of an upload
            name = re.sub("^[0-9a-f]{8}-", "", name)
        if name in written:
            raise SystemExit(
                f"{source} has two images that would be {name}.png, such as {image}: export the tasks of each "
                "folder by themselves, into a folder of label maps of its own"
            )
        written.add(name)
        Image.fromarray(label_map).save(os.path.join(target, f"{name}.png"))
    names = ", ".join(f"{number}: {json.dumps(word)}" for word, number in labels.items())
    print(f"{len(written)} label maps in {target}; for the file of --data:\nnames: {{{names}}}")


if __name__ == "__main__":
    {"to": to_tasks, "from": from_export}[sys.argv[1]](*sys.argv[2:])
