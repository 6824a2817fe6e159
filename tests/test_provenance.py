"""What is written of the origin of results."""

import re
import subprocess
import sys

from clipself_seg import provenance


def test_the_commit_is_that_of_the_package_marked_if_more_than_pages_of_tables_changed(
    tmp_path, monkeypatch
):
    names = ("clipself_seg/provenance.py", "docs/tables/1a.md")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("committed")
    user = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.com")
    for words in (("init", "-q"), ("add", "."), (*user, "commit", "-q", "-m", "theirs")):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    # An installed package has no commit of the project around it.
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "site/clipself_seg/provenance.py"))
    assert provenance.git_commit() == "unknown"
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / names[0]))
    (tmp_path / names[1]).write_text("written again")
    assert re.fullmatch("[0-9a-f]{12}", provenance.git_commit())
    (tmp_path / names[0]).write_text("changed")
    assert re.fullmatch("[0-9a-f]{12}[+]dirty", provenance.git_commit())


def test_a_recorded_command_can_be_typed_again(tmp_path, monkeypatch):
    words = ["--words", "red star, grass"]
    monkeypatch.setattr(sys, "argv", ["clipself-seg predict", *words])
    assert provenance.provenance()["command"] == "clipself-seg predict --words 'red star, grass'"
    (script := tmp_path / "my train_net.py").touch()
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert provenance.provenance()["command"] == f"'{script}'"
