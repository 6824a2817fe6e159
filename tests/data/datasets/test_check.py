"""Every state that a data set can be in is told from the others, with what mends it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
from PIL import Image

from clipself_seg.data.captions import read_phrases
from clipself_seg.data.datasets.check import Options, check_datasets
from clipself_seg.data.datasets.table import DATASETS
from clipself_seg.data.prepare import common
from clipself_seg.data.prepare.ade import prepare_ade150, prepare_ade847
from clipself_seg.data.prepare.cityscapes import prepare_cityscapes
from clipself_seg.data.prepare.coco import prepare_coco_panoptic_semseg
from clipself_seg.data.prepare.common import Options as PrepareOptions
from clipself_seg.data.prepare.detection import prepare_ov_coco
from clipself_seg.data.prepare.pascal import (
    prepare_pascal_context_59,
    prepare_pascal_context_459,
    prepare_voc20,
)
from clipself_seg.data.prepare.vistas import prepare_vistas
from clipself_seg.errors import InputError
from tests.archives import write_city_image, write_small_coco, write_vistas_image
from tests.tiny import write_tiny_coco

ADE = "ade20k_150_test_sem_seg"
COUNT = 5


@pytest.fixture
def ade(tmp_path, monkeypatch):
    """The archive of a split of five images, which is the official number here."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = replace(DATASETS[ADE], official_count=COUNT)
    monkeypatch.setitem(DATASETS, ADE, files)
    folder = tmp_path / "ADEChallengeData2016"
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
    """The same, prepared; the folder of the label maps."""
    prepare_ade150(PrepareOptions(tmp_path))
    return ade / "annotations_detectron2/validation"


def check(name=ADE, **options):
    (finding,) = check_datasets([name], Options(**options))
    return finding


def label_map(values, folder, number):
    Image.fromarray(values.astype(np.uint8)).save(folder / f"ADE_val_{number}.png")


def test_complete(prepared):
    finding = check()
    assert finding.state == "complete" and finding.fine
    assert finding[2:] == (COUNT, COUNT, COUNT, COUNT, 0, 0, 0, (), "")


def test_absent_and_unprepared_name_the_way(ade):
    finding = check()
    assert finding.state == "unprepared" and finding.mend == "clipself-seg data prepare ade150"
    shutil.rmtree(ade / "images")
    finding = check()
    assert finding.state == "absent" and not finding.subset_allowed().fine
    assert (
        "ADEChallengeData2016.zip" in finding.mend
        and "clipself-seg data prepare ade150" in finding.mend
    )


def test_an_interrupted_preparation_is_incomplete_even_as_a_subset(prepared):
    (prepared / "ADE_val_3.png").unlink()
    finding = check()
    assert finding.state == "incomplete" and finding.mend == "clipself-seg data prepare ade150"
    assert "1 images without label map" in finding.notes
    assert not finding.fine and not finding.subset_allowed().fine


def test_a_subset_is_incomplete_and_fine_on_request(prepared, ade):
    (prepared / "ADE_val_3.png").unlink()
    (ade / "images/validation/ADE_val_3.jpg").unlink()
    finding = check()
    assert finding.state == "incomplete" and finding.notes == ("4 of 5 images",)
    assert not finding.fine and finding.subset_allowed().fine


def test_label_maps_without_image_count(prepared, ade):
    (ade / "images/validation/ADE_val_3.jpg").unlink()
    finding = check()
    assert finding.state == "incomplete" and "1 label maps without image" in finding.notes
    assert "ADEChallengeData2016.zip" in finding.mend and "prepare" not in finding.mend


