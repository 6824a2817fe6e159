"""Random starts and settings of the mask generator are those of transformers' Mask2Former."""

from types import SimpleNamespace

import pytest
import torch

from clipself_seg.config.keys import default_config
from clipself_seg.heads.panoptic import mask_losses
from clipself_seg.heads.panoptic.pixel_decoder import DeformableAttention

# None of this is transformers' public interface: setup.cfg says which versions have it.
theirs = pytest.importorskip(
    "transformers.models.mask2former.modeling_mask2former",
    reason="needs transformers (the extra [dev])",
)


def test_untrained_heads_look_where_theirs_do():
    ours = DeformableAttention(width=64, heads=4, levels=3, points=4)
    other = theirs.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(64, 4, 3, 4)
    model = SimpleNamespace(config=theirs.Mask2FormerConfig())
    theirs.Mask2FormerPreTrainedModel._init_weights(model, other)
    for name in ("sampling_offsets", "attention_weights"):
        outputs, expected = (getattr(one, name).state_dict() for one in (ours, other))
        torch.testing.assert_close(outputs, expected, atol=1e-6, rtol=0)


def test_default_settings_are_those_of_transformers():
    config = theirs.Mask2FormerConfig()
    weights = (config.class_weight, config.mask_weight, config.dice_weight)
    assert (
        (mask_losses.CLASS_WEIGHT, mask_losses.MASK_WEIGHT, mask_losses.DICE_WEIGHT)
        == weights
        == (2.0, 5.0, 5.0)
    )
    assert mask_losses.VOID_WEIGHT == config.no_object_weight == 0.1
    assert default_config().MODEL.MASK_FORMER.TRAIN_NUM_POINTS == config.train_num_points
    assert mask_losses.OVERSAMPLE == config.oversample_ratio
    assert mask_losses.IMPORTANT == config.importance_sample_ratio
