"""A backbone of somebody else's, docs/examples/my_backbone.py, runs every task of the mini world by one key."""

import argparse
import copy
import json
import math
import pickle
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

import clipself_seg
from clipself_seg import __main__, imports
from clipself_seg.clip import TextBank, load_clip, save_clip
from clipself_seg.clip.backbone import CLIPBackbone, build_clip, load_backbone
from clipself_seg.clip.model import whole_image_features
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models.build import build_model
from clipself_seg.prediction.dense_maps import load_models
from clipself_seg.prediction.task_predictors import SemanticPredictor
from tests.conftest import ROOT
from tests.tiny import small_worlds

FILE = str(ROOT / "docs" / "examples" / "my_backbone.py")
LAST_BLOCK = FILE.replace("my_backbone", "my_last_block")
KEY = "MODEL.CLIP.BACKBONE"
MINE = (KEY, "MyBackbone")
FROZEN = ("MODEL.SEM_SEG_HEAD.CLIP_FINETUNE", "none")
STEPS = ("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2")


@pytest.fixture(scope="module", autouse=True)
def typed(tmp_path_factory):
    """The file as `--import` names it, and small worlds."""
    folder = tmp_path_factory.mktemp("worlds")
    with pytest.MonkeyPatch.context() as patch, small_worlds(folder, 4, 2, 4, seed=5):
        patch.setenv(imports.VARIABLE, f"{FILE}:{LAST_BLOCK}")
        load_config(None)
        yield


def mini(name, *opts, backbone="MyBackbone"):
    return load_config(ROOT / f"configs/mini/{name}.yaml", [KEY, backbone, *opts])


def numbers(results):
    """All numbers of nested results."""
    if isinstance(results, dict):
        return [number for value in results.values() for number in numbers(value)]
    return [results] if isinstance(results, float) else []


@pytest.mark.parametrize(
    "config, words",
    [
        ("regions", ("--eval-only", "TEST.REGIONS.TEMPLATES", "single")),
        ("zero_shot", ("--eval-only", "MODEL.ZERO_SHOT.TEMPLATES", "single")),
        ("semseg", (*STEPS, *FROZEN)),
        ("panoptic", (*STEPS, "MODEL.CLIP_BRANCH.TEMPLATES", "vild14")),
        ("detection", STEPS),
        ("patches", (*STEPS, "TEST.REGIONS.TEMPLATES", "single")),
    ],
)
def test_each_task_runs_by_the_key(config, words, tmp_path):
    typed = ["--import", FILE, "--config-file", f"configs/mini/{config}.yaml", *words]
    opts = [*MINE, "OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "0"]
    assert train.main([*typed, *opts]) == 0
    results = numbers(json.loads((tmp_path / "results.json").read_text())["results"])
    assert results and all(map(math.isfinite, results))


def test_masks_are_named_by_its_dense_features_and_not_by_attention():
    assert build_model(mini("panoptic_masks")).branch.clip.name == "MyBackbone"
    with pytest.raises(InputError, match="MyBackbone has no masked attention"):
        build_model(mini("panoptic_masks", "MODEL.CLIP_BRANCH.KIND", "masked_attention"))


class Stages(Backbone):
    """A convolutional backbone with maps of strides 4 to 32, a projection, and texts of its own."""

    mean, std, image_size = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 64

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.stages = torch.nn.ModuleList(
            torch.nn.Conv2d(before, after, side, side)
            for before, after, side in ((3, 32, 4), (32, 64, 2), (64, 64, 2), (64, 128, 2))
        )
        self.project = torch.nn.Conv2d(128, 128, 1)

    def forward(self, images):
        features = {}
        for index, stage in enumerate(self.stages):
            images = features[f"block{index}"] = stage(images).relu()
        return features | {"dense": self.project(images)}

    def output_shape(self):
        widths = zip((32, 64, 64, 128), (4, 8, 16, 32))
        shapes = {f"block{i}": ShapeSpec(channels=c, stride=s) for i, (c, s) in enumerate(widths)}
        return shapes | {"dense": ShapeSpec(channels=128, stride=32)}

    def encode_text(self, texts):
        return torch.stack([torch.arange(128.0).mul(len(text)).cos() for text in texts])

    def encode_image(self, images):
        return self(images)["dense"].mean(dim=(2, 3))


ONE_TOWER = ("MODEL.CLIP_BRANCH.KIND", "backbone", "MODEL.CLIP_BRANCH.INPUT_SIZE", "0")
ONE_TOWER += ("MODEL.CLIP_BRANCH.WEIGHTS", "")


@pytest.mark.parametrize(
    "config, backbone, source",
    [
        ("panoptic_plain", "MyBackbone", "blocks"),
        ("panoptic", "MyBackbone", "pyramid"),
        ("panoptic", "Stages", "clip"),
        ("zero_shot", "Stages", ""),
        ("regions", "Stages", ""),
    ],
)
@torch.no_grad()
def test_one_tower_makes_masks_and_names_them(config, backbone, source, monkeypatch):
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "Stages", Stages)
    opts = (*ONE_TOWER, "MODEL.MASK_GENERATOR.SOURCE", source) if source else ()
    model = build_model(mini(config, *opts, "TEST.PRECISION", "float32", backbone=backbone)).eval()
    model.set_vocabulary(["red star", "grass", "sand"])
    region = {"boxes": torch.tensor([[0.0, 0.0, 0.5, 1.0]]), "crops": torch.zeros(1, 3, 64, 64)}
    region |= {"masks": torch.ones(1, 4, 4, dtype=torch.bool)} if config == "regions" else {}
    (result,) = model([{"image": torch.randint(256, (3, 128, 128), dtype=torch.uint8), **region}])
    assert result


