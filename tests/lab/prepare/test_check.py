"""Every state that a data set can be in is told from the others, with what mends it."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
from PIL import Image

from clipself_seg.data.datasets.table import DATASETS
from lab.prepare import common
from lab.prepare.ade import prepare_ade150, prepare_ade847
from lab.prepare.check import Options, check_datasets
from lab.prepare.coco import prepare_coco_panoptic_semseg
from lab.prepare.common import Options as PrepareOptions
from lab.prepare.detection import prepare_ov_coco
from lab.prepare.pascal import prepare_pascal_context_459, prepare_voc20
from tests.archives import save, write_small_coco
from tests.tiny import write_tiny_coco

ADE = "ade20k_150_test_sem_seg"
COUNT = 5
LABELS = "annotations_detectron2/validation"
PREPARE_ADE = "python tools/prepare.py ade150"


@pytest.fixture
def ade(monkeypatch, datasets_root):
    """The archive of a split of five images, which is the official number here."""
    files = replace(DATASETS[ADE], official_count=COUNT)
    monkeypatch.setitem(DATASETS, ADE, files)
    folder = datasets_root / "ADEChallengeData2016"
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        for kind, suffix, shape in (
            ("images", "jpg", (20, 30, 3)),
            ("annotations", "png", (20, 30)),
        ):
            path = folder / kind / "validation" / f"ADE_val_{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(1, 151, shape, dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def prepared(ade, tmp_path):
    """The same, prepared."""
    prepare_ade150(PrepareOptions(tmp_path))
    return ade


def check(name=ADE, **options):
    (finding,) = check_datasets([name], Options(**options))
    return finding


def label_map(values, folder, number):
    Image.fromarray(values.astype(np.uint8)).save(folder / f"ADE_val_{number}.png")


ARCHIVE, AGAIN = "ADEChallengeData2016.zip", f"{PREPARE_ADE} --overwrite"


def unlink(*files):
    def spoil(ade):
        for file in files:
            (ade / file).unlink()

    return spoil


def cut(ade):
    path = ade / "images/validation/ADE_val_3.jpg"
    path.write_bytes(path.read_bytes()[:200])


def overwrite(value, shape=(20, 30), numbers=(3,)):
    def spoil(ade):
        for number in numbers:
            label_map(np.full(shape, value), ade / LABELS, number)

    return spoil


IMAGE, MAP, RAW = (
    f"{folder}/ADE_val_3.{ending}"
    for folder, ending in (
        ("images/validation", "jpg"),
        (LABELS, "png"),
        ("annotations/validation", "png"),
    )
)


@pytest.mark.parametrize(
    "spoil, state, note, mend",
    [
        (unlink(MAP), "incomplete", "1 images without label map", PREPARE_ADE),
        (
            *(unlink(MAP, RAW), "incomplete", "1 of these lack what they are prepared from"),
            f"the archive is not whole: .*{ARCHIVE}.*; then {PREPARE_ADE}",
        ),
        (unlink(MAP, IMAGE), "subset", "4 of 5 images", ""),
        (cut, "broken", "ADE_val_3.jpg cannot be decoded", f"(?!.*prepare).*{ARCHIVE}"),
        (overwrite(0, (20, 31)), "broken", "ADE_val_3.png is 31 x 20, its image .* 30 x 20", AGAIN),
        (overwrite(150, numbers=range(COUNT)), "broken", "and 2 more such files", AGAIN),
        (overwrite(255), "complete", "1 of 5 label maps have no labelled pixel", ""),
    ],
)
def test_what_is_missing_or_broken_is_counted_with_what_mends_it(
    prepared, spoil, state, note, mend
):
    spoil(prepared)
    finding = check()
    allowed = finding.subset_allowed()
    assert allowed.state == state and allowed.fine is (state in ("complete", "subset"))
    assert finding.fine is (state == "complete")
    assert any(re.search(note, text) for text in finding.notes)
    assert re.fullmatch(f"{mend}.*" if "(?" in mend or ";" in mend else mend, allowed.mend, re.S)
    assert finding.broken == (COUNT if "more" in note else state == "broken")
    assert finding.blank == (1 if state == "complete" else 0)


def test_absent_and_unprepared_name_the_archive_and_the_command(ade):
    finding = check()
    assert finding.state == "unprepared" and finding.mend == PREPARE_ADE
    shutil.rmtree(ade / "annotations")
    finding = check()
    assert finding.state == "incomplete" and not finding.subset_allowed().fine
    assert any("annotations/validation is missing" in note for note in finding.notes)
    assert finding.mend.startswith("the archive is not whole: unpack http://data.csail.mit.edu/")
    shutil.rmtree(ade / "images")
    finding = check()
    assert finding.state == "absent" and not finding.subset_allowed().fine
    assert ARCHIVE in finding.mend and PREPARE_ADE in finding.mend


def test_a_sample_is_spread_evenly_and_full_reads_all(prepared):
    label_map(np.full((20, 30), 255), prepared / LABELS, 4)
    assert check(sample=2)[5:8] == (2, 0, 0)
    assert check(sample=0)[5:8] == (COUNT, 0, 1)


def test_boxes_with_nouns_and_captions(datasets_root):
    write_tiny_coco(datasets_root, images=2)
    finding = check("coco_2017_train_captions").subset_allowed()
    assert finding.fine and finding.images == 2
    finding = check("coco_2017_train_region_text")
    assert finding.state == "complete" and finding.images == 2
    path = datasets_root / "coco/annotations/coco_pseudo_4764.json"
    path.write_text(path.read_text().replace('"grass-merged"', '"cat"'))
    finding = check("coco_2017_train_region_text")
    assert finding.state == "broken" and "'cat'" in finding.notes[0]
    path.unlink()
    finding = check("coco_2017_train_region_text")
    assert finding.state == "absent" and "python tools/precompute.py region-text" in finding.mend


SIZE = (20, 30)  # height, width
STEMS = [f"2008_{number:06d}" for number in range(3)]


def write_images(folder):
    for stem in STEMS:
        save(folder / f"JPEGImages/{stem}.jpg", np.zeros((*SIZE, 3), np.uint8))


def write_voc(root):
    folder = root / "VOCdevkit/VOC2012"
    write_images(folder)
    for stem in STEMS:
        save(folder / f"SegmentationClassAug/{stem}.png", np.full(SIZE, 3, np.uint8))
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n".join(STEMS))
    return folder / "SegmentationClassAug"


def write_ade847(root):
    folder = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    for stem in STEMS:
        for suffix in (".jpg", "_seg.png"):
            save(folder / f"ADE_val_{stem}{suffix}", np.zeros((*SIZE, 3), np.uint8))
    return folder.parents[1]


def write_context_459(root):
    folder = root / "VOCdevkit/VOC2010"
    write_images(folder)
    (folder / "pascalcontext_val.txt").write_text("\n".join(STEMS))
    (folder / "trainval").mkdir()
    for stem in STEMS:
        scipy.io.savemat(folder / f"trainval/{stem}.mat", {"LabelMap": np.ones(SIZE)})
    return folder / "trainval"


LAYOUTS = {
    "voc_2012_test_background_sem_seg": (write_voc, prepare_voc20, "voc20"),
    "ade20k_full_sem_seg_freq_val_all": (write_ade847, prepare_ade847, "ade847"),
    "context_459_test_sem_seg": (
        *(write_context_459, prepare_pascal_context_459, "pascal_context_459"),
    ),
}


@pytest.fixture(params=LAYOUTS)
def archive(request, datasets_root):
    """Name of a data set, what its preparation reads, the preparation, and the command for it."""
    write, prepare, tool = LAYOUTS[request.param]
    source, options = write(datasets_root), common.Options(datasets_root)
    return request.param, source, lambda: prepare(options), f"python tools/prepare.py {tool}"


def written(root):
    return sorted(path for path in root.rglob("*_detectron2*/**/*") if path.is_file())


def test_each_file_that_an_interrupted_preparation_lacks_is_missed_until_it_is_done(
    archive, tmp_path
):
    name, _, prepare, command = archive
    finding = check(name)
    assert (finding.state, finding.mend) == ("unprepared", command)
    prepare()
    finding = check(name)
    assert finding.labelled == 3 and finding.subset_allowed().fine and not finding.fine
    of_set = [
        path
        for path in written(tmp_path)
        if "voc" not in name or ("_bg" in str(path)) == ("background" in name)
    ]
    assert len(of_set) in (3, 6)
    for path in of_set:
        path.unlink()
        finding = check(name)
        assert (finding.state, finding.missing, finding.mend) == ("incomplete", 1, command)
        assert not finding.subset_allowed().fine
        prepare()
    # Both files of an image of ADE20K-847.
    for path in of_set:
        if STEMS[1] in path.name:
            path.unlink()
    finding = check(name)
    assert not finding.subset_allowed().fine and finding.mend == command
    assert finding.notes[0] == "1 images of the archive are not prepared"
    prepare()
    assert check(name).subset_allowed().fine


def test_a_picture_without_a_class_of_voc_20_is_no_gap(datasets_root):
    save(write_voc(datasets_root) / f"{STEMS[1]}.png", np.zeros(SIZE, np.uint8))
    prepare_voc20(common.Options(datasets_root))
    for name, labelled in (("voc_2012_test_sem_seg", 2), ("voc_2012_test_background_sem_seg", 3)):
        finding = check(name)
        assert (finding.labelled, finding.missing) == (labelled, 0)
        assert finding.subset_allowed().fine


def test_a_picture_that_is_prepared_itself_is_prepared_again(datasets_root):
    raw = write_ade847(datasets_root)
    prepare_ade847(common.Options(datasets_root))
    name, path = "ade20k_full_sem_seg_freq_val_all", written(datasets_root)[-1]
    assert path.suffix == ".jpg"
    path.write_bytes(path.read_bytes()[:200])
    finding = check(name)
    assert (finding.state, finding.mend) == ("broken", "python tools/prepare.py ade847 --overwrite")
    next(raw.rglob(path.name)).unlink()
    assert check(name).mend.startswith("the archive is not whole: ")


def test_a_mini_world_is_written_as_a_whole(worlds_root):
    for stem in "ab":
        save(worlds_root / f"mini/val/{stem}.jpg", np.zeros((*SIZE, 3), np.uint8))
        save(worlds_root / f"mini/stuffthingmaps/val/{stem}.png", np.zeros(SIZE, np.uint8))
    assert check("mini_val_sem_seg").fine and check("mini_val_small_sem_seg").fine
    (worlds_root / "mini/stuffthingmaps/val/b.png").unlink()
    finding = check("mini_val_sem_seg")
    assert finding.notes == ("1 images without label map",)
    # The command keeps a world whose manifest is there.
    assert finding.mend == f"delete {worlds_root}/mini, then python tools/mini.py world"


COCO, ADE_PANOPTIC = "coco_2017_val_panoptic_with_sem_seg", "ade20k_panoptic_val"
FEW = 4
OV_COCO = "python tools/prepare.py ov_coco --splits"
SEM_SEG = "python tools/prepare.py coco_panoptic_semseg --splits val2017"


@pytest.fixture
def coco(data_dir, monkeypatch, datasets_root):
    """Four images of the real validation split, which is the official number here."""
    for name in (COCO, "coco_2017_val_panoptic", "coco_2017_val", "ov_coco_val"):
        entry = replace(DATASETS[name], official_count=FEW, official_annotations=None)
        monkeypatch.setitem(DATASETS, name, entry)
    return write_small_coco(data_dir, datasets_root, FEW)


@pytest.fixture
def prepared_coco(coco):
    prepare_coco_panoptic_semseg(PrepareOptions(coco.parent), ["val2017"])
    return coco


def files_of(folder, kind):
    return sorted((folder / f"{kind}val2017").iterdir())


def test_a_panoptic_set_is_complete_without_captions_which_are_a_note(prepared_coco):
    finding = check(COCO)
    assert finding[:9] == (COCO, "complete", FEW, FEW, FEW, FEW, 0, 0, 0)
    (note,) = finding.notes
    assert "panoptic_caption_val2017.json, which only training on captions needs" in note
    assert finding.fine and finding.mend == ""
    assert check(COCO, sample=2).read == 2
    assert check("coco_2017_val_panoptic").state == check("coco_2017_val").state == "complete"
    assert check("lvis_v1_train").state == check("imagenet_val").state == "absent"


def test_what_is_missing_of_the_archive_is_told_from_no_archive(coco):
    finding = check(COCO)
    assert finding.state == "unprepared" and "panoptic_semseg_val2017" in finding.notes[0]
    assert finding.mend == SEM_SEG and not finding.subset_allowed().fine
    (coco / "annotations/instances_val2017.json").unlink()
    finding = check(COCO)
    assert finding.state == "incomplete" and "instances_val2017.json" in finding.notes[0]
    assert "cocodataset.org" in finding.mend
    (coco / "annotations/panoptic_val2017.json").unlink()
    assert check(COCO).state == "absent"


def test_single_files_that_are_missing_are_counted_with_what_brings_them(prepared_coco):
    for index, kind in enumerate(("", "panoptic_", "panoptic_semseg_")):
        files_of(prepared_coco, kind)[index].unlink()
    finding = check(COCO)
    assert finding.state == "incomplete" and finding[2:4] == (3, 1) and finding.missing == 3
    assert finding.notes[:3] == (
        "1 images of the annotation file are not there",
        "1 images have no panoptic PNG",
        "1 images have no label map",
    )
    assert "cocodataset.org" in finding.mend and "prepare.py coco_panoptic_semseg" in finding.mend
    assert not finding.subset_allowed().fine
    finding = check("coco_2017_val")
    assert finding.state == "incomplete" and "cocodataset.org" in finding.mend


def test_broken_label_maps_and_broken_pngs_have_their_own_remedy(prepared_coco):
    path = files_of(prepared_coco, "panoptic_semseg_")[1]
    Image.fromarray(np.full((7, 9), 133, np.uint8)).save(path)
    finding = check(COCO)
    assert finding.state == "broken" and f"label map {path} is 9 x 7" in finding.notes[1]
    assert finding.mend == f"{SEM_SEG} --overwrite"
    png = files_of(prepared_coco, "panoptic_")[0]
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(png)
    finding = check(COCO)
    assert finding.broken == 2 and "disagree" in finding.notes[1]
    assert "cocodataset.org" in finding.mend and f"{SEM_SEG} --overwrite" in finding.mend
    png.write_bytes(png.read_bytes()[:40])
    finding = check("coco_2017_val_panoptic")
    assert finding.state == "broken" and png.name in finding.notes[0]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_panoptic_json_of_a_part_is_a_subset_beside_the_whole_splits_instances(prepared_coco):
    def leave_one_out(content):
        left = content["images"].pop(0)["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != left]

    edit(prepared_coco / "annotations/panoptic_val2017.json", leave_one_out)
    finding = check(COCO)
    assert finding.state == "incomplete" and f"{FEW - 1} of {FEW} images" in finding.notes
    assert "the archive is not whole" in finding.mend and not finding.fine
    allowed = finding.subset_allowed()
    assert (allowed.state, allowed.mend, allowed.labelled) == ("subset", "", FEW - 1)
    assert allowed.fine


def test_annotation_files_that_do_not_fit_are_broken(prepared_coco):
    path = prepared_coco / "annotations/instances_val2017.json"
    edit(path, lambda content: content["images"][0].update(id=77))
    finding = check(COCO)
    assert finding.state == "broken" and "lacks images that" in finding.notes[0]
    path.write_text("{")
    assert check("coco_2017_val").state == "broken"
    (prepared_coco / "annotations/panoptic_val2017.json").write_text("{")
    assert "cannot be read" in check(COCO).notes[0]


def test_ade_that_is_absent_or_unprepared_says_all_that_is_to_do(datasets_root):
    finding = check(ADE_PANOPTIC)
    assert finding.state == "absent" and "ADEChallengeData2016.zip" in finding.mend
    (datasets_root / "ADEChallengeData2016/images/validation").mkdir(parents=True)
    finding = check(ADE_PANOPTIC)
    assert finding.state == "unprepared" and "ADEChallengeData2016" in finding.notes[0]
    assert finding.mend == (
        "python tools/prepare.py ade20k_panoptic --splits validation; then "
        "python tools/prepare.py ade150 --splits validation"
    )


def test_boxes_are_absent_unprepared_complete_or_broken(coco, tmp_path):
    finding = check("ov_coco_val")
    assert finding.state == "unprepared" and "all_2.json" in finding.notes[0]
    assert finding.mend == f"{OV_COCO} val2017"
    prepare_ov_coco(PrepareOptions(tmp_path), ["val2017"])
    finding = check("ov_coco_val")
    assert finding.state == "complete" and finding.images == finding.read > 0
    # A training file with novel classes.
    (coco / "train2017").mkdir()
    source = coco / "annotations/instances_val2017.json"
    shutil.copyfile(source, coco / "zero-shot/instances_train2017_seen_2_65_cat.json")
    finding = check("ov_coco_train")
    assert finding.state == "broken" and "not base" in finding.notes[0]
    assert finding.mend == f"{OV_COCO} train2017 --overwrite"
    assert check("transfer_coco_val").notes == (f"{FEW} of 5000 images",)
    next((coco / "val2017").iterdir()).unlink()
    finding = check("transfer_coco_val")
    assert (finding.state, finding.missing) == ("incomplete", 1)
    shutil.rmtree(coco / "val2017")
    assert check("transfer_coco_val").state == "incomplete"
    shutil.rmtree(coco)
    finding = check("ov_coco_val")
    assert finding.state == "absent" and "cocodataset.org" in finding.mend


def test_annotations_are_counted_and_one_of_a_hundred_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(common, "CHUNK", 7)  # a word lies across several chunks
    entry = replace(DATASETS["ov_coco_val"], official_annotations=200)
    path = entry.path(entry.annotations)
    path.parent.mkdir(parents=True)
    for count, whole in ((198, True), (197, False)):
        boxes = [{"image_id": 1, "id": number} for number in range(count)]
        path.write_text(json.dumps({"images": [{"id": 1}], "annotations": boxes}))
        said = common.too_few_annotations(entry)
        assert said == ("" if whole else f"197 of 200 annotations in {path}")
    assert not common.too_few_annotations(replace(entry, official_annotations=None))
