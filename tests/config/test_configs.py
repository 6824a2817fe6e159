"""Every file below configs/ names things that exist, and takes a step or reads an image."""

import json
from pathlib import Path

import open_clip
import pytest
from detectron2.config import CfgNode

from clipself_seg.checkpoints.zoo import SHIPPED_TAGS, zoo
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.config import load_config
from clipself_seg.config.declare import why_unread
from clipself_seg.config.weight_checks import WEIGHTS
from clipself_seg.data.datasets.table import DATASETS
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.training import run
from clipself_seg.yaml_files import CONFIGS as FOLDER
from clipself_seg.yaml_files import leaves, names, read_tree
from recipe_tables import has_tower, recipes
from tests.small_configs import small_values
from tests.tiny import write_tiny_coco

# A task without a tower is nothing to run by itself; an RPN alone needs none.
CONFIGS = sorted(
    {*recipes(), *(name for name in names() if has_tower(name) or "rpn" in name)}
    | {"whole_images/imagenet+openai_vitb16", "zero_shot/base+openai_vitb16"}
)
# What lies over a task: CLIPs, but for the paper's text.
TOWERS = sorted({path.stem for path in (FOLDER / "towers").glob("*.yaml")} - {"paper"})
CARRIED = Path(__file__).with_name("configs.json")
each_config = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module")
def tiny_coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_tiny_coco(root, images=2)
    source = json.loads((root / "coco/annotations/instances_train2017.json").read_text())
    polygon = [[10, 5, 40, 5, 40, 25, 10, 25]]
    names = Vocabulary.load("coco_80").classes
    objects = {
        "images": source["images"],
        "annotations": [a | {"segmentation": polygon} for a in source["annotations"]],
        "categories": [{"id": entry.dataset_id, "name": entry.names[0]} for entry in names],
    }
    (root / "coco/annotations/instances_val2017.json").write_text(json.dumps(objects))
    return root


def in_small(name: str, folder: Path):
    """The configuration with a random mini CLIP, 64 pixels, two images and one step."""
    small = small_values(load_config(name)) | {"OUTPUT_DIR": folder}
    return load_config(name, [str(part) for pair in small.items() for part in pair])


# Keys that a model looks at whatever their value decides.
LOOKED_AT = {
    *(*WEIGHTS, "MODEL.CLIP.ATTENTION", "MODEL.MASK_GENERATOR.SOURCE"),
    *(
        "SOLVER.GAMMA",
        "SOLVER.BACKBONE_MULTIPLIER",
        "TEST.DETECTION.TASKS",
        "TEST.DETECTION.LIMITS",
    ),
    *("SOLVER.MIX_WITH_START", "TEST.REGIONS.ALPHA_SWEEP", "TEST.SLIDING_WINDOW"),
    "SOLVER.SYNC_GRADIENTS",
    *("TEST.TRAIN_VOCABULARY", "TEST.EXAMPLES.NUMBER", "TEST.EXAMPLES.DATASETS"),
    "TEST.EXAMPLES.WEIGHT",
    "MODEL.PLAIN_DECODER.MASKED_ATTENTION",
    # By CLIPBackbone, for a head that stands on it.
    *("MODEL.CLIP.OUT_FEATURES", "MODEL.CLIP.TRAINABLE_BLOCKS", "INPUT.FORMAT"),
    *("MODEL.CLIP.LOW_RANK", "MODEL.BACKBONE.NAME"),
    "MODEL.MASK_GENERATOR.OUTPUTS",  # may be an address, which no file may give
    # By the evaluation of regions, whatever the data sets are.
    *("TEST.REGIONS.READ", "TEST.REGIONS.GROUPING"),
    "INPUT.REGIONS.STUDENT_SIZE",
}


@pytest.fixture
def keys_read(monkeypatch):
    """Full names of the keys that are read from a configuration, by the object that "" was put under as its name."""
    names: set[str] = set()
    plain = CfgNode.__getattr__

    def recording(node, key):
        value = plain(node, key)
        if (section := node.__dict__.get("_section")) is not None:
            if isinstance(value, CfgNode):
                value.__dict__["_section"] = f"{section}{key}."
            else:
                names.add(f"{section}{key}")
        return value

    monkeypatch.setattr(CfgNode, "__getattr__", recording)
    return names


# Towers change little but what `in_small` replaces: the first of a task stands for all.
STEPPED = {name.partition("+")[0]: name for name in reversed(CONFIGS)}


