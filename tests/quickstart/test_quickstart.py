"""The quickstart's folder: one call at a time, and a fresh one begins with nothing."""

from __future__ import annotations

import pytest

from clipself_seg.commands.quickstart import quickstart as command
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in
from clipself_seg.quickstart import quickstart


def test_two_quickstarts_do_not_meet_and_a_fresh_one_forgets_the_earlier(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(quickstart, "_run_chapters", lambda *given: called.append(given))
    (tmp_path / "patches_live").mkdir()
    (tmp_path / "index.html").touch()
    with alone_in(tmp_path), pytest.raises(InputError, match="another process"):
        quickstart.run_quickstart(tmp_path, tmp_path / "worlds", fresh=True)
    assert len(list(tmp_path.iterdir())) == 2 and not called
    quickstart.run_quickstart(tmp_path, tmp_path / "worlds")
    assert len(list(tmp_path.iterdir())) == 2 and len(called) == 1
    quickstart.run_quickstart(tmp_path, tmp_path / "worlds", fresh=True)
    assert not list(tmp_path.iterdir())


def test_the_help_names_what_every_chapter_trains():
    help = command.parser().format_help()
    assert all(model in help for model in ("CAT-Seg", "mask generator", "F-ViT"))
