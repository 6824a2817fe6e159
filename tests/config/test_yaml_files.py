"""Files of a configuration come from this disk, end somewhere, and are named when they are wrong."""

import re

import pytest
from detectron2.utils.file_io import PathManager

from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.yaml_files import CONFIGS, MAX_FILES, Layer, find_file, merge_layers, read_layers


def write(folder, **contents):
    """Files NAME.yaml; the path of the first one."""
    paths = [folder / f"{name}.yaml" for name in contents]
    for path, content in zip(paths, contents.values()):
        path.write_text(content)
    return paths[0]


def refused(path, message, opts=()):
    with pytest.raises(InputError, match=message) as caught:
        load_config(path, opts)
    assert len(str(caught.value)) < 500 and len(str(caught.value).splitlines()) == 1


ADDRESSES = [
    f"{scheme}://host/base.yaml"
    for scheme in ("http", "https", "ftp", "s3", "detectron2", "catalog", "file")
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_is_fetched(tmp_path, monkeypatch, address):
    fetched = []
    monkeypatch.setattr(PathManager, "open", lambda path, mode: fetched.append(path))
    run = write(tmp_path, run=f"_BASE_: {address}", listed=f"_BASE_: [run.yaml, '{address}']")
    refused(run, f"run.yaml: its _BASE_ {address} is no file on this machine.*fetch")
    refused(tmp_path / "listed.yaml", "run.yaml: its _BASE_ .* is no file on this machine")
    refused(address, "^no config file ")
    assert not fetched


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"run": "_BASE_: ."}, "run.yaml: its _BASE_ . is no file"),
        ({"run": "_BASE_: 3"}, "run.yaml: _BASE_ is 3, and has to be a file"),
        ({"run": "_BASE_: a.yaml", "a": "SEED: [1"}, "a.yaml is not a usable YAML file"),
        ({"run": 'A: {B: ["\\ud800"]}'}, "run.yaml has half of a letter"),
        ({"run": '"\\ud800": 1'}, "run.yaml has half of a letter"),
        (
            {"run": "_BASE_: a.yaml", "a": "_BASE_: b.yaml", "b": "_BASE_: a.yaml"},
            "run.yaml: its _BASE_ leads to more than 100 files, or back to itself",
        ),
        (
            {"run": "_BASE_: a.yaml\nSOLVER: {EPS: 1}", "a": "SOLVER: 3"},
            "run.yaml: SOLVER is a section, and a value in its _BASE_",
        ),
        (
            {"run": "MODEL: {PIXEL_MEAN: " + "[" * 60 + "]" * 60 + "}"},
            "run.yaml: a configuration has",
        ),
        ({"run": "MODEL: {PIXEL_MEAN: " + "[" * 1500}, "run.yaml is not .* brackets .* deep"),
        ({"run": "MODEL: {PIXEL_MEAN: &a [*a]}"}, "run.yaml: a configuration has at most"),
    ],
)
def test_a_file_that_leads_nowhere_is_named(tmp_path, contents, message):
    refused(write(tmp_path, **contents), message)


def test_a_few_lines_do_not_stand_for_values_or_files_without_end(tmp_path):
    laughs = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n-1}, *a{n-1}]" for n in range(1, 40))]
    refused(write(tmp_path, run="\n".join(laughs)), "run.yaml: a configuration has at most 100000")
    many = {f"f{n}": f"_BASE_: [f{n + 1}.yaml, f{n + 1}.yaml]" for n in range(40)}
    refused(write(tmp_path, **many, f40="SEED: 1"), f"f0.yaml: .* more than {MAX_FILES} files")


def test_the_file_of_a_wrong_value_is_named_whatever_is_wrong(tmp_path):
    base = "SOLVER: {EPS: -1}\nMODEL: {CLIPSELF: {LOSS_AVERAGE: image}}"
    run = write(tmp_path, run="_BASE_: a.yaml\nSOLVER: {BASE_LR: 1.0}", a=base, empty="SEED: 1")
    refused(run, "^.*a.yaml: SOLVER.EPS must be 0", ["MODEL.CLIPSELF.LOSS_AVERAGE", "images"])
    refused(run, "^.*a.yaml: MODEL.CLIPSELF.LOSS_AVERAGE cannot be", ["SOLVER.EPS", "1"])
    empty = tmp_path / "empty.yaml"
    for opts, key in (
        (["SOLVER.EPS", "-1"], "SOLVER.EPS"),
        (["TEST.REGIONS.READ", "('boxs',)"], "TEST.REGIONS.READ"),
        (["INPUT.DETECTION.MAX_SCALE", "0.01"], "INPUT.DETECTION.MIN_SCALE"),
        (["MODEL.PIXEL_MEAN", "[" * 80 + "]" * 80], "MODEL.PIXEL_MEAN"),
        (["MODEL.PIXEL_MEAN", "[" * 9999], "MODEL.PIXEL_MEAN"),
        (["MODEL.PIXEL_MEAN", "-" * 99999 + "1"], "MODEL.PIXEL_MEAN"),
    ):
        refused(empty, f"^the command line: {key} ", opts)


