"""The demo: one page of what the shipped weights see."""

from __future__ import annotations

import numpy as np

from clipself_seg.quickstart import demo
from clipself_seg.quickstart.heat_maps import Question
from clipself_seg.quickstart.tiles import Row


def test_a_page_shows_heat_maps_and_segments_of_a_few_scenes(tmp_path, monkeypatch):
    image = np.zeros((6, 9, 3), np.uint8)
    calls = []

    def segments(output, worlds, names):
        calls.append((output, worlds, names))
        return {"mini": [Row({"ground truth": image})]}

    monkeypatch.setattr(demo, "make_worlds", lambda root, size: calls.append((root, size.val)))
    monkeypatch.setattr(demo, "show_segments", segments)
    monkeypatch.setattr(demo, "ask", lambda clips: [Question("red star", image, {"a": image})])
    output = tmp_path / "demo"
    html = demo.run_demo(output).read_text(encoding="utf-8")
    assert "“red star”" in html and "ground truth" in html and html.count("<img") == 3
    assert calls == [(output / "worlds", 4), (output, output / "worlds", ("mini",))]
    assert (output / "heat_maps.jpg").is_file()
