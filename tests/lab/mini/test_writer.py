"""The generated worlds: shapes, scenes, crops, and the files of both worlds."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from clipself_seg.data.datasets.records import (
    distillation_records,
    find_dataset,
    panoptic_set_records,
    region_records,
    sem_seg_records,
)
from clipself_seg.data.datasets.table import DATASETS, SHIPPED_WORLD, TASKS, PanopticSet, SemSegSet
from clipself_seg.data.masks import read_label_map, read_labels_of
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in
from lab import parallel
from lab.mini import writer
from lab.mini.concepts import COLOURS, WORLDS
from lab.mini.crops import (
    COLOURLESS,
    leave_out_colours,
    tag_caption,
    visible_concepts,
    write_caption,
)
from lab.mini.scenes import Scene, Segment
from lab.mini.shapes import MARKS, MAX_TILT, Pose, surface
from lab.mini.writer import WorldSize, make_worlds, scene_of, split_spec
from lab.prepare.nouns import noun_phrases
from tests.archives import save

SHAPE_SIZE = (96, 128)
SHAPES = sorted({thing.shape for spec in WORLDS.values() for thing in spec.things})


def pose(**changes):
    return Pose(**{"centre": (64.0, 48.0), "radius": 30.0, "angle": 0.0, "stretch": 1.0, **changes})


def piece(shape):
    """A window of 20 x 20 pixels beside the middle, as the size of every wave in it, and its mean."""
    window = surface(shape, pose(), SHAPE_SIZE)[34:54, 66:86]
    waves = np.abs(np.fft.fft2(window)) / window.size
    waves[0, 0] = 2 * window.mean()
    return waves.ravel() / np.linalg.norm(waves)


def test_every_shape_has_a_largest_tilt_and_marks_of_light_from_minus_one_to_one():
    assert set(SHAPES) == set(MARKS) == set(MAX_TILT)
    for shape in SHAPES:
        light = surface(shape, pose(), SHAPE_SIZE)
        assert light.shape == SHAPE_SIZE and light.dtype == np.float32
        assert -1 <= light.min() and light.max() <= 1


@pytest.mark.parametrize("one, other", list(itertools.combinations(SHAPES, 2)))
def test_a_piece_of_a_surface_tells_two_shapes_apart(one, other):
    assert piece(one) @ piece(other) < 0.8


SPEC = WORLDS["mini"]


def scene():
    """A thing of 40 x 40 pixels in the middle of grass, 100 x 120."""
    segment_map = np.full((100, 120), 2, np.uint8)
    segment_map[30:70, 40:80] = 1
    thing = Segment(1, SPEC.things[0], (40, 30, 80, 70), 1600)
    stuff = Segment(2, SPEC.stuff[0], (0, 0, 120, 100), 100 * 120 - 1600)
    return Scene(np.zeros((100, 120, 3), np.uint8), segment_map, (thing, stuff))


@pytest.mark.parametrize(
    "box, things, stuff",
    [
        ((20, 10, 100, 90), 1, 1),  # all of it
        ((0, 0, 120, 100), 1, 1),  # all of it, an eighth of the box
        ((64, 30, 100, 70), 1, 1),  # two fifths of it, nearly half of the box
        ((72, 54, 88, 70), 0, 1),  # a corner: 8 of 100 parts
        ((50, 40, 70, 60), 1, 0),  # a quarter of it that fills the box
        ((0, 0, 48, 100), 0, 1),  # a fifth of it, a fifteenth of the box
    ],
)
def test_a_good_piece_of_a_thing_is_named_and_a_scrap_is_not(box, things, stuff):
    named = visible_concepts(scene(), tuple(map(float, box)))
    assert (len(named[0]), len(named[1])) == (things, stuff)


def test_what_a_crop_is_about_comes_first_however_little_of_it_is_seen():
    whole = scene()
    for main in whole.segments:
        named = visible_concepts(whole, (72.0, 54.0, 88.0, 70.0), main)
        assert named[0 if main.concept.isthing else 1][0] is main.concept


def test_some_things_are_called_by_their_shape_alone_and_mean_something_else_then():
    rng = np.random.default_rng(0)
    said = leave_out_colours(rng, SPEC.things * 40)
    assert [thing.shape for thing in said] == [thing.shape for thing in SPEC.things] * 40
    without = [thing for thing in said if thing.colour is None]
    assert len(without) / len(said) == pytest.approx(COLOURLESS, abs=0.05)
    assert {thing.names for thing in without} == {(thing.shape,) for thing in SPEC.things}
    assert write_caption(rng, without[:1], ()).count(without[0].shape) == 1
    assert set(said) - set(without) <= set(SPEC.things)


SIZE = WorldSize(train=4, val=3, seed=5, base=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    assert make_worlds(folder, SIZE, processes=1)
    return folder


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("served")
def test_the_seed_decides_every_byte_whatever_the_number_of_processes(tmp_path, monkeypatch):
    size = WorldSize(train=3, val=1, seed=5, base=1)
    monkeypatch.setattr(writer, "WORLDS", {"mini": WORLDS["mini"]})
    monkeypatch.setattr(writer, "FEW", 2)
    make_worlds(tmp_path / "2", size)
    monkeypatch.setattr(parallel.multiprocessing, "get_context", None)  # starts no process
    make_worlds(tmp_path / "1", size, processes=1)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_few_scenes_start_no_process(root, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel.multiprocessing, "get_context", None)
    assert make_worlds(tmp_path, SIZE, processes=2)
    assert files(tmp_path) == files(root)


def test_a_complete_world_is_kept_and_another_size_or_half_a_world_is_replaced(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    assert not make_worlds(tmp_path, SIZE)
    (tmp_path / "mini" / "manifest.json").unlink()
    assert make_worlds(tmp_path, SIZE, processes=1)
    (tmp_path / "mini2" / "panoptic_val" / "000000.png").unlink()
    assert make_worlds(tmp_path, SIZE, processes=1)
    assert files(tmp_path) == files(root)


def test_what_a_killed_call_left_is_removed_and_two_calls_do_not_meet(root, tmp_path):
    (tmp_path / "mini").symlink_to(root / "mini")
    left = tmp_path / ".mini2.abcdefgh.part"
    (left / "folder/train").mkdir(parents=True)
    with alone_in(tmp_path), pytest.raises(InputError, match="another process"):
        make_worlds(tmp_path, SIZE)
    assert left.exists()
    assert make_worlds(tmp_path, SIZE, processes=1) and not left.exists()
    with alone_in(tmp_path):
        assert not make_worlds(tmp_path, SIZE)  # complete: nothing to write


def test_an_interruption_leaves_no_world(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_write_annotations", fail)
    with pytest.raises(KeyboardInterrupt):
        make_worlds(tmp_path, SIZE, processes=1)
    assert not (tmp_path / "mini").exists()


@pytest.mark.parametrize("world", WORLDS)
def test_vocabulary_files_are_the_worlds_own(world):
    vocabulary, spec = Vocabulary.load(world), WORLDS[world]
    for entry, concept in zip(vocabulary.classes, spec.concepts, strict=True):
        for key in ("names", "dataset_id", "isthing", "seen"):
            assert getattr(entry, key) == getattr(concept, key)


def test_mini_has_36_things_in_a_seen_and_unseen_split_that_shows_every_colour_and_shape():
    things = WORLDS["mini"].things
    seen = [thing for thing in things if thing.seen]
    assert len(things) == 36 and len(seen) == 24 and len(WORLDS["mini"].stuff) == 8
    assert len({t.colour for t in seen}) == 6 and len({t.shape for t in seen}) == 6


@pytest.mark.parametrize("world", WORLDS)
def test_labels_agree_with_the_scene_in_every_format(root, world):
    folder, spec = root / world, WORLDS[world]
    panoptic = json.loads((folder / "annotations" / "panoptic_val.json").read_text())
    instances = COCO(str(folder / "annotations" / "instances_val.json"))
    index_of = {concept.dataset_id: i for i, concept in enumerate(spec.concepts)}
    for number, entry in enumerate(panoptic["annotations"]):
        scene = scene_of(spec, "val", number, SIZE.seed)
        assert scene.image.shape[0] != scene.image.shape[1]
        rgb = np.asarray(Image.open(folder / "panoptic_val" / entry["file_name"])).astype(int)
        ids = rgb @ [1, 256, 65536]
        labels = np.asarray(Image.open(folder / "stuffthingmaps/val" / entry["file_name"]))
        for info, segment in zip(entry["segments_info"], scene.segments, strict=True):
            mask = scene.segment_map == segment.id
            assert ((ids == info["id"]) == mask).all() and info["area"] == mask.sum()
            assert (labels[mask] == index_of[info["category_id"]]).all()
            x, y, w, h = info["bbox"]
            assert mask[y : y + h, x : x + w].sum() == mask.sum()
        assert (labels[scene.segment_map == 0] == writer.VOID).all()
        things = [s for s in scene.segments if s.concept.isthing]
        annotations = instances.loadAnns(instances.getAnnIds(imgIds=[entry["image_id"]]))
        assert 2 <= len(things) <= 6 and len(annotations) == len(things)
        for annotation, segment in zip(annotations, things):
            coded = {**annotation["segmentation"]}
            assert (rle.decode(coded).astype(bool) == (scene.segment_map == segment.id)).all()


def test_base_labels_are_the_seen_classes_and_void(root):
    words, base = Vocabulary.load("mini"), Vocabulary.load("mini_base")
    assert [entry for entry in words.classes if entry.seen] == list(base.classes)
    paths = sorted((root / "mini/stuffthingmaps/train").iterdir())
    assert len(paths) == SIZE.train
    for path in paths:
        labels = np.asarray(Image.open(path))
        ours = np.asarray(Image.open(root / "mini/stuffthingmaps/train_base" / path.name))
        for index in np.unique(labels):
            seen = index != writer.VOID and words.classes[index].seen
            expected = base.first_names.index(words.first_names[index]) if seen else writer.VOID
            assert (ours[labels == index] == expected).all()


def test_of_the_large_vocabulary_only_the_first_classes_are_in_the_scenes():
    names = Vocabulary.load("mini_large").first_names
    first, second = (Vocabulary.load(world) for world in WORLDS)
    assert len(set(names)) == len(names) == 253 and names[:44] == first.first_names
    # None is another name of what the scenes show, and all words are the CLIP's.
    shown = {word for entry in WORLDS["mini"].concepts for word in entry.names}
    others = {word for entry in second.classes for word in entry.names} - shown
    synonyms = {f"{colour} disc" for colour in COLOURS} | {"lawn", "sea", "brick wall"}
    assert others & synonyms == synonyms and synonyms.isdisjoint(names)
    assert len(others & set(names)) == 12 + 5


def test_the_small_vocabulary_has_shapes_and_textures_and_the_background_is_the_textures(
    worlds_root,
):
    # Red and white circle, red square, white cross, grass, cloth, void.
    save(worlds_root / "mini/stuffthingmaps/val/0.png", [[0, 5, 6, 35, 36, 43, 255]])
    save(worlds_root / "mini/val/0.jpg", np.zeros((1, 7, 3)))
    expected = {
        "large": ([0, 5, 6, 35, 36, 43, 255], "red circle, white circle, red square, white cross"),
        "small": ([0, 0, 1, 5, 6, 13, 255], "circle, circle, square, cross, grass, cloth"),
        "background": ([0, 0, 1, 5, 6, 6, 255], "circle, circle, square, cross"),
    }
    for kind, (labels, names) in expected.items():
        entry = find_dataset(f"mini_val_{kind}_sem_seg", SemSegSet)
        words = Vocabulary.load(entry.vocabulary)
        (record,) = sem_seg_records(f"mini_val_{kind}_sem_seg")
        count = len(entry.metadata()["stuff_classes"])
        read = read_labels_of(
            record, num_classes=count, ignore_label=entry.ignore_label, size=(7, 1)
        )
        assert read.tolist() == [labels]
        assert [
            words.first_names[label] for label in labels[: names.count(",") + 1]
        ] == names.split(", ")


def test_the_base_split_shows_seen_classes_only_and_in_their_own_vocabulary(root):
    base = Vocabulary.load("mini_base")
    assert split_spec(WORLDS["mini"], "train") is WORLDS["mini"]
    spec = split_spec(WORLDS["mini"], writer.BASE)
    assert [concept.names for concept in spec.concepts] == [entry.names for entry in base.classes]
    content = json.loads((root / "mini/annotations/panoptic_base.json").read_text())
    assert len(content["annotations"]) == SIZE.base and len(content["categories"]) == len(base)
    for number, entry in enumerate(content["annotations"]):
        scene = scene_of(WORLDS["mini"], writer.BASE, number, SIZE.seed)
        labels = np.asarray(Image.open(root / "mini/stuffthingmaps/base" / entry["file_name"]))
        for info, segment in zip(entry["segments_info"], scene.segments, strict=True):
            index = base.dataset_id_to_index[info["category_id"]]
            assert (labels[scene.segment_map == segment.id] == index).all()
    assert not (root / "mini2/base").exists()
    first = [np.asarray(Image.open(root / f"mini/{split}/000000.jpg")) for split in ("base", "val")]
    assert first[0].shape != first[1].shape or (first[0] != first[1]).any()


@pytest.mark.parametrize("name, value", [("train", 0), ("val", -1), ("base", 0), ("seed", -1)])
def test_a_split_without_scenes_and_a_negative_seed_are_refused(name, value):
    least = 0 if name == "seed" else 1
    with pytest.raises(InputError, match=f"{name} is {value}: give {least} or more"):
        WorldSize(**{name: value})


@pytest.mark.parametrize("world", WORLDS)
def test_captions_have_the_phrases_of_what_they_mention(root, world):
    names = {name for concept in WORLDS[world].concepts for name in concept.names}
    for path in sorted((root / world / "annotations").glob("captions_*.json")):
        for entry in json.loads(path.read_text())["annotations"]:
            mentioned = {name for name in names if name in entry["caption"]}
            alone = {phrase for phrase in entry["phrases"] if " on " not in phrase}
            alone = {phrase for phrase in alone if " in front of " not in phrase}
            assert all(any(phrase.endswith(name) for name in mentioned) for phrase in alone)
            assert all(any(phrase.endswith(name) for phrase in alone) for name in mentioned)


def test_what_a_caption_says_of_the_photo_is_no_phrase():
    caption = "this is a low resolution photo of a toy red star and grass on brick wall."
    expected = ["toy red star", "grass", "brick wall", "grass on brick wall"]
    assert noun_phrases(caption, tag_caption) == expected


def test_the_panoptic_names_read_the_files(root, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(root))
    panoptic = {name: files for name, files in DATASETS.items() if isinstance(files, PanopticSet)}
    names = [name for name, files in panoptic.items() if files.root.path == root]
    assert len(names) == 5
    for name in names:
        files, split = find_dataset(name, PanopticSet), name.split("_")[1]
        records = panoptic_set_records(name, TASKS)
        assert len(records) == (SIZE.base if "base" in name else getattr(SIZE, split))
        classes = len(Vocabulary.load(files.vocabulary))
        for record in records:
            read_label_map(record["sem_seg_file_name"], num_classes=classes, ignore_label=255)
            assert len(record["captions"]) == 2 and any(record["captions"])
    for world in WORLDS:
        assert len(distillation_records([f"{world}_train"], "grid")) == SIZE.train
        proposals = distillation_records([f"{world}_train_proposals"], "proposals")
        assert all(len(record["proposals"]) >= 2 * writer.JITTERED for record in proposals)
        _, records = region_records(f"{world}_val_panoptic")
        assert len(records) == SIZE.val


@pytest.mark.parametrize("content", ["[" * 99_999, "{", "\udcff"])
def test_a_manifest_that_cannot_be_read_is_that_of_no_world(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_text(content, errors="surrogateescape")
    assert writer._read_manifest(tmp_path) is None


def test_the_shipped_scenes_are_the_first_ones(tmp_path):
    make_worlds(tmp_path, WorldSize(train=2, val=2, base=2))
    compared = 0
    for drawn in sorted(tmp_path.rglob("*.*g")):
        shipped = SHIPPED_WORLD / drawn.relative_to(tmp_path)
        if shipped.exists():  # mini2 is shipped without its split train
            one, two = (np.asarray(Image.open(path)).astype(int) for path in (drawn, shipped))
            assert np.abs(one - two).mean() <= (1 if drawn.suffix == ".jpg" else 0), drawn
            compared += 1
    assert compared == 2 * (3 * 3 + 1 + 3)
