"""The mini worlds on disk, in COCO's formats and folders.

{root}/{world}/{split}/000000.jpg                      images
{root}/{world}/panoptic_{split}/000000.png             segment ids as R + 256 G + 65536 B
{root}/{world}/stuffthingmaps/{split}/000000.png       class index per pixel, 255 = void
{root}/mini/stuffthingmaps/train_base/000000.png       the same in the vocabulary mini_base
{root}/{world}/annotations/{panoptic,instances,captions,proposals}_{split}.json
{root}/{world}/manifest.json                           what was written, last of all

Splits are train and val; mini has a third one, base: scenes of seen classes only, for training. Its
labels are indices into mini_base.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipself_seg.data.masks import mask_as_json, read_indices
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in, atomic_folder, naming_path, read_json, write_json
from clipself_seg.visualization.sheets import save_png
from lab.mini.concepts import WORLDS, WorldSpec
from lab.mini.crops import choose_mentions, tag_caption, write_caption
from lab.mini.scenes import Scene, draw_scene
from lab.parallel import run_in_parallel
from lab.prepare.nouns import add_phrases, noun_phrases

FORMAT = 6  # raise it when the same seed gives other files
SPLITS = ("train", "val")  # of each world
BASE = "base"
VOID = 255
ID_STEP = 263  # panoptic ids need the second channel, so that reading only the first one fails
FEW = 100  # scenes, which are drawn sooner than a second process has started
JITTERED = 3  # proposals around each thing
RANDOM = 4  # proposals of a scene at random places

Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class WorldSize:
    """Number of scenes of each split, and the seed that decides them.

    Attributes:
        train: scenes of the split train of each world.
        val: scenes of the split val of each world.
        seed: seed of all scenes.
        base: scenes of the split base, which only mini has.

    Raises:
        InputError: a split without scenes, or a negative seed.
    """

    train: int = 400
    val: int = 200
    seed: int = 0
    base: int = 800

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = 0 if name == "seed" else 1
            if value < least:
                raise InputError(f"mini world: {name} is {value}: give {least} or more")


def make_worlds(root: str | Path, size: WorldSize, processes: int = 2) -> bool:
    """Write both worlds below `root`, unless they are there already.

    A world is written to a temporary folder beside its own and renamed when it is complete, so that
    an interrupted call leaves no incomplete world.

    Args:
        root: folder for `mini` and `mini2`; a world of another seed, size or format is replaced.
        size: number of scenes of each world.
        processes: number of processes to draw in; it does not change the result.
            A split of `FEW` scenes is drawn in this one.

    Returns:
        Whether anything was written.

    Raises:
        InputError: another process writes worlds there.
    """
    root, worlds = Path(root), WORLDS.values()
    if all(_is_there(spec, root, size) for spec in worlds):
        return False
    with alone_in(root):
        missing = [spec for spec in worlds if not _is_there(spec, root, size)]
        for spec in missing:
            with atomic_folder(root / spec.name) as folder:
                _write_world(spec, folder, size, processes)
    return bool(missing)


def manifest_of(size: WorldSize) -> dict[str, Any]:
    """The settings that decide the files of worlds of a size, as in `manifest.json`."""
    return {"format": FORMAT, **dataclasses.asdict(size)}


def _is_there(spec: WorldSpec, root: Path, size: WorldSize) -> bool:
    """True if a world of this size is complete."""
    target = root / spec.name
    return _read_manifest(target) == manifest_of(size) and _is_whole(spec, target, size)


def _write_world(spec: WorldSpec, folder: Path, size: WorldSize, processes: int) -> None:
    for split in SPLITS:
        _write_split(folder, spec, split, size, processes)
    if spec.name == "mini":  # and what it has besides for training on seen classes only
        _write_base_maps(folder, spec)
        _write_split(folder, spec, BASE, size, processes)
    write_json(folder / "manifest.json", manifest_of(size))


def _read_manifest(folder: Path) -> Any:
    try:
        return read_json(folder / "manifest.json")
    except (InputError, OSError):
        return None


def _is_whole(spec: WorldSpec, world: Path, size: WorldSize) -> bool:
    """True if no image or map was lost since the world was written."""
    for split in (*SPLITS, *((BASE,) if spec.name == "mini" else ())):
        folders = (split, "jpg"), (f"panoptic_{split}", "png"), (f"stuffthingmaps/{split}", "png")
        for folder, suffix in folders:
            numbers = range(getattr(size, split))
            if not all((world / folder / f"{n:06d}.{suffix}").is_file() for n in numbers):
                return False
    return True


def scene_of(spec: WorldSpec, split: str, index: int, seed: int) -> Scene:
    """Scene of a split with a number; every number has its own stream of random choices.

    Args:
        spec: world of the scene.
        split: split of the scene.
        index: number of the scene in its split.
        seed: seed of the world.
    """
    world = list(WORLDS).index(spec.name)
    part = (*SPLITS, BASE).index(split)
    return draw_scene(np.random.default_rng([seed, world, part, index]), split_spec(spec, split))


def split_spec(spec: WorldSpec, split: str) -> WorldSpec:
    """World with the classes that a split shows: all or, in the split base, the seen ones."""
    if split != BASE:
        return spec
    seen = tuple(concept for concept in spec.concepts if concept.seen)
    return dataclasses.replace(spec, concepts=seen)


def _write_split(
    folder: Path, spec: WorldSpec, split: str, size: WorldSize, processes: int
) -> None:
    for name in (split, f"panoptic_{split}", f"stuffthingmaps/{split}"):
        (folder / name).mkdir(parents=True)
    count = getattr(size, split)
    jobs = [(folder, spec.name, split, index, size.seed) for index in range(count)]
    label = f"draw {spec.name}/{split}"
    processes = processes if count > FEW else 1
    entries = run_in_parallel(_write_scene, jobs, processes=processes, label=label)
    _write_annotations(folder / "annotations", split_spec(spec, split), split, entries)


def _write_scene(job: tuple[Path, str, str, int, int]) -> Entry:
    folder, world, split, index, seed = job
    spec = split_spec(WORLDS[world], split)
    scene = scene_of(WORLDS[world], split, index, seed)
    stem = f"{index:06d}"
    save_pixels(scene.image, folder / split / f"{stem}.jpg", quality=95, subsampling=0)
    ids = scene.segment_map.astype(np.uint32) * ID_STEP
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    save_pixels(rgb, folder / f"panoptic_{split}" / f"{stem}.png")
    lookup = np.full(len(scene.segments) + 1, VOID, np.uint8)
    for segment in scene.segments:
        lookup[segment.id] = spec.concepts.index(segment.concept)
    save_pixels(lookup[scene.segment_map], folder / "stuffthingmaps" / split / f"{stem}.png")
    height, width = scene.segment_map.shape
    rng = np.random.default_rng([seed, 99, index])
    return {
        # Ids are not positions, so that code that mixes them up fails.
        "image": {"id": 1000 + index, "file_name": f"{stem}.jpg", "width": width, "height": height},
        "segments": [_segment_entry(scene, segment) for segment in scene.segments],
        "captions": _captions(rng, scene),
        "proposals": _proposals(rng, scene),
    }


def save_pixels(pixels: np.ndarray, path: Path, **options: Any) -> None:
    """Writes an image or a label map; `options` are those of PIL's ``Image.save``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming_path(path):
        Image.fromarray(pixels).save(path, **options)


