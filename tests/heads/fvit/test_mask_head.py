"""Maps of few RoIs are in memory at once where no gradient needs them."""

from __future__ import annotations

import torch

from clipself_seg.benchmark.plain_detection import plain_mask_probs
from clipself_seg.heads.fvit import mask_head
from clipself_seg.heads.fvit.mask_head import MaskHead


def test_few_rois_at_a_time_have_the_logits_of_all(monkeypatch):
    torch.manual_seed(0)
    head = MaskHead(8).eval()
    features = torch.randn(7, 8, 14, 14)
    wanted = plain_mask_probs(head, features)
    monkeypatch.setattr(mask_head, "ROIS", 3)
    sizes = []
    head.convs.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with torch.no_grad():
        logits = head(features)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(logits.sigmoid(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head(features).sigmoid(), wanted, atol=1e-5, rtol=1e-5)
    assert sizes[3:] == [7]
