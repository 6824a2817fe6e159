"""Files of docs/examples beside other tools: Label Studio, CVAT, FiftyOne and autodistill, each by its own package."""

import importlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as coco_mask

from clipself_seg.data.datasets.table import SHIPPED_WORLD
from tests.conftest import ROOT
from tests.servers import free_address, started

EXAMPLES = ROOT / "docs/examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(EXAMPLES)
    label_studio = importlib.import_module("label_studio")
    backend = importlib.import_module("label_studio_backend")

SKY = np.zeros((300, 90), np.uint8)
SKY[:200] = 1  # one run of more than 2^16 bytes
DOG = np.zeros((300, 90), np.uint8)
DOG[150:220, 10:30] = 1
IMAGE = {"id": 7, "file_name": "sub/one+.jpg", "height": 300, "width": 90}


def coco_file(folder, *annotations):
    categories = [{"id": 0, "name": "sky"}, {"id": 1, "name": "dog"}]
    content = {"images": [IMAGE], "categories": categories, "annotations": annotations}
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path


def code(mask):
    made = coco_mask.encode(np.asfortranarray(mask))
    return made | {"counts": made["counts"].decode()}


@pytest.mark.parametrize("folder", ["photos #1", "photos #1/"])
def test_masks_of_predictions_become_strokes_and_an_export_of_them_label_maps(tmp_path, folder):
    masks = [{"segmentation": code(m), "bbox": [0, 0, 1, 1]} for m in (SKY, DOG)]
    entries = [{"image_id": 7, "category_id": i, **mask} for i, mask in enumerate(masks)]
    label_studio.to_tasks(coco_file(tmp_path, *entries), tmp_path / "tasks.json", folder)
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"] == {"image": "/data/local-files/?d=photos%20%231/sub/one%2B.jpg"}
    (prediction,) = task["predictions"]
    for part, name in zip(prediction["result"], ("sky", "dog"), strict=True):
        assert part["type"] == "brushlabels" and part["value"]["brushlabels"] == [name]
        assert (part["from_name"], part["to_name"]) == ("mask", "image")
        assert (part["original_width"], part["original_height"]) == (90, 300)
        assert part["value"]["format"] == "rle"
        assert all(type(byte) is int and 0 <= byte < 256 for byte in part["value"]["rle"])
    task["annotations"] = task.pop("predictions")
    (tmp_path / "export.json").write_text(json.dumps([task]))
    label_studio.from_export(tmp_path / "export.json", tmp_path / "masks", "sky, dog")
    expected = np.where(DOG, 1, np.where(SKY, 0, 255))
    assert (np.asarray(Image.open(tmp_path / "masks/one+.png")) == expected).all()


def exported(folder, *annotations):
    """An export of Label Studio: (address of an image, label of its stroke, "was_cancelled")."""
    size = {"type": "brushlabels", "original_height": 300, "original_width": 90}
    tasks = [
        {
            "data": {"image": image},
            "annotations": [
                {
                    "was_cancelled": skipped,
                    "result": [
                        size | {"value": {"brushlabels": [label], "rle": label_studio.stroke(DOG)}}
                    ],
                }
            ],
        }
        for image, label, skipped in annotations
    ]
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json", folder / "masks"


def test_label_maps_of_an_export_are_called_as_the_images_and_their_values_are_named(
    tmp_path, capsys
):
    upload, local = "/data/upload/3/a1b2c3d0-00.png", "/data/local-files/?d=x/a1b2c3d0-01.png"
    skipped = "/data/local-files/?d=x/02.png"
    files = exported(tmp_path, (upload, "dog", False), (local, "dog", 0), (skipped, "dog", True))
    label_studio.from_export(*files, "sky, dog")
    names = {path.name for path in (tmp_path / "masks").iterdir()}
    assert names == {"00.png", "a1b2c3d0-01.png"}
    assert 'names: {0: "sky", 1: "dog"}' in capsys.readouterr().out


@pytest.mark.parametrize(
    "images, words, message",
    [
        ("AB", "dog", "two images that would be img.png, such as .*B/img.jpg: export"),
        ("A", "sky", 'has the label "dog", no word of yours: add it'),
    ],
)
def test_an_export_whose_label_maps_would_be_wrong_is_refused(tmp_path, images, words, message):
    given = [(f"/data/local-files/?d={name}/img.jpg", "dog", False) for name in images]
    with pytest.raises(SystemExit, match=message):
        label_studio.from_export(*exported(tmp_path, *given), words)


