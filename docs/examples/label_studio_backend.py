"""A machine-learning back end of Label Studio: it hands tasks to `clipself-seg serve`, and the answers back.

    clipself-seg serve --token 0123456789abcdef        # in another terminal
    export CLIPSELF_SEG_TOKEN=0123456789abcdef LABEL_STUDIO_TOKEN=...          # of your account, a legacy token
    uvicorn --app-dir docs/examples label_studio_backend:app --port 9090

The words are the labels of the project, "dog|puppy" with synonyms. Its BrushLabels get segments, its RectangleLabels
boxes. A rectangle as a prompt (smart="true") is an example: the answer has strokes for all that looks like it.
LABEL_STUDIO_URL and CLIPSELF_SEG_URL are other addresses, SEGMENTER=panoptic gives a stroke for each object, and
BACKGROUND=background a name to pixels that are none of the labels. Needs the extra demo.
"""

import base64
import hashlib
import logging
import os
from xml.etree import ElementTree

import httpx
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from label_studio import region

LABEL_STUDIO = httpx.Client(
    base_url=os.environ.get("LABEL_STUDIO_URL", "http://localhost:8080"),
    headers={"Authorization": f"Token {os.environ.get('LABEL_STUDIO_TOKEN', '')}"},
)
MODEL = httpx.Client(
    base_url=os.environ.get("CLIPSELF_SEG_URL", "http://localhost:8000"),
    headers={"Authorization": f"Bearer {os.environ.get('CLIPSELF_SEG_TOKEN', '')}"},
    timeout=120,
)
TASKS = {"BrushLabels": os.environ.get("SEGMENTER", "semantic"), "RectangleLabels": "detection"}
BACKGROUND = os.environ.get("BACKGROUND")  # of a semantic segmenter: what is none of the labels
app = FastAPI()


@app.exception_handler(httpx.HTTPError)
def no_answer(request, error):
    """One line in this terminal, and an error for Label Studio, if a server does not answer or refuses a token."""
    reason = str(error).partition("\n")[0]
    line = f"{error.request.url}: {reason}. Does it run, and is CLIPSELF_SEG_TOKEN or LABEL_STUDIO_TOKEN its token?"
    logging.getLogger("uvicorn").error(line)
    return JSONResponse({"detail": line}, 502)


def controls(label_config):
    """The controls of a labelling interface for masks or boxes: the key in `TASKS` of each, its name, the name of its
    image, that image's key in the data of a task, and label -> word."""
    view = ElementTree.fromstring(label_config)
    keys = {image.get("name"): image.get("value").lstrip("$") for image in view.iter("Image")}
    for kind in TASKS:
        for control in view.iter(kind):
            labels = {label.get("value").split("|")[0]: label.get("value") for label in control}
            shown = control.get("toName")
            yield kind, control.get("name"), shown, keys[shown], labels


def version(label_config):
    """Weights and words: Label Studio does not ask again for tasks with predictions of the same version."""
    weights = MODEL.get("/health").raise_for_status().json()["tasks"]
    words = [labels for *_, labels in controls(label_config)]
    return hashlib.sha256(f"{weights} {words}".encode()).hexdigest()[:12]


def image_of(address):
    """The image of a task in base64. A task may come from anybody: nothing but Label Studio's own files is fetched."""
    if not address.startswith("/data/"):
        raise ValueError(f"{address} is no file of Label Studio")
    return base64.b64encode(LABEL_STUDIO.get(address).raise_for_status().content).decode()


def asked(kind, image, labels, examples):
    """The API's answer about an image."""
    request = {"image": image, "words": ", ".join(labels.values()), "examples": examples}
    if TASKS[kind] == "semantic":
        request["background"] = BACKGROUND
    answer = MODEL.post(f"/api/{TASKS[kind]}", json=request)
    if answer.status_code == 400:
        raise ValueError(answer.json()["error"])
    return answer.raise_for_status().json()


def example(part, image):
    """A rectangle of Label Studio, in percent, as an example of the API."""
    box = [part["value"][key] / 100 for key in ("x", "y", "width", "height")]
    return {"name": part["value"]["rectanglelabels"][0].split("|")[0], "image": image, "box": box}


def regions(task, label_config, prompts):
    """The parts of a prediction for a task; those of prompts have the prompts' labels alone."""
    found = []
    for kind, control, shown, key, labels in controls(label_config):
        if prompts and kind == "RectangleLabels":
            continue
        image = image_of(task["data"][key])
        examples = [example(part, image) for part in prompts]
        wanted = {one["name"] for one in examples} or labels.keys()
        answer = asked(kind, image, labels, examples)
        for segment in answer["segments"]:
            entry = {"score": segment["score"], "bbox": segment["box"]}
            if kind == "BrushLabels":
                entry["segmentation"] = segment["segmentation"]
            if segment["name"] in wanted & labels.keys():
                label = labels[segment["name"]]
                found.append(region(entry, answer, label, control, control, shown))
    return found


@app.get("/health")
def health():
    return {"status": "UP", "model_class": "clipself_seg"}


@app.post("/setup")
def setup(body: dict):
    return {"model_version": version(body["schema"])}


@app.post("/predict")
def predict(body: dict):
    context = (body.get("params") or {}).get("context") or {}
    prompts = [p for p in context.get("result", []) if p["type"] == "rectanglelabels"]
    made, results = version(body["label_config"]), []
    for task in body["tasks"]:
        try:
            found = regions(task, body["label_config"], prompts)
        except ValueError as error:
            logging.getLogger("uvicorn").warning("task %s: %s", task["id"], error)
            found = []
        score = sum(part["score"] for part in found) / max(len(found), 1)
        results.append({"model_version": made, "score": score, "result": found})
    return {"results": results}
