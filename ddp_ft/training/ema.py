"""An exponential moving average of a model's weights, evaluated beside them."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddp_ft.errors import UserError


def decay_at(update: Tensor, decay: float) -> Tensor:
    """Return the decay of an update, counted from 1: min(decay, (1 + update) / (10 + update)).

    So the first weights, above all those of a new head, are soon forgotten; as in TensorFlow's
    tf.train.ExponentialMovingAverage with num_updates.
    """
    return ((1 + update) / (10 + update)).clamp(max=decay)


class Ema:
    """Averages of a module's floating point parameters and buffers; integer buffers are copied.

    `tensors` are the averages by their names in state_dict, on the module's device and in its dtypes. The averages of
    parameters are equal on all ranks, as these are; those of batch norm's running statistics are each rank's own.
    Buffers that are not in state_dict are not averaged, nor are those named in `base`, which never change.
    """

    def __init__(self, module: nn.Module, decay: float, base: Collection[str] = ()) -> None:
        self.decay = decay
        self.base = base
        self.tensors: dict[str, Tensor] = {}
        self.reset(module)

    def reset(self, module: nn.Module) -> None:
        """Begin anew with the module's present weights."""
        own = module.state_dict()
        self.tensors = {name: own[name].detach().clone() for name in own if name not in self.base}
        self._count = torch.zeros((), device=next(iter(self.tensors.values())).device)

    @property
    def count(self) -> int:
        """The number of updates so far. Waits for the device."""
        return int(self._count)

    @torch.no_grad()
    def update(self, module: nn.Module, is_bad: Tensor | None = None) -> None:
        """Average in the module's weights after an optimizer step, unless that `is_bad` (bool, 0-dim). Does not wait
        for the device."""
        counts_as = torch.ones_like(self._count) if is_bad is None else (~is_bad).to(self._count)
        self._count += counts_as
        share = counts_as * (1 - decay_at(self._count, self.decay))
        own = module.state_dict()
        means = {name: mean for name, mean in self.tensors.items() if mean.is_floating_point()}
        counts = {name: count for name, count in self.tensors.items() if name not in means}
        # No lerp: its fast kernel takes the share as a number, for which the device would have to be waited for.
        moves = torch._foreach_sub([own[name] for name in means], list(means.values()))
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(list(means.values()), moves)
        if counts:  # torch refuses empty lists
            torch._foreach_copy_(list(counts.values()), [own[name] for name in counts])

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Within the block the module has the averages; after it its own values again, bit for bit. Values are copied
        in place, since DDP and the optimizer hold the tensors."""
        own = module.state_dict()
        own = {name: own[name].detach().clone() for name in self.tensors}
        _copy(self.tensors, module)
        try:
            yield
        finally:
            _copy(own, module)

    @torch.no_grad()
    def load(self, count: int, stored: Mapping[str, Tensor]) -> None:
        """Continue from the averages that a snapshot stored, after `count` updates. UserError if of another model."""
        if strangers := sorted(stored.keys() ^ self.tensors.keys()):
            raise UserError(
                f"The stored average is of another model: {', '.join(strangers[:3])} is in one of them only."
            )
        self._count.fill_(count)
        for name, tensor in self.tensors.items():
            tensor.copy_(stored[name])


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    own = module.state_dict()
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