def base_classes(spec: WorldSpec) -> np.ndarray:
    """Index among the seen classes by index in the world, `VOID` for the unseen ones, uint8 (256,)."""
    seen = np.array([concept.seen for concept in spec.concepts])
    lookup = np.full(256, VOID, np.uint8)
    lookup[np.flatnonzero(seen)] = np.arange(seen.sum())
    return lookup


def _write_base_maps(folder: Path, spec: WorldSpec) -> None:
    """Write label maps of the split train with void in place of unseen classes."""
    maps = folder / "stuffthingmaps"
    lookup = base_classes(spec)
    for path in sorted((maps / "train").glob("*.png")):
        labels = Image.fromarray(lookup[read_indices(path)])
        save_png(labels, maps / "train_base" / path.name)


def _segment_entry(scene: Scene, segment: Any) -> Entry:
    x0, y0, x1, y1 = segment.box
    return {
        "id": segment.id * ID_STEP,
        "category_id": segment.concept.dataset_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": segment.area,
        "iscrowd": 0,
        "isthing": segment.concept.isthing,
        "segmentation": mask_as_json(scene.segment_map == segment.id),
    }


def _captions(rng: np.random.Generator, scene: Scene) -> list[str]:
    ordered = sorted(scene.segments, key=lambda segment: -segment.area)
    things = tuple(segment.concept for segment in ordered if segment.concept.isthing)
    stuff = tuple(segment.concept for segment in ordered if not segment.concept.isthing)
    return [
        write_caption(rng, *choose_mentions(rng, things, stuff, subject=False)) for _ in range(2)
    ]


