"""Which model a name, a file or a folder means, before anything heavy is imported."""

import itertools
from pathlib import Path

import pytest
import torch

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.checkpoints.zoo import MINI_CLIP, zoo
from clipself_seg.choice import (
    DEFAULTS,
    FIRST,
    TASKS,
    TRAINED,
    ModelChoice,
    find_clip,
    find_distillation,
    find_model,
    list_models,
)
from clipself_seg.clip import CLIP, find_kind, load_clip, save_clip
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from tests.clip.test_published_files import mini_of_transformers
from tests.conftest import ROOT


def test_without_a_name_each_task_has_a_model_of_photographs_that_can_be_fetched():
    for task in TASKS:
        assert find_model(None, task) == find_model(DEFAULTS[task], task)
        assert zoo()[DEFAULTS[task]].addresses
        assert find_model(TRAINED[task]).task == task
    assert find_model().weights == "catseg-base"
    assert find_model().config_file == "semseg/catseg+openai_vitb16"


@pytest.mark.parametrize("task", TASKS)
def test_mini_is_the_shipped_model_of_the_task(task):
    assert find_model("mini", task).task == task
    assert find_model(find_model("mini", task).weights) == find_model("mini", task)


def test_a_clip_alone_segments_without_training():
    key = "MODEL.CLIP.WEIGHTS"
    mini = ModelChoice("semantic", "mini/zero_shot", "mini-clipself", key=key, clip="ViT-Mini-8")
    assert find_model("mini-clipself") == mini
    distilled = find_model("clipself-eva02-vitb16-coco-patches")
    assert distilled.config_file == "zero_shot/base"
    assert distilled.opts == ("MODEL.CLIP.NAME", "EVA02-B-16")
    assert find_model("ViT-B-16-SigLIP2:webli").config_file == "zero_shot/base+siglip2_vitb16"


def test_windows_are_whole_patches_of_every_clip():
    clips = {entry.model: name for name, entry in zoo().items() if entry.model}
    for clip, name in clips.items():
        choice, patch = find_model(name), find_architecture(clip).signature.patch_size
        window = load_config(choice.config_file, choice.opts).MODEL.ZERO_SHOT.WINDOW
        assert window % patch == 0, name
        load_config(find_distillation(name).config_file, find_distillation(name).opts)


def test_a_clip_alone_names_the_masks_of_another_model():
    key, name = "MODEL.CLIP.WEIGHTS", ("MODEL.CLIP.NAME", "TIPSv2-L-14")
    masks = ("MODEL.MASK_GENERATOR.OUTPUTS", "eomt")
    own = ("MODEL.CLIP_BRANCH.WEIGHTS", "")
    config = "panoptic/masks+tipsv2_vitb14"
    opts = (*name, *own, *masks)
    wanted = ModelChoice("panoptic", config, "tipsv2-l14", opts, key, "TIPSv2-L-14")
    assert find_model("tipsv2-l14", "panoptic") == wanted
    assert find_model("tipsv2-l14", "detection") == wanted._replace(task="detection")
    assert wanted.score_key == "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"
    distilled = find_model("clipself-eva02-vitb16-coco-patches", "panoptic")
    assert distilled.config_file == "panoptic/masks+openai_vitb16"
    mini = ModelChoice("panoptic", "mini/panoptic_masks", "mini-clipself", own, key, "ViT-Mini-8")
    assert find_model("mini-clipself", "panoptic") == mini
    values = wanted.values(["MODEL.MASK_GENERATOR.OUTPUTS", "sam2"])
    assert values["MODEL.MASK_GENERATOR.SOURCE"] == "masks" and values[key] == "tipsv2-l14"
    assert values["MODEL.MASK_GENERATOR.OUTPUTS"] == "sam2"
    assert values["MODEL.CLIP_BRANCH.TEMPLATES"] == "tcl9"


def test_a_clip_is_read_by_its_name_or_by_the_run_that_it_lies_in(tmp_path: Path):
    names = ("mini", "mini-clipself", "eva02-vitb16", "clipself-eva02-vitb16-coco-patches")
    assert [find_clip(name)[0] for name in names] == ["ViT-Mini-8"] * 2 + ["EVA02-B-16"] * 2
    weights = tmp_path / "clip_final.safetensors"
    weights.touch()
    (tmp_path / "config.yaml").write_text("MODEL:\n  CLIP:\n    NAME: ViT-B-16\n")
    assert find_clip(str(weights)) == find_clip(str(tmp_path)) == ("ViT-B-16", str(weights))
    with pytest.raises(InputError, match="catseg-base is a model for semantic, and no CLIP alone"):
        find_clip("catseg-base")


