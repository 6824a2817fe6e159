"""A preparation that was interrupted, and archives of which a part is missing, in every layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.io
from PIL import Image

from clipself_seg.data.datasets.check import Options, check_datasets
from clipself_seg.data.prepare import common
from clipself_seg.data.prepare.ade import prepare_ade847
from clipself_seg.data.prepare.pascal import (
    prepare_pascal_context_59,
    prepare_pascal_context_459,
    prepare_voc20,
)

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


def check(name):
    (finding,) = check_datasets([name], Options())
    return finding


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
