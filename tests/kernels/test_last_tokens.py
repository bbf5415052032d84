"""Token ids that only the device knows; tests/triton_kernels has Triton's."""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from quire import kernels
from quire.kernels.native_signal import eventfd_signal


def test_negative_ids_name_slots() -> None:
    token_ids = torch.tensor([5, ~0, ~2, 0, ~2], dtype=torch.int32)
    kernels.take_last_tokens(token_ids, torch.tensor([70, 71, 72], dtype=torch.int32))
    assert token_ids.tolist() == [5, 70, 72, 0, 72]


def test_no_ids() -> None:
    kernels.take_last_tokens(torch.empty(0, dtype=torch.int32), torch.zeros(4, dtype=torch.int32))


@pytest.mark.parametrize("name", ["token_ids", "last_tokens"])
def test_a_wrong_tensor_is_named(name: str) -> None:
    tensors = {"token_ids": torch.zeros(2, dtype=torch.int32), "last_tokens": torch.zeros(2, dtype=torch.int32)}
    with pytest.raises(ValueError, match=f"^{name} must be contiguous int32"):
        kernels.take_last_tokens(**{**tensors, name: torch.zeros(2)})


def test_the_signal_writes_the_eventfd_that_it_is_given() -> None:
    descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(eventfd_signal())
        function(descriptor)
        function(descriptor)
        assert os.eventfd_read(descriptor) == 2
    finally:
        os.close(descriptor)
