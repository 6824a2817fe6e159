"""A real server on loopback and a real browser: an example, an upload, words of now, and the end."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from clipself_seg.commands.explore import MINI
from tests.conftest import ROOT
from tests.explore.conftest import STRANGE, scene

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason="the extra demo is not installed")
    folder = tmp_path_factory.mktemp("server")
    home = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "HOME": str(folder)}
    home["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("fonts"))  # a list that matplotlib keeps
    words = [*"-m clipself_seg serve --port 0 --model".split(), *MINI[:2]]
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | home,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process.stdout.readline().split()[0]
    # It ends by itself, with its texts, and leaves nothing of what was sent.
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and rest == "ended\n"
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def asked(browser, address):
    browser.size(1280, 900)
    browser.complaints.clear()
    browser.requests.clear()
    browser.call("Page.navigate", url=address)
    browser.wait("document.body?.dataset.answered === '1'")
    return browser


def answered(browser, act) -> None:
    """Do something, and wait until all models have answered."""
    before = browser.run("document.body.dataset.answered ?? ''")
    act()
    browser.wait(f"(document.body.dataset.answered ?? '') !== {before!r}")


def test_the_page_opens_with_an_answer_and_asks_nothing(asked, address):
    assert asked.requests == [address] and asked.complaints == []
    assert asked.run("document.getElementById('picture-name').textContent") == "scene 1"
    drawn = "[...document.querySelectorAll('#panels canvas')].map((c) => c.width > 300)"
    assert asked.run(drawn) == [True] * 2
    rows = asked.run("[...document.querySelectorAll('.result tbody')].map((t) => t.rows.length)")
    assert len(rows) == 3 and all(rows)


def test_an_example_is_answered_by_every_model(asked, address):
    answered(asked, lambda: asked.click(".example"))
    assert asked.run("document.getElementById('asking').textContent") == ""
    rows = asked.run("[...document.querySelectorAll('.result tbody')].map((t) => t.rows.length)")
    assert len(rows) == 3 and all(rows)
    drawn = "[...document.querySelectorAll('.result canvas')].map((c) => c.width > 300)"
    assert asked.run(drawn) == [True] * 3
    asked.drawn_by(lambda: asked.click("#panels .panel:nth-child(3) .place"))
    assert asked.run("document.querySelectorAll('.nearest li').length") == 10
    assert asked.run("document.getElementById('segments-list').children.length") > 1
    for width in (1280, 375):
        asked.size(width, 800, mobile=width < 400)
        assert asked.run("document.documentElement.scrollWidth") <= width
    server = address.partition("?")[0]
    tasks = ("maps", "semantic", "panoptic", "detection")
    assert set(asked.requests) == {address, *(f"{server}api/{task}" for task in tasks)}
    assert asked.complaints == []


def test_masks_are_drawn_where_the_run_lengths_say(asked):
    answered(asked, lambda: asked.click(".example"))
    answer = asked.run("JSON.parse(document.getElementById('server').textContent).first.panoptic")
    width, height = answer["width"], answer["height"]
    ids = np.zeros((height, width), int)
    for number, segment in enumerate(answer["segments"], 1):
        ids[mask_utils.decode(segment["segmentation"]) > 0] = number
    segments = json.dumps(answer["segments"])
    decoded = asked.run(f"[...idsOf({segments}, {width}, {height})]")
    assert decoded == ids.ravel().tolist() and len(set(decoded)) > 3


def test_an_image_is_pasted_and_absent_words_are_named(asked):
    asked.run("document.getElementById('absent').checked = true")
    asked.run("document.getElementById('typed-stuff').value = ''")
    asked.run("document.getElementById('typed-words').value = 'grass, zebra'")
    paste = """const data = new DataTransfer();
        const bytes = bytesOf(document.querySelector('.example img').src);
        data.items.add(new File([bytes], 'x.jpg', { type: 'image/jpeg' }));
        document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }));"""
    answered(asked, lambda: asked.run(paste))
    assert asked.run("document.getElementById('picture-name').textContent") == "pasted image"
    note = asked.run("document.querySelector('.result .note').textContent")
    assert "Not in the image: " in note and "zebra" in note


def test_one_question_at_a_time_and_what_was_looked_for_among_earlier_words_is_forgotten(asked):
    answered(asked, lambda: asked.click(".example"))
    asked.run("document.getElementById('word-search').value = 'red'")
    examples = "[...document.querySelectorAll('.example')]"
    answered(asked, lambda: asked.run(f"{examples}.forEach((example) => example.click())"))
    assert asked.run("document.getElementById('picture-name').textContent") == "scene 1"
    assert asked.run("document.getElementById('word-search').value") == ""
    assert asked.run("document.body.dataset.answered") == "3"
    assert not asked.run(f"{examples}.some((example) => example.disabled)")


def test_an_upload_and_words_of_now_are_text_whatever_they_are(asked, tmp_path):
    path = tmp_path / "<b>one'.png"
    Image.fromarray(scene(5)).save(path)
    words = ", ".join(["grass", *STRANGE])
    asked.run(f"document.getElementById('typed-words').value = {json.dumps(words)}")
    asked.run("document.getElementById('typed-stuff').value = 'grass'")
    root = asked.call("DOM.getDocument")["root"]["nodeId"]
    node = asked.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    answered(asked, lambda: asked.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node))
    shown = asked.run("[...document.querySelectorAll('.word-button')].map((b) => b.textContent)")
    assert shown == ["grass", *STRANGE]
    assert asked.run("document.getElementById('picture-name').textContent") == path.name
    assert asked.run("document.querySelectorAll('b').length") == 0 and asked.complaints == []
    # Other words for the same image, and a mistake.
    asked.run("document.getElementById('typed-words').value = 'red star, red star'")
    answered(asked, lambda: asked.click("#look"))
    assert "twice" in asked.run("document.getElementById('asking').textContent")


def drag(browser, method: str, *kinds: str) -> None:
    """Draw a box in the first map."""
    browser.run("document.querySelector('#first-place').scrollIntoView({block: 'center'})")
    box = "document.querySelector('#first-place').getBoundingClientRect()"
    left, top, width, height = browser.run(
        f"(({{left, top, width, height}}) => [left, top, width, height])({box})"
    )
    for kind, at in zip(kinds, (0.2, 0.5, 0.5)):
        place = {"x": left + at * width, "y": top + at * height}
        if method == "Input.dispatchTouchEvent":
            how = {"touchPoints": [] if kind == "touchEnd" else [place]}
        else:
            how = place | {"button": "left", "buttons": 1, "clickCount": 1}
        browser.call(method, type=kind, **how)


def test_a_finger_scrolls_and_draws_a_box_after_a_press_on_the_button(asked):
    asked.size(375, 800, mobile=True)
    asked.call("Emulation.setTouchEmulationEnabled", enabled=True)
    finger = "Input.dispatchTouchEvent", "touchStart", "touchMove", "touchEnd"
    drag(asked, *finger)
    assert not asked.run("document.querySelector('.drawn')")
    asked.click("#draw")  # shown to fingers alone
    drag(asked, *finger)
    asked.call("Emulation.setTouchEmulationEnabled", enabled=False)
    assert asked.run("!!document.querySelector('.drawn')")
    assert not asked.run("document.getElementById('example').hidden")


def test_a_box_that_is_drawn_gives_what_looks_like_it_a_name_until_it_is_removed(asked):
    word = asked.run("document.querySelector('.word-button input:checked') !== null")
    drag(asked, "Input.dispatchMouseEvent", "mousePressed", "mouseMoved", "mouseReleased")
    assert asked.run("document.querySelector('.word-button input:checked') !== null") == word
    asked.run("document.getElementById('example-name').value = 'part 17'")
    answered(asked, lambda: asked.click("#add-example"))
    shown = "[...document.querySelectorAll('.word-button')].map((b) => b.textContent)"
    assert asked.run(shown)[-1] == "part 17" and asked.complaints == []
    assert asked.run("document.getElementById('asking').textContent") == ""
    asked.click("#examples button")
    answered(asked, lambda: asked.click("#look"))
    assert "part 17" not in asked.run(shown)
