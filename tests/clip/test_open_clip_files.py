"""open_clip's tokenizer and model configs are its own, though it is not imported for them."""

from __future__ import annotations

import json
import subprocess
import sys

import open_clip

from clipself_seg.checkpoints.zoo import SHIPPED
from clipself_seg.clip import kinds

TEXTS = ["Ein Pferd &amp; a dog's  tail, 42", "", "写真 " * 99]
ALONE = """
import json
import sys

from clipself_seg.clip import load_clip
from clipself_seg.clip.kinds import model_configs

clip = load_clip("ViT-Mini-8", "mini")
load_clip("ViT-Mini-8", sys.argv[1])
tokens = clip.tokenize(json.loads(sys.argv[2])).tolist()
heavy = {"open_clip", "transformers", "torchvision"} & set(sys.modules)
print(json.dumps([tokens, model_configs(), sorted(heavy)]))
"""


def test_both_are_what_open_clip_gives_and_it_stays_away():
    words = [str(SHIPPED / "vit_mini_8.safetensors"), json.dumps(TEXTS)]
    run = [sys.executable, "-c", ALONE, *words]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    tokens, configs, heavy = json.loads(done.stdout)
    assert heavy == []
    assert tokens == open_clip.tokenize(TEXTS, context_length=len(tokens[0])).tolist()
    assert configs == {name: open_clip.get_model_config(name) for name in open_clip.list_models()}


def test_a_model_that_was_added_to_open_clip_is_known(monkeypatch):
    monkeypatch.setattr(open_clip, "list_models", lambda: ["mine"])
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: {"embed_dim": name})
    assert kinds.model_configs() == {"mine": {"embed_dim": "mine"}}
