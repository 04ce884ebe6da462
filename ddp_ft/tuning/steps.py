"""Steps of a run for timing: with any values of what the run leaves open, and without changing the weights."""

import gc
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

from ddp_ft.contracts import TRAIN, Batch
from ddp_ft.models.freezing import freeze_parameters
from ddp_ft.models.precision import place
from ddp_ft.training.batches import training_batches
from ddp_ft.training.data_phase import DataPhase
from ddp_ft.training.optim import optimizer_of, set_rates
from ddp_ft.training.progress import Progress
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState
from ddp_ft.tuning.decoders import decoder_of

FORMAT, PRECISION, MICRO_BATCH = "compute.memory_format", "compute.precision", "train.micro_batch"
DECODER, WORKERS = "data.decoder", "data.workers"
ENDLESS = 10**6  # steps; as many are taken as there is time for
Values = Mapping[str, Any]


def rule_of(run: Run) -> dict[str, Any]:
    """Return the values of the keys by the fixed rules."""
    return {
        FORMAT: "channels_last" if run.plan.channels_last else "contiguous",
        PRECISION: run.plan.precision,
        MICRO_BATCH: run.config.train.micro_batch,
        DECODER: decoder_of(run.model.processor),
        WORKERS: run.plan.workers,
    }


def open_steps(run: Run, values: Values, steps: int) -> DataPhase:
    """Return the training of the run with these values, as it is when all parts learn that ever do. The rate is 0, so
    the weights do not change. The caller must not hold the phase that was opened before."""
    module, device, config = run.model.module, run.world.device, run.config
    module.zero_grad(set_to_none=True)
    gc.collect()  # the hooks of the DDP before stay on the parameters as long as it lives
    is_last = values[FORMAT] == "channels_last"
    place(module, device, is_last)
    freeze_parameters(module, run.stages[-1].frozen)
    plan = replace(
        run.plan, precision=values[PRECISION], channels_last=is_last, micro_batch=values[MICRO_BATCH], lowered=None,
        workers=values[WORKERS], total_steps=steps,
    )  # fmt: skip
    model = replace(run.model, processor=run.model.processor.configured(replace(config.data, decoder=values[DECODER])))
    prepare = model.processor.on_device(device, is_last)
    optimizer = optimizer_of(model, config.optim, plan.lr)
    set_rates(optimizer, 0.0)
    state = TrainState(module, optimizer, replace(plan, ema_decay=0.0), Progress(phase=TRAIN))
    return DataPhase(replace(run, plan=plan, model=model, prepare=prepare), state)


def first_batches(phase: DataPhase) -> Generator[list[Batch], None, None]:
    """Yield this rank's micro-batches of each step of such a training, from the first on."""
    return training_batches(phase.run, phase.sampler, phase.run.plan.cut, start=0)