def test_strokes_with_values_in_place_of_runs_are_read():
    """What Label Studio writes has both; these are its bytes of four pixels, of which two are painted."""
    pixels = [0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 1, 2, 3, 255]
    bits = f"{16:032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in (3, 4, 8, 16))
    bits += "0" + "01" + f"{15:04b}" + "".join(f"{value:08b}" for value in pixels)
    bits += "0" * (-len(bits) % 8)
    stroke = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert label_studio.painted(stroke, 2, 2).tolist() == [[False, True], [False, True]]


INTERFACE = """<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image">
  <Label value="red star|star"/><Label value="grass"/></BrushLabels><RectangleLabels name="box"
  toName="image" smart="true"><Label value="grass"/></RectangleLabels></View>"""


@pytest.fixture
def asked(monkeypatch):
    """Requests to the API, which finds a star and grass in every image; whatever Label Studio has is an image."""
    requests = []

    def answer(request):
        if request.url.path == "/health":
            return httpx.Response(200, json={"tasks": {"semantic": "hash"}})
        requests.append((request.url.path, json.loads(request.content)))
        parts = [("red star", SKY, [0, 0, 90, 200]), ("grass", DOG, [9, 30, 45, 150])]
        keys = ("name", "segmentation", "box", "score")
        found = [dict(zip(keys, (name, code(mask), box, 0.5))) for name, mask, box in parts]
        return httpx.Response(200, json={"width": 90, "height": 300, "segments": found})

    api = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://api")
    files = httpx.MockTransport(lambda request: httpx.Response(200, content=request.url.raw_path))
    monkeypatch.setattr(backend, "MODEL", api)
    monkeypatch.setattr(backend, "LABEL_STUDIO", httpx.Client(transport=files, base_url="http://l"))
    return requests


def predicted(images, context=None, interface=INTERFACE):
    tasks = [{"id": number, "data": {"image": image}} for number, image in enumerate(images)]
    body = {"tasks": tasks, "label_config": interface, "params": {"context": context}}
    return TestClient(backend.app).post("/predict", json=body).json()["results"]


def test_the_back_end_gives_strokes_and_boxes_of_the_labels_and_fetches_label_studios_files(asked):
    first, refused = predicted(["/data/upload/1/a.jpg", "https://example.org/a.jpg"])
    mask, other, box = first["result"]
    assert (label_studio.painted(mask["value"]["rle"], 300, 90) == SKY).all()
    assert mask["value"]["brushlabels"] == ["red star|star"]
    assert other["value"]["brushlabels"] == box["value"]["rectanglelabels"] == ["grass"]
    assert [box["value"][key] for key in ("x", "y", "width", "height")] == [10, 10, 50, 50]
    assert (mask["from_name"], box["from_name"], box["to_name"]) == ("mask", "box", "image")
    assert refused["result"] == [] and first["score"] == 0.5
    assert [path for path, _ in asked] == ["/api/semantic", "/api/detection"]
    assert [body["words"] for _, body in asked] == ["red star|star, grass", "grass"]
    (again,) = predicted(["/data/a.jpg"], interface=INTERFACE.replace("star", "moon"))
    assert again["model_version"] != first["model_version"]


def test_the_back_end_names_the_server_that_refuses_it(asked, monkeypatch):
    refusal = httpx.MockTransport(lambda request: httpx.Response(401))
    server = httpx.Client(transport=refusal, base_url="http://label")
    monkeypatch.setattr(backend, "LABEL_STUDIO", server)
    body = {"tasks": [{"id": 1, "data": {"image": "/data/a.jpg"}}], "label_config": INTERFACE}
    answer = TestClient(backend.app).post("/predict", json=body)
    assert answer.status_code == 502 and "http://label/data/a.jpg: " in answer.json()["detail"]
    assert "LABEL_STUDIO_TOKEN" in answer.json()["detail"]


def test_a_rectangle_as_a_prompt_is_an_example_of_its_label(asked):
    value = {"x": 50, "y": 20, "width": 10, "height": 40, "rectanglelabels": ["red star|star"]}
    context = {"result": [{"type": "rectanglelabels", "value": value}]}
    (part,) = predicted(["/data/a.jpg"], context)[0]["result"]
    assert part["value"]["brushlabels"] == ["red star|star"]
    ((_, body),) = asked
    image = body["image"]
    assert body["examples"] == [{"name": "red star", "image": image, "box": [0.5, 0.2, 0.1, 0.4]}]


