"""Rules of the house that the linters do not know."""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

CODE = [
    *sorted((ROOT / "clipself_seg").rglob("*.py")),
    *sorted((ROOT / "tools").rglob("*.py")),
    *sorted(ROOT.glob("train_net.py")),
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


# Code lines that the package and the laboratory with the other tools may have: who adds takes out elsewhere.
BUDGET = {"clipself_seg": 29_300, "tools": 9_500}
NO_CODE = {getattr(tokenize, name) for name in "COMMENT NL NEWLINE INDENT DEDENT ENDMARKER".split()}


def code_lines(source: str) -> int:
    """Number of lines without blanks, comments and docstrings."""
    described = ast.Module | ast.ClassDef | Function
    documentation = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, described) and ast.get_docstring(node, clean=False) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {
        line
        for token in tokens
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - documentation)


@pytest.mark.parametrize("folder", BUDGET)
def test_the_code_stays_within_its_budget(folder):
    assert code_lines('"""Text\n\nmore."""\nx = [\n    1,  # one\n]\n\n# a comment\n') == 3
    lines = sum(code_lines(path.read_text()) for path in (ROOT / folder).rglob("*.py"))
    assert lines <= BUDGET[folder], f"{folder}: {lines} code lines, {BUDGET[folder]} are allowed"


def place(path: Path, node: ast.AST) -> str:
    """Where something stands, as a link that editors understand."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """The code, parsed; of no use to other tests, which its many objects would slow down."""
    return {path: ast.parse(path.read_text()) for path in CODE}


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


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file with the dotted name of what is called, as far as it is written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def documented_methods(trees: list[ast.Module]) -> set[str]:
    """Names of the public methods that some class explains."""
    classes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    methods = (node for one in classes for node in one.body if isinstance(node, Function))
    return {method.name for method in methods if ast.get_docstring(method)}


def test_everything_public_has_a_docstring_but_for_overrides(trees):
    explained = documented_methods(list(trees.values()))
    wrong = []
    for path, tree in trees.items():
        nodes = [tree, *public(tree.body)] if path.name != "__init__.py" else [tree]
        overrides = {
            method
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.bases
            for method in node.body
            if isinstance(method, Function) and method.name in explained
        }
        wrong += [
            place(path, node)
            for node in nodes
            if not ast.get_docstring(node) and node not in overrides
        ]
    assert not wrong, "\n".join(wrong)


def test_every_public_signature_is_annotated(trees):
    wrong = []
    for path, tree in trees.items():
        for node in public(tree.body):
            missing = [] if isinstance(node, ast.ClassDef) else unannotated(node)
            if missing:
                wrong.append(f"{place(path, node)} {node.name}: {', '.join(missing)}")
    assert not wrong, "\n".join(wrong)


# Words of the glossary's right column: docs/architecture.md has those to say in their place.
NOT_SAID = set(
    "fact facts found observe observer observers photo photograph photographs photos picture pictures "
    "share shares tells told way ways".split()
)


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


def test_identifiers_keep_the_glossary(trees):
    assert words_of("_pictureFolder") == {"picture", "folder"} and words_of("SHARES_OF") & NOT_SAID
    wrong = []
    for path, tree in trees.items():
        for node, name in identifiers(tree):
            if words_of(name) & NOT_SAID and not name.endswith("NotFoundError"):
                wrong.append(f"{place(path, node)} {name}")
    assert not wrong, "\n".join(wrong)


def test_attributes_are_set_one_a_line(trees):
    wrong = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple()):
                    if any(isinstance(target, ast.Attribute) for target in targets):
                        wrong.append(place(path, node))
    assert not wrong, "\n".join(wrong)


def test_forbidden_calls(trees):
    wrong = []
    for path, tree in trees.items():
        for name, node in calls(tree):
            if name in ("Image.open", "cv2.imread") and path.name != "images.py":
                wrong.append(f"{place(path, node)} {name}: data/images.py has open_image")
            if name.split(".")[-1] == "cuda" or name in ("print", "breakpoint", "eval", "exec"):
                wrong.append(f"{place(path, node)} {name}(...)")
    assert not wrong, "\n".join(wrong)


def test_nothing_loads_a_pickle_that_may_run_code(trees):
    wrong = []
    for path in [*CODE, *TESTS]:
        if "torch.load" not in (text := path.read_text()):
            continue
        for name, node in calls(trees.get(path) or ast.parse(text)):
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


def test_nothing_public_is_left_unused(trees):
    texts = [path.read_text() for path in [*CODE, *TESTS, ROOT / "README.md"] if path.exists()]
    mentions = Counter(re.findall(r"\w+", "\n".join(texts)))
    wrong = []
    for path, tree in trees.items():
        for node in tree.body:
            defines = isinstance(node, Definition)
            # What is registered by a decorator is found by its name in a config, and mkdocs finds its hooks.
            hook = defines and node.name.startswith("on_")
            if defines and not node.decorator_list and not hook and mentions[node.name] < 2:
                wrong.append(f"{place(path, node)} {node.name}")
    assert not wrong, "\n".join(wrong)
