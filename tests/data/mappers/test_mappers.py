"""What holds of every mapper: seed and draw alone decide a sample, and the configuration limits what is read."""

import functools
import random

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_seg.config import load_config
from clipself_seg.data.mappers.detection import DetectionTestMapper, DetectionTrainMapper
from clipself_seg.data.mappers.distill import CaptionMapper, DistillMapper, RegionTextMapper
from clipself_seg.data.mappers.panoptic import PanopticTestMapper, PanopticTrainMapper
from clipself_seg.data.mappers.regions import RegionMapper
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper, SemSegTrainMapper
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError

HEIGHT, WIDTH = 40, 60
MINI = Vocabulary.load("mini")
RGB = ["INPUT.FORMAT", "RGB"]
SMALL = [
    *("INPUT.REGIONS.STUDENT_SIZE", 32, "INPUT.DETECTION.SIDE", 32, "INPUT.IMAGE_SIZE", 32),
    *("INPUT.MIN_SIZE_TRAIN", "(32,)", "INPUT.CROP.ENABLED", "True", "INPUT.COLOR_AUG_SSD", "True"),
    *("INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[24, 24]"),
    *("MODEL.CLIPSELF.TEXTS.LOSS", "regionclip"),
]


# (configuration, seed) -> mapper of (record, draw).
TRAIN = {
    "grid": lambda cfg, seed=0: DistillMapper(cfg, crop_size=16, seed=seed),
    "nouns": lambda cfg, seed=0: RegionTextMapper(cfg, crop_size=16, seed=seed),
    "captions": lambda cfg, seed=0: CaptionMapper(cfg, seed=seed),
    "sem_seg": lambda cfg, seed=0: SemSegTrainMapper(
        cfg, seed=seed, num_classes=6, ignore_label=255
    ),
    "panoptic": lambda cfg, seed=0: PanopticTrainMapper(cfg, seed=seed, vocabulary=MINI),
    "detection": lambda cfg, seed=0: DetectionTrainMapper(cfg, seed=seed, masks=True),
}


def regions(cfg):
    limit = cfg.INPUT.MAX_PIXELS
    sizes = {"image_size": 64, "crop_size": 16, "stride": 8}
    return RegionMapper(**sizes, vocabulary=MINI, max_pixels=limit)


TEST = {
    "regions": regions,
    "sem_seg": SemSegTestMapper,
    "panoptic": PanopticTestMapper,
    "detection": DetectionTestMapper,
}


def without_draw(make, cfg):
    return lambda record, draw: make(cfg)(record)


ALL = {f"train_{name}": make for name, make in TRAIN.items()} | {
    f"test_{name}": functools.partial(without_draw, make) for name, make in TEST.items()
}


@pytest.fixture
def record(tmp_path):
    """An image of noise with all that any mapper reads: two halves with labels, segments, boxes, nouns, captions."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:, WIDTH // 2 :] = 1
    ids = np.stack([labels + 1, labels * 0, labels * 0], axis=-1)
    for name, values in (("a", noise), ("labels", labels), ("segments", ids)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    halves = [[0, 0, 30, 40], [30, 0, 60, 40]]
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 1,
        "height": HEIGHT,
        "width": WIDTH,
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "pan_seg_file_name": str(tmp_path / "segments.png"),
        "segments_info": [
            {"id": n, "category_id": MINI.classes[n].dataset_id, "bbox": [0, 0, 30, 40]}
            for n in (1, 2)
        ],
        "annotations": [
            {"bbox": box, "label": 3, "segmentation": [[*box[:2], box[2], 0, *box[2:], box[0], 40]]}
            for box in halves
        ],
        "proposals": np.array(halves, np.float32),
        "labels": np.array([5, 2]),
        "captions": ["a dog", "a cat", "a bird"],
    }


def same(first, second):
    """Whether two samples are equal to the bit."""
    assert first.keys() == second.keys()
    pairs = [(value, second[key]) for key, value in first.items() if key != "draw"]
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


@pytest.mark.parametrize("make", TRAIN.values(), ids=TRAIN)
def test_a_sample_follows_from_seed_and_draw_and_leaves_the_generators_alone(record, make):
    cfg = load_config(None, RGB + SMALL)
    made = []
    for other in (1, 2):
        random.seed(other)
        np.random.seed(other)
        mapper = make(cfg)
        mapper(record, 4)
        made.append(mapper(record, 5))
        expected = random.Random(other).random(), np.random.RandomState(other).rand()
        assert (random.random(), np.random.rand()) == expected
    assert same(*made)
    for seed in (0, 1):
        others = [make(cfg, seed)(record, draw) for draw in range(10, 20)]
        assert not all(same(made[0], other) for other in others)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_the_config_limits_the_pixels_of_a_file(record, make):
    limit = HEIGHT * WIDTH
    make(load_config(None, [*RGB, *SMALL, "INPUT.MAX_PIXELS", limit]))(record, 0)
    cfg = load_config(None, [*RGB, *SMALL, "INPUT.MAX_PIXELS", limit - 1])
    with pytest.raises(InputError, match=f"png is 60 x 40, .*{limit - 1} pixels of INPUT"):
        make(cfg)(record, 0)


# Any size fits a grid and a caption; a label map has its own.
@pytest.mark.parametrize("name", [n for n in ALL if n.split("_", 1)[1] not in ("grid", "captions")])
def test_an_image_of_another_size_than_its_ground_truth_is_refused(record, name):
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(record["file_name"])
    with pytest.raises(InputError, match="60 x 41"):
        ALL[name](load_config(None, RGB + SMALL))(record, 0)


@pytest.mark.parametrize("name", [n for n in ALL if "seg" in n or "pan" in n or "detec" in n])
def test_another_channel_order_is_refused(name, record):
    with pytest.raises(InputError, match="INPUT.FORMAT must be RGB"):
        ALL[name](load_config(None, ["INPUT.FORMAT", "BGR"]))(record, 0)


def test_keys_reach_the_mappers():
    keys = ["INPUT.DETECTION.SIDE", 64, "INPUT.DETECTION.RESIZE", "pillow", *RGB]
    keys += ["INPUT.DETECTION.MIN_SCALE", 0.5, "INPUT.DETECTION.MAX_SCALE", 1.5]
    keys += ["INPUT.REGIONS.STUDENT_SIZE", 320, "INPUT.REGIONS.MAX_REGIONS", 7]
    keys += ["INPUT.REGIONS.CROP_SCALE", 1.5]
    keys += ["INPUT.REGIONS.SOURCE", "proposals", "INPUT.REGIONS.MAX_SPLIT", 4]
    cfg = load_config(None, [*keys, "INPUT.REGIONS.GRID_PAIRS", "all"])
    shared = {"student_size": 320, "seed": 7}
    regions = shared | {"max_regions": 7, "crop_scale": 1.5}
    assert TRAIN["grid"](cfg, 7) == DistillMapper(
        **regions, source="proposals", crop_size=16, max_split=4, grid_rule="all"
    )
    assert TRAIN["nouns"](cfg, 7) == RegionTextMapper(**regions, crop_size=None)
    assert TRAIN["captions"](cfg, 7) == CaptionMapper(**shared)
    detection = {"side": 64, "resize": "pillow"}
    assert TRAIN["detection"](cfg, 7) == DetectionTrainMapper(
        **detection, scales=(0.5, 1.5), seed=7, masks=True
    )
    assert TEST["detection"](cfg) == DetectionTestMapper(**detection)
