"""What README and docs say is true: files, headings, identifiers and modules that they name exist, commands that they
type are accepted, and their tables are those that the code gives."""

import argparse
import configparser
import fnmatch
import importlib
import importlib.util
import os
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from open_clip import list_pretrained
from write_tables import PAGES as TABLES
from write_tables import configs_table, weights_table

import check_datasets
import lab.precompute.stock_rpn  # noqa: F401  (enters its key)
import mini
import precompute
import prepare
import quickstart
import repeat_seeds
import reproduce
import setup_env
from bench import command as benchmark
from clipself_seg.__main__ import COMMANDS, body
from clipself_seg.checkpoints.zoo import SCHEME, SHIPPED_MODELS, SHIPPED_TAGS, zoo
from clipself_seg.choice import MODEL_KEYS
from clipself_seg.clip.find_kind import KINDS, list_architectures, model_configs
from clipself_seg.clip.templates import TEMPLATES
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.config.weight_checks import WEIGHTS
from clipself_seg.imports import OPTION, VARIABLE
from clipself_seg.yaml_files import find_file, names
from tests.conftest import ROOT
from tests.registries import registries_kept

PACKAGE = ROOT / "clipself_seg"
CODE = (PACKAGE, ROOT / "tools")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TYPED = [
    *PAGES,
    ROOT / "CONTRIBUTING.md",
    PACKAGE / "mini" / "CARD.md",
    ROOT / "tests" / "parity" / "README.md",
]
TEXTS = {page: page.read_text() for page in [*TYPED, ROOT / "CHANGELOG.md"]}
MAP = TEXTS[ROOT / "docs" / "architecture.md"]
INSTALL = TEXTS[ROOT / "docs" / "install.md"]
TOWERS = TEXTS[ROOT / "docs" / "towers.md"]


