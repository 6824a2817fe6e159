"""One thread for all tests here: hundreds of tiny layers wait for one another longer than they compute."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(clean_state: None) -> None:
    """`clean_state` gives the threads back."""
    torch.set_num_threads(1)
