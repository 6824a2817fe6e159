"""A record loses the mark of uncommitted changes where later commits left the code alone."""

import subprocess
from types import SimpleNamespace

from clipself_seg.files import read_json, write_json
from lab.tables import marks


def test_a_mark_goes_where_no_commit_up_to_the_record_changes_code(tmp_path, monkeypatch):
    monkeypatch.setattr(marks, "ROOT", tmp_path)

    user = "-c user.name=somebody -c user.email=somebody@example.com"

    def commit(name, content):
        write_json(tmp_path / name, content)
        for words in ("init -q", "add .", f"{user} commit -qm {name}"):
            subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
        return marks._commits()[0][:12]

    def record(commit, date):
        return {"provenance": {"commit": f"{commit}+dirty", "date": date}, "minutes": 2.5}

    first = commit("clipself_seg/loss.py", 1)
    commit("tools/lab/tables/1a.yaml", {})  # its runs are in the names of records
    commit("runs/same.json", record(first, "10:00"))
    commit("clipself_seg/loss.py", 2)
    commit("runs/other.json", record(first, "11:00"))
    runs = [SimpleNamespace(name=name) for name in ("same", "other")]
    shown, unshown = marks.unmark(runs, tmp_path / "runs")
    assert shown.startswith("shown: same") and "2.5 core-minutes: other" in unshown
    found = [read_json(tmp_path / f"runs/{run.name}.json")["provenance"] for run in runs]
    assert found[0]["commit"] == first and "no commit from it" in found[0]["unmarked"]
    assert found[1] == record(first, "11:00")["provenance"]