def test_what_trains_is_what_its_groups_say():
    cat_seg = build_model(mini("semseg", "MODEL.SEM_SEG_HEAD.CLIP_FINETUNE", "full"))
    trained = {name for name, p in cat_seg.clip.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("backbone.blocks.") for name in trained)
    assert not any(p.requires_grad for p in build_model(mini("semseg", *FROZEN)).clip.parameters())
    with pytest.raises(InputError, match="CLIP_FINETUNE is attention, and MyBackbone"):
        build_model(mini("semseg"))


def test_texts_follow_the_weights():
    model = build_model(mini("zero_shot"))
    before = model.bank.embed(["red star", "grass"])
    assert torch.equal(before, model.bank.embed(["red star", "grass"]))
    torch.testing.assert_close(before.norm(dim=1), torch.ones(2))
    with torch.no_grad():
        model.clip.text_weights.ln_final.weight.neg_()
    assert not torch.allclose(before, model.bank.embed(["red star", "grass"]))


@pytest.mark.parametrize("config, opts", [("semseg", FROZEN), ("detection", ())])
def test_a_checkpoint_loads_again(config, opts, tmp_path):
    model = build_model(mini(config, *opts))
    model.export(tmp_path / "model.pth")
    others = (*opts, "SEED", "3")
    loaded = build_model(mini(config, *others, "MODEL.WEIGHTS", str(tmp_path / "model.pth")))
    fresh = build_model(mini(config, *others))
    assert loaded.weights_hash() == model.weights_hash() != fresh.weights_hash()


def test_a_folder_names_what_the_caller_has_imported(tmp_path, monkeypatch):
    build_model(mini("semseg", *FROZEN)).export(tmp_path / "model.pth")
    predictor = SemanticPredictor(
        mini("semseg", *FROZEN, "MODEL.WEIGHTS", str(tmp_path / "model.pth"))
    )
    predictor.set_vocabulary("red star, grass")
    predictor.save_pretrained(tmp_path / "mine")
    assert clipself_seg.load(tmp_path / "mine").model.clip.name == "MyBackbone"
    monkeypatch.delenv(imports.VARIABLE)
    monkeypatch.delitem(BACKBONE_REGISTRY._obj_map, "MyBackbone")
    with pytest.raises(InputError, match=f'{KEY} "MyBackbone" is not in BACKBONE_REGISTRY'):
        clipself_seg.load(tmp_path / "mine")


class Small(Backbone):
    """A backbone with one feature, and neither embeddings of images nor groups."""

    mean, std, image_size = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 32

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 4, 8, 8)

    def forward(self, images):
        return {"dense": self.patches(images)}

    def output_shape(self):
        return {"dense": ShapeSpec(channels=4, stride=8)}

    def encode_text(self, texts):
        return torch.tensor([[len(text), 1.0, 2.0, 3.0] for text in texts])


