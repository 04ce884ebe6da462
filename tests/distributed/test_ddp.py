"""The module as training calls it."""

import threading

import pytest
import torch
from torch import nn

from ddp_ft.distributed.ddp import in_this_autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_another_thread_computes_in_the_same_number_format(dtype):
    """A thread has its own: on CUDA fp16, which a run in bf16 has no scaler for."""
    layer, found = nn.Linear(4, 4), []
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        function = in_this_autocast(layer, "cpu")
        thread = threading.Thread(target=lambda: found.append(function(torch.ones(2, 4)).dtype))
        thread.start()
        thread.join()
    assert found == [dtype or torch.float32]
