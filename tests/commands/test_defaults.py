"""predict without --model: what is said before anything is fetched, and the defaults on photographs, by stand-ins."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from clipself_seg.checkpoints import needs
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.choice import DEFAULTS, TASKS, find_model
from clipself_seg.clip import load_clip, save_clip
from clipself_seg.clip.tips import write_official
from clipself_seg.commands import predict
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models.build import build_model
from clipself_seg.prediction.writers import INDEX_FILES
from tests.faults import run_python
from tests.mask_models import save_mask_model
from tests.small_towers import TIPS, small_towers, write_tokenizer

EOMT = "tue-mps/coco_panoptic_eomt_large_640"
# Task -> what is said of the places of files.
PLACES = {
    "semantic": ["hamacojr/CAT-Seg-weights", "model_base.pth"],
    "panoptic": [
        "/google/tipsv2-l14/resolve/main/model.safetensors",
        "tokenizer.model of ",
        "hub/google--tipsv2-l14/main",
        "config.json, model.safetensors, preprocessor_config.json of ",
        f"/{EOMT}/tree/main into ",
        "hub/tue-mps--coco_panoptic_eomt_large_640/main",
    ],
}
PLACES["detection"] = PLACES["panoptic"]
HALF = 0.5  # seconds of a processor
OFFLINE = """
import resource, sys
sys.path.append(sys.argv.pop(1))
from clipself_seg.commands import predict
status = predict.main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(status, "torch" in sys.modules, used.ru_utime + used.ru_stime)
"""


@pytest.mark.parametrize(
    "task, variable, value",
    [
        *((task, "HF_HUB_OFFLINE", "1") for task in TASKS),
        ("panoptic", "HF_ENDPOINT", "http://127.0.0.1:9"),  # no network
    ],
)
def test_offline_half_a_second_says_what_would_be_fetched_and_where_to_put_it(
    task, variable, value, data_dir, tmp_path, monkeypatch
):
    for name in ("sentencepiece", "transformers"):  # as if they were installed
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    photo = next((data_dir / "coco/val2017").glob("*.jpg"))
    for _ in range(3):
        words = (photo, "--task", task, "--words", "dog, grass", "-o", tmp_path / "out")
        done = run_python(OFFLINE, tmp_path, *words)
        status, torch_too, seconds = done.stdout.split()
        assert (status, torch_too) == ("2", "False"), done.stderr
        if float(seconds) < HALF:
            break
    assert float(seconds) < HALF
    said = done.stderr
    entry, of_masks = zoo()[DEFAULTS[task]], task != "semantic"
    line = next(line for line in said.splitlines() if line.startswith("to be fetched, "))
    assert f"{entry.name} (size {entry.how_large}; licence {entry.licence}, may ship: " in line
    assert ("eomt (size " in line and "; licence MIT, may ship: yes)" in line) == of_masks
    for place in PLACES[task]:
        assert place in said
    assert ("no number of both together is published" in said) == of_masks


def test_packages_are_looked_for_before_anything_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(needs.locate, "fetch", lambda entry: pytest.fail("fetched"))
    lacking = {"sentencepiece"}
    find = needs.importlib.util.find_spec
    monkeypatch.setattr(
        needs.importlib.util, "find_spec", lambda name: None if name in lacking else find(name)
    )
    values = {"MODEL.CLIP.NAME": "TIPSv2-B-14", "MODEL.CLIP.WEIGHTS": "tipsv2-b14"}
    with pytest.raises(InputError, match=r"sentencepiece is not .*clipself_seg\[tokenizers\]"):
        needs.fetch_needed(values)
    masks = {"MODEL.MASK_GENERATOR.SOURCE": "masks", "MODEL.MASK_GENERATOR.OUTPUTS": "sam2"}
    lacking.add("transformers")
    with pytest.raises(InputError, match=r"transformers is not .*clipself_seg\[masks\]"):
        needs.fetch_needed(values | masks)


def test_what_takes_a_person_is_said_before_anything_is_fetched(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, first in (("fcclip-r50", "fcclip-r50"), ("odise-label", "stable-diffusion-v1-3")):
        with pytest.raises(
            InputError, match=f"{first} is not .*by hand: .*clip_model.safetensors as "
        ):
            needs.fetch_needed(find_model(name).values())
        said = capsys.readouterr().err
        assert f" MB and more: {first} (size" in said and "fetching" not in said
    with pytest.raises(InputError, match="is not on this machine: fetch it"):
        needs.fetch_needed({"MODEL.CLIP.WEIGHTS": "clipself-eva02-vitb16-coco-patches"})
    assert "to be fetched, of unknown size: clipself-eva02" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sam3", "facebook/sam3", "eomt", EOMT])
def test_masks_are_known_by_their_repository_too(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (part,) = needs._masks(name)
    assert part.entry == zoo()["sam3" if "sam3" in name else "eomt"]


def predict_with_defaults(task: str, photos: list[Path], out: Path, *opts: str) -> dict:
    words = ["--words", "person, dog, car, grass, sky", "--task", task, "--device", "cpu"]
    given = [*map(str, photos), *words, "-o", str(out), *(["--opts", *opts] if opts else [])]
    assert predict.main(given) == 0
    return json.loads((out / INDEX_FILES[task]).read_text())


@pytest.fixture
def small_defaults(tmp_path, monkeypatch):
    """The files of the defaults but CAT-Seg's under their own names, of a small TIPSv2 and a small EoMT."""
    with small_towers(tmp_path / "weights"):
        entry = dataclasses.replace(zoo()["tipsv2-l14"], model="small-TIPSv2", size=None, sha256="")
        monkeypatch.setitem(zoo(), "tipsv2-l14", entry)
        (tmp_path / "architectures").mkdir()
        (tmp_path / "architectures/small-TIPSv2.json").write_text(json.dumps(TIPS))
        monkeypatch.setattr(needs, "ARCHITECTURES", tmp_path / "architectures")
        hub = tmp_path / "weights/hub"
        torch.manual_seed(0)
        clip = load_clip("small-TIPSv2", None)
        folder = hub / "google--tipsv2-l14/main"
        folder.mkdir(parents=True)
        save_clip(clip, folder / "model.safetensors")
        save_mask_model("eomt", hub / EOMT.replace("/", "--") / "main")
        yield