@pytest.fixture
def small(monkeypatch):
    """`Small`, whose members a test may change, as an entry."""
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "Small", type("Small", (Small,), {}))
    return BACKBONE_REGISTRY.get("Small")


def test_dense_features_alone_are_enough_without_training(small):
    clip = build_clip(load_config(None, [KEY, "Small"]))
    assert clip.embed_dim == 4 and clip.patch_size == 8
    copied = copy.deepcopy(clip)
    assert torch.equal(copied.encode_text(["a", "bb"]), clip.encode_text(["a", "bb"]))
    assert clip.encode_dense(torch.zeros(1, 3, 16, 24)).shape == (1, 4, 2, 3)


def test_the_factor_of_cosines_is_its_own(small, monkeypatch):
    assert build_clip(load_config(None, [KEY, "Small"])).similarity_scale.item() == pytest.approx(
        100
    )
    monkeypatch.setattr(small, "scale", 250, raising=False)
    assert build_clip(load_config(None, [KEY, "Small"])).similarity_scale.item() == pytest.approx(
        250
    )


def test_a_file_of_its_own_kind_reaches_an_entry_that_reads_the_key(small, tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("detectron2.pkl", "program.pt", "settings.pth")]
    files[0].write_bytes(pickle.dumps({"model": {"a": np.zeros(2)}, "__author__": "Detectron2"}))
    torch.jit.script(torch.nn.Linear(2, 2)).save(files[1])
    torch.save({"args": argparse.Namespace(depth=2)}, files[2])
    for file in files:
        with pytest.raises(InputError):
            load_backbone("Small", file)
    monkeypatch.setattr(small, "reads", ("MODEL.CLIP.WEIGHTS",), raising=False)
    for file in files:
        assert load_backbone("Small", file).start == str(file)


LACKS = {
    "regions": "Small has no encode_image, embeddings of whole images and of crops",
    "patches": "Small has no layer_groups, groups of parameters",
    "panoptic": 'no feature "block-1" in this image tower',
    "detection": 'no feature "block0" in this image tower',
    "semseg": "TEXT_GUIDANCE_DIM must be 4",
}


@pytest.mark.parametrize("config", LACKS)
def test_what_a_task_needs_and_the_entry_lacks_is_named(config, small, tmp_path):
    opts = ("OUTPUT_DIR", str(tmp_path), *(FROZEN if config == "semseg" else ()))
    with pytest.raises(InputError, match=LACKS[config]):
        build_model(mini(config, *opts, backbone="Small")).check_readouts([64], ["crops"])


@pytest.mark.parametrize(
    "member, value, message",
    [
        ("encode_text", None, "Small has no encode_text"),
        ("mean", None, "Small has no mean"),
        ("output_shape", lambda self: {"p2": ShapeSpec(channels=4, stride=4)}, 'no "dense"'),
        ("encode_text", lambda self, texts: torch.zeros(len(texts), 3), "texts of 3 numbers"),
    ],
)
def test_an_entry_that_is_no_clip_is_refused(member, value, message, small, monkeypatch):
    if value is None:
        monkeypatch.delattr(Small, member)
    else:
        monkeypatch.setattr(small, member, value)
    with pytest.raises(InputError, match=message):
        build_clip(load_config(None, [KEY, "Small"]))


@pytest.mark.parametrize(
    "opts",
    [
        ("MODEL.CLIP.NAME", "ViT-B-16"),
        ("MODEL.CLIPSELF.STUDENT_WEIGHTS", "mini-clipself"),
        ("MODEL.CLIP_BRANCH.WEIGHTS", "mini-clipself"),
    ],
)
def test_keys_of_clip_backbone_are_refused_beside_another_entry(opts, tmp_path):
    with pytest.raises(InputError, match=f"{opts[0]} .* no effect: CLIPBackbone alone"):
        load_config(ROOT / "configs/mini/patches.yaml", [*MINE, *opts])
    sections = opts[0].split(".")
    file = tmp_path / "own.yaml"
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    file.write_text("\n".join(lines) + f" {opts[1]}\n")
    with pytest.raises(InputError, match=f"own.yaml: {opts[0]} .* no effect: CLIPBackbone alone"):
        load_config(file, MINE)


