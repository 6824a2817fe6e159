"""The demo: one page of what the shipped weights see."""

from __future__ import annotations

import numpy as np

from clipself_seg.quickstart import demo
from clipself_seg.quickstart.heat_maps import Question
from clipself_seg.quickstart.tiles import Row


def test_a_page_shows_heat_maps_and_segments_of_a_few_scenes(tmp_path, monkeypatch):
    image = np.zeros((6, 9, 3), np.uint8)
    calls, commands = [], []

    def segments(output, worlds, names):
        calls.append((output, worlds, names))
        return {"mini": [Row({"ground truth": image})]}

    def worlds(root, size):
        calls.append((root, size.val))
        (root / "mini" / "val").mkdir(parents=True)
        (root / "mini" / "val" / "000000.jpg").touch()

    monkeypatch.setattr(demo, "make_worlds", worlds)
    monkeypatch.setattr(demo, "call_together", lambda given, _: commands.append(given))
    monkeypatch.setattr(demo, "show_segments", segments)
    monkeypatch.setattr(demo, "ask", lambda clips: [Question("red star", image, {"a": image})])
    output = tmp_path / "demo"
    html = demo.run_demo(output).read_text(encoding="utf-8")
    assert "“red star”" in html and "ground truth" in html and html.count("<img") == 3
    (words,) = commands[0].values()
    assert words[2:4] == ["explore", str(output / "worlds/mini/val/000000.jpg")]
    assert words[-1] == str(output / "explore.html") and 'href="explore.html"' in html
    assert calls == [(output / "worlds", 4), (output, output / "worlds", ("mini",))]
    assert (output / "heat_maps.jpg").is_file()
