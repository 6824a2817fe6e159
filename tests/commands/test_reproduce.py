"""What is wrong on the command line is said before anything is drawn or run."""

from __future__ import annotations

from clipself_seg.commands.reproduce import main
from clipself_seg.tables import reproduce


def test_an_unknown_table_ends_it_before_the_worlds_are_drawn(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(reproduce, "write_worlds", lambda: drawn.append(1))
    assert main(["--table", "99", "--output", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith('error: no table "99": ')
    assert drawn == [] and list(tmp_path.iterdir()) == []
