"""The largest micro-batch that fits into a GPU's memory."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn.parallel import DistributedDataParallel

from ddp_ft.contracts import Batch
from ddp_ft.models.precision import autocast
from ddp_ft.training.step import Learner

# What is left free: other shapes of batches, fragments, and what libraries take later.
MEMORY_MARGIN = 0.1


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest size from 1 to `most` that fits, or one that is less than an eighth below; 1 if none does.

    `fits` is asked a number of times that grows with the logarithm of `most`, of `most` itself first.
    """
    if fits(most):
        return most
    fitting, failing = 0, most
    # A few images more would bring next to nothing, and each question takes a step.
    while failing - fitting > max(1, fitting // 8):
        middle = (fitting + failing) // 2
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return max(1, fitting)


def fits_on_gpu(learner: Learner, part: Batch) -> bool:
    """Whether two forward and backward passes of such a micro-batch leave MEMORY_MARGIN of this rank's GPU free.

    The learner has made a step, so that gradients, their buckets and the optimizer's state are in place. Ranks are not
    waited for: one of them may run out of memory alone.
    """
    device = learner.world.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        for _ in range(2):  # the second one finds gradients, as those of a whole step do
            _pass(learner, part)
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return False
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    return torch.cuda.max_memory_reserved(device) + others <= (1 - MEMORY_MARGIN) * total


def _pass(learner: Learner, part: Batch) -> None:
    replica = learner.replica
    with replica.no_sync() if isinstance(replica, DistributedDataParallel) else nullcontext():
        batch = learner.prepare(part)
        with autocast(learner.world.device, learner.precision):
            outputs = replica(batch)
        loss, _ = learner.task.loss(outputs, batch)
        torch.autograd.backward(learner.scaler.scale(loss))
