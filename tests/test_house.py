"""Rules of the house that the linters do not know."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

CODE = [
    *sorted((ROOT / "clipself_seg").rglob("*.py")),
    *sorted((ROOT / "tools").glob("*.py")),
    *sorted(ROOT.glob("train_net.py")),
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Files of tests that are not about one module of the folder that theirs mirrors.
OF_SEVERAL_MODULES = {
    "commands/test_help.py",
    "commands/test_small_commands.py",
    "config/test_config.py",  # a configuration as a user meets it
    "config/test_configs.py",  # every file in configs/
    "evaluation/test_baseline.py",  # tests/baseline
    "fuzz/test_files.py",  # the script beside it
    "fuzz/test_kills.py",
    "training/test_baseline.py",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def place(path: Path, node: ast.AST) -> str:
    """Where something stands, as a link that editors understand."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def public(body: list[ast.stmt]) -> Iterator[Definition]:
    """Public functions, classes and methods; what is nested in a function is private."""
    for node in body:
        if isinstance(node, Definition) and node.name[0] != "_":
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def unannotated(function: Function) -> list[str]:
    """Arguments without a type, and ``return``."""
    spec = function.args
    arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    missing = [a.arg for a in arguments if a and not a.annotation and a.arg not in ("self", "cls")]
    return missing + ([] if function.returns else ["return"])


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file with the dotted name of what is called, as far as it is written out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_everything_public_has_a_docstring():
    wrong = []
    for path in CODE:
        tree = ast.parse(path.read_text())
        nodes = [tree, *public(tree.body)] if path.name != "__init__.py" else [tree]
        wrong += [place(path, node) for node in nodes if not ast.get_docstring(node)]
    assert not wrong, "\n".join(wrong)


def test_every_public_signature_is_annotated():
    wrong = []
    for path in CODE:
        for node in public(ast.parse(path.read_text()).body):
            missing = [] if isinstance(node, ast.ClassDef) else unannotated(node)
            if missing:
                wrong.append(f"{place(path, node)} {node.name}: {', '.join(missing)}")
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_fit_on_a_screen_or_a_few():
    wrong = []
    for path in CODE:
        text = path.read_text()
        if len(text.splitlines()) > 450:
            wrong.append(f"{place(path, ast.Module())} has more than 450 lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Function) and node.end_lineno - node.lineno >= 60:
                wrong.append(f"{place(path, node)} {node.name} has more than 60 lines")
    assert not wrong, "\n".join(wrong)


# Words of the glossary's right column: docs/architecture.md has those to say in their place.
NOT_SAID = set(
    "fact facts found observe observer observers photo photograph photographs photos".split()
)
NOT_SAID |= set("picture pictures share shares tells told way ways".split())


def identifiers(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every name that a file gives or uses, but for keys of dicts and other strings."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield node, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node, name


def words_of(identifier: str) -> set[str]:
    """The words of ``snake_case`` and ``CamelCase``, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


def test_words_of_identifiers_are_found_whatever_the_case():
    assert words_of("_pictureFolder") == {"picture", "folder"} and words_of("SHARES_OF") & NOT_SAID


def test_identifiers_keep_the_glossary():
    wrong = []
    for path in CODE:
        for node, name in identifiers(ast.parse(path.read_text())):
            if words_of(name) & NOT_SAID and not name.endswith("NotFoundError"):
                wrong.append(f"{place(path, node)} {name}")
    assert not wrong, "\n".join(wrong)


def test_attributes_are_set_one_a_line():
    wrong = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple()):
                    if any(isinstance(target, ast.Attribute) for target in targets):
                        wrong.append(place(path, node))
    assert not wrong, "\n".join(wrong)


def test_forbidden_calls():
    wrong = []
    for path in CODE:
        for name, node in calls(path):
            if name in ("Image.open", "cv2.imread") and path.name != "images.py":
                wrong.append(f"{place(path, node)} {name}: data/images.py has open_image")
            if name.split(".")[-1] == "cuda" or name in ("print", "breakpoint", "eval", "exec"):
                wrong.append(f"{place(path, node)} {name}(...)")
    assert not wrong, "\n".join(wrong)


def test_nothing_loads_a_pickle_that_may_run_code():
    wrong = []
    for path in [*CODE, *TESTS]:
        if "torch.load" not in path.read_text():
            continue
        for name, node in calls(path):
            safe = any(
                k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords
            )
            if name == "torch.load" and not safe:
                wrong.append(f"{place(path, node)} torch.load has to say weights_only=True")
    assert not wrong, "\n".join(wrong)


def test_no_paths_of_one_machine_and_no_open_ends():
    words = re.compile(r"/(work|root|home|mnt|Users)/|\b(TODO|FIXME|XXX|NotImplementedError)\b")
    files = CODE + TESTS + sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("docs/*.md")])
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line) and path != Path(__file__)
    ]
    assert not wrong, wrong


def test_nothing_public_is_left_unused():
    texts = [path.read_text() for path in [*CODE, *TESTS, ROOT / "README.md"] if path.exists()]
    mentions = Counter(re.findall(r"\w+", "\n".join(texts)))
    wrong = []
    for path in CODE:
        tree = ast.parse(path.read_text())
        for node in tree.body:
            defines = isinstance(node, Definition)
            # What is registered by a decorator is found by its name in a config.
            if defines and not node.decorator_list and mentions[node.name] < 2:
                wrong.append(f"{place(path, node)} {node.name}")
    assert not wrong, "\n".join(wrong)


def mirrored(test: Path) -> bool:
    """Whether `test_NAME.py` or `test_NAME_of_something.py` stands where module or folder NAME does."""
    folder = test.relative_to(ROOT / "tests").parent
    code = ROOT / folder if folder.parts[0] == "tools" else ROOT / "clipself_seg" / folder
    about = test.stem.removeprefix("test_") + "_"
    return any(about.startswith(f"{path.stem}_") for path in code.glob("*"))


def test_every_test_is_where_what_it_tests_is():
    # What stands at the top is about the project as a whole.
    files = sorted((ROOT / "tests").glob("*/**/test_*.py"))
    names = {path.relative_to(ROOT / "tests").as_posix(): path for path in files}
    wrong = {name for name, path in names.items() if not mirrored(path)}
    assert wrong == OF_SEVERAL_MODULES