def code_spans(text: str) -> set[str]:
    """Everything between single backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def named_files(text: str) -> list[str]:
    """Files and folders that a map names; NAME stands for one that a reader adds."""
    spans = [span.split()[0] for span in code_spans(text)]
    return sorted({span for span in spans if re.fullmatch(r"[\w./-]+(/|\.(py|md|yaml))", span)})


# Modules of other projects, and of a reader.
NOT_OURS = {"mine.py", "my_hooks.py", "my_sets.py", "scripts/amg.py"}


def exists(name: str) -> bool:
    """Whether a file or folder is there; a bare name, which the text puts beside its folder, anywhere."""
    bare = name.rstrip("/")
    there = any((folder / name).exists() for folder in (ROOT, PACKAGE, ROOT / "tools"))
    return there or ("/" not in bare and any(any(code.rglob(bare)) for code in CODE))


def test_files_and_folders_of_the_map_exist():
    named = named_files(MAP)
    assert len(named) >= 10 and any("NAME" in name for name in named)
    assert [name for name in named if not exists(name.partition("NAME")[0])] == []


def test_every_folder_of_the_package_is_in_the_map():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert not folders - {span.rstrip("/").split("/")[-1] for span in code_spans(MAP)}


def test_identifiers_of_the_map_exist():
    source = "\n".join(path.read_text() for code in CODE for path in code.rglob("*.py"))
    source += (ROOT / "tests" / "test_architecture.py").read_text()
    named = {span for span in code_spans(MAP) if re.fullmatch(r"[A-Za-z_]\w*", span)}
    assert len(named) >= 40 and not named - set(re.findall(r"\w+", source))


def test_identifiers_of_the_map_are_in_the_files_that_stand_beside_them():
    file, name = r"`([\w/]+\.py)`", r"`([A-Za-z_]\w+)`"
    text = " ".join(MAP.split())
    pairs = re.findall(f"{file}: {name}", text)
    pairs += [pair[::-1] for pair in re.findall(rf"{name} (?:\(|of |in ){file}", text)]
    assert len(pairs) > 50
    for path, identifier in pairs:
        exact = [folder / path for folder in (PACKAGE, ROOT) if (folder / path).is_file()]
        files = exact or [file for code in CODE for file in code.rglob(path)]
        there = any(re.search(rf"\b{identifier}\b", each.read_text()) for each in files)
        assert there or "NAME" in path, (path, identifier)


def test_configurations_of_fcclip_and_its_successors_that_a_page_names_exist():
    spans = {span for page in PAGES for span in code_spans(TEXTS[page])}
    named = {span for span in spans if re.fullmatch(r"fcclip[_+]\w+", span)}
    assert len(named) >= 10 and all(find_file(f"panoptic/{name}") for name in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sections_are_numbered_without_gap_or_repeat(page):
    numbers = [int(number) for number in re.findall(r"^## (\d+)\. ", TEXTS[page], re.M)]
    assert numbers == list(range(1, len(numbers) + 1))


def without_code(text: str) -> str:
    """A page without its blocks of code, in which "#" begins no heading and "](" no link."""
    return re.sub(r"^```(?s:.*?)^```|^    .*$", "", text, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as the Markdown view of a repository makes them, and the site."""
    slugs: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w -]", "", plain).strip().replace(" ", "-")
        slugs.append(f"{slug}-{slugs.count(slug)}" if slug in slugs else slug)
    return set(slugs)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for name, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", without_code(TEXTS[page])):
        target = page.parent / name if name else page
        if "://" in name or name.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"{name}#{anchor}")
    assert not wrong


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:configs|tools|tests|clipself_seg|docs)/[\w./*+-]+)`", TEXTS[page])
    for name in named:
        there = fnmatch.filter(names(), name.removeprefix("configs/")) or any(ROOT.glob(name))
        assert there or (page.parent / name).exists() or find_file(name), name
    modules = {name for name in named_files(TEXTS[page]) if name.endswith(".py")} - NOT_OURS
    for name in modules:
        assert "NAME" in name or exists(name) or (page.parent / name).exists(), name


def test_tests_that_are_named_exist():
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", TEXTS[page])}
    files = (ROOT / "tests").rglob("test_*.py")
    there = {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 100 and not named - there


def test_every_extra_is_explained():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    rows = INSTALL.partition("| extra | brings |")[2].partition("\n\n")[0].splitlines()[2:]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(setup["options.extras_require"])


PROGRAM = re.compile(r"(?:python3?|torchrun|srun|make|clipself-seg)\b.*")


def indented(text: str) -> str:
    """A page whose fenced shell commands are indented, as the others are."""
    fences = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return fences.sub(lambda fence: textwrap.indent(fence[1], " " * 4), text)


def typed(pattern: str) -> list[tuple[str, ...]]:
    """Words of every command of every page that stands where `pattern` says; comments are left out."""
    texts = [indented(TEXTS[page]).replace("\\\n", " ") for page in TYPED]
    lines = [line for text in texts for line in re.findall(pattern, text, re.MULTILINE)]
    return sorted({tuple(shlex.split(ln, comments=True)) for ln in lines if PROGRAM.match(ln)})


BLOCKS = typed(r"^ {4,8}([a-z].*)$")
SPANS = typed(r"`([a-z][^`\n]*)`")
CONFIGURED = [words for words in BLOCKS if "--config-file" in words]


def program_of(words: tuple[str, ...]) -> tuple[argparse.ArgumentParser, list[str]] | None:
    """The parser of a command of this project, and the words that it gets."""
    while OPTION in words:  # which any command takes
        at = words.index(OPTION)
        words = (*words[:at], *words[at + 2 :])
    for name in {"train_net.py", "mine.py"} & set(words):  # mine.py: docs/own_code.md
        return train.main.parser(), list(words[words.index(name) + 1 :])
    if "tools/benchmark.py" in words:
        return benchmark.parser(), list(words[words.index("tools/benchmark.py") + 1 :])
    if words[1:2] == ("-m",) and words[2].startswith("tests."):
        return importlib.import_module(words[2]).parser(), list(words[3:])
    words = tuple(word.replace("clipself_seg", "clipself-seg") for word in words)  # python -m
    own = words[words.index("clipself-seg") + 1 :] if "clipself-seg" in words else ()
    if own and own[0] in COMMANDS:
        return body(COMMANDS[own[0]]).parser(), list(own[1:])
    return script_of(words)


# Scripts of tools/ -> their one command, or their commands by the first word.
SCRIPTS = {
    "check_datasets": check_datasets.main,
    "mini": mini.COMMANDS,
    "precompute": precompute.COMMANDS,
    "prepare": {
        name: prepare.prepared(name) for texts in prepare.CONTENTS.values() for name in texts
    },
    "quickstart": quickstart.quickstart,
    "repeat_seeds": repeat_seeds.repeat_seeds,
    "reproduce": reproduce.reproduce,
}


def script_of(words: tuple[str, ...]) -> tuple[argparse.ArgumentParser, list[str]] | None:
    """The parser of a script of tools/, and the words that it gets; NAME stands for one of its commands."""
    for at, word in enumerate(words):
        script = SCRIPTS.get(word.removeprefix("tools/").removesuffix(".py"))
        if word.startswith("tools/") and script is not None:
            rest = list(words[at + 1 :])
            if not isinstance(script, dict):
                return script.parser(), rest
            if rest and rest[0] not in ("--help", "NAME"):
                return script[rest[0]].parser(), rest[1:]
    return None


def test_there_are_commands_in_blocks_and_in_lines():
    assert len(BLOCKS) > 60 and len(SPANS) > 20 and len(CONFIGURED) > 60


def test_commands_and_scripts_that_are_typed_exist():
    typed = {*BLOCKS, *SPANS}
    wrong = [words for words in typed if words[0] == "clipself-seg" and not program_of(words)]
    assert wrong == [("clipself-seg",)]
    scripts = {word for words in typed for word in words if re.fullmatch(r"tools/\w+\.py", word)}
    assert len(scripts) > 8 and not [name for name in scripts if not (ROOT / name).exists()]


@pytest.mark.parametrize("words", BLOCKS, ids=" ".join)
def test_a_command_is_accepted_by_its_program(words):
    if (program := program_of(words)) and "--help" not in words:
        parser, rest = program
        parser.parse_args(rest)


@pytest.mark.parametrize("words", SPANS, ids=" ".join)
def test_a_command_within_a_line_has_options_that_exist(words):
    if program := program_of(words):
        parser, rest = program
        named = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert (
            not named
            - {"--help", "--help-all"}
            - set(re.findall(r"--[\w-]+", parser.format_usage()))
        )


@pytest.mark.parametrize("words", CONFIGURED, ids=" ".join)
def test_the_configuration_of_a_command_and_its_keys_exist(words, monkeypatch):
    typed = {file for option, file in zip(words, words[1:]) if option == OPTION}
    imported = typed - NOT_OURS
    monkeypatch.setenv(VARIABLE, os.pathsep.join(str(ROOT / file) for file in imported))
    parser, rest = program_of(words)
    args = parser.parse_args(rest)
    if hasattr(args, "eval_only"):  # --model and its like become keys
        args = train.parse(rest)
    with registries_kept():
        assert load_config(args.config_file, args.opts).MODEL.CLIP.BACKBONE


def keys(node: CfgNode, prefix: str = "") -> set[str]:
    """Every key of a configuration, as KEY and as the ends of it, which a page names beside one of its section."""
    found = {prefix + key for key in node}
    for key, value in node.items():
        found |= keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else set()
    return found | {key.partition(".")[2] for key in found}


def test_keys_that_are_named_exist():
    """No page names a retired one."""
    word = re.compile(r"(?<![\w./-])[A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)+(?![\w/(-])")
    named = {(page.name, key) for page in TYPED for key in word.findall(TEXTS[page])}
    known = keys(load_config(find_file("mini/semseg")))
    known |= {"MODEL.CLIPSELF.OBJECTIVES.RANKS", "MODEL.MY_HEAD.SCALE"}  # of docs/examples
    assert len(named) > 200 and not [(page, key) for page, key in named if key not in known]


def test_official_names_need_no_further_keys():
    """Their settings come with them."""
    official = [words for words in {*BLOCKS, *SPANS} if zoo().keys() & set(words)]
    assert len(official) > 3 and not [words for words in official if "--opts" in words]
    assert not [words for words in official if any("POOLING" in word for word in words)]


def named_weights() -> set[tuple[str, str, str]]:
    """CLIP (empty where no configuration is named), key or option, and value of all weights that pages name."""
    found = set()
    for words in {*BLOCKS, *SPANS}:
        pairs = [*zip(words, words[1:])]
        configs = [
            value for option, value in pairs if option == "--config-file" and find_file(value)
        ]
        clip = load_config(configs[0]).MODEL.CLIP.NAME if configs else ""
        found |= {
            (clip, option, value) for option, value in pairs if option in ("--model", *WEIGHTS)
        }
    for page in PAGES:
        text = TEXTS[page]
        found |= {
            ("", "--model", name) for name in re.findall(r'clipself_seg.load\("([^"]+)"', text)
        }
        found |= {("", "load_clip", name) for name in re.findall(r'load_clip\("([^"]+)"\)', text)}
        found |= {("", *pair) for pair in re.findall(r'"(MODEL[A-Z_.]+WEIGHTS)", "([^"]+)"', text)}
    return found


@pytest.mark.parametrize(("clip", "key", "value"), sorted(named_weights()), ids=str)
def test_weights_that_a_page_names_are_known_or_files_of_the_reader(clip, key, value):
    name = value.removeprefix(SCHEME).rpartition("=")[2]  # TITLE=NAME
    if entry := zoo().get(name):
        assert entry.key == key or entry.key in MODEL_KEYS and key in ("--model", "load_clip")
        assert all(find_file(config) for config in entry.configs)
    elif not re.search(r"/|^my_|\.(pth|pt|pkl|safetensors|onnx)$", name):  # not the reader's own
        known = {"", "random", "mini", *SHIPPED_TAGS, *SHIPPED_MODELS}
        tags = {tag for model, tag in list_pretrained() if not clip or model == clip}
        assert name in known | (tags if key != "--model" else {*list_architectures()})


def test_targets_of_make_and_of_the_set_up_exist():
    commands = {*BLOCKS, *SPANS}
    named = {words[1] for words in commands if words[0] == "make" and words[1:]}
    makefile = (ROOT / "Makefile").read_text()
    for target in named | {"quickstart", "test", "lint", "docs"}:
        assert re.search(rf"^[\w ]*\b{target}\b.*:", makefile, re.MULTILINE)
    for words in commands:
        if "tools/setup_env.py" in words[:2]:
            setup_env.parse(words[2:])


@pytest.mark.parametrize(("page", "table"), [(p, t) for p in TABLES for t in TABLES[p].values()])
def test_pages_have_the_tables_of_the_code(page, table):
    assert table() in (ROOT / page).read_text(), "python tools/write_tables.py"


def test_towers_have_templates_and_the_licences_of_their_publishers():
    assert all(kind.templates in TEMPLATES for kind in KINDS.values())
    rows = {row.split(" | ")[0]: row for row in weights_table().splitlines()}
    assert rows["| `ViT-B-16-SigLIP2`"].endswith("| `webli` | Apache-2.0 |")
    assert "| CC BY-NC 4.0 |" in rows["| `ViT-bigG-14-quickgelu`"]
    assert "| apple-amlr, research only |" in rows["| `ViT-H-14-378-quickgelu`"]


def test_towers_of_size_b_have_a_configuration_of_every_task():
    for model in ("ViT-B-16-SigLIP2", "PE-Core-B-16", "TIPSv2-B-14"):
        (row,) = (row for row in configs_table().splitlines() if row.startswith(f"| `{model}`"))
        tasks = set(re.findall(r"`(\w+)/", row))
        assert tasks == {"regions", "distill", "zero_shot", "semseg", "detection", "panoptic"}


def test_towers_that_do_not_load_are_named_by_their_families_and_no_others():
    families = re.findall("`([^`]+)`", TOWERS.partition("## 7. What does not load")[2])
    named = {name for name in model_configs() if any(family in name for family in families)}
    assert len(families) >= 10 and named == set(model_configs()) - set(list_architectures())
