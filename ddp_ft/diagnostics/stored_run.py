"""A run composed from its folder in one process, and the weights with which one of its steps began."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddp_ft.config.loading import make_config, read_config_file
from ddp_ft.contracts import TRAIN, Log
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import Machine, connect
from ddp_ft.errors import UserError
from ddp_ft.inference.trained_model import refuse_code_inside
from ddp_ft.models.precision import resolve_precision
from ddp_ft.run_folder.bad_batches import bad_batch_weights
from ddp_ft.run_folder.checkpoints import load_checkpoint, step_of
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.training.build import compose
from ddp_ft.training.plan import Plan, references_of
from ddp_ft.training.request import Request, begun_with
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState


@dataclass(frozen=True)
class Start:
    """What the step begins with: weights (None: the run's first), the loss scale (fp16), and where they are from."""

    weights: dict[str, Tensor] | None
    loss_scale: float
    source: str


@contextmanager
def one_process(device_name: str, launch: Launch) -> Iterator[Machine]:
    """Within the block this process is alone on that device. UserError if there are others."""
    if launch.world_size > 1:
        raise UserError(f"This runs as one process, not as {launch.world_size}.", "Start it without torchrun.")
    with connect(launch, pick_device(device_name, launch), timeout_minutes=1) as world:
        yield Machine(world, launch)


def compose_stored(
    folder: RunFolder, plan: Plan, data: Path | None, machine: Machine, log: Log
) -> tuple[Run, TrainState]:
    """Return the run and its state, with the settings that it stored, but computing here, on one process. `data` takes
    the place of data.path."""
    device = machine.world.device
    here: dict[str, Any] = {"compute.device": device.type, "data.workers": 0}
    if data is not None:
        here["data.path"] = str(data)
    try:
        here["compute.precision"] = resolve_precision(plan.precision, device)
    except UserError as error:
        here["compute.precision"] = "fp32"
        log(f"Note: the run computed in {plan.precision}; here it is fp32. {error.message}")
    if plan.device != device.type:
        log(f"Note: the run was on {plan.device}, this is {device.type}: the last digits differ.")
    layers = read_config_file(folder.path / "config.yaml"), here
    begun = begun_with(folder)
    config = make_config(*layers, recipe=plan.recipe, begun=begun)
    refuse_code_inside(folder.path, [*references_of(config), config.data.path])
    earlier = replace(plan, lowered=None)  # micro-batches are cut as this machine's memory allows
    run, state, _ = compose(config, Request(folder.path, layers, earlier=earlier, begun=begun), machine)
    state.progress.phase = TRAIN
    return run, state


def start_of(run: Run, step: int, record: dict[str, Any] | None) -> Start:
    """Return the weights of the bad step, else of the newest checkpoint before it, else those that the run began
    with."""
    weights = bad_batch_weights(run.folder.path, step)
    scale = record["loss_scale"] if record else None
    if weights is not None:
        return Start(weights, scale or 1.0, f"those that step {step} began with")
    before = [folder for folder in run.checkpoints.complete() if step_of(folder) < step]
    if before:
        weights, state = load_checkpoint(before[-1])
        kept = float(state.get("scaler", {}).get("scale", 1.0))
        passed = step - 1 - step_of(before[-1])
        late = "" if not passed else f", {passed} steps before step {step} began"
        return Start(weights, scale or kept, f"of the checkpoint {before[-1].name}{late}")
    late = "" if step == 1 and not run.config.probe.epochs else ", as no checkpoint from before the step is left"
    return Start(None, scale or 1.0, f"those that the run began with{late}")