def test_shipped_values_of_clip_backbone_give_way_and_a_dumped_file_is_read_again(tmp_path):
    cfg = mini("detection")
    assert (cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS) == ("", "")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = load_config(tmp_path / "config.yaml")
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_shipped_values_that_another_entry_does_not_read_are_said(caplog):
    mini("semseg", *FROZEN, "MODEL.CLIP.WEIGHTS", "mini-clipself", backbone="MyLastBlock")
    (said,) = (one.message for one in caplog.records if "reset" in one.message)
    assert "MODEL.CLIP.VISUAL_INIT 'mini-clipself-proposals'" in said and "CLIP.WEIGHTS" not in said
    assert "MODEL.CLIP.BACKBONE is MyLastBlock, whose attribute `reads` does not name it" in said
    caplog.clear()
    load_config(None, MINE)
    assert not caplog.records  # defaults, which no file sets


COCO = "regions/coco+openai_vitb16"


def test_an_entry_that_does_not_say_what_it_reads_is_given_no_clip_by_mistake(small, monkeypatch):
    def init(self, cfg, input_shape):
        load_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS or None)

    monkeypatch.setattr(small, "__init__", init)
    with pytest.raises(InputError, match='"" is no CLIP model'):
        build_clip(load_config(COCO, [KEY, "Small"]))
    monkeypatch.setattr(small, "reads", ("MODEL.CLIP.NAME",), raising=False)
    assert load_config(COCO, [KEY, "Small"]).MODEL.CLIP.NAME == "ViT-B-16-quickgelu"


def test_the_example_changes_dense_features_alone(tmp_path):
    mine = build_clip(mini("zero_shot", backbone="MyLastBlock"))
    plain = load_clip("ViT-Mini-8", "mini")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(mine.encode_image(images), plain.encode_image(images))
        assert not torch.allclose(mine.encode_dense(images), plain.encode_dense(images), atol=1e-2)
    with pytest.raises(InputError, match="MODEL.CLIP.DENSE .* MyLastBlock, whose .* `reads`"):
        mini("zero_shot", "MODEL.CLIP.DENSE", "value", backbone="MyLastBlock")
    predictor = SemanticPredictor(mini("zero_shot", backbone="MyLastBlock"))
    predictor.save_pretrained(tmp_path / "folder")
    again = clipself_seg.load(tmp_path / "folder", device="cpu").model.clip
    assert again.name == "MyLastBlock" and again.weights_hash() == mine.weights_hash()


@pytest.fixture
def register(monkeypatch):
    """Registers a subclass of `CLIPBackbone` with other members, for a test."""

    def entry(name, **members):
        cls = type(name, (CLIPBackbone,), members)
        monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, name, cls)
        return cls

    return entry


EVALUATED = {
    "regions": (),
    "zero_shot": (),
    "semseg": ("MODEL.WEIGHTS", "mini-cat-seg"),
    "panoptic": ("MODEL.WEIGHTS", "mini-open-panoptic"),
    "detection": ("MODEL.WEIGHTS", "mini-fvit"),
}


@pytest.mark.parametrize("config", EVALUATED)
def test_a_subclass_with_another_name_alone_is_the_same_to_the_bit(config, register, tmp_path):
    register("SubCLIP")
    results = []
    for name in ("CLIPBackbone", "SubCLIP"):
        typed = ["--config-file", f"configs/mini/{config}.yaml", "--eval-only", KEY, name]
        typed += ["OUTPUT_DIR", str(tmp_path / name), "DATALOADER.NUM_WORKERS", "0"]
        assert train.main([*typed, *EVALUATED[config]]) == 0
        results.append(json.loads((tmp_path / name / "results.json").read_text())["results"])
    assert results[0] == results[1]


