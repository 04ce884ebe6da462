"""The largest micro-batch that fits into a GPU's memory."""

from collections.abc import Callable

import torch

from ddp_ft.contracts import Batch
from ddp_ft.distributed.device import is_out_of_memory
from ddp_ft.training.step import Learner

# What is left free: other shapes of batches, fragments, and what libraries take later.
MEMORY_MARGIN = 0.1


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest size from 1 to `most` that fits, or one less than an eighth smaller; 1 if none fits. `fits` is
    called about log(`most`) times, with `most` itself first."""
    if fits(most):
        return most
    fitting, failing = 0, most
    # A few images more would gain next to nothing, and each call takes two passes.
    while failing - fitting > max(1, fitting // 8):
        middle = (fitting + failing) // 2
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return max(1, fitting)


def fits_on_gpu(learner: Learner, part: Batch) -> bool:
    """Return whether two forward and backward passes of such a micro-batch leave MEMORY_MARGIN of this GPU free.

    The learner must have taken a step, so that gradients, their buckets and the optimizer's state are in memory. Ranks
    do not wait for each other: one of them may run out of memory alone.
    """
    device = learner.world.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with learner.unsynchronised():
            for _ in range(2):  # the second one finds gradients, as in a step of several micro-batches
                learner.backward(part)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    return torch.cuda.max_memory_reserved(device) + others <= (1 - MEMORY_MARGIN) * total