def test_a_run_is_read_by_its_own_configuration(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("MODEL:\n  META_ARCHITECTURE: FViT\n")
    weights = tmp_path / "model_final.pth"
    weights.touch()
    wanted = ModelChoice("detection", str(tmp_path / "config.yaml"), str(weights))
    assert find_model(weights) == find_model(tmp_path) == wanted
    text = "MODEL:\n  META_ARCHITECTURE: CLIPSelf\n  CLIP:\n    NAME: ViT-Mini-8\n"
    (tmp_path / "config.yaml").write_text(text)
    key, clip = "MODEL.CLIP.WEIGHTS", "ViT-Mini-8"
    wanted = ModelChoice("semantic", "mini/zero_shot", str(weights), key=key, clip=clip)
    assert find_model(weights) == wanted


def test_a_file_alone_is_of_the_clip_that_it_names_or_of_openais_by_its_sizes(tmp_path: Path):
    clip = load_clip("mini-large")
    save_clip(clip, tmp_path / "own.pt")
    content = clip.file_tensors(clip.state_dict())
    torch.save(content | {"input_resolution": torch.tensor(64)}, tmp_path / "openai.pt")
    for file in ("own.pt", "openai.pt"):
        path = str(tmp_path / file)
        choice = find_model(path)
        assert (choice.clip, choice.weights) == ("ViT-Mini-L-8", path) == find_clip(path)
    # It was distilled for no dense feature.
    assert load_clip("ViT-Mini-L-8", path, dense=DenseFeature("value")).quick_gelu
    release = {"epoch": 6, "name": "test_1", "state_dict": content}
    torch.save(release, tmp_path / "clipself.pt")
    said = r"zero_shot/base\+openai_vitb16 of a CLIP alone, with --opts MODEL.CLIP.DENSE_OVERRIDE True of"
    with pytest.raises(InputError, match=said):
        find_model(tmp_path / "clipself.pt")
    with pytest.raises(InputError, match="--clip-name ViT-B-16"):
        find_clip(str(tmp_path / "clipself.pt"))


def test_a_file_of_openai_is_of_the_model_with_its_number_of_positions(tmp_path: Path, monkeypatch):
    small = find_architecture("ViT-Mini-L-8")
    config = {"embed_dim": small.embed_dim, "text_cfg": small.text}
    config["vision_cfg"] = small.vision | {"image_size": small.vision["image_size"] + 8}
    monkeypatch.setitem(find_kind._configs(), "ViT-Mini-L-8-wider", config)
    clip = CLIP(architecture=find_architecture("ViT-Mini-L-8-wider"), quick_gelu=True)
    content = clip.file_tensors(clip.state_dict()) | {"input_resolution": torch.tensor(72)}
    torch.save(content, tmp_path / "openai.pt")
    assert find_model(tmp_path / "openai.pt").clip == "ViT-Mini-L-8-wider"
    with pytest.raises(InputError, match='load it as "ViT-Mini-L-8-wider"'):
        load_clip("ViT-Mini-8", tmp_path / "openai.pt")
    content["visual.positional_embedding"] = torch.zeros(1 + 7 * 7, clip.visual.width)
    torch.save(content, tmp_path / "openai.pt")
    with pytest.raises(InputError, match="name its configuration"):
        find_model(tmp_path / "openai.pt")


def test_what_cannot_be_meant_is_refused_in_a_sentence(tmp_path: Path):
    for file in ("model.pth", "model_base.pth"):
        torch.save({"bias": torch.zeros(1)}, tmp_path / file)
    for given, says in [
        (("catseg-bse",), 'did you mean "catseg-base"'),
        (("catseg-base", "panoptic"), "catseg-base does semantic: leave out the task panoptic"),
        (("catseg-base", "boxes"), 'unknown task "boxes"'),
        (("catseg-base", "instance"), r"detection: boxes and masks of instances\)"),
        (
            ("sam",),
            f'no model "sam": choose from: {", ".join(FIRST)}, .*such as sam2, goes with --masks',
        ),
        (("sam2",), "sam2 is a part of a model, which --masks takes"),
        (
            (tmp_path / "model_base.pth",),
            "the name of the official file of catseg-base: put it into",
        ),
        (("nowhere/model.pth",), "no checkpoint at nowhere/model.pth"),
        ((tmp_path / "model.pth",), "has no config.yaml beside it"),
        ((tmp_path,), "has no config.yaml in it"),
        (
            (None, None, "regions/coco+eva02_vitb16"),
            "is of RegionReader, which predicts nothing.*docs/add_your_own.md",
        ),
    ]:
        with pytest.raises(InputError, match=says):
            find_model(*given)


def test_a_folder_of_transformers_is_the_clip_of_its_file(tmp_path: Path):
    theirs = mini_of_transformers()
    theirs.save_pretrained(tmp_path)
    assert find_model(tmp_path).clip == MINI_CLIP
    assert find_model(tmp_path) == find_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "hf-hub:laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
            "the official weights of ViT-B-16:laion2b_s34b_b88k: give that name",
        ),
        ("QuanSun/EVA-CLIP", "of eva02-vitb16 or eva02-vitl14 or eva02-vitl14-336: give that name"),
        ("facebook/sam2.1-hiera-large", "finds masks, and names none: give it as --masks"),
        ("facebook/sam2.1-hiera-tiny@main", "finds masks, and names none: give it as --masks"),
        (
            "openai/clip-vit-base-patch32",
            "no folder openai/.*save_pretrained.* zero_shot/base.openai_vitb16 --model hf-hub:openai/c",
        ),
        ("hf-hub:google/siglip2-base-patch16-224", "save_pretrained; .*--model hf-hub:google/sig"),
    ],
)
def test_a_repository_that_others_published_is_said_with_what_to_give(
    given, says, tmp_path, monkeypatch
):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=says):
        find_model(given)


def test_an_official_file_in_the_folder_of_weights_is_the_model_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    (tmp_path / "model_base.pth").touch()
    assert find_model(tmp_path / "model_base.pth") == find_model("catseg-base")
    assert find_model("ViT-B-16:openai") == find_model("openai-vitb16")  # as open_clip names them


def test_the_models_to_begin_with_are_those_of_the_readme():
    lines = (ROOT / "README.md").read_text("utf-8").partition("| may I ship it? |")[2].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[1:])
    assert [row.split("`")[1] for row in rows if "`" in row] == [*FIRST]


def test_every_model_of_the_zoo_has_a_task():
    for entry in zoo().values():
        if entry.key in ("MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS"):
            assert find_model(entry.name).task in TASKS


def test_models_of_no_task_are_not_listed_in_silence():
    assert "mini-fvit" in list_models("detection")
    with pytest.raises(InputError, match='unknown task "boxes"'):
        list_models("boxes")