@torch.no_grad()
def test_a_subclass_is_read_through_what_it_overrides(register):
    def forward(self, images):
        return {name: -maps for name, maps in CLIPBackbone.forward(self, images).items()}

    def encode_text(self, texts):
        return CLIPBackbone.encode_text(self, texts).flip(0)

    register("Changed", forward=forward, encode_text=encode_text)
    images = torch.rand(1, 3, 64, 64)
    plain, changed = (
        build_clip(mini("zero_shot", backbone=name)) for name in ("CLIPBackbone", "Changed")
    )
    assert torch.equal(
        changed.encode_dense(images), F.normalize(-plain.encode_dense(images), dim=1)
    )
    read = changed.features(images, ["block2", "dense"])
    assert list(read) == ["block2", "dense"]
    assert torch.equal(read["block2"], -plain.features(images, ["block2"])["block2"])
    assert torch.equal(changed.embed_texts(["a", "b"]), plain.encode_text(["b", "a"]))
    assert (
        changed.text_key is None and plain.text_key
    )  # texts by code of its own are not kept on disk
    student = build_model(mini("patches", backbone="Changed")).learner
    assert torch.equal(student.dense(images), changed.dense(images))


def test_a_subclass_that_does_not_return_what_is_read_is_refused(register):
    register("Changed", forward=lambda self, images: {})
    with pytest.raises(InputError, match="Changed returns .*, and no dense, which is to be read"):
        build_clip(mini("zero_shot", backbone="Changed")).dense(torch.rand(1, 3, 64, 64))


def test_what_was_distilled_of_an_entry_is_read_by_the_key_of_weights(tmp_path):
    for name, start in (("MyBackbone", ""), ("MyLastBlock", "mini")):
        model = build_model(mini("patches", backbone=name))
        with torch.no_grad():
            for parameter in model.student.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        file = tmp_path / f"{name}.safetensors"
        model.export(file)
        key = ("MODEL.CLIP.WEIGHTS", str(file))
        for config in ("regions", "zero_shot", "panoptic", "detection"):
            assert build_model(mini(config, *key, backbone=name)).clip.weights_hash() == (
                model.weights_hash()
            )
        clip = load_backbone(name, file)
        assert (
            clip.weights_hash() == model.weights_hash() != load_backbone(name, start).weights_hash()
        )
    with pytest.raises(InputError, match="the backbone MyBackbone loads its own weights"):
        build_clip(mini("zero_shot"), WEIGHTS=str(file))


def test_what_was_distilled_of_an_entry_is_shown_and_its_texts_are_not_exported(tmp_path):
    file = tmp_path / "mine.safetensors"
    save_clip(load_backbone("MyBackbone"), file)
    clips = load_models("MyBackbone", [f"mine={file}"])
    assert whole_image_features(clips["mine"], np.zeros((48, 64, 3), np.uint8), 64).shape[1:] == (
        6,
        8,
    )
    assert TextBank(clips["mine"]).embed("grass").shape == (1, 128)
    with pytest.raises(InputError, match="MyBackbone reads sentences, which no exported graph"):
        clipself_seg.export(clips["mine"], tmp_path / "folder")


def test_the_command_line_gives_its_modules_to_all_processes(monkeypatch, tmp_path):
    monkeypatch.setenv(imports.VARIABLE, "")
    (tmp_path / "first_module.py").write_text("")
    monkeypatch.chdir(tmp_path)
    words = ["train", "--import", "first_module", "SEED", "1", "--import=json.tool"]
    assert imports.take_imports(words) == ["train", "SEED", "1"]
    assert imports.typed_environment() == {
        imports.VARIABLE: f"{tmp_path}/first_module.py:json.tool"
    }
    imports.import_typed_modules()
    assert {"first_module", "json.tool"} <= set(sys.modules)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--import"], "--import takes a module or a file"),
        (["--import", "none.py"], "none.py: there is no such file"),
    ],
)
def test_a_bad_import_is_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setenv(imports.VARIABLE, "")
    assert __main__.main(["eval", *words]) == 2
    assert train.main(words) == 2
    assert capsys.readouterr().err.count(message) == 2


@pytest.mark.parametrize(
    "name, message",
    [
        ("./json.py", "json is another module's name"),
        ("./my-own.py", "my-own is another module's name, or none of a module"),
        ("no_such_module_of_mine", "no_such_module_of_mine: there is no such module"),
    ],
)
def test_what_is_no_module_of_its_own_is_refused(name, message, tmp_path, monkeypatch):
    if name.endswith(".py"):
        name = str(tmp_path / name)
        open(name, "w").close()
    monkeypatch.setenv(imports.VARIABLE, name)
    with pytest.raises(InputError, match=message):
        load_config(None)
