"""In a headless browser: words, places, keys and sliders, on a phone and in the dark, without a network; scores are
fused and masks merged as Python does.

Marked heavy, since together they take some ten seconds.
"""

import base64
import gzip
import hashlib
import json
import re

import numpy as np
import pytest
import torch

from clipself_seg.clip import TextBank
from clipself_seg.clip.model import whole_image_features
from clipself_seg.explore.content import MASK_STEPS
from clipself_seg.heads.fusion import fuse_scores
from clipself_seg.heads.panoptic.panoptic_merge import merge_panoptic
from tests.explore.conftest import NAMES, scene

pytestmark = pytest.mark.heavy


def ink(browser, selector: str) -> str:
    """What a canvas shows, in short."""
    data = browser.run(f"document.querySelector({json.dumps(selector)}).toDataURL()")
    return hashlib.sha256(data.encode()).hexdigest()


FIRST = "#panels .panel:nth-child(2) canvas"
LAST = "#panels .panel:nth-child(3) canvas"


def test_a_pressed_word_is_drawn_for_every_model(opened):
    before = ink(opened, FIRST), ink(opened, LAST)
    word = opened.run("explorer.state.word")
    opened.drawn_by(lambda: opened.click(f".word-button:nth-child({3 - word % 2})"))
    assert ink(opened, FIRST) != before[0] and ink(opened, LAST) != before[1]
    chosen = opened.run("document.querySelector('.word-button:has(:checked)').textContent")
    assert chosen in opened.run("document.getElementById('status').textContent")
    assert chosen in opened.run(f"document.querySelector('{LAST}').getAttribute('aria-label')")


def test_levels_of_a_word_are_those_of_python(opened, content):
    """Softmax of the cosines, from features that nobody has quantised, within what 8 bits change."""
    clip = content.clips["CLIPSelf, patches"]
    features = whole_image_features(clip, scene(0), 3 * clip.image_size)
    cosines = np.einsum("ke,ehw->khw", TextBank(clip).embed(content.words).numpy(), features)
    count = "explorer.content.words.length"
    found = (
        f"wordCosines(explorer.state.image.maps[1], explorer.models[1], {count}).then((found) =>"
    )
    values = opened.run(f"{found} Array.from(found))")
    assert np.abs(np.reshape(values, cosines.shape) - cosines).max() < 0.003
    exp = np.exp(20 * cosines)
    levels = opened.run(
        f"{found} Array.from(probabilities(found, found.length / {count}, 5, {count}, 20)))"
    )
    assert np.abs(np.reshape(levels, exp.shape[1:]) - exp[5] / exp.sum(0)).max() < 0.02


def test_a_clicked_place_lists_the_nearest_words_with_scores(opened):
    opened.drawn_by(lambda: opened.click("#panels .panel:nth-child(3) .place", 0.3, 0.7))
    place = opened.run("explorer.state.place")
    assert abs(place["x"] - 0.3) < 0.02 and abs(place["y"] - 0.7) < 0.02
    lists = opened.run(
        "[...document.querySelectorAll('.nearest')].map((list) => [...list.children].map((item) => item.textContent))"
    )
    assert len(lists) == 2 and all(len(words) == 5 for words in lists)
    assert all(re.fullmatch(r".+?\u2212?\d\.\d\d", word) for words in lists for word in words)
    crosses = opened.run(
        "[...document.querySelectorAll('.cross')].map((c) => !c.hidden && c.style.left)"
    )
    assert len(set(crosses)) == 1 and crosses[0] and opened.run("explorer.state.word") is None


def test_keys_choose_words_and_places(opened):
    opened.run("document.querySelector('#words input:checked').focus()")
    word = opened.run("explorer.state.word")
    opened.drawn_by(lambda: opened.press("ArrowRight"))
    assert opened.run("explorer.state.word") != word
    opened.run("document.getElementById('first-place').focus()")
    opened.drawn_by(lambda: opened.press("Enter"))
    assert opened.run("explorer.state.place") == {"x": 0.5, "y": 0.5}
    for key, axis, sign in (("ArrowRight", "x", 1), ("ArrowUp", "y", -1)):
        before = opened.run(f"explorer.state.place.{axis}")
        opened.drawn_by(lambda key=key: opened.press(key))
        assert sign * (opened.run(f"explorer.state.place.{axis}") - before) > 0
    near = opened.run("explorer.state.place.x")
    opened.drawn_by(lambda: opened.press("ArrowLeft", shift=True))
    assert near - opened.run("explorer.state.place.x") > 0.1