@pytest.mark.parametrize(
    "values, words",
    [
        (np.full((20, 30), 150), "has the value 150: expected 0 to 149"),
        (np.zeros((20, 31)), "is 31 x 20, its image .* is 30 x 20"),
    ],
)
def test_label_maps_that_cannot_be_used_are_broken(prepared, values, words):
    label_map(values, prepared, 2)
    finding = check()
    assert finding.state == "broken" and finding.broken == 1 and finding.read == COUNT
    assert finding.mend == "clipself-seg data prepare ade150 --overwrite"
    (note,) = finding.notes
    assert re.search(f"ADE_val_2.png {words}", note)


def test_maps_of_an_archive_in_the_place_of_prepared_ones_are_broken(prepared, ade):
    for number in range(COUNT):
        label_map(np.full((20, 30), 150), prepared, number)
    finding = check()
    assert finding.broken == COUNT and len(finding.notes) == 4
    assert finding.notes[-1] == "and 2 more such files"


def test_blank_label_maps_are_counted_and_no_fault(prepared):
    label_map(np.full((20, 30), 255), prepared, 2)
    finding = check()
    assert finding.state == "complete" and finding.blank == 1
    assert finding.notes == ("1 of 5 label maps have no labelled pixel",)


def test_a_sample_is_spread_evenly_and_full_reads_all(prepared):
    label_map(np.full((20, 30), 255), prepared, 4)
    assert check(sample=2)[5:8] == (2, 0, 0)
    assert check(sample=0)[5:8] == (COUNT, 0, 1)


def test_a_cut_picture_is_broken(prepared, ade):
    path = ade / "images/validation/ADE_val_1.jpg"
    path.write_bytes(path.read_bytes()[:200])
    finding = check()
    assert finding.state == "broken" and "ADE_val_1.jpg cannot be decoded" in finding.notes[0]
    assert "ADEChallengeData2016.zip" in finding.mend and "prepare" not in finding.mend


def test_preparing_is_no_advice_without_what_it_reads(prepared, ade):
    raw = ade / "annotations/validation"
    (raw / "ADE_val_3.png").rename(ade / "ADE_val_3.png")
    (prepared / "ADE_val_3.png").unlink()
    finding = check()
    first, then = finding.mend.split("; then ")
    assert "ADEChallengeData2016.zip" in first and then == "clipself-seg data prepare ade150"
    assert finding.notes[:2] == (
        "1 images without label map",
        "1 of these lack what they are prepared from",
    )
    # A map whose archive's file is there, and one whose archive's file is not.
    (ade / "ADE_val_3.png").rename(raw / "ADE_val_3.png")
    assert check().mend == "clipself-seg data prepare ade150"
    (prepared / "ADE_val_2.png").write_bytes(b"")
    assert check().mend == "clipself-seg data prepare ade150 --overwrite"
    (raw / "ADE_val_2.png").unlink()
    assert check().mend.startswith("the archive is not whole: unpack ADEChallengeData2016.zip")
    shutil.rmtree(ade / "annotations")
    shutil.rmtree(prepared)
    finding = check()
    assert finding.state == "incomplete" and not finding.subset_allowed().fine
    assert any("annotations/validation is missing" in note for note in finding.notes)
    assert finding.mend.startswith("the archive is not whole: unpack ADEChallengeData2016.zip")


