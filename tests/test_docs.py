"""The map of the project names files, folders and identifiers that exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipself_seg.commands import predict
from clipself_seg.config.yaml_files import names
from tests.conftest import ROOT

PACKAGE = ROOT / "clipself_seg"
MAP = (ROOT / "docs" / "architecture.md").read_text()
README = (ROOT / "README.md").read_text()
README_MAP = README.partition("## Where things are")[2].partition("\n## ")[0]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_spans(text: str) -> set[str]:
    """Everything between single backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def paths(text: str) -> list[str]:
    """Files and folders that a page names; NAME stands for one that a reader adds."""
    spans = [span.split()[0] for span in code_spans(text)]
    return sorted({span for span in spans if re.fullmatch(r"[\w./-]+(/|\.(py|md|yaml))", span)})


def exists(name: str) -> bool:
    """Whether a file or folder is there; a bare name, which the text puts beside its folder, anywhere."""
    if (ROOT / name).exists() or (PACKAGE / name).exists():
        return True
    bare = name.rstrip("/")
    return "/" not in bare and any(PACKAGE.rglob(bare))


@pytest.mark.parametrize("page", [MAP, README_MAP], ids=["architecture.md", "README.md"])
def test_files_and_folders_of_the_map_exist(page):
    named = [name for name in paths(page) if "NAME" not in name]
    assert len(named) >= 10
    assert [name for name in named if not exists(name)] == []


def test_places_of_new_files_exist():
    new = [name for name in paths(MAP) if "NAME" in name]
    assert new and all(exists(name.partition("NAME")[0]) for name in new)


def test_identifiers_of_the_map_exist():
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    source += (ROOT / "tests" / "test_architecture.py").read_text()
    known = set(re.findall(r"\w+", source))
    named = {span for span in code_spans(MAP) if re.fullmatch(r"[A-Za-z_]\w*", span)}
    assert len(named) >= 40
    assert sorted(named - known) == []


def test_configurations_of_fcclip_and_its_successors_that_a_page_names_exist():
    there = {name.removeprefix("panoptic/") for name in names()}
    spans = {span for page in PAGES for span in code_spans(page.read_text())}
    named = {span for span in spans if re.fullmatch(r"(fcclip|ovrcoat)_\w+", span)}
    assert len(named) >= 10
    assert sorted(named - there) == []


def test_every_folder_of_the_package_is_in_the_map_of_the_readme():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    spans = {span.rstrip("/").split("/")[-1] for span in code_spans(README_MAP)}
    assert sorted(folders - spans) == []


def test_sections_of_every_page_are_numbered_without_gap_or_repeat():
    for page in PAGES:
        numbers = [int(number) for number in re.findall(r"^## (\d+)\. ", page.read_text(), re.M)]
        assert numbers == list(range(1, len(numbers) + 1)), page.name


LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", PACKAGE / "mini" / "CARD.md"]


def without_code(text: str) -> str:
    """A page without its blocks of code, in which "#" begins no heading and "](" no link."""
    return re.sub(r"^```(?s:.*?)^```|^    .*$", "", text, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as the Markdown view of a repository makes them, and the site."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w -]", "", plain).strip().replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for name, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", without_code(page.read_text())):
        target = page.parent / name if name else page
        if "://" in name or name.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"{name}#{anchor}")
    assert not wrong


def test_every_folder_says_what_it_is():
    texts = {path: path.read_text() for path in PACKAGE.rglob("__init__.py")}
    short = [
        str(path)
        for path, text in texts.items()
        if len(text.partition('"""')[2].split('"""')[0]) < 40
    ]
    assert short == []


# Of extras that the tests do without.
OPTIONAL = {"onnxruntime"}


def is_left_out(module: str) -> bool:
    """Whether a module is one of `OPTIONAL`, and not installed."""
    name = module.split(".")[0]
    return name in OPTIONAL and importlib.util.find_spec(name) is None


def python_blocks(text: str) -> list[str]:
    """Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def snippets() -> list[str]:
    """Python code of every page."""
    return python_blocks("\n".join(page.read_text() for page in PAGES))


def test_snippets_parse_and_what_they_import_exists():
    imported = 0
    for snippet in snippets():
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if not is_left_out(alias.name):
                        importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
                    imported += 1
    assert imported >= 10


def test_the_example_of_results_runs(tmp_path, monkeypatch):
    example, *_ = python_blocks((ROOT / "docs" / "results.md").read_text())
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    values: dict[str, Any] = {}
    exec(example, values)
    assert len(values["results"]) == 2 and (tmp_path / "overlay.png").is_file()
    assert len(values["annotations"]) == len(values["names"]) == len(values["boxes"])


def test_commands_and_the_snippet_of_masks_from_elsewhere_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for folder in ("folder", "masks"):
        Path(folder).mkdir()
    for name in ("photo.jpg", "folder/photo.jpg"):
        Image.fromarray(pixels).save(name)
    Path("masks/photo.json").write_text('[{"size": [60, 80], "counts": [0, 2400, 2400]}]')
    pages = {name: (ROOT / "docs" / name).read_text() for name in ("panoptic.md", "predict.md")}
    for page in pages.values():
        (line,) = (line for line in page.splitlines() if "predict --panoptic --masks" in line)
        assert predict.main([*shlex.split(line)[2:], "--device", "cpu"]) == 0
    assert Path("named/panoptic.json").is_file() and Path("output/predict/coco.json").is_file()
    (snippet,) = (code for code in python_blocks(pages["panoptic.md"]) if "masks=" in code)
    values: dict[str, Any] = {}
    exec(snippet, values)
    (segment,) = values["result"].segments
    assert segment.area == 2400 and segment.box == (0, 0, 40, 60)