def test_tab_reaches_every_control(opened):
    opened.run("document.activeElement.blur()")
    opened.run("document.querySelector('#segments details').open = true")
    reached = []
    for _ in range(18):
        opened.press("Tab")
        reached.append(opened.run("document.activeElement.id || document.activeElement.name"))
    wanted = ["image", "word-search", "sharpness", "word", "first-place", "alpha", "beta"]
    wanted += ["discount", "void"]
    assert [name for name in dict.fromkeys(reached) if name in wanted] == wanted


def test_sharpness_and_images_change_the_maps(opened):
    before = ink(opened, LAST)
    opened.drawn_by(lambda: opened.slide("#sharpness", 3))
    assert opened.run("document.getElementById('sharpness-value').textContent") == "800"
    sharp = ink(opened, LAST)
    opened.drawn_by(lambda: opened.click("#images label:nth-child(2)"))
    assert len({before, sharp, ink(opened, LAST)}) == 3
    assert opened.run("document.getElementById('picture').alt") == NAMES[1]


STAY = """(async () => {
  const [one, two] = [...document.querySelectorAll("script.image")].map(read);
  const shown = () => [byId("picture").alt, explorer.state.image.name];
  const own = unpackMap;
  const late = (image) => {
    const wait = new Promise((resolve) => (late.go = resolve));
    unpackMap = (map) => wait.then(() => own(map));
    const done = explorer.show(image);
    unpackMap = own;
    return () => (late.go(), done);
  };
  const second = late(two);
  await explorer.draw(); // as when a word is pressed
  await second();
  const first = shown();
  const overtaken = late(one);
  await explorer.show(two);
  await overtaken();
  return [...first, ...shown()];
})()"""


def test_maps_stay_with_their_image_while_another_one_is_unpacked(opened):
    assert opened.run(STAY) == 4 * [NAMES[1]]


def test_a_word_is_looked_for(opened):
    opened.run(
        "(() => { const box = document.getElementById('word-search'); box.value = 'RED s';"
        "box.dispatchEvent(new Event('input')); })()"
    )
    shown = opened.run(
        "[...document.querySelectorAll('.word-button')].filter((b) => b.offsetWidth).map((b) => b.textContent)"
    )
    assert shown and all(word.startswith("red s") for word in shown)


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_does_not_scroll_sideways(opened, width):
    opened.size(width, 700, mobile=True)
    opened.drawn_by(lambda: opened.click("#panels .panel:nth-child(2) .place"))
    assert opened.run("document.documentElement.scrollWidth") <= width
    # Two models stand side by side, above the picture.
    tops = "[...document.querySelectorAll('#panels .panel')].map((panel) => panel.offsetTop)"
    picture, first, second = opened.run(tops)
    assert first == second < picture
    opened.run("explorer.content.panoptic.classes.forEach((one) => (one.name = 'w'.repeat(60)))")
    opened.click("[data-fusion=generator]")
    assert "www" in opened.run("document.getElementById('segments-list').textContent")
    assert opened.run("document.documentElement.scrollWidth") <= width
    assert opened.run("innerWidth") == width


def test_dark_is_dark_and_both_have_contrast(opened):
    def contrast() -> tuple[float, float]:
        colours = opened.run(
            "['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name])"
            ".map((colour) => colour.match(/\\d+/g).map(Number))"
        )
        ground, text = (luminance(colour) for colour in colours)
        return ground, (max(ground, text) + 0.05) / (min(ground, text) + 0.05)

    light, clear = contrast()
    opened.colours("dark")
    dark, also_clear = contrast()
    assert light > 0.8 and dark < 0.05 and clear > 7 and also_clear > 7