WORDS = ["red star|star", "blue ring", "grass"]
SCENES = sorted((SHIPPED_WORLD / "mini/val").glob("*.jpg"))[:4]
TOKEN = "0123456789abcdef0123456789abcdef01234567"
SWITCHES = """COLLECT_ANALYTICS=false LATEST_VERSION_CHECK=false SENTRY_DSN= FRONTEND_SENTRY_DSN= PYTHONPATH=
    LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true ML_BLOCK_LOCAL_IP=false SSRF_PROTECTION_ENABLED=false"""
START = f"""start --no-browser --internal-host 127.0.0.1 --port {{port}} --username a@example.org
    --password secret123 --user-token {TOKEN}"""
DECODE = """import json, sys
from label_studio_sdk.converter import brush
print([int((brush.decode_rle(code)[3::4] > 0).sum()) for code in json.load(sys.stdin)])"""


@pytest.fixture
def its_server(tmp_path):
    """Label Studio with the live back end: its address, and its Python."""
    program = shutil.which("label-studio")
    if program is None:
        subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
        program = tmp_path / "bin/label-studio"
        package = "label-studio==1.23.2"
        subprocess.run([tmp_path / "bin/pip", "install", "-q", package], check=True)
    models, back_end, server = (free_address() for _ in range(3))
    serve = f"-m clipself_seg serve --model mini --port {{port}} --token {TOKEN}"
    backed = f"-m uvicorn --app-dir {EXAMPLES} label_studio_backend:app --port {{port}}"
    its = dict(pair.split("=") for pair in SWITCHES.split())
    its |= {"LABEL_STUDIO_BASE_DATA_DIR": str(tmp_path / "data")}
    addresses = {"LABEL_STUDIO_URL": server, "CLIPSELF_SEG_URL": models}
    tokens = {"LABEL_STUDIO_TOKEN": TOKEN, "CLIPSELF_SEG_TOKEN": TOKEN}
    with (
        started([sys.executable, *serve.split()], tmp_path, models),
        started([sys.executable, *backed.split()], tmp_path, back_end, **addresses, **tokens),
        started([program, *START.split()], tmp_path, server, **its),
    ):
        yield server, back_end, Path(program).with_name("python")


@pytest.mark.heavy
def test_label_studios_server_keeps_what_the_live_back_end_answers(its_server):
    server, back_end, python = its_server
    headers = {"Authorization": f"Token {TOKEN}"}

    def post(path, **content):
        answer = httpx.post(f"{server}/api/{path}", headers=headers, timeout=120, **content)
        return answer.raise_for_status().json()

    settings = {"title": "scenes", "label_config": INTERFACE}
    project = post("projects/", json=settings)["id"]
    model = post("ml/", json={"project": project, "url": back_end, "is_interactive": True})
    for scene in SCENES:
        post(f"projects/{project}/import", files={"file": (scene.name, scene.read_bytes())})
    everything = {"selectedItems": {"all": True, "excluded": []}}
    post(f"dm/actions?id=retrieve_tasks_predictions&project={project}", json=everything)
    kept = httpx.get(f"{server}/api/predictions?project={project}", headers=headers).json()
    assert len({entry["task"] for entry in kept}) == len(SCENES)
    parts = [part for entry in kept for part in entry["result"]]
    assert {part["type"] for part in parts} == {"brushlabels", "rectanglelabels"}
    strokes = [part["value"]["rle"] for part in parts if part["type"] == "brushlabels"]
    read = subprocess.run([python, "-c", DECODE], input=json.dumps(strokes), stdout=-1, text=True)
    own = [int(label_studio.painted(stroke, 176, 132).sum()) for stroke in strokes]
    assert json.loads(read.stdout) == own and min(own) > 0
    rectangle = {"x": 0, "y": 60, "width": 40, "height": 40, "rectanglelabels": ["grass"]}
    context = {"result": [{"type": "rectanglelabels", "value": rectangle}]}
    asked = {"task": kept[0]["task"], "context": context}
    prompted = post(f"ml/{model['id']}/interactive-annotating", json=asked)["data"]["result"]
    assert [part["value"]["brushlabels"] for part in prompted] == [["grass"]]


def needed(package, names):
    return pytest.importorskip(package, reason=f"pip install {names}")


