"""A run's name follows from what decides its numbers, and from nothing else."""

from __future__ import annotations

import json

import pytest

from clipself_seg.config.weights import WEIGHTS
from clipself_seg.errors import InputError
from clipself_seg.tables import runs
from clipself_seg.tables.runs import make_run, resolve
from clipself_seg.tables.table import RunOf, RunSpec, WeightsFile

PATCHES = "configs/mini/patches.yaml"


def name_of(**options):
    given = {key.replace("__", "."): str(value) for key, value in options.items()}
    return make_run(PATCHES, given, seed=0).name


def test_other_options_and_seeds_have_other_names():
    names = {name_of(), name_of(SOLVER__MAX_ITER=7), name_of(INPUT__REGIONS__MAX_SPLIT=6)}
    names |= {make_run(PATCHES, {}, seed=1).name, make_run(PATCHES, {}, seed=0, evaluate=True).name}
    names.add(make_run("configs/mini/proposals.yaml", {}, seed=0).name)
    assert len(names) == 6 and all(name.startswith(("patches_", "proposals_")) for name in names)


def test_what_is_written_out_is_the_same_run_as_the_default():
    assert name_of() == name_of(INPUT__REGIONS__MAX_SPLIT=4, OUTPUT_DIR="elsewhere")
    assert name_of() == name_of(SOLVER__CHECKPOINT_PERIOD=7, DATALOADER__NUM_WORKERS=1)


def test_weights_count_by_their_content(tmp_path):
    one, same, other = (tmp_path / f"{n}.pt" for n in range(3))
    one.write_bytes(b"weights")
    same.write_bytes(b"weights")
    other.write_bytes(b"others")
    first, second, third = (name_of(MODEL__CLIP__WEIGHTS=path) for path in (one, same, other))
    assert first == second != third
    one.write_bytes(b"longer weights")
    assert name_of(MODEL__CLIP__WEIGHTS=one) != first
    tags = {name_of(MODEL__CLIP__WEIGHTS=tag) for tag in ("mini", "mini-clipself")}
    assert len(tags) == 2 and name_of() in tags


# Configurations of the models that read them; all others are read by a distillation.
READ_BY = {
    "MODEL.CLIP.VISUAL_INIT": "mini/semseg",
    "MODEL.CLIP_BRANCH.WEIGHTS": "mini/panoptic",
    "MODEL.CAT_SEG.BACKBONE_WEIGHTS": "mini/semseg",
    "MODEL.STOCK_RPN.BACKBONE_WEIGHTS": "mini/rpn_r18",
    "MODEL.DIFFUSION.WEIGHTS": "panoptic/odise_label",
}


@pytest.mark.parametrize("key", WEIGHTS)
def test_every_file_of_weights_counts_by_its_content(tmp_path, key):
    names = []
    config = f"configs/{READ_BY.get(key, 'mini/patches')}.yaml"
    for folder, content in (("a", b"weights"), ("b", b"weights"), ("c", b"others")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights.pt").write_bytes(content)
        names.append(make_run(config, {key: str(tmp_path / folder / "weights.pt")}, seed=0).name)
    assert names[0] == names[1] != names[2]


def test_another_world_gives_another_run(tmp_path, monkeypatch):
    standard = name_of()
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    assert name_of() == standard
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "manifest.json").write_text(json.dumps({"seed": 5}))
    assert name_of() != standard


def test_a_run_that_needs_another_one_has_its_weights_and_seed(tmp_path):
    specs = {
        "clip": RunSpec(PATCHES, {}, {}, False, 2),
        "detector": RunSpec(
            "configs/mini/detection.yaml", {}, {"MODEL.CLIP.WEIGHTS": RunOf("clip")}, False, 4
        ),
        "read": RunSpec("configs/mini/regions.yaml", {}, {}, True, 1),
        "read_it": RunSpec(
            "configs/mini/regions.yaml", {}, {"MODEL.CLIP.WEIGHTS": RunOf("clip")}, True, 1
        ),
    }
    detector = resolve(specs, "detector", seed=2)
    clip, itself = detector.with_needs()
    assert itself is detector and clip.name == resolve(specs, "clip", seed=2).name
    words = detector.command(tmp_path)
    assert words[words.index("SEED") + 1] == "2" and words[3] == "--resume"
    assert words[words.index("MODEL.CLIP.WEIGHTS") + 1] == str(
        tmp_path / clip.name / "clip_final.safetensors"
    )
    assert words[-2:] == ["OUTPUT_DIR", str(tmp_path / detector.name)]
    assert resolve(specs, "detector", seed=1).name != detector.name
    # Without training no seed moves anything.
    assert resolve(specs, "read", seed=1).name == resolve(specs, "read", seed=2).name
    assert resolve(specs, "read_it", seed=1).name != resolve(specs, "read_it", seed=2).name
    assert resolve(specs, "read", seed=1).command(tmp_path, gpus=4)[3:6] == [
        "--eval-only",
        "--num-gpus",
        "4",
    ]


def test_what_is_missing_is_said_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    weights = {"MODEL.CLIP.WEIGHTS": WeightsFile("eva.pt", "the authors have it")}
    spec = RunSpec("configs/regions/coco_eva02_vitb16.yaml", {}, weights, True, 0)
    run = resolve({"eva": spec}, "eva", 0, tmp_path)
    assert run.missing[0] == f"{tmp_path}/eva.pt: the authors have it"
    assert "panoptic_val2017" in run.missing[1] and "https://cocodataset.org" in run.missing[1]
    (tmp_path / "eva.pt").write_bytes(b"1")
    assert len(resolve({"eva": spec}, "eva", 0, tmp_path).missing) == 1
    named = make_run("configs/regions/coco_eva02_vitb16.yaml", {}, evaluate=True)
    assert named.fetched == ["MODEL.CLIP.WEIGHTS merged2b_s8b_b131k (EVA02-B-16)"]


def test_a_wrong_key_is_refused_as_in_a_run():
    with pytest.raises(InputError, match='unknown key "SOLVER.MAX_ITERS"'):
        name_of(SOLVER__MAX_ITERS=3)


def test_an_address_in_a_table_is_refused():
    with pytest.raises(InputError, match="MODEL.CLIP.WEIGHTS is the address https://a/b.pt, which"):
        name_of(MODEL__CLIP__WEIGHTS="https://a/b.pt")


def test_a_command_in_a_table_is_refused():
    with pytest.raises(InputError, match="a table's run: DATASETS.TRAIN has the command"):
        name_of(DATASETS__TRAIN="('wds:{pipe,a}:touch ran',)")


def test_without_a_checkout_configurations_are_those_of_the_package(monkeypatch, tmp_path):
    given = ("configs/mini/patches.yaml", ())
    expected = runs._values(*given)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert runs._values.__wrapped__(*given) == expected