@pytest.mark.parametrize("name", sorted(STEPPED.values()))
def test_config_takes_a_step_or_reads_an_image(name, tmp_path, tiny_coco, monkeypatch, keys_read):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_coco))
    monkeypatch.setenv("CLIPSELF_SEG_CACHE", str(tiny_coco))
    cfg = in_small(name, tmp_path)
    cfg.__dict__["_section"] = ""
    run.setup(cfg)
    kinds = ("CATSeg", "OpenPanoptic", "FViT", "StockRPN")
    trained = dict.fromkeys(kinds, "model_final.pth")
    written = {"CLIPSelf": "clip_final.safetensors", **trained}
    named = cfg.MODEL.MASK_GENERATOR.SOURCE == "masks"
    if not named and (file := written.get(cfg.MODEL.META_ARCHITECTURE)):
        run.train(cfg, resume=False)
        assert (tmp_path / file).exists()
    else:
        run.evaluate(cfg, resume=False)
        assert (tmp_path / "results.json").exists()
    assert len(keys_read) > 20
    # Whoever types one of these is not told that it has no effect.
    values = dict(leaves(cfg))
    unread = {
        key for key in keys_read - LOOKED_AT if why_unread(key, values, cfg.MODEL.META_ARCHITECTURE)
    }
    assert unread == set()


@each_config
def test_config_names_weights_blocks_sizes_and_data_that_exist(name):
    cfg = load_config(name)
    clip = find_architecture(cfg.MODEL.CLIP.NAME)
    tags = open_clip.list_pretrained_tags_by_model(clip.name)
    official = [entry.name for entry in zoo().values() if entry.model == clip.name]
    assert cfg.MODEL.CLIP.WEIGHTS in [*tags, *official, *SHIPPED_TAGS, ""]
    tower = clip.signature
    assert cfg.MODEL.CLIP.TRAINABLE_BLOCKS <= tower.layers
    if cfg.MODEL.META_ARCHITECTURE in ("CLIPSelf", "RegionReader"):
        assert cfg.INPUT.REGIONS.STUDENT_SIZE % tower.patch_size == 0
    if cfg.MODEL.META_ARCHITECTURE == "FViT":
        assert cfg.INPUT.DETECTION.SIDE % tower.patch_size == 0
        assert max(cfg.MODEL.FVIT.BLOCKS) == tower.layers - 1
    assert set(cfg.DATASETS.TRAIN + cfg.DATASETS.TEST) <= DATASETS.keys()


def test_every_name_says_what_it_said_before_there_were_towers(monkeypatch):
    """Carried are the values that differ from their defaults; keys that are gone since do not count."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    carried = json.loads(CARRIED.read_text())
    defaults = dict(leaves(load_config(None)))
    for name, values in carried.items():
        cfg = json.loads(json.dumps(dict(leaves(load_config(f"configs/{name}.yaml")))))
        assert cfg.pop("OUTPUT_DIR") == values.pop("OUTPUT_DIR", f"output/{name}")
        known = {key: value for key, value in values.items() if key in defaults}
        assert known == {k: v for k, v in cfg.items() if json.dumps(v) != json.dumps(defaults[k])}


@pytest.mark.parametrize("tower", TOWERS)
def test_the_papers_text_lies_over_any_tower(tower):
    """By A.2 a ViT-L/14 learns at 896 pixels in all of its blocks; OpenAI's does in no other file."""
    cfg = load_config(f"distill/coco_patches+{tower}+paper")
    own = load_config(f"distill/coco_patches+{tower}")
    large = "vitl14" in tower
    assert cfg.INPUT.REGIONS.STUDENT_SIZE == (896 if large else own.INPUT.REGIONS.STUDENT_SIZE)
    blocks = (-1, 24) if large else (own.MODEL.CLIP.TRAINABLE_BLOCKS,)
    assert cfg.MODEL.CLIP.TRAINABLE_BLOCKS in blocks
    assert (cfg.MODEL.CLIPSELF.ALPHA, cfg.MODEL.CLIPSELF.LOSS_AVERAGE) == (1.0, "images")
    assert (cfg.INPUT.REGIONS.GRID_PAIRS, cfg.INPUT.REGIONS.MAX_REGIONS) == ("all", 0)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_task_takes_any_tower_by_its_name(tower):
    cfg = load_config(f"regions/coco+{tower}")
    facts = read_tree(FOLDER / "towers" / f"{tower}.yaml")["MODEL"]["CLIP"]
    assert (cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS) == (facts["NAME"], facts["WEIGHTS"])
    assert cfg.OUTPUT_DIR == f"output/regions/coco+{tower}"