def luminance(rgb: list[int]) -> float:
    """Relative luminance, as WCAG defines it."""
    parts = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in np.array(rgb) / 255
    ]
    return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))


def test_nothing_is_asked_of_a_network_and_nothing_is_complained_of(opened, page):
    opened.drawn_by(lambda: opened.click("#panels .panel:nth-child(2) .place"))
    opened.click("[data-fusion=clip]")
    assert opened.run("document.documentElement.lang") == "en"
    assert opened.run("[...document.images].every((image) => image.alt)")
    assert opened.run("[...document.querySelectorAll('canvas')].every((c) => c.ariaLabel)")
    assert opened.requests == [page.as_uri()] and opened.complaints == []


MERGE = """(() => {
  const { panoptic } = explorer.content;
  const view = explorer.state.image.panoptic;
  const probs = fuseScores(view, panoptic.classes, %s, %s, %s, %s);
  const { ids, segments } = mergePanoptic(view, probs, panoptic.classes, panoptic);
  return { probs: Array.from(probs), ids: Array.from(ids), segments };
})()"""


def tensor(text: str, kind: str, *shape: int) -> torch.Tensor:
    values = np.frombuffer(gzip.decompress(base64.b64decode(text)), kind)
    return torch.from_numpy(values.reshape(shape).copy())


@pytest.mark.parametrize(
    "exponents, discount", [(None, 0.0), ((1.0, 1.0), 0.5), ((0.0, 0.0), 0.0), ((0.2, 0.9), 1.0)]
)
def test_the_browser_merges_to_the_same_segments(opened, content, exponents, discount):
    model = content.panoptic.model()
    view = content.panoptic.image(scene(0))
    queries, classes = view["queries"], len(model["classes"])
    alpha, beta = exponents or (model["alpha"], model["beta"])
    probs = fuse_scores(
        tensor(view["generator"], "<f4", queries, classes),
        tensor(view["clip"], "<f4", queries, classes),
        tensor(view["void"], "<f4", queries),
        torch.tensor([entry["seen"] for entry in model["classes"]]),
        alpha,
        beta,
        tensor(view["valid"], "u1", queries).bool(),
        discount,
    )
    masks = tensor(view["masks"], "i1", queries, view["rows"], view["columns"]) / MASK_STEPS
    things = [index for index, entry in enumerate(model["classes"]) if entry["thing"]]
    assert len(things) == classes - 2
    thresholds = model["objectThreshold"], model["overlapThreshold"]
    ids, segments = merge_panoptic(probs, masks, things, *thresholds)

    merged = opened.run(MERGE % (alpha, beta, discount, 1))
    assert np.abs(np.reshape(merged["probs"], probs.shape) - probs.numpy()).max() < 1e-6
    assert (np.reshape(merged["ids"], ids.shape) == ids.numpy()).all() and len(segments) > 2
    for own, theirs in zip(segments, merged["segments"], strict=True):
        same = (theirs["id"], theirs["thing"], theirs["label"])
        assert same == (own["id"], own["isthing"], own["category_id"])
        assert abs(theirs["score"] - own["score"]) < 1e-6


def test_more_void_leaves_fewer_segments(opened):
    counts = [len(opened.run(MERGE % (0.35, 0.8, 0, weight))["segments"]) for weight in (1, 64)]
    assert counts[0] > counts[1]


def test_sliders_and_buttons_fuse_anew(opened, content):
    value = "document.getElementById('{}-value').textContent"
    listed = "document.getElementById('segments-list').textContent"
    own = content.panoptic.predictor.model.exponents
    assert opened.run(value.format("alpha")) == f"{own[0]:.2f}"
    before = opened.run(listed)
    opened.click("[data-fusion=clip]")
    assert opened.run(value.format("beta")) == "1.00" and opened.run(listed) != before
    opened.slide("#void", 6)
    assert opened.run(value.format("void")) == "\u00d7 64"
    opened.slide("#discount", 1)
    assert opened.run(value.format("discount")) == "1.00"
    opened.click("[data-fusion=model]")
    assert opened.run(listed) == before
