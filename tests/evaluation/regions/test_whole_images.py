"""Classification of whole images: equal to a plain loop of open_clip, and what is refused."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from open_clip.transform import image_transform
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from PIL import Image
from torchvision.datasets import ImageFolder

from clipself_seg.clip import load_clip, save_clip
from clipself_seg.clip.pe_core import PE_CORE
from clipself_seg.clip.siglip import SIGLIP
from clipself_seg.clip.templates import class_prompts
from clipself_seg.config import load_config
from clipself_seg.data.datasets.own import register_data
from clipself_seg.data.datasets.records import whole_image_records
from clipself_seg.data.mappers.regions import WholeImageMapper
from clipself_seg.errors import InputError
from clipself_seg.models.build import build_model, registered_data
from clipself_seg.training.own_data import with_data
from clipself_seg.training.run import evaluate
from clipself_seg.training.tasks import task_of
from lab.mini.concepts import WORLDS
from lab.mini.subjects import draw_subjects
from tests.tiny import noise, save_noise, write_tiny_coco

SIZES = [(70, 90), (301, 64), (64, 64), (33, 200), (97, 41)]


@pytest.fixture
def folder(tmp_path):
    """Seven classes with one to four images of several sizes, one of them grey."""
    for label, name in enumerate(["ant", "bee", "cat", "dog", "elk", "fox", "red_gnu"]):
        for number in range(label % 4 + 1):
            size = SIZES[(label + number) % len(SIZES)]
            path = save_noise(tmp_path / tmp_path.name / name / f"{number}.png", *size, seed=label)
    Image.fromarray(noise(50, 80)).convert("L").save(path)
    return tmp_path / tmp_path.name


def evaluated(*options: object, config: str = "whole_images/imagenet"):
    cfg = load_config(config, ["DATALOADER.NUM_WORKERS", "0", *map(str, options)])
    data = registered_data(cfg)
    if data is not None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = data.test
    model = build_model(cfg)
    evaluation = task_of(cfg).evaluation()
    evaluation.check(model)
    return evaluation(model), evaluation


def test_numbers_are_those_of_a_plain_loop_of_open_clip(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(3)
    clip = load_clip("ViT-Mini-8", None)
    save_clip(clip, tmp_path / "clip.pt", layout="open_clip")
    architecture = json.loads(Path("clipself_seg/clip/architectures/ViT-Mini-8.json").read_text())
    theirs = open_clip.CLIP(**architecture).eval()
    theirs.load_state_dict(torch.load(tmp_path / "clip.pt", weights_only=True)["state_dict"])
    images = ImageFolder(folder, image_transform(64, is_train=False))
    names = [name.replace("_", " ") for name in images.classes]
    texts = build_zero_shot_classifier(
        theirs, open_clip.tokenize, names, OPENAI_IMAGENET_TEMPLATES, None
    )
    hits = {1: 0, 5: 0}
    with torch.no_grad():
        for pixels, label in images:
            best = (theirs.encode_image(pixels[None], normalize=True) @ texts)[0].topk(5).indices
            hits = {k: count + (label in best[:k]) for k, count in hits.items()}
    assert 0 < hits[1] < hits[5] < len(images)

    keys = ["MODEL.CLIP.NAME", "ViT-Mini-8", "MODEL.CLIP.WEIGHTS", tmp_path / "clip.pt"]
    results, evaluation = evaluated("DATASETS.DATA", folder, "OUTPUT_DIR", tmp_path, *keys)
    ((name, by_size),) = results.items()
    assert by_size[64]["images.top1"] == pytest.approx(100 * hits[1] / len(images))
    assert by_size[64]["images.top5"] == pytest.approx(100 * hits[5] / len(images))
    assert by_size[64]["images"] == len(images)
    ((title, table),) = evaluation.tables(results).items()
    assert title.startswith("Whole images") and "Boxes" not in table


@pytest.mark.parametrize("kind", [None, SIGLIP, PE_CORE])
@pytest.mark.parametrize("size", [*SIZES, (1, 500)])
def test_pixels_are_those_of_open_clips_transform(kind, size, tmp_path):
    rule = {"squash": kind.squash, "filter": kind.filter} if kind else {}
    mode = {None: "shortest", True: "squash"}[kind and kind.squash]
    theirs = image_transform(48, False, (0.0,) * 3, (1.0,) * 3, mode, rule.get("filter", "bicubic"))
    path = save_noise(tmp_path / "0.png", *size)
    record = {"file_name": str(path), "image_id": 0, "label": 0}
    ours = WholeImageMapper(image_size=48, **rule)(record)["image"]
    assert torch.equal(ours.float() / 255, theirs(Image.open(path)))


def test_an_image_that_lies_is_stood_up_first(tmp_path):
    upright = save_noise(tmp_path / "0.png", 60, 90)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(noise(60, 90)).copy()).save(tmp_path / "1.png", exif=exif)
    mapper = WholeImageMapper(image_size=48)
    pixels = [
        mapper({"file_name": str(p), "image_id": 0, "label": 0})["image"]
        for p in (upright, tmp_path / "1.png")
    ]
    assert torch.equal(*pixels)


def test_imagenets_folders_have_open_clips_names_and_sentences(tmp_path):
    assert len(IMAGENET_CLASSNAMES) == 1000
    for name in IMAGENET_CLASSNAMES:
        assert class_prompts(name, "imagenet80") == [t(name) for t in OPENAI_IMAGENET_TEMPLATES]
    for wordnet in ("n15075141", "n01440764", "n04254680"):
        save_noise(tmp_path / "imagenette" / wordnet / "0.JPEG", 9, 9)
    vocabulary, records = whole_image_records(
        register_data(tmp_path / "imagenette", "whole_images").test[0]
    )
    assert vocabulary.first_names == ("tench", "soccer ball", "toilet paper")
    assert [record["label"] for record in records] == [0, 1, 2]


def test_names_of_ones_own_follow_the_order_of_the_folders_and_numbers_count(tmp_path):
    for name in ("10", "9", "0"):
        save_noise(tmp_path / name / "0.png", 9, 9)
    (tmp_path / "0/._0.png").write_text("of macOS")
    for place in (tmp_path, tmp_path / "0"):
        save_noise(place / ".ipynb_checkpoints/0.png", 9, 9)
    (tmp_path / "classes.txt").write_text("zero\nnine\nten\n")
    name = register_data(tmp_path, "whole_images").test[0]
    vocabulary, records = whole_image_records(name)
    assert vocabulary.first_names == ("zero", "nine", "ten")
    found = [(Path(record["file_name"]).parent.name, record["label"]) for record in records]
    assert sorted(found) == [("0", 0), ("10", 2), ("9", 1)]
    (tmp_path / "classes.txt").write_text("zero\nnine\n")
    with pytest.raises(InputError, match="has 3 folders, .* has 2 classes"):
        whole_image_records(register_data(tmp_path, "whole_images").test[0])


def test_what_cannot_be_classified_is_refused_in_a_sentence(folder, tmp_path):
    mini = [
        "MODEL.CLIP.NAME",
        "ViT-Mini-8",
        "OUTPUT_DIR",
        tmp_path,
        "TEST.REGIONS.TEMPLATES",
        "single",
    ]
    with pytest.raises(InputError, match="gone.safetensors"):
        evaluated(
            *mini, "DATASETS.DATA", folder, "MODEL.CLIP.WEIGHTS", tmp_path / "gone.safetensors"
        )
    mini += ["MODEL.CLIP.WEIGHTS", ""]
    (folder / "bee" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bee/1.png is not an image"):
        evaluated(*mini, "DATASETS.DATA", folder)
    (folder / "gull").mkdir()
    with pytest.raises(InputError, match="each class: Found no valid file for the classes gull"):
        evaluated(*mini, "DATASETS.DATA", folder)
    with pytest.raises(InputError, match="gull has to have a folder of images for each class"):
        evaluated(*mini, "DATASETS.DATA", folder / "gull")
    for hidden, why in (
        (".ipynb_checkpoints/0.png", "its folders are all hidden"),
        ("a/._0.png", "no valid file"),
    ):
        save_noise(folder / "gull" / hidden, 9, 9)
        with pytest.raises(InputError, match=f"gull has to have a folder .*: .*{why}"):
            evaluated(*mini, "DATASETS.DATA", folder / "gull")


def test_a_reader_of_regions_reads_whole_images_too_and_a_classifier_refuses_regions(
    folder, tmp_path, monkeypatch
):
    write_tiny_coco(tmp_path / "datasets", images=1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    name = register_data(folder, "whole_images").test[0]
    words = ["MODEL.CLIP.WEIGHTS", "mini", "TEST.REGIONS.TEMPLATES", "single", "OUTPUT_DIR"]
    words += [tmp_path, "DATASETS.TEST", (name, "coco_2017_val_panoptic")]
    reader = ["TEST.REGIONS.READ", ("boxes",), "TEST.REGIONS.SIZES", (64,)]
    results, _ = evaluated(*words, *reader, config="mini/regions")
    assert [("boxes.thing.top1" in numbers[64]) for numbers in results.values()] == [False, True]
    alone, _ = evaluated(*words[:-1], (name,), config="mini/whole_images")
    assert results[name] == alone[name]
    with pytest.raises(InputError, match='"coco_2017_val_panoptic", which has regions, and Image'):
        evaluated(*words, config="mini/whole_images")
    cfg = load_config("mini/regions", ["DATASETS.DATA", str(folder), *map(str, words[:-2])])
    with pytest.raises(InputError, match="name panoptic data there, --data has images to train on"):
        evaluate(with_data(cfg, lambda key: key != "DATASETS.TEST")[0], resume=False)


def test_subjects_of_mini_are_the_same_each_time_and_have_their_classs_name(tmp_path):
    draw_subjects(tmp_path, 1)
    files = sorted(tmp_path.rglob("*.jpg"))
    names = {thing.names[0].replace(" ", "_") for thing in WORLDS["mini"].things}
    assert {file.parent.name for file in files} == names and len(files) == 36
    first = files[5].read_bytes()
    files[5].unlink()
    draw_subjects(tmp_path, 1)
    assert files[5].read_bytes() == first
