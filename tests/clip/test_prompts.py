"""Prompts: counts, spelling and the published lists."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clipself_seg.clip import prompts
from clipself_seg.clip.prompts import TEMPLATES, article, class_prompts, clean_name
from clipself_seg.errors import InputError


def test_lists_have_the_published_lengths_and_no_repetition():
    assert {name: len(texts) for name, texts in TEMPLATES.items()} == {
        "vild63": 63,
        "vild14": 14,
        "openai80": 80,
        "tcl9": 9,
        "single": 1,
        "cat_seg": 1,
        "odise": 1,
        "bare": 1,
    }
    assert all(len(set(texts)) == len(texts) for texts in TEMPLATES.values())


def test_fc_clips_fourteen_have_no_full_stop_in_the_second_to_the_fifth():
    texts = class_prompts("dog", "vild14")
    assert [text for text in texts if not text.endswith(".")] == texts[1:5]
    assert texts[0] == "a photo of a dog." and texts[-1] == "There is a large dog in the scene."


def test_58_of_the_63_begin_with_this_is():
    starts = [text.split()[0] for text in TEMPLATES["vild63"]]
    assert {word: starts.count(word) for word in set(starts)} == {"This": 58, "There": 2, "itap": 3}


def test_openai_templates_equal_those_of_open_clip():
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    theirs = [template("zebra crossing") for template in OPENAI_IMAGENET_TEMPLATES]
    assert class_prompts("zebra crossing", "openai80") == theirs


def test_groups_of_the_63_have_the_sizes_of_the_reference():
    texts = class_prompts("cat")
    assert sum(" in the scene." in text for text in texts) == 5
    assert sum(text.startswith("This is a photo of") for text in texts) == 3 + 5 + 16
    assert sum(" photo of " in text for text in texts) == 3 + 5 + 4 + 16 + 18
    assert {"This is an embroidered cat.", "This is a painting of a cat.", "itap of my cat."} < set(
        texts
    )


@pytest.mark.parametrize(
    "raw, clean, chosen",
    [
        ("aerosol_can", "aerosol can", "an"),
        ("cabinet / shelf", "cabinet  or  shelf", "a"),
        ("Apple", "apple", "a"),  # the rule looks at lower-case vowels of the raw name only
        ("hour hand", "hour hand", "a"),  # letters, not sounds
        ("tree-merged", "tree-merged", "a"),
        ("mr. potato..", "mr. potato", "a"),
    ],
)
def test_name_and_article(raw, clean, chosen):
    assert clean_name(raw) == clean
    assert article(raw) == chosen
    assert class_prompts(raw)[0] == f"There is {chosen} {clean} in the scene."


@pytest.mark.parametrize(
    "templates, first",
    [
        ("odise", "a photo of a Stop_sign/St.."),
        ("vild14", "a photo of a Stop_sign/St.."),
        ("bare", "Stop_sign/St."),
        ("cat_seg", "A photo of a Stop_sign/St. in the scene"),
    ],
)
def test_odise_fc_clip_and_cat_seg_write_a_name_as_it_stands(templates, first):
    assert class_prompts("Stop_sign/St.", templates)[0] == first
    assert class_prompts("Stop_sign/St.", "single") == ["a photo of a stop sign or st"]


def test_braces_in_a_name_are_kept():
    assert class_prompts("{0}", "single") == ["a photo of a {0}"]


def test_unknown_templates_are_refused_with_the_nearest():
    with pytest.raises(InputError, match='"vild63"'):
        class_prompts("cat", "vild64")


def test_prompts_can_be_read_without_torch():
    code = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('p', sys.argv[1]); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, prompts.__file__], check=True)