def _proposals(rng: np.random.Generator, scene: Scene) -> list[list[float]]:
    """Boxes XYWH such as a region proposal network predicts: loose around things, and some at random."""
    height, width = scene.segment_map.shape
    boxes = []
    for segment in scene.segments:
        if segment.concept.isthing:
            x0, y0, x1, y1 = segment.box
            spread = 0.08 * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
            boxes += list(np.array([x0, y0, x1, y1]) + rng.normal(0, 1, (JITTERED, 4)) * spread)
    for _ in range(RANDOM):
        w, h = rng.uniform(0.12, 0.5, 2) * max(height, width)
        x = rng.uniform(0, max(1, width - w))
        y = rng.uniform(0, max(1, height - h))
        boxes.append(np.array([x, y, x + w, y + h]))
    boxes_xywh = np.array(boxes).clip(0, [width, height, width, height])
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    return boxes_xywh.round(1).tolist()


def _write_annotations(folder: Path, spec: WorldSpec, split: str, entries: list[Entry]) -> None:
    images = [entry["image"] for entry in entries]
    panoptic = []
    instances: list[Entry] = []
    captions: list[Entry] = []
    proposals: list[Entry] = []
    for image, entry in zip(images, entries):
        key = {"image_id": image["id"]}
        infos = [_without(segment, "segmentation", "isthing") for segment in entry["segments"]]
        png = image["file_name"].replace(".jpg", ".png")
        panoptic.append({**key, "file_name": png, "segments_info": infos})
        instances += [
            {**_without(segment, "isthing", "id"), **key}
            for segment in entry["segments"]
            if segment["isthing"]
        ]
        captions += [{**key, "caption": caption} for caption in entry["captions"]]
        proposals += [
            {**key, "bbox": box, "category_id": 1, "area": box[2] * box[3], "iscrowd": 0}
            for box in entry["proposals"]
        ]
    for listed in (instances, captions, proposals):
        for number, annotation in enumerate(listed, 1):
            annotation["id"] = number
    phrases = [noun_phrases(annotation["caption"], tag_caption) for annotation in captions]
    categories = [
        {"id": concept.dataset_id, "name": concept.names[0], "isthing": int(concept.isthing)}
        for concept in spec.concepts
    ]
    things = [category for category in categories if category["isthing"]]
    about = {"images": images}
    for name, listed, classes in (
        ("panoptic", panoptic, categories),
        ("instances", instances, things),
        ("captions", add_phrases(captions, phrases), None),
        ("proposals", proposals, [{"id": 1, "name": "object"}]),
    ):
        content = {**about, "annotations": listed}
        if classes is not None:  # pycocotools expects classes if the key is there, even if empty
            content["categories"] = classes
        write_json(folder / f"{name}_{split}.json", content)


def _without(entry: Entry, *keys: str) -> Entry:
    return {key: value for key, value in entry.items() if key not in keys}
