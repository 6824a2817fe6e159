"""Words that are found where they are not are counted, before and after they are dropped."""

import absent_words
import numpy as np

from lab.mini.concepts import WORLDS
from lab.mini.scenes import draw_scene


def test_counts_of_scenes(monkeypatch):
    scene = draw_scene(np.random.default_rng(0), WORLDS["mini"])
    ids = [1 + WORLDS["mini"].concepts.index(s.concept) for s in scene.segments]
    monkeypatch.setattr(
        absent_words, "scenes_of", lambda _, n, seed: [absent_words.Scene(scene.image, ids)] * n
    )
    model = "without training, CLIPSelf"
    monkeypatch.setattr(absent_words, "MODELS", {model: absent_words.MODELS[model]})
    rows = absent_words.rows_of_worlds(1, 1)
    every, dropped, calibrated = rows[:3]
    assert every[:3] == ["mini", model, "all words"] and every[4] == "100.0"
    assert float(every[3]) > float(dropped[3]) >= float(calibrated[3])
    assert absent_words.spread([1.0, 2.0, 3.0]) == "2.0 \u00b1 1.0"