def test_the_defaults_name_masks_of_photographs_and_boxes_are_those_of_the_segments(
    small_defaults, data_dir, tmp_path, capsys
):
    photos = sorted((data_dir / "coco/val2017").glob("*.jpg"))[:2]
    segments = predict_with_defaults("panoptic", photos, tmp_path / "panoptic")
    said = capsys.readouterr().err
    assert "no --model: tipsv2-l14" in said and "to be fetched" not in said
    assert [len(a["segments_info"]) > 0 for a in segments["annotations"]] == [True, True]
    key = "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"
    found = predict_with_defaults("detection", photos, tmp_path / "boxes", key, "0.0")
    assert found["info"]["score threshold"] == 0
    names = {category["id"]: category["name"] for category in found["categories"]}
    for image, annotation in zip(segments["images"], segments["annotations"]):
        own = [a for a in found["annotations"] if a["image_id"] == image["id"]]
        assert [a["score"] for a in own] == sorted((a["score"] for a in own), reverse=True)
        wanted = {(tuple(s["bbox"]), s["category_id"]) for s in annotation["segments_info"]}
        # Without stuff each mask is a segment of its own.
        assert {(tuple(map(int, a["bbox"])), a["category_id"]) for a in own} >= {
            (box, kind) for box, kind in wanted if names[kind] not in ("grass", "sky")
        }


# As tue-mps writes it.
EOMT_IMAGES = {
    **dict.fromkeys(
        ("crop_size", "device", "disable_grouping", "do_center_crop", "do_convert_rgb")
    ),
    **dict.fromkeys(("ignore_index", "input_data_format", "return_tensors")),
    **dict.fromkeys(("do_normalize", "do_pad", "do_rescale", "do_resize"), True),
    "data_format": "channels_first",
    "default_to_square": False,
    "do_split_image": False,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "EomtImageProcessorFast",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 640, "shortest_edge": 640},
}


def write_tips(folder: Path) -> None:
    """google/tipsv2-l14: no temperature, a mask token."""
    folder.mkdir(parents=True)
    tensors = write_official(load_clip("TIPSv2-L-14", None).state_dict())
    del tensors["temperature"]
    assert 1.94e9 < 4 * sum(tensor.numel() for tensor in tensors.values()) < 1.96e9
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder / "tokenizer.json")


def write_eomt(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.EomtForUniversalSegmentation(transformers.EomtConfig(num_labels=133))
    with torch.no_grad():
        model.class_predictor.bias[-1] = -9  # all queries are an object
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(EOMT_IMAGES))
    assert 1.26e9 < (folder / "model.safetensors").stat().st_size < 1.27e9


@pytest.mark.heavy  # some 10 GB of memory
@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_of_the_published_sizes_run_on_photographs(
    task, data_dir, tmp_path, monkeypatch, capsys
):
    weights = tmp_path / "weights"
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(weights))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    entry = zoo()[DEFAULTS[task]]
    monkeypatch.setitem(zoo(), entry.name, dataclasses.replace(entry, size=None, sha256=""))
    torch.manual_seed(0)
    if task == "semantic":
        weights.mkdir()
        build_model(load_config(find_model(None, task).config_file)).export(weights / entry.file)
    else:
        write_tips(weights / "hub/google--tipsv2-l14/main")
        write_eomt(weights / "hub" / EOMT.replace("/", "--") / "main")
    photos = sorted((data_dir / "coco/val2017").glob("*.jpg"))[:1]
    score = ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0"] if task == "detection" else []
    found = predict_with_defaults(task, photos, tmp_path / "out", *score)
    assert "to be fetched" not in capsys.readouterr().err
    assert len(found["images"]) == 1 and list((tmp_path / "out/overlays").glob("*.png"))
    if task != "semantic":
        assert found["annotations"]
