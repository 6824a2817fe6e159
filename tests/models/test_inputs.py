"""Tensors of samples are copied one by one, and nobody waits for it."""

from __future__ import annotations

from unittest.mock import Mock

import torch

from bench.accelerator import ACCELERATOR, on_host
from clipself_seg.models.inputs import on_device, send
from tests.host_syncs import HostSyncs


def test_tensors_of_samples_are_copied_one_by_one_without_waiting():
    samples = [{"image": torch.full((2, 3), float(i))} for i in range(3)]
    with HostSyncs() as syncs:
        copies = on_device(samples, "image", ACCELERATOR)
    assert not syncs.syncs and all(copy.device == ACCELERATOR for copy in copies)
    assert [copy.mean().item() for copy in on_host(copies)] == [0, 1, 2]


def test_what_was_made_on_the_cpu_is_pinned_for_a_gpu_alone():
    made = torch.zeros(2)
    assert send(made, made.device) is made
    memory, gpu = Mock(), torch.device("cuda")
    assert send(memory, gpu) is memory.pin_memory().to.return_value
    memory.pin_memory().to.assert_called_once_with(gpu, non_blocking=True)