def test_a_later_layer_counts_more_and_changes_no_earlier_one(tmp_path):
    contents = {
        "run": "_BASE_: [a.yaml, b.yaml]\nA: {X: 1}",
        "a": "A: {X: 3, Y: 3}",
        "b": "A: {Y: 2}",
    }
    layers = read_layers(write(tmp_path, **contents))
    assert [layer.path.stem for layer in layers] == ["a", "b", "run"]
    assert merge_layers(layers) == {"A": {"X": 1, "Y": 2}} and layers[0].tree == {
        "A": {"X": 3, "Y": 3}
    }
    assert merge_layers([Layer(tmp_path, {"A": {}})]) == {"A": {}}


NAMES = ["semseg/catseg.yaml", "configs/semseg/catseg.yaml", "/gone/configs/semseg/catseg.yaml"]


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_file_on_disk_comes_before_the_one_of_the_package(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = CONFIGS / "semseg" / "catseg.yaml"
    assert find_file(name) == shipped and read_layers(name)[-1].path == shipped
    own = tmp_path / name
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 3")
    assert [layer.tree for layer in read_layers(name)] == [{"SEED": 3}]


@pytest.mark.parametrize("file", [*NAMES, "configs/semseg/catseg", "semseg/catseg"])
def test_a_name_is_resolved_wherever_it_is_written(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = load_config("semseg/catseg").DATASETS.TEST
    assert load_config(file).DATASETS.TEST == expected
    assert load_config(write(tmp_path, run=f"_BASE_: {file}")).DATASETS.TEST == expected


def test_a_file_of_ones_own_takes_a_tower_in_a_list_or_by_its_name(tmp_path):
    run = write(tmp_path, run="_BASE_: [distill/coco_patches, towers/openai_vitl14_336]\nSEED: 1")
    shipped = load_config("distill/coco_patches+openai_vitl14_336")
    cfg = load_config(run)
    assert (cfg.MODEL, cfg.INPUT) == (shipped.MODEL, shipped.INPUT)
    assert cfg.INPUT.REGIONS.STUDENT_SIZE == 672 and cfg.OUTPUT_DIR == "output/distill/coco_patches"
    write(tmp_path, task="_BASE_: distill/lvis_patches")
    assert load_config(tmp_path / "task+openai_vitl14_336.yaml").MODEL == shipped.MODEL


def test_sections_are_those_of_the_architecture_that_the_files_name(tmp_path):
    sections = "_FOR_: {CATSeg: {SEED: 1}, FViT: {SEED: 2}}"
    model = "MODEL: {META_ARCHITECTURE: FViT}"
    path = write(tmp_path, run="_BASE_: [a.yaml, b.yaml]", a=sections, b=model)
    assert load_config(path).SEED == 2
    assert load_config(tmp_path / "a.yaml").SEED == 0
    for broken in ("[CATSeg]", "{CATSeg: 1}"):
        refused(write(tmp_path, run=f"_FOR_: {broken}"), "run.yaml: _FOR_.* has to be an object")


def test_the_folder_of_a_run_is_that_of_the_configuration_it_stands_on(tmp_path):
    run = write(tmp_path, run="_BASE_: distill/coco_patches+eva02_vitb16", alone="SEED: 1")
    assert load_config(run).OUTPUT_DIR == "output/distill/coco_patches+eva02_vitb16"
    assert load_config(tmp_path / "alone.yaml").OUTPUT_DIR == load_config(None).OUTPUT_DIR
    assert load_config(run, ["OUTPUT_DIR", "here"]).OUTPUT_DIR == "here"


def test_other_files_of_the_package_are_no_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (CONFIGS.parent / "zoo.yaml").is_file()
    for name in ("zoo.yaml", "configs/../zoo.yaml", "../zoo", "regions/coco+tower"):
        with pytest.raises(InputError, match="no config file"):
            find_file(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("semseg/catsg.yaml", "semseg/catseg.yaml"),
        ("distill/coco_patches_eva02_vitb16", "distill/coco_patches+eva02_vitb16.yaml"),
    ],
)
def test_a_name_that_is_nowhere_gets_the_nearest_of_the_package(name, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f'no config file {name}.*mean "{re.escape(near)}"'):
        find_file(name)
