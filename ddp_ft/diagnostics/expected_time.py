"""About how long a run is going to take, before its first step: from a forward pass and a few images."""

import time
from dataclasses import replace

import torch

from ddp_ft.contracts import BadSample
from ddp_ft.data.open_sample import open_sample
from ddp_ft.diagnostics.finding import WARNING, Finding
from ddp_ft.diagnostics.speed import FORWARD_SHARE, HEAD_STEP, Speed, duration, pace_of, training_rate
from ddp_ft.models.introspection import Trial
from ddp_ft.models.precision import autocast
from ddp_ft.trackers.console import clock
from ddp_ft.training.run import Run

# Images that are read, and those of a forward pass on a CPU: enough to tell minutes from hours.
READ, SEEN = 4, 4
# Who waits longer on a CPU than this many seconds is told of shorter runs, such as one of so many minutes.
LONG, SHORT_MINUTES = 3600.0, 20


def expected_time(run: Run) -> Finding:
    """Return how long the whole run takes at the speed of this process; a warning for hours on a CPU.

    Nothing about the run changes: the pass is one of evaluation. Not collective.
    """
    speed, plan = Speed(1 / _reading(run), FORWARD_SHARE / _forward(run), SEEN), run.plan
    is_cuda = plan.device == "cuda"
    rate = training_rate(speed, plan.workers, plan.world_size, is_cuda)
    found = duration(run, pace_of(run, rate), rate)
    if is_cuda or (found.value or 0.0) <= LONG:
        return found
    return replace(found, verdict=WARNING, text=f"{found.text}, on the CPU", remedy=_shorter(run, rate))


def _shorter(run: Run, rate: float) -> str:
    """How to wait less."""
    remedy = f"Shorter: --max-minutes {SHORT_MINUTES}, with a schedule that ends there"
    if run.model.head_path and not run.config.freeze.cache_features and run.config.model.weights != "none":
        images = run.plan.train_samples + run.plan.val_samples
        seconds = FORWARD_SHARE * images / rate + run.plan.total_steps * HEAD_STEP
        remedy += f"; or --recipe linear_probe, about {clock(seconds)}"
    return f"{remedy}. A smaller --image-size takes less for each image."


def _reading(run: Run) -> float:
    """Seconds to read an image and prepare it, in this process."""
    source, transform, spent = run.splits.train, run.model.processor.eval_transform(), []
    for index in range(0, len(source), max(1, len(source) // READ)):
        began = time.perf_counter()
        try:
            transform(open_sample(source, index))
        except BadSample:
            continue
        spent.append(time.perf_counter() - began)
    return min(spent[1:] or spent or [1e-3])  # the first one imports


def _forward(run: Run) -> float:
    """Seconds of a pass of evaluation for an image, in this process."""
    module, device, trial = run.model.module, run.world.device, Trial(run.model.processor, run.model.call)
    share = max(1, run.config.train.batch_size // run.world.size)
    images, was_training, spent = share if device.type == "cuda" else min(share, SEEN), module.training, []
    module.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), autocast(device, run.plan.precision):
        for _ in range(3):  # the first one builds kernels
            began = time.perf_counter()
            trial(module, images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            spent.append(time.perf_counter() - began)
    module.train(was_training)
    return min(spent[1:]) / images
