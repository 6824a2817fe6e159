"""What the zoo states of its files stands everywhere as it is in zoo.yaml."""

import copy
import re

import pytest
import yaml

import clipself_seg
from clipself_seg.checkpoints.zoo import OPEN_LICENCES, ZOO, zoo
from clipself_seg.commands.weights import main
from clipself_seg.data.datasets.table import ROOTS, TABLE
from clipself_seg.prediction.onnx.graph import metadata_of
from clipself_seg.prediction.pretrained import card
from tests.conftest import ROOT


def rows(page: str) -> list[str]:
    return [line for line in (ROOT / page).read_text().splitlines() if line.startswith("| ")]


@pytest.fixture(scope="module")
def predictor():
    return clipself_seg.load("mini-clipself", device="cpu")


@pytest.fixture
def places(predictor, capsys):
    """Name of an entry -> its row or line in each of the six places that have licences beside zoo.yaml."""
    assert main([]) == 0
    listed = capsys.readouterr().out.splitlines()
    pages = {
        page: rows(page) for page in ("README.md", "docs/licences.md", "docs/tables/models.md")
    }

    def of(name: str) -> dict[str, str]:
        config = predictor.config.clone()
        config.defrost()
        config.merge_from_list([zoo()[name].key, name])
        saved = card(predictor, config, None, "org/name")
        exported = copy.copy(predictor)
        exported.config = config
        found = {page: [row for row in own if f"`{name}`" in row] for page, own in pages.items()}
        found["terminal"] = [line for line in listed if line.split()[:1] == [name]]
        found["card"] = [line for line in saved.splitlines() if line.startswith("| `MODEL.")]
        found["header"] = re.findall("^license: (.+)", saved, re.MULTILINE)
        found["model.json"] = metadata_of(exported)["weights"]
        return {place: "\n".join(lines) for place, lines in found.items()}

    return of


IN_README = [row.split("`")[1] for row in rows("README.md") if re.search(r"\| (yes|no|ask): ", row)]
OTHERS = ["openai-vitb16", "odise-label", "ViT-B-16-quickgelu:dfn2b", "stable-diffusion-v1-3"]


@pytest.mark.parametrize("name", [*IN_README, *OTHERS])
def test_a_licence_is_the_same_in_seven_places(name, places):
    stated = yaml.safe_load(ZOO.read_text())[name]
    licence, source = stated["licence"], stated["licence_source"]
    answer = zoo()[name].may_ship
    said = places(name)
    short = licence.replace(" (the repository's)", "*").replace(" License", "").partition(",")[0]
    if name in IN_README:
        (own,) = re.findall(r"\| (\w+: .*) \|$", said["README.md"])
        assert f"{answer}: {short}".startswith(own.replace("\\", ""))
        (number,) = re.findall(r"(?:mIoU|PQ|AP|boxes) (\d+\.\d)", said["README.md"])
        assert number in zoo()[name].published
    assert f"| {answer}: {licence} |" in said["docs/tables/models.md"]
    page, read = source.split(", ")
    assert f"| {licence} | {answer} | [1]" in said["docs/licences.md"]
    assert f"({page})" in said["docs/licences.md"] and read in said["docs/licences.md"]
    assert f" {answer} " in said["terminal"] and f" {short}" in said["terminal"]
    assert f" {name} | {licence} | {source} |" in said["card"]
    assert f" {name}: {licence}: {source}" in said["model.json"]
    shipped = said["card"].count("\n") == 0  # no other weights
    assert said["header"] == (OPEN_LICENCES.get(licence, "other") if shipped else "other")


def test_readme_has_licences_of_every_answer():
    assert {zoo()[name].may_ship for name in IN_README} == {"yes", "ask", "no"}


@pytest.mark.parametrize("name", [name for name in ROOTS if "MINI" not in name])
def test_data_have_addresses_or_a_sentence_with_the_way_to_them(name):
    root = ROOTS[name]
    archives = yaml.safe_load(TABLE.read_text())["roots"][name].get("archives", [])
    for archive in archives:
        assert archive["address"] in root.advice and not {"size", "megabytes"} <= archive.keys()
        assert archive.keys() <= {"address", "size", "megabytes", "sha256"}
    fetched = any(archive["address"].startswith("http") for archive in archives)
    assert fetched or re.search("asks for an account|by hand|cannot be had", root.advice)
    assert root.title and (root.gigabytes or "size not published" in root.advice)


def test_the_size_of_data_is_that_of_their_archives():
    assert ROOTS["COCO"].gigabytes == 21.3 and ROOTS["CITYSCAPES"].gigabytes == 11.2
    assert ROOTS["ADE_847"].gigabytes == 0
