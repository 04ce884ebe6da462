"""An exponential moving average of a model's weights, evaluated beside them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ddp_ft.errors import UserError


def decay_at(update: int, decay: float) -> float:
    """The decay of an update, counted from 1: min(decay, (1 + update) / (10 + update)).

    The first weights, a new head's above all, are so forgotten early. As in TensorFlow's
    tf.train.ExponentialMovingAverage with num_updates.
    """
    return min(decay, (1 + update) / (10 + update))


class Ema:
    """Averages of a module's floating point parameters and buffers; integer buffers are copied.

    `tensors` are the averages by their names in state_dict, on the module's device and in its dtypes; `count` is the
    number of updates so far. Parameters are equal on all ranks, and so are their averages; batch norm's running
    statistics are each rank's own, and so are theirs. Buffers that state_dict leaves out are not averaged.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.tensors: dict[str, Tensor] = {}
        self.reset(module)

    def reset(self, module: nn.Module) -> None:
        """Begin anew with the module's present weights."""
        self.count = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's weights, after an optimizer step. Does not wait for the device."""
        self.count += 1
        own = module.state_dict()
        means = {name: mean for name, mean in self.tensors.items() if mean.is_floating_point()}
        counts = {name: count for name, count in self.tensors.items() if name not in means}
        share = 1 - decay_at(self.count, self.decay)
        torch._foreach_lerp_(list(means.values()), [own[name] for name in means], share)
        if counts:  # torch refuses empty lists
            torch._foreach_copy_(list(counts.values()), [own[name] for name in counts])

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Within the block the module has the averages; after it its own values again, bit for bit.

        Values are copied in place, because DDP and the optimizer hold the tensors.
        """
        own = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        _copy(self.tensors, module)
        try:
            yield
        finally:
            _copy(own, module)

    def state(self) -> dict[str, Any]:
        """{"count": int, "tensors": copies of the averages on the CPU}, as `load` takes it."""
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in self.tensors.items()}
        return {"count": self.count, "tensors": tensors}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. UserError if it is of another model."""
        stored: Mapping[str, Tensor] = state["tensors"]
        if strangers := sorted(stored.keys() ^ self.tensors.keys()):
            raise UserError(
                f"The stored average is of another model: {', '.join(strangers[:3])} is in one of them only."
            )
        self.count = int(state["count"])
        for name, tensor in self.tensors.items():
            tensor.copy_(stored[name])


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    for name, own in module.state_dict().items():
        own.copy_(tensors[name])