@pytest.mark.heavy
@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("task", ["semantic", "panoptic", "detection"])
def test_cvats_own_loader_and_check_take_the_function(task, polygons):
    cvat = needed("cvat_sdk.auto_annotation", "cvat-cli")
    common = needed("cvat_cli._internal.common", "cvat-cli")
    sdk, masks = needed("cvat_sdk", "cvat-cli"), needed("cvat_sdk.masks", "cvat-cli")
    parameters = {"words": ", ".join(WORDS), "model": "mini", "task": task}
    function = common.FunctionLoader(None, EXAMPLES / "cvat_function.py", parameters).load()
    labels = [
        sdk.models.Label(name=name, id=number, type="any", attributes=[], sublabels=[])
        for number, name in ((7, "grass"), (8, "red star"))
    ]

    class Context(cvat.DetectionFunctionContext):
        frame_name, conf_threshold, conv_mask_to_poly = "a.jpg", 0.2, polygons

    with Image.open(SCENES[0]) as image:
        shapes = function.detect(Context(), image)
        expected = function.model(image)
    asked = {"allow_unmatched_labels": True, "conv_mask_to_poly": polygons}
    check = cvat.driver._AnnotationMapper(
        logging.getLogger(), function.spec.labels, labels, **asked
    )
    check.validate_and_remap(shapes, 5)
    kind = "rectangle" if task == "detection" else "polygon" if polygons else "mask"
    assert shapes and {str(shape.type) for shape in shapes} == {kind}
    assert {shape.label_id for shape in shapes} <= {7, 8}
    if kind == "mask" and task == "semantic":
        points = next(shape.points for shape in shapes if shape.label_id == 7)
        mask = masks.decode_mask(points, image_width=132, image_height=176)
        assert (mask == (expected.labels == 2)).all()


@pytest.mark.heavy
def test_autodistill_labels_a_folder_for_yolo(tmp_path):
    detection = needed("autodistill.detection", "autodistill scikit-learn roboflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        model = importlib.import_module("autodistill_model").ClipselfSeg
    ontology = detection.CaptionOntology({WORDS[0]: "star", "blue ring": "ring"})
    (tmp_path / "in").mkdir()
    for scene in SCENES:
        shutil.copy(scene, tmp_path / "in")
    base = model(ontology, "mini")
    data = base.label(f"{tmp_path}/in", ".jpg", f"{tmp_path}/out")
    assert data.classes == ["star", "ring"] and len(data) == len(SCENES)
    texts = {path.stem: path.read_text() for path in tmp_path.glob("out/*/labels/*")}
    for scene in SCENES:
        found = base.predict(str(scene))
        classes = [int(line.split()[0]) for line in texts[scene.stem].splitlines()]
        assert classes == found.class_id.tolist()
        assert (base.predict(np.asarray(Image.open(scene))[..., ::-1]).xyxy == found.xyxy).all()


@pytest.fixture
def fiftyone(tmp_path, monkeypatch):
    """FiftyOne with the example in its zoo, and a stand-in for its database."""
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
    fo, mongomock = needed("fiftyone", "fiftyone mongomock"), needed("mongomock", "mongomock")
    import fiftyone.core.odm.database as database
    import mongoengine

    store = mongomock.store.ServerStore()

    class Client(mongomock.MongoClient):
        def __init__(self, *words, appname=None, **named):
            super().__init__(*words, _store=store, **named)

    def connect(config):
        database._client = Client()
        mongoengine.connect(config.database_name, mongo_client_class=Client)

    monkeypatch.setattr(database, "establish_db_conn", connect)
    monkeypatch.setattr(fo.config, "model_zoo_dir", str(tmp_path))
    shutil.copytree(EXAMPLES / "fiftyone_zoo", tmp_path / "clipself_seg_zoo")
    return fo


@pytest.mark.heavy
def test_fiftyones_zoo_loads_the_three_models_and_applies_them_to_photographs(fiftyone, data_dir):
    import fiftyone.zoo as foz

    photos = sorted((data_dir / "coco/val2017").glob("*.jpg"))[:20]
    dataset = fiftyone.Dataset()
    dataset.add_images([str(photo) for photo in photos])
    small = {"panoptic": ["INPUT.MIN_SIZE_TEST", "128"]}
    for task in ("semantic", "panoptic", "detection"):
        loading = {"model": "mini", "classes": WORDS, "opts": small.get(task, [])}
        model = foz.load_zoo_model(f"clipself_seg-{task}", **loading)
        dataset.apply_model(model, label_field=task)
    assert model.mask_targets == {1: "red star", 2: "blue ring", 3: "grass"}
    mask, size = dataset.last()["semantic"].mask, Image.open(photos[-1]).size
    assert mask.shape == size[::-1] and set(np.unique(mask)) <= {1, 2, 3}
    for task in ("panoptic", "detection"):
        counts = dataset.count_values(f"{task}.detections.label")
        assert counts.keys() <= {*model.mask_targets.values()} and sum(counts.values()) > 20
    asked = foz.get_zoo_model("clipself_seg-semantic").resolve_input(None)
    assert asked.type.properties.keys() == {"classes"}
