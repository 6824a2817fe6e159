"""Tensors of samples are copied one by one, and nobody waits for it."""

from __future__ import annotations

import torch

from clipself_seg.models.inputs import on_device
from tests.host_syncs import ACCELERATOR, HostSyncs, on_host


def test_tensors_of_samples_are_copied_one_by_one_without_waiting():
    samples = [{"image": torch.full((2, 3), float(i))} for i in range(3)]
    with HostSyncs() as syncs:
        copies = on_device(samples, "image", ACCELERATOR)
    assert not syncs.syncs and all(copy.device == ACCELERATOR for copy in copies)
    assert [copy.mean().item() for copy in on_host(copies)] == [0, 1, 2]
