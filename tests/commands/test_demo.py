"""The demo's command: it opens its page where there is a screen, and always prints the path."""

from __future__ import annotations

import pytest

from clipself_seg.commands import demo


@pytest.mark.parametrize(
    ("screen", "words", "opened"),
    [("", [], 0), (":0", [], 1), (":0", ["--no-open"], 0)],
)
def test_the_page_is_opened_where_there_is_a_screen(
    tmp_path, monkeypatch, capsys, screen, words, opened
):
    pages = []
    monkeypatch.setattr(
        "clipself_seg.quickstart.demo.run_demo", lambda output: output / "index.html"
    )
    monkeypatch.setattr(demo.webbrowser, "open", pages.append)
    monkeypatch.setattr(demo.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", screen)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert demo.main(["--output", str(tmp_path), *words]) == 0
    assert str(tmp_path / "index.html") in capsys.readouterr().out
    assert pages == [(tmp_path / "index.html").as_uri()] * opened
