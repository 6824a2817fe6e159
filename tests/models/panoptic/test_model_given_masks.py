"""OpenPanoptic with masks that are given with the image: drawn as they are, named by CLIP alone."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import Fusion
from clipself_seg.models.panoptic.model import trained_state
from clipself_seg.models.panoptic.outputs import UnnamedMasks
from tests.models.panoptic.small import CONFIG, GIVEN, SMALL, model_of, sample

KINDS = ("dense", "masked_attention")


def given_sample(masks, scores=None):
    return sample() | {
        "given_masks": masks,
        "given_scores": torch.ones(len(masks)) if scores is None else torch.tensor(scores),
    }


def boxes(*corners):
    masks = torch.zeros(len(corners), 40, 50, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, corners):
        mask[top:bottom, left:right] = True
    return masks


@pytest.mark.parametrize("kind", KINDS)
def test_given_masks_are_drawn_as_they_are_and_named_by_clip_alone(kind):
    model = model_of(*GIVEN, "MODEL.CLIP_BRANCH.KIND", kind)
    model.set_vocabulary(["red star", "blue ring", "grass"])  # all are things
    masks = boxes((0, 0, 20, 25), (20, 0, 40, 25), (5, 30, 9, 36))
    one = given_sample(masks, [0.5, 1.0, 1.0])
    (outputs,) = model([one])
    ids, segments = outputs["panoptic_seg"]
    assert len(segments) == 3
    for segment, mask, score in zip(segments, masks, one["given_scores"].tolist()):
        assert torch.equal(ids == segment["id"], mask)
        image = one["image"].float() / 255
        texts = model.branch_bank.embed(["red star", "blue ring", "grass"])
        logits = 2 * mask[None].float() - 1
        named, valid = model.branch.score(image, logits, texts, [1, 1, 1])
        best, label = named.softmax(1)[0].max(0)
        assert valid.all() and segment["category_id"] == label
        assert segment["score"] == pytest.approx(score * best.item(), abs=1e-6)
    assert (ids == 0).sum() == 40 * 50 - masks.sum()


def test_the_better_of_two_given_masks_has_their_pixels_and_the_other_goes_if_little_is_left():
    model = model_of(*GIVEN)
    model.set_vocabulary(["red star"])  # every probability is the score
    inner, outer = (10, 10, 20, 20), (5, 5, 25, 25)
    for scores, areas in (((1.0, 0.5), [100]), ((0.5, 1.0), [400])):
        ids, segments = model([given_sample(boxes(inner, outer), scores)])[0]["panoptic_seg"]
        assert [int((ids == segment["id"]).sum()) for segment in segments] == areas
    loose = model_of(*GIVEN, "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.5)
    loose.set_vocabulary(["red star"])
    ids, segments = loose([given_sample(boxes(inner, outer), (1.0, 0.5))])[0]["panoptic_seg"]
    assert sorted(int((ids == segment["id"]).sum()) for segment in segments) == [100, 300]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_given_masks_has_no_segments(kind):
    model = model_of(*GIVEN, "MODEL.CLIP_BRANCH.KIND", kind)
    (outputs,) = model([given_sample(boxes())])
    ids, segments = outputs["panoptic_seg"]
    assert not ids.any() and segments == [] and len(outputs["instances"]) == 0


def test_many_given_masks_are_read_as_few_of_them_are():
    model = model_of(*GIVEN)
    masks = boxes(*((i, i, i + 9, i + 9) for i in range(20)))
    with torch.no_grad():
        together, alone = (
            [model.clip_scores(one, UnnamedMasks.of_sample(one, model.device))[0] for one in given]
            for given in ([given_sample(masks)], [given_sample(mask[None]) for mask in masks])
        )
    torch.testing.assert_close(together[0], torch.cat(alone))


def test_given_masks_are_needed_and_nothing_else_is_fused(model):
    given = model_of(*GIVEN)
    for one, message in (
        (sample(), "SOURCE masks makes none: give them with the image"),
        (given_sample(torch.ones(1, 60, 75).bool()), r"masks of \(60, 75\) pixels, .* \(40, 50\)"),
    ):
        with pytest.raises(InputError, match=message):
            given([one])
    with pytest.raises(InputError, match="makes none"):
        given.generate(sample())
    with pytest.raises(InputError, match="named by CLIP alone, alpha and beta 1"):
        given([given_sample(boxes((0, 0, 9, 9)))], fusions={"fused": Fusion(0.35, 0.65)})
    with pytest.raises(InputError, match="SOURCE masks does not train"):
        given.setup_training(["cat"])
    with pytest.raises(InputError, match="of no use with MODEL.MASK_GENERATOR.SOURCE masks"):
        given.load_state_dict(trained_state(model))
    given.require_trained(load_config(CONFIG, [*SMALL, *GIVEN]))
