"""The import arrows of the house: data <- clip <- heads <- models, and what stands beside them.

Read from the source, so that imports inside functions count and nothing has to be importable.
"""

import ast
import fnmatch
import functools
import re
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "clipself_seg"

# What all parts stand on.
GROUND = set(
    "checkpoints config detectron2_needed device errors files imports memory pages pinned_wheels private_torch "
    "provenance registry schema yaml_files".split()
)
# What each other part of the package may import besides itself and the ground.
FLOW = ["data", "clip", "heads", "models", "evaluation"]
ARROWS = {
    **{part: set(FLOW[:place]) for place, part in enumerate(FLOW)},
    "checkpoints": set[str](),
    "config": set[str](),
    "register": {"clip"},
    "extend": {"clip", "evaluation", "models", "training"},
    "visualization": {"data"},
    "training": set(FLOW),
    # Which model somebody means; of a configuration the class of its model says it, of a file its tensors.
    "choice": {"clip", "models"},
    "prediction": {*FLOW, "choice", "visualization"},
    # Shows what predictors and dense features say: the one part beside the commands that knows prediction.
    "explore": {*FLOW, "prediction", "visualization"},
}
# The one part that knows all of them, and that no other one imports.
ARROWS["commands"] = ARROWS.keys() - {"checkpoints", "config", "extend", "register"}

# The laboratory's rooms, and what each may import of the others; of the package they may import everything.
LAB = ROOT / "tools/lab"
LAB_ARROWS = {
    "prepare": set[str](),
    "mini": {"prepare"},
    "precompute": {"prepare"},
    "tables": {"mini", "prepare"},
    "quickstart": {"mini", "tables"},
}

# The files that may know detectron2; the rest is tested with torch, open_clip and numpy alone.
DETECTRON2_FILES = (
    "config/*.py",
    "data/datasets/*.py",
    "data/loader.py",
    "data/mappers/*.py",
    "clip/backbone.py",
    "clip/guest_backbone.py",
    "heads/fvit/*.py",
    "heads/panoptic/panoptic_merge.py",  # instances are a class of detectron2's
    "heads/panoptic/pixel_decoder.py",  # its convolution with a norm
    "models/*.py",
    "evaluation/*.py",  # evaluators are a class of detectron2's, and so is their loop
    "training/*.py",
    "prediction/*.py",
    "visualization/overlays.py",
    "commands/*.py",
)


@functools.cache
def imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, wherever in the file."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
    return found


def part_of(path: Path, package: Path = PACKAGE) -> str:
    """The part of a package that a file belongs to: its folder, or the module itself."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def package_imports(package: Path = PACKAGE) -> list[tuple[str, str, str]]:
    """(place, importing part, imported dotted name) for every import in a package."""
    return [
        (f"{path.relative_to(ROOT)}:{line}", part_of(path, package), name)
        for path in sorted(package.rglob("*.py"))
        for line, name in imports(path)
    ]


def test_every_part_of_the_package_has_its_place():
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert parts == ARROWS.keys() | GROUND


def test_imports_follow_the_arrows():
    wrong = []
    for place, part, name in package_imports():
        words = name.split(".")
        if words[0] != "clipself_seg" or words[1] == "__version__":
            continue
        if part == "__init__":
            continue  # the public names, each imported when it is used
        if words[1] not in {part} | GROUND | ARROWS.get(part, set()):
            wrong.append(f"{place}: {part} imports {words[1]}")
    assert not wrong, "\n".join(wrong)


def test_nothing_of_the_package_imports_the_tools():
    tools = {path.stem for path in (ROOT / "tools").iterdir()}
    outside = {"train_net", "tools", "tests"} | tools
    assert {"lab", "bench", "reproduce"} <= outside
    wrong = [place for place, _, name in package_imports() if name.split(".")[0] in outside]
    assert not wrong, wrong


def test_the_laboratory_imports_downwards():
    rooms = {path.name for path in LAB.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert rooms == LAB_ARROWS.keys()
    scripts = {path.stem for path in (ROOT / "tools").glob("*.py")}
    wrong = []
    for place, room, name in package_imports(LAB):
        words = name.split(".")
        of_lab = words[0] == "lab" and words[1] in LAB_ARROWS
        if words[0] in scripts or of_lab and words[1] not in {room} | LAB_ARROWS.get(room, set()):
            wrong.append(f"{place}: {room} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_only_marked_files_know_detectron2():
    files = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")]
    assert all(fnmatch.filter(files, pattern) for pattern in DETECTRON2_FILES)
    wrong = []
    for place, _, name in package_imports():
        file = place.split(":")[0].removeprefix("clipself_seg/")
        marked = any(fnmatch.fnmatch(file, pattern) for pattern in DETECTRON2_FILES)
        if name.split(".")[0] == "detectron2" and not marked:
            wrong.append(place)
    assert not wrong, wrong


def reached_from(module: str) -> set[Path]:
    """Files of the package that an import of a module may run, those of packages and imports inside functions too."""
    files: set[Path] = set()
    names = [module]
    while names:
        words = names.pop().split(".")
        for end in range(2, len(words) + 1):  # the package itself imports nothing
            place = ROOT.joinpath(*words[:end])
            for path in (place.with_suffix(".py"), place / "__init__.py"):
                if path.is_file() and path not in files:
                    files.add(path)
                    names += [name for _, name in imports(path) if name.startswith("clipself_seg.")]
    return files


def test_register_registers_the_backbone_alone():
    registering = {
        path.relative_to(PACKAGE).as_posix()
        for path in reached_from("clipself_seg.register")
        if re.search(r"_REGISTRY\.register|(Dataset|Metadata)Catalog", path.read_text())
    }
    assert registering == {"clip/backbone.py"}
    assert PACKAGE / "models/cat_seg/cat_seg.py" in reached_from("clipself_seg.models")
