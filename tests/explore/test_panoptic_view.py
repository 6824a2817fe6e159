"""The browser fuses scores and merges masks as Python does."""

from __future__ import annotations

import base64
import gzip

import numpy as np
import pytest
import torch

from clipself_seg.explore.content import MASK_STEPS
from clipself_seg.heads.fusion import fuse_scores
from clipself_seg.heads.panoptic.panoptic_merge import merge_panoptic
from tests.explore.conftest import scene

pytestmark = pytest.mark.heavy

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
    "exponents, discount",
    [(None, 0.0), ((1.0, 1.0), 0.5), ((0.0, 0.0), 0.0), ((0.2, 0.9), 1.0)],
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
    threshold = model["overlapThreshold"]
    ids, segments = merge_panoptic(probs, masks, things, overlap_threshold=threshold)

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
