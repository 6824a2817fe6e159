"""Nothing in the package asks for what Windows does not have, without something in its place."""

import ast

from tests.conftest import ROOT

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline"}
ATTRIBUTES = {
    "os": {"fork", "getuid", "geteuid", "sched_getaffinity", "killpg", "setsid", "mkfifo"},
    "signal": {"SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "setitimer", "alarm"},
}
WORDS = MODULES.union(*ATTRIBUTES.values())
FILES = sorted((ROOT / "clipself_seg").rglob("*.py"))


def tried(tree: ast.AST) -> set[ast.AST]:
    """Everything inside the first part of a `try` that expects a module to be missing."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            names = {ast.unparse(handler.type) for handler in node.handlers if handler.type}
            if names & {"ImportError", "ModuleNotFoundError"}:
                found |= {inner for statement in node.body for inner in ast.walk(statement)}
    return found


def missing(source: str) -> list[str]:
    """What a file needs of a POSIX system."""
    if not any(word in source for word in WORDS):  # sooner than by its syntax
        return []
    tree = ast.parse(source)
    wrong = []
    for node in set(ast.walk(tree)) - tried(tree):
        match node:
            case ast.Import(names=names):
                wrong += [alias.name for alias in names if alias.name in MODULES]
            case ast.ImportFrom(module=module) if module in MODULES:
                wrong.append(module)
            case ast.Attribute(ast.Name(id=of), attr) if attr in ATTRIBUTES.get(of, ()):
                wrong.append(f"{of}.{attr}")
    return sorted(wrong)


def test_the_package_does_without_what_windows_lacks():
    assert {path.name: wrong for path in FILES if (wrong := missing(path.read_text()))} == {}