@pytest.fixture
def coco(data_dir, tmp_path, monkeypatch):
    """The real small validation split, which is the official number here."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("coco_2017_val_panoptic", "coco_2017_val"):
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], official_count=50))
    for folder in ("val2017", "panoptic_val2017"):
        shutil.copytree(
            data_dir / "coco" / folder, tmp_path / "coco" / folder, copy_function=shutil.copyfile
        )
    (tmp_path / "coco/annotations").mkdir()
    for kind in ("panoptic", "instances"):
        name = f"coco/annotations/{kind}_val2017.json"
        shutil.copyfile(data_dir / name, tmp_path / name)
    return tmp_path / "coco"


def test_cocos_formats(coco):
    finding = check("coco_2017_val_panoptic")
    assert finding[:9] == ("coco_2017_val_panoptic", "complete", 50, 50, 50, 50, 0, 0, 0)
    assert check("coco_2017_val").state == "complete"
    assert check("lvis_v1_train").state == "absent"
    path = sorted((coco / "panoptic_val2017").iterdir())[7]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    finding = check("coco_2017_val_panoptic")
    assert finding.state == "broken" and path.name in finding.notes[0]
    sorted((coco / "val2017").iterdir())[3].unlink()
    finding = check("coco_2017_val")
    assert finding.state == "incomplete" and "cocodataset.org" in finding.mend
    assert "1 images of the annotation file are not there" in finding.notes
    (coco / "annotations/instances_val2017.json").write_text("{")
    assert check("coco_2017_val").state == "broken"


def test_captions(tmp_path, monkeypatch):
    write_tiny_coco(tmp_path, images=2)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    finding = check("coco_2017_train_captions").subset_allowed()
    assert finding.fine and finding.images == 2


def test_boxes_with_nouns(tmp_path, monkeypatch):
    write_tiny_coco(tmp_path, images=2)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    finding = check("coco_2017_train_region_text")
    assert finding.state == "complete" and finding.images == 2
    path = tmp_path / "coco/annotations/coco_pseudo_4764.json"
    path.write_text(path.read_text().replace('"grass-merged"', '"cat"'))
    finding = check("coco_2017_train_region_text")
    assert finding.state == "broken" and "'cat'" in finding.notes[0]
    path.unlink()
    finding = check("coco_2017_train_region_text")
    assert finding.state == "absent" and "clipself-seg data region-text" in finding.mend


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=f'did you mean "{ADE}"'):
        check("ade20k_150_test")


SIZE = (20, 30)  # height, width
STEMS = [f"2008_{number:06d}" for number in range(3)]


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


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


def write_context_59(root):
    folder = root / "VOCdevkit/VOC2010"
    write_images(folder)
    facts = {"phase": "val", "height": SIZE[0], "width": SIZE[1]}
    images = [facts | {"file_name": f"{s}.jpg", "image_id": i} for i, s in enumerate(STEMS)]
    content = {"images": images, "annos_segmentation": []}
    (folder / "trainval_merged.json").write_text(json.dumps(content))
    return folder / "trainval_merged.json"


def write_context_459(root):
    folder = root / "VOCdevkit/VOC2010"
    write_images(folder)
    (folder / "pascalcontext_val.txt").write_text("\n".join(STEMS))
    (folder / "trainval").mkdir()
    for stem in STEMS:
        scipy.io.savemat(folder / f"trainval/{stem}.mat", {"LabelMap": np.ones(SIZE)})
    return folder / "trainval"


LAYOUTS = {
    "voc_2012_test_sem_seg": (write_voc, prepare_voc20, "voc20"),
    "voc_2012_test_background_sem_seg": (write_voc, prepare_voc20, "voc20"),
    "ade20k_full_sem_seg_freq_val_all": (write_ade847, prepare_ade847, "ade847"),
    "context_59_test_sem_seg": (
        write_context_59,
        prepare_pascal_context_59,
        "pascal_context_59",
    ),
    "context_459_test_sem_seg": (
        write_context_459,
        prepare_pascal_context_459,
        "pascal_context_459",
    ),
}


@pytest.fixture(params=LAYOUTS)
def archive(request, tmp_path, monkeypatch):
    """Name of a data set, what its preparation reads, the preparation, and the command for it."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write, prepare, tool = LAYOUTS[request.param]
    source, options = write(tmp_path), common.Options(tmp_path)
    return request.param, source, lambda: prepare(options), f"clipself-seg data prepare {tool}"


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


