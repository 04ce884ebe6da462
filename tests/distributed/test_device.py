"""The device of a rank."""

import pytest
import torch

from ddp_ft.distributed.device import is_out_of_memory


def test_no_memory_by_any_library():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    blas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert all(map(is_out_of_memory, (caught.value, blas, torch.OutOfMemoryError("CUDA out of memory. Tried to ..."))))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x3 and 4x4)"))
