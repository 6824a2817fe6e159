"""The demo: where words are bright, and the page of it, from the files of the package alone."""

import cv2

from clipself_seg.clip import load_clip
from clipself_seg.commands.demo import write_demo
from clipself_seg.data.datasets.table import SHIPPED_WORLD
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.explore import demo


def test_words_are_bright_in_their_segments_after_clipself():
    questions = demo.ask({title: load_clip("ViT-Mini-8", tag) for title, tag in demo.SHOWN.items()})
    names, gained = Vocabulary.load("mini").first_names, []
    for (number, name), question in zip(demo.ASKED, questions):
        truth = read_indices(SHIPPED_WORLD / f"mini/stuffthingmaps/val/{number:06d}.png")
        height, width = question.image.shape[:2]
        large = cv2.resize(truth, (width, height), interpolation=cv2.INTER_NEAREST)
        inside = large == names.index(name)
        # Red of the colours of heat grows with the probability.
        heat = [image[..., 0].astype(float) for image in question.maps.values()]
        contrast = [image[inside].mean() - image[~inside].mean() for image in heat]
        gained.append(contrast[1] - contrast[0])
        assert question.name == name
    assert len(gained) == 2 and min(gained) > 20


def test_the_page_shows_heat_maps_and_segments_of_the_shipped_world(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SHOWN_SCENES", 1)
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path / "nothing"))
    html = write_demo(tmp_path).read_text(encoding="utf-8")
    assert all(f"“{name}”" in html for _, name in demo.ASKED)
    assert all(title in html for title in ("ground truth", *demo.SEGMENTED))
    assert html.count("<img") == 3 * 2 + 5 and 'href="explore.html"' in html
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "explore.html"}
