"""Each model declares the keys that it reads, and what somebody wrote that it does not read is refused by name."""

import ast
import inspect
import json
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

import clipself_seg
from clipself_seg import models
from clipself_seg.config import add_clipself_seg_config, load_config
from clipself_seg.config.declare import KEYS, MODELS, is_read, why_unread
from clipself_seg.config.keys import objectives
from clipself_seg.config.semantic_keys import CAT_SEG_UNREAD, PUBLISHED
from clipself_seg.errors import InputError
from clipself_seg.models.cat_seg import cat_seg_config
from clipself_seg.models.distillation import OBJECTIVES
from clipself_seg.yaml_files import find_file, leaves, read_tree
from lab.precompute import stock_rpn


def all_keys() -> dict[str, object]:
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    return dict(leaves(cfg))


ARCHITECTURE = "MODEL.META_ARCHITECTURE"
DEFAULTS = all_keys()
SECTIONS = {key.rsplit(".", depth)[0] for key in DEFAULTS for depth in range(1, key.count(".") + 1)}


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


def test_every_key_of_the_project_is_declared_where_it_is_read():
    files = [*Path(clipself_seg.__file__).parent.rglob("*.py"), Path(stock_rpn.__file__)]
    read = set().union(*(keys_read(file.read_text()) for file in files))
    # CAT-Seg's guidance backbones, registered with the model.
    assert cat_seg_config.BACKBONE_REGISTRY is BACKBONE_REGISTRY
    for name in ("build_resnet_backbone", "build_resnet_deeplab_backbone"):
        read |= keys_read(inspect.getsource(BACKBONE_REGISTRY.get(name)))
    read |= {f"{objectives.name}.{name}" for name in OBJECTIVES}  # by their names
    own = DEFAULTS.keys() - dict(leaves(get_cfg())).keys()
    counted = {key for key in DEFAULTS if any(is_read(key, model) for model in MODELS)}
    assert not read - counted and not own - read and not own - counted


def test_every_model_declares_and_every_condition_is_of_a_key():
    ours = {n for n, model in META_ARCH_REGISTRY if model.__module__.startswith(models.__name__)}
    assert ours == {*MODELS} == {m for key in KEYS.values() for m in key.of} & ours
    assert {key.when[0] for key in KEYS.values() if key.when} <= KEYS.keys()


# Shipped configuration, and what does nothing with it; at least two of every model.
WITHOUT_EFFECT = [
    ("semseg_original", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    ("semseg_original", "SOLVER.STEPS", "(10, 20)"),
    ("semseg_original", "MODEL.FVIT.MASKS", "True"),
    ("semseg_original", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "150"),
    ("zero_shot", "MODEL.CLIP.TRAINABLE_BLOCKS", "1"),
    ("detection", "INPUT.MIN_SIZE_TEST", "100"),
    ("detection", "SOLVER.CLIP_MULTIPLIER", "0.5"),
    ("panoptic", "INPUT.DETECTION.SIDE", "64"),
    ("regions", "INPUT.REGIONS.MAX_SPLIT", "3"),
    ("zero_shot", "TEST.SLIDING_WINDOW", "True"),
]


@pytest.mark.parametrize(("config", "key", "value"), WITHOUT_EFFECT)
def test_what_the_model_does_not_read_is_refused_by_name(config, key, value, tmp_path):
    shipped = f"mini/{config}.yaml"
    message = f"{key} .* has no effect: .*; leave it out$"
    with pytest.raises(InputError, match=f"^the command line: {message}") as caught:
        load_config(shipped, [key, value])
    assert len(str(caught.value).splitlines()) == 1
    # In a file of the user's own, and in one below that; what it says again of a default passes.
    tree: dict = {}
    *sections, name = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"_BASE_": shipped, **tree}))
    (tmp_path / "above.yaml").write_text("_BASE_: own.yaml\nSEED: 1")
    for file in ("own.yaml", "above.yaml"):
        with pytest.raises(InputError, match=f"own.yaml: {message}"):
            load_config(tmp_path / file)
    load_config(tmp_path / "above.yaml", [key, str(DEFAULTS[key])])
    # A run's own config.yaml states all keys.
    cfg = load_config(shipped)
    cfg.defrost()
    cfg.merge_from_list([key, value])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = dict(leaves(load_config(tmp_path / "config.yaml")))
    assert json.dumps(again) == json.dumps(dict(leaves(cfg)))


def test_what_comes_with_the_package_passes_also_from_another_checkout(tmp_path):
    assert why_unread(KEY := "INPUT.REGIONS.STUDENT_SIZE", DEFAULTS, "CATSeg")
    text = read_tree(find_file("mini/semseg_original.yaml"))
    assert text["INPUT"]["REGIONS"]["STUDENT_SIZE"] != DEFAULTS[KEY]
    (tmp_path / "configs" / "mini").mkdir(parents=True)
    copy = tmp_path / "configs" / "mini" / "semseg_original.yaml"
    copy.write_text(yaml.safe_dump(text))
    assert load_config(copy).MODEL.META_ARCHITECTURE == "CATSeg"
    with pytest.raises(InputError, match=KEY):
        load_config(copy.rename(tmp_path / "own.yaml"))


def test_a_model_is_refused_nothing_that_it_reads_with_another_value():
    guided = ["MODEL.CAT_SEG.GUIDANCE", "backbone", "MODEL.BACKBONE.FREEZE_AT", "0"]
    load_config("mini/semseg_original", [*guided, "MODEL.RESNETS.DEPTH", "101"])
    load_config("mini/semseg_original", ["SOLVER.SCHEDULE", "steps", "SOLVER.STEPS", "(1,)"])
    load_config("mini/detection", ["MODEL.FVIT.TRAIN_CLIP", "True", "SOLVER.CLIP_MULTIPLIER", "1"])


def test_a_model_of_another_project_is_refused_what_it_declares_not_to_read(monkeypatch):
    model = [ARCHITECTURE, "GeneralizedRCNN"]
    more = [
        "MODEL.ROI_HEADS.NUM_CLASSES",
        "2",
        "INPUT.MASK_FORMAT",
        "bitmask",
        "TEST.MIOU_RULE",
        "union",
    ]
    assert load_config(None, model + more).MODEL.ROI_HEADS.NUM_CLASSES == 2
    theirs = META_ARCH_REGISTRY.get("GeneralizedRCNN")
    monkeypatch.setattr(theirs, "reads", ("MODEL.ROI_HEADS.", "INPUT.FORMAT"), raising=False)
    with pytest.raises(InputError, match="TEST.MIOU_RULE 'union' has no effect: GeneralizedRCNN"):
        load_config(None, model + more[:2] + more[4:])


@pytest.mark.parametrize(("key", "value"), PUBLISHED.items())
def test_published_values_pass(key, value):
    load_config(None, [ARCHITECTURE, "CATSeg", key, str(value)])


@pytest.mark.parametrize("config", ["mini/semseg", None])
def test_a_key_of_detectron2_that_nothing_reads_is_refused(config):
    with pytest.raises(InputError, match="MOMENTUM 0.5 has no effect: nothing reads it; leave"):
        load_config(config, ["SOLVER.MOMENTUM", "0.5"])


@pytest.mark.parametrize("key", CAT_SEG_UNREAD)
def test_an_unread_key_of_cat_segs_files_passes_with_their_value_alone(key):
    assert key not in DEFAULTS
    for value in CAT_SEG_UNREAD[key]:
        load_config(None, [key, str(value)])
    with pytest.raises(InputError, match=f"^the command line: {key} 'another' has no effect: "):
        load_config(None, [key, "another"])
