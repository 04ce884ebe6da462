"""What changes in a run as it trains, and goes into its checkpoints."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_ft.contracts import TRAIN
from ddp_ft.distributed.world import World
from ddp_ft.models.batch_norm import averaged_statistics, batch_statistics, in_one, in_parts
from ddp_ft.run_folder.background_writer import copied
from ddp_ft.run_folder.checkpoints import Score
from ddp_ft.run_folder.model_folder import restore_weights
from ddp_ft.training.ema import Ema
from ddp_ft.training.plan import Plan
from ddp_ft.training.progress import LossWindow, Progress
from ddp_ft.training.step import StepSums

# Which weights an evaluation is of: those of the model, or their moving average.
RAW, EMA = "raw", "ema"


class Snapshot(NamedTuple):
    """Copies of a state, on the CPU: `weights` and their moving average `ema` by name, and `rest`, all else."""

    weights: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    rest: dict[str, Any]


class TrainState:
    """A run's weights, and all that further steps depend on.

    `optimizer` and `scaler` are those of the present phase. `score` is that of an evaluation at the present step,
    larger for a better model; None: there was none. `micro_batch` is the most images of a forward pass (None: a
    process's whole share), which running out of memory lowers; `lowered` (from, to) is in plan.json and not in the
    checkpoint, since it is about the machine. `base` names the weights that never change, since an adapter learns in
    their place: a checkpoint leaves them out.
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, plan: Plan, progress: Progress, base: Collection[str] = ()
    ) -> None:
        device = next(module.parameters()).device
        self.module = module
        self.base = base
        self.optimizer = optimizer
        self.scaler = make_scaler(device, plan.precision)
        self.ema = Ema(module, plan.ema_decay, base) if plan.ema_decay else None
        self.window = LossWindow(torch.zeros(2, device=device))
        self.progress = progress
        self.score: Score | None = None
        self.micro_batch = plan.cut
        self.lowered = plan.lowered
        self._waiting: dict[str, Any] = {}

    def advance(self, sums: StepSums) -> None:
        """Count a step, which changed the weights unless it was bad."""
        self.score = None
        if self.ema is not None and self.progress.phase == TRAIN:
            self.ema.update(self.module, sums.is_bad)
        self.window.add(sums.loss, sums.weight, sums.is_bad)
        self.progress.step += 1

    def rewind(self, step: int) -> None:
        """Go back to before that step, counted from 1: it and later ones changed nothing, and are done again."""
        self.progress.step = step - 1

    def lower(self, most: int, size: int) -> None:
        """Pass at most `size` images at once from now on, since `most` did not fit."""
        self.lowered = (self.lowered[0] if self.lowered else most, size)
        self.micro_batch = size

    def begin_training(self, optimizer: Optimizer, plan: Plan) -> None:
        """Go from the probe to the first step of the training, whose moving average begins with the probe's head."""
        self.optimizer, self.scaler = optimizer, make_scaler(self.window.sums.device, plan.precision)
        self.progress.phase, self.progress.step = TRAIN, 0
        if self.ema is not None:
            self.ema.reset(self.module)

    def state_dict(self, world: World) -> Snapshot | None:
        """Return copies of all of it on rank 0, None on the others. Collective: each rank has its own statistics."""
        statistics = _gathered(batch_statistics(self.module), world)
        ema_statistics = _gathered(self._ema_statistics(), world) if self.ema else []
        with averaged_statistics(self.module, world):
            return self._copied(statistics, ema_statistics) if world.is_main else None

    def _copied(self, statistics: list[dict[str, Tensor]], ema_statistics: list[dict[str, Tensor]]) -> Snapshot:
        ema = None
        if self.ema is not None:
            means = {name: torch.stack([own[name] for own in ema_statistics]).mean(0) for name in ema_statistics[0]}
            ema = copied({**self.ema.tensors, **means})
        rest = {
            "statistics": statistics,
            "ema": {"count": self.ema.count, "statistics": ema_statistics} if self.ema else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "window": self.window.sums,
            "progress": asdict(self.progress),
        }
        return Snapshot(copied(self.weights()), ema, copied(rest))

    def weights(self) -> dict[str, Tensor]:
        """The module's weights and buffers by name, but for its base: what a checkpoint holds."""
        return {name: each for name, each in self.module.state_dict().items() if name not in self.base}

    def load_state_dict(self, snapshot: Snapshot, world: World) -> None:
        """Continue from a snapshot; what it has of the optimizer waits for `load_optimizer`."""
        restore_weights(self.module, snapshot.weights, self.base)
        _restore(batch_statistics(self.module), snapshot.rest["statistics"], world)
        if self.ema is not None:
            self.ema.load(snapshot.rest["ema"]["count"], snapshot.ema or {})
            _restore(self._ema_statistics(), snapshot.rest["ema"]["statistics"], world)
        self.window.sums.copy_(snapshot.rest["window"])
        self.progress = Progress.from_mapping(snapshot.rest["progress"])
        self._waiting = {name: snapshot.rest[name] for name in ("optimizer", "scaler")}

    def load_optimizer(self) -> None:
        """Load a snapshot's part of the optimizer, once this has the parameter groups of the present stage."""
        if self._waiting:
            self.optimizer.load_state_dict(self._waiting["optimizer"])
            self.scaler.load_state_dict(self._waiting["scaler"])
            self._waiting = {}

    @contextmanager
    def as_evaluated(self, kind: str, world: World) -> Iterator[None]:
        """Within the block the module has its weights (RAW) or their moving average (EMA), with the running
        statistics averaged over ranks. Collective."""
        swapped = self.ema.swapped(self.module) if self.ema and kind == EMA else nullcontext()
        with swapped, averaged_statistics(self.module, world):
            yield

    def _ema_statistics(self) -> dict[str, Tensor]:
        return {name: self.ema.tensors[name] for name in batch_statistics(self.module)} if self.ema else {}


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Return the loss scaler that fp16 needs; one that does nothing in any other precision."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def _gathered(statistics: Mapping[str, Tensor], world: World) -> list[dict[str, Tensor]]:
    """Return on rank 0 each rank's statistics on the CPU; sent as one vector, to pickle one tensor and not many."""
    names, tensors = list(statistics), list(statistics.values())
    vectors = world.gather(copied(in_one(tensors))) or []
    return [dict(zip(names, in_parts(vector, tensors), strict=True)) for vector in vectors]


def _restore(tensors: Mapping[str, Tensor], stored: list[dict[str, Tensor]], world: World) -> None:
    if len(stored) == world.size:  # on another number of ranks all have the mean, which is in the weights
        for name, tensor in tensors.items():
            tensor.copy_(stored[world.rank][name])