def test_the_check_tells_how_the_images_of_ade20k_847_were_written(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_ade847(tmp_path)
    for quality in (75, 95):
        prepare_ade847(common.Options(tmp_path, overwrite=True), quality=quality)
        finding = check("ade20k_full_sem_seg_freq_val_all")
        said = f"images of JPEG quality {quality}; those of published numbers have 75"
        assert said in finding.notes and finding.subset_allowed().fine


def test_an_archive_without_what_is_prepared_from_it_is_unpacked_first(archive, tmp_path):
    name, source, _, command = archive
    source.rename(tmp_path / "away")
    finding = check(name)
    # All that ADE20K-847 has is in that folder.
    assert finding.state == ("absent" if "ade" in name else "incomplete")
    assert any(str(source) in note and "missing" in note for note in finding.notes)
    first, then = finding.mend.split("; then ")
    assert "unpack" in first and then == command
    assert not finding.subset_allowed().fine


def test_a_picture_without_a_class_of_voc_20_is_no_gap(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    save(write_voc(tmp_path) / f"{STEMS[1]}.png", np.zeros(SIZE, np.uint8))
    prepare_voc20(common.Options(tmp_path))
    for name, labelled in (
        ("voc_2012_test_sem_seg", 2),
        ("voc_2012_test_background_sem_seg", 3),
    ):
        finding = check(name)
        assert (finding.labelled, finding.missing) == (labelled, 0)
        assert finding.subset_allowed().fine


def test_a_picture_that_is_prepared_itself_is_prepared_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    raw = write_ade847(tmp_path)
    prepare_ade847(common.Options(tmp_path))
    name, path = "ade20k_full_sem_seg_freq_val_all", written(tmp_path)[-1]
    assert path.suffix == ".jpg"
    path.write_bytes(path.read_bytes()[:200])
    finding = check(name)
    assert (finding.state, finding.mend) == (
        "broken",
        "clipself-seg data prepare ade847 --overwrite",
    )
    next(raw.rglob(path.name)).unlink()
    assert check(name).mend.startswith("the archive is not whole: ")


def test_a_mini_world_is_written_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    for stem in "ab":
        save(tmp_path / f"mini/val/{stem}.jpg", np.zeros((*SIZE, 3), np.uint8))
        save(tmp_path / f"mini/stuffthingmaps/val/{stem}.png", np.zeros(SIZE, np.uint8))
    assert check("mini_val_sem_seg").fine
    (tmp_path / "mini/stuffthingmaps/val/b.png").unlink()
    finding = check("mini_val_sem_seg")
    assert finding.notes == ("1 images without label map",)
    # The command keeps a world whose manifest is there.
    assert finding.mend == f"delete {tmp_path}/mini, then clipself-seg data mini-world"


COCO, ADE_PANOPTIC = "coco_2017_val_panoptic_with_sem_seg", "ade20k_panoptic_val"
FEW = 4


@pytest.fixture
def panoptic_coco(data_dir, tmp_path, monkeypatch):
    """Four images of the real validation split, which is the official number here."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = replace(DATASETS[COCO], official_count=FEW)
    monkeypatch.setitem(DATASETS, COCO, files)
    return write_small_coco(data_dir, tmp_path, FEW)


@pytest.fixture
def prepared_panoptic(panoptic_coco):
    prepare_coco_panoptic_semseg(PrepareOptions(panoptic_coco.parent), ["val2017"])
    return panoptic_coco


def check_panoptic(name=COCO, **options):
    (finding,) = check_datasets([name], Options(**options))
    return finding


def pngs(folder, kind):
    return sorted((folder / f"{kind}_val2017").iterdir())


def test_complete_without_captions_which_are_a_note(prepared_panoptic):
    finding = check_panoptic()
    assert finding[:9] == (
        COCO,
        "complete",
        FEW,
        FEW,
        FEW,
        FEW,
        0,
        0,
        0,
    )
    (note,) = finding.notes
    assert "panoptic_caption_val2017.json, which only training on captions needs" in note
    assert finding.fine and finding.mend == ""
    assert check_panoptic(sample=2).read == 2


def test_unprepared_names_the_command(panoptic_coco):
    finding = check_panoptic()
    assert finding.state == "unprepared" and "panoptic_semseg_val2017" in finding.notes[0]
    command = "clipself-seg data prepare coco_panoptic_semseg --splits val2017"
    assert finding.mend == command and not finding.subset_allowed().fine


def test_what_is_missing_of_the_archive_is_told_from_no_archive(prepared_panoptic):
    (prepared_panoptic / "annotations/instances_val2017.json").unlink()
    finding = check_panoptic()
    assert finding.state == "incomplete" and "instances_val2017.json" in finding.notes[0]
    assert "cocodataset.org" in finding.mend
    (prepared_panoptic / "annotations/panoptic_val2017.json").unlink()
    assert check_panoptic().state == "absent"


def test_single_files_that_are_missing_are_counted_with_what_brings_them(prepared_panoptic):
    images = sorted((prepared_panoptic / "val2017").iterdir())
    images[0].unlink()
    pngs(prepared_panoptic, "panoptic")[1].unlink()
    pngs(prepared_panoptic, "panoptic_semseg")[2].unlink()
    finding = check_panoptic()
    assert finding.state == "incomplete" and finding[2:4] == (3, 1) and finding.missing == 3
    assert finding.notes[:3] == (
        "1 images of the annotation file are not there",
        "1 images have no panoptic PNG",
        "1 images have no label map",
    )
    assert "cocodataset.org" in finding.mend and "prepare coco_panoptic_semseg" in finding.mend
    assert not finding.subset_allowed().fine


def test_a_subset_is_fine_on_request(prepared_panoptic, monkeypatch):
    files = replace(DATASETS[COCO], official_count=5000)
    monkeypatch.setitem(DATASETS, COCO, files)
    finding = check_panoptic()
    assert finding.state == "incomplete" and f"{FEW} of 5000 images" in finding.notes
    assert finding.subset_allowed().fine and not finding.fine
    assert "the archive is not whole" in finding.mend


def test_broken_label_maps_and_broken_pngs_have_their_own_remedy(prepared_panoptic):
    path = pngs(prepared_panoptic, "panoptic_semseg")[1]
    Image.fromarray(np.full((7, 9), 133, np.uint8)).save(path)
    finding = check_panoptic()
    assert finding.state == "broken" and f"label map {path} is 9 x 7" in finding.notes[1]
    again = "clipself-seg data prepare coco_panoptic_semseg --splits val2017 --overwrite"
    assert finding.mend == again
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(pngs(prepared_panoptic, "panoptic")[0])
    finding = check_panoptic()
    assert finding.broken == 2 and "cocodataset.org" in finding.mend and again in finding.mend
    assert "disagree" in finding.notes[1]


def test_a_panoptic_json_of_a_part_is_a_subset_beside_the_whole_splits_instances(
    prepared_panoptic,
):
    path = prepared_panoptic / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][1:]
    wanted = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in wanted]
    path.write_text(json.dumps(content))
    finding = check_panoptic()
    assert finding.state == "incomplete" and finding.mend
    allowed = finding.subset_allowed()
    assert (allowed.state, allowed.mend, allowed.labelled) == (
        "subset",
        "",
        FEW - 1,
    )
    assert allowed.fine


def test_annotation_files_that_do_not_fit_are_broken(prepared_panoptic):
    path = prepared_panoptic / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["id"] = 77
    path.write_text(json.dumps(content))
    finding = check_panoptic()
    assert finding.state == "broken" and "lacks images that" in finding.notes[0]
    (prepared_panoptic / "annotations/panoptic_val2017.json").write_text("{")
    assert "cannot be read" in check_panoptic().notes[0]


def test_ade_that_is_absent_or_unprepared_says_all_that_is_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    finding = check_panoptic(ADE_PANOPTIC)
    assert finding.state == "absent" and "ADEChallengeData2016.zip" in finding.mend
    (tmp_path / "ade/ADEChallengeData2016/images/validation").mkdir(parents=True)
    finding = check_panoptic(ADE_PANOPTIC)
    assert finding.state == "unprepared" and "ade/ADEChallengeData2016" in finding.notes[0]
    assert finding.mend == (
        "clipself-seg data prepare ade20k_panoptic --splits validation; then "
        "clipself-seg data prepare ade150 --splits validation"
    )


def test_captions_without_phrases_say_how_to_get_them(tmp_path):
    path = tmp_path / "captions.json"
    entries = [{"image_id": 3, "phrases": ["a dog"]}, {"image_id": 4, "phrases": []}]
    entries.append({"image_id": 3, "phrases": ["grass", "sky"]})
    path.write_text(json.dumps({"annotations": entries}))
    assert read_phrases(path) == {3: [["a dog"], ["grass", "sky"]], 4: [[]]}
    path.write_text(json.dumps({"annotations": [{"image_id": 3, "caption": "A dog."}]}))
    with pytest.raises(InputError, match="captions.json: a caption needs .*prepare coco_captions"):
        read_phrases(path)


@pytest.mark.parametrize(
    "name, write, prepare, split",
    [
        ("cityscapes_fine_panoptic_val", write_city_image, prepare_cityscapes, "val"),
        ("mapillary_vistas_panoptic_val", write_vistas_image, prepare_vistas, "validation"),
    ],
)
def test_streets_are_absent_unprepared_or_as_large_as_they_are(
    tmp_path, monkeypatch, name, write, prepare, split
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    command = DATASETS[name].prepare
    assert check_panoptic(name).state == "absent" and check_panoptic(name).mend.endswith(command)
    write(tmp_path)
    finding = check_panoptic(name)
    assert (finding.state, finding.mend) == ("unprepared", command)
    prepare(PrepareOptions(tmp_path), [split])
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], official_count=1))
    finding = check_panoptic(name)
    assert finding.state == "complete" and (finding.images, finding.labelled) == (1, 1)
    for label_map in tmp_path.rglob("*_labelTrainIds.png"):
        label_map.unlink()
    for label_map in tmp_path.rglob("labels_detectron2/*.png"):
        label_map.unlink()
    assert check_panoptic(name).mend == command and not check_panoptic(name).fine


@pytest.fixture
def few_coco(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_small_coco(data_dir, tmp_path, 3)


def test_absent_then_unprepared_then_complete(few_coco, tmp_path):
    finding = check("ov_coco_val")
    assert finding.state == "unprepared" and "all_2.json" in finding.notes[0]
    assert finding.mend == "clipself-seg data prepare ov_coco --splits val2017"
    prepare_ov_coco(PrepareOptions(tmp_path), ["val2017"])
    finding = check("ov_coco_val")
    assert finding.state == "complete" and finding.images == finding.read > 0
    shutil.rmtree(few_coco)
    finding = check("ov_coco_val")
    assert finding.state == "absent" and "cocodataset.org" in finding.mend


def test_an_official_file_that_is_not_whole_or_without_images(few_coco):
    assert check("transfer_coco_val").notes == ("3 of 5000 images",)
    next((few_coco / "val2017").iterdir()).unlink()
    finding = check("transfer_coco_val")
    assert (finding.state, finding.missing) == ("incomplete", 1)
    shutil.rmtree(few_coco / "val2017")
    assert check("transfer_coco_val").state == "incomplete"


def test_a_training_file_with_novel_classes_is_broken(few_coco):
    path = few_coco / "zero-shot/instances_train2017_seen_2_65_cat.json"
    path.parent.mkdir()
    (few_coco / "train2017").mkdir()
    content = json.loads((few_coco / "annotations/instances_val2017.json").read_text())
    path.write_text(json.dumps(content))
    finding = check("ov_coco_train")
    assert finding.state == "broken" and "not base" in finding.notes[0]
    assert finding.mend == "clipself-seg data prepare ov_coco --splits train2017 --overwrite"
