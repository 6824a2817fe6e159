"""Every key is either read somewhere or listed as one without effect, of which known values pass."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.projects.deeplab import add_deeplab_config

import clipself_seg
from clipself_seg import models
from clipself_seg.config import add_clipself_seg_config, flatten, load_config
from clipself_seg.config.checks import ARCHITECTURES, UNFOLLOWED, unfollowed
from clipself_seg.errors import InputError
from clipself_seg.models.cat_seg import config as cat_seg_config


def all_keys() -> dict[str, object]:
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    return dict(flatten(cfg))


DEFAULTS = all_keys()
SECTIONS = {key.rsplit(".", depth)[0] for key in DEFAULTS for depth in range(1, key.count(".") + 1)}
# Another value of the same type, for every key without effect.
OTHERS = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5}
OTHERS |= {str: lambda v: v + "x", list: lambda v: [*v, "x"], tuple: lambda v: (*v, "x")}


def other(value):
    return 0.5 if value is None else OTHERS[type(value)](value)


def full_name(node: ast.expr, sections: dict[str, str]) -> str | None:
    """Name below ``cfg`` of an expression such as ``cfg.MODEL.CLIP``, or ``clip`` that is assigned it."""
    if isinstance(node, ast.Attribute):
        if node.attr == "cfg":  # self.cfg
            return ""
        inner = full_name(node.value, sections)
        return None if inner is None else f"{inner}.{node.attr}".removeprefix(".")
    return sections.get(node.id) if isinstance(node, ast.Name) else None


def keys_read(source: str) -> set[str]:
    """Keys that Python source reads as attributes of ``cfg`` or of a section that it gives a name."""
    nodes = list(ast.walk(ast.parse(source)))
    # What hands on a section calls it by its name.
    sections = {"cfg": "", "solver": "SOLVER"}
    for node in (node for node in nodes if isinstance(node, ast.Assign)):
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts))
        for name, section in pairs:
            if isinstance(name, ast.Name) and full_name(section, sections) in SECTIONS:
                sections[name.id] = full_name(section, sections)
    return DEFAULTS.keys() & {
        full_name(node, sections)
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_the_scan_sees_attributes_sections_and_no_assignments():
    source = (
        "head, amp = cfg.MODEL.CLIP, self.cfg.SOLVER.AMP\ncfg.SEED = 1\nhead.NAME, amp.DTYPE, cfg.X"
    )
    assert keys_read(source) == {"MODEL.CLIP.NAME", "SOLVER.AMP.DTYPE"}


def test_every_key_is_read_or_listed_as_without_effect():
    files = Path(clipself_seg.__file__).parent.rglob("*.py")
    read = set().union(*(keys_read(file.read_text()) for file in files))
    # CAT-Seg's guidance backbones, registered with the model.
    assert cat_seg_config.BACKBONE_REGISTRY is BACKBONE_REGISTRY
    for name in ("build_resnet_backbone", "build_resnet_deeplab_backbone"):
        read |= keys_read(inspect.getsource(BACKBONE_REGISTRY.get(name)))
    listed = {key for key in DEFAULTS if unfollowed(key, "CATSeg")}
    by_one = {key for key in listed if any(unfollowed(key, name) is None for name in ARCHITECTURES)}
    assert not read & (listed - by_one)
    assert not DEFAULTS.keys() - read - listed


def test_keys_without_effect_are_added_only_where_cat_segs_files_name_them():
    added = DEFAULTS.keys() - dict(flatten(get_cfg())).keys()
    head = "MODEL.SEM_SEG_HEAD."
    assert {key for key in added if unfollowed(key, "CATSeg")} == {
        *(f"{head}PROMPT_DEPTH", f"{head}PROMPT_LENGTH"),
        *(f"{head}TRAIN_CLASS_INDEXES", f"{head}TEST_CLASS_INDEXES"),
        *("MODEL.CLIP_PIXEL_MEAN", "MODEL.CLIP_PIXEL_STD", "MODEL.PROMPT_ENSEMBLE"),
        *("DATASETS.VAL_ALL", "INPUT.DATASET_MAPPER_NAME"),
        *("SOLVER.OPTIMIZER", "SOLVER.POLY_LR_POWER", "SOLVER.POLY_LR_CONSTANT_ENDING"),
    }


def test_every_entry_covers_a_key_and_no_key_has_two():
    covering = [[entry.key for entry in UNFOLLOWED if entry.covers(key)] for key in DEFAULTS]
    assert all(len(entries) <= 1 for entries in covering)
    assert {name for entries in covering for name in entries} == {e.key for e in UNFOLLOWED}


def test_the_architectures_are_the_projects():
    ours = {
        name for name, model in META_ARCH_REGISTRY if model.__module__.startswith(models.__name__)
    }
    assert set(ARCHITECTURES) == ours


def test_one_architecture_follows_what_the_others_do_not():
    wanted = ["MODEL.RPN.NMS_THRESH", "0.6", "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"]
    cfg = load_config(None, ["MODEL.META_ARCHITECTURE", "StockRPN", *wanted])
    assert (cfg.MODEL.RPN.NMS_THRESH, cfg.MODEL.PIXEL_MEAN) == (0.6, [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="MODEL.MASK_ON must be False"):
        load_config(None, ["MODEL.META_ARCHITECTURE", "StockRPN", "MODEL.MASK_ON", "True"])


@pytest.mark.parametrize(
    # Of CUDNN_BENCHMARK both values pass.
    "key",
    [key for key in DEFAULTS if unfollowed(key, "CATSeg") and key != "CUDNN_BENCHMARK"],
)
def test_another_value_is_refused_by_name(key):
    default, wrong = DEFAULTS[key], other(DEFAULTS[key])
    with pytest.raises(
        InputError, match=r"^the command line: .* must be .*; leave it out$"
    ) as caught:
        load_config(None, [key, str(wrong)])
    message = str(caught.value)
    assert f"{key} must be {default!r}" in message and f"got {wrong!r}" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [(entry.key, value) for entry in UNFOLLOWED for value in entry.published],
)
def test_published_values_pass(key, value):
    assert dict(flatten(load_config(None, [key, str(value)])))[key] == value


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "'value' or 'full_model'.* over all param"),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "inf", "must be 2.0.* Euclidean norm"),
        ("INPUT.RANDOM_FLIP", "none", "the task decides whether training images are flipped"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "each epoch takes the images"),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "the data set decides"),
        ("SOLVER.BIAS_LR_FACTOR", "2", "biases learn at the rate of the other parameters"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.0", "must be None, got 0.0"),
        ("MODEL.PROMPT_ENSEMBLE", "True", "MODEL.PROMPT_ENSEMBLE_TYPE names the sentences"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "150", "must be 54 or 171, got 150: the vocabulary"),
        ("MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]", "normalised as their CLIP"),
        ("TEST.AUG.ENABLED", "True", "neither flipped nor resized"),
        ("VERSION", "1", "files of older versions are not converted"),
    ],
)
def test_the_message_says_what_happens_instead(key, value, instead):
    with pytest.raises(InputError, match=instead):
        load_config(None, [key, value])


def test_the_file_that_sets_the_value_is_named_and_the_command_line_overrides_it(tmp_path):
    (tmp_path / "first.yaml").write_text("SOLVER: {NESTEROV: True}\n")
    (tmp_path / "second.yaml").write_text("SEED: 2\n")
    (tmp_path / "bases.yaml").write_text("_BASE_: [first.yaml, second.yaml]\n")
    run = tmp_path / "run.yaml"
    run.write_text("_BASE_: bases.yaml\nSEED: 1\n")
    with pytest.raises(InputError, match="^.*first.yaml: SOLVER.NESTEROV must be False, got True"):
        load_config(run)
    with pytest.raises(InputError, match="^the command line: SOLVER.NESTEROV must be False"):
        load_config(run, ["SOLVER.NESTEROV", "True"])
    assert not load_config(run, ["SOLVER.NESTEROV", "False"]).SOLVER.NESTEROV
    run.write_text("_BASE_: bases.yaml\nSOLVER: {MOMENTUM: 0.5, NESTEROV: False}\n")
    with pytest.raises(InputError, match="^.*run.yaml: SOLVER.MOMENTUM must be 0.9, got 0.5"):
        load_config(run)


def test_keys_of_the_model_and_its_input_are_left_to_an_architecture_of_others():
    other_model = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]
    of_model = ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "INPUT.MASK_FORMAT", "bitmask"]
    assert load_config(None, other_model + of_model).MODEL.ROI_HEADS.NUM_CLASSES == 2
    with pytest.raises(InputError, match="SOLVER.MOMENTUM must be 0.9"):
        load_config(None, [*other_model, "SOLVER.MOMENTUM", "0.5"])


def test_defaults_pass_as_a_run_has_written_them(tmp_path):
    (tmp_path / "config.yaml").write_text(load_config(None).dump())
    assert dict(flatten(load_config(tmp_path / "config.yaml"))).keys() == DEFAULTS.keys()


def test_the_configuration_of_an_earlier_run_loads_again(tmp_path):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_clipself_seg_config(cfg)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    assert "ASPP_DILATIONS" in path.read_text()
    assert load_config(path).MODEL.META_ARCHITECTURE == cfg.MODEL.META_ARCHITECTURE
    path.write_text("MODEL: {SEM_SEG_HEAD: {ASPP_CHANNELS: 512}}")
    with pytest.raises(InputError, match="unknown key .*ASPP_CHANNELS"):
        load_config(path)


@pytest.mark.parametrize(
    "key, default, other",
    [("SIMILARITY", '""', "wordnet"), ("NAMING", "False", "True"), ("SYNONYMS", "0", "5")],
)
def test_numbers_that_are_gone_pass_at_their_defaults_alone(tmp_path, key, default, other):
    path = tmp_path / "config.yaml"
    path.write_text(f"TEST: {{NUMBERS: {{{key}: {default}}}}}")
    load_config(path)
    path.write_text(f"TEST: {{NUMBERS: {{{key}: {other}}}}}")
    with pytest.raises(InputError, match=f"TEST.NUMBERS.{key}"):
        load_config(path)


def test_numbers_of_pixels_are_refused_for_models_of_regions_and_boxes():
    for model in ("CLIPSelf", "RegionReader", "FViT"):
        with pytest.raises(InputError, match="TEST.NUMBERS.BOUNDARY"):
            load_config(None, ["MODEL.META_ARCHITECTURE", model, "TEST.NUMBERS.BOUNDARY", "True"])
    load_config(None, ["MODEL.META_ARCHITECTURE", "CATSeg", "TEST.NUMBERS.BOUNDARY", "True"])
