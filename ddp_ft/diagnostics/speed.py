"""How fast the run's own images are read and its own model learns, and what follows: waiting, memory, time."""

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from ddp_ft.data.batch import cut
from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING, Finding
from ddp_ft.diagnostics.machine import MIB
from ddp_ft.features.dataset import one_thread
from ddp_ft.slurm.walltime import Allocation, Pace, describe, forecast
from ddp_ft.trackers.console import clock
from ddp_ft.training.ema import Ema
from ddp_ft.training.run import Run
from ddp_ft.training.step import StepSums
from ddp_ft.tuning.steps import ENDLESS, MICRO_BATCH, WORKERS, first_batches, open_steps, rule_of

LOADING_SECONDS, STEP_SECONDS = 3.0, 6.0
# Images of a rank in the steps that tell how long others would take; even, for the sake of mixing.
FEW, MOST_STEPS = 8, 10
# A pass of evaluation takes about a third of a training step, and so does one that computes features.
FORWARD_SHARE = 1 / 3
# Up to this share of the time, reading the images is a price that nobody notices.
SMALL_SHARE = 0.15


@dataclass(frozen=True)
class Speed:
    """What was measured. `loading` are images a second of one core, `learning` those of one rank in training steps on
    a batch in memory, `images` of it in each. `ran_out`: there was not the memory for a step."""

    loading: float
    learning: float
    images: int
    ran_out: bool = False


@dataclass(frozen=True)
class Room:
    """Bytes: `peak` is the most that a rank took, `total` what its device has, or what the node may use."""

    peak: int
    total: int


def measure(run: Run) -> Speed:
    """Read images for some seconds, then take some steps. Collective; the run is spoilt and must be thrown away."""
    loading = _measure_loading(run)
    share = math.ceil(min(run.config.train.batch_size, run.plan.train_samples) / run.world.size)
    few = min(share, FEW)
    seconds, ran_out = _measure_steps(run, few)
    # A GPU's memory and speed are those of the whole share; on a CPU there may not be the time for it.
    fits_in_time = run.world.device.type == "cuda" or seconds * share / few <= STEP_SECONDS
    if share > few and fits_in_time and not ran_out:
        few = share
        seconds, ran_out = _measure_steps(run, few)
    return Speed(loading, few / seconds, few, ran_out)


def _measure_loading(run: Run) -> float:
    """Images a second of one core: from the file through the run's own loader, without the workers."""
    phase = open_steps(_with_share(run, FEW), rule_of(run) | {WORKERS: 0, MICRO_BATCH: None}, ENDLESS)
    count, deadline = 0, time.perf_counter() + LOADING_SECONDS
    with one_thread(), closing(first_batches(phase)) as batches:
        next(batches)  # imports, and the first look at the disk
        began = time.perf_counter()
        while count == 0 or time.perf_counter() < deadline:
            count += sum(len(batch["weight"]) for batch in next(batches))
        took = time.perf_counter() - began
    return 1 / run.world.slowest(took / count)


def _with_share(run: Run, images: int) -> Run:
    """The run with a global batch of so many images for each rank."""
    batch_size = min(images * run.world.size, run.config.train.batch_size)
    return replace(run, config=replace(run.config, train=replace(run.config.train, batch_size=batch_size)))


def _measure_steps(run: Run, images: int) -> tuple[float, bool]:
    """Seconds of a step with so many images of each rank, in memory; and whether one ran out of memory."""
    scratch = _with_share(run, images)
    values = rule_of(scratch) | {WORKERS: 0}
    phase = open_steps(scratch, values | {MICRO_BATCH: None}, 1)
    with closing(first_batches(phase)) as batches:
        [batch] = next(batches)
    phase = open_steps(scratch, values, ENDLESS)
    if run.world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.world.device)
    size = run.plan.cut
    if size and phase.sampler.pairs:
        size -= size % 2  # as the loader does, which parts no pair of mixed images
    micro_batches = cut([batch], size) if size else [batch]
    # As in training the moving average takes its memory, and its part of each step.
    ema = Ema(run.model.module, run.config.ema.decay) if run.config.ema.decay else None

    def step() -> StepSums:
        sums = phase.learner.step(micro_batches)
        if ema is not None:
            ema.update(run.model.module, sums.is_bad)
        return sums

    if float(step().oom_ranks):
        return 1.0, True
    seconds, spent = math.inf, 0.0
    for number in range(MOST_STEPS):
        began = time.perf_counter()
        float(step().loss)
        taken = run.world.slowest(time.perf_counter() - began)
        # The best of them, as what others do on the machine only ever costs time.
        seconds, spent = min(seconds, taken), spent + taken
        if number > 0 and spent > STEP_SECONDS / 2:
            break
    return seconds, False


def measure_room(run: Run, memory_bytes: int, processes: int) -> Room:
    """What the steps before took: of the GPU, or of what `processes` of this node may use together (memory_bytes is
    what they may still take)."""
    device = run.world.device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        return Room(torch.cuda.max_memory_reserved(device) + others, total)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with open("/proc/self/statm") as file:  # noqa: PTH123
        now = int(file.read().split()[1]) * resource.getpagesize()
    return Room(processes * peak, memory_bytes + processes * now)


def memory(room: Room, speed: Speed, share: int, is_cuda: bool) -> Finding:
    """Whether a micro-batch fits; `share` are the images that a rank has in a step."""
    name, unit = ("gpu memory" if is_cuda else "memory"), "MiB"
    if speed.ran_out:
        text = f"{speed.images} images of a process do not fit"
        remedy = "Set --micro-batch: the same result in parts. Training would halve it by itself, after a failed step."
        return Finding(name, PROBLEM, text, remedy)
    part = room.peak / room.total
    text = f"{room.peak / MIB:,.0f} of {room.total / MIB:,.0f} MiB with {speed.images} images a process and step"
    if speed.images < share and not is_cuda:
        text += f" (the run has {share})"
    if part <= 0.9:
        return Finding(name, OK, text, value=room.peak / MIB, unit=unit)
    remedy = "Lower --micro-batch: the same result in parts."
    return Finding(name, WARNING, text, remedy, room.peak / MIB, unit)


def rates(speed: Speed, world_size: int) -> Iterator[Finding]:
    """The two speeds as they are."""
    text = f"{speed.loading:,.0f} images/s of one core: read, decode, transform"
    yield Finding("loading", OK, text, value=speed.loading, unit="images/s")
    if not speed.ran_out:
        text = f"{speed.learning:,.1f} images/s of a process, {speed.learning * world_size:,.1f} of all, from memory"
        yield Finding("learning", OK, text, value=speed.learning, unit="images/s")


def waiting(speed: Speed, workers: int, cores: int, is_cuda: bool) -> Finding:
    """Whether the run will wait for data; `cores` are a rank's, `workers` its loader processes."""
    wanted = math.ceil(speed.learning / speed.loading)
    if not is_cuda:
        return _sharing(speed)
    supply = speed.loading * max(workers, 1)
    text = f"{workers} workers read {supply:,.0f} images/s, the model takes {speed.learning:,.0f}"
    if supply >= speed.learning:
        return Finding("waiting for data", OK, text, value=supply / speed.learning, unit="times what is taken")
    text += f": this job is going to wait for data {1 - supply / speed.learning:.0%} of its time"
    if wanted <= max(1, cores - 1):
        remedy = f"--workers {wanted} would do."
    else:
        remedy = f"It would take {wanted} workers, and each process has {cores} cores. Shrink the images on the disk "
        remedy += "once, ask for more cores, or try --set data.decoder=nvjpeg."
    return Finding("waiting for data", WARNING, text, remedy, supply / speed.learning, "times what is taken")


def _sharing(speed: Speed) -> Finding:
    """On a CPU the model and the loader share the cores: what is read cannot be computed at the same time."""
    share = speed.learning / (speed.learning + speed.loading)
    text = f"reading takes {share:.0%} of a process's time"
    if share <= SMALL_SHARE:
        return Finding("waiting for data", OK, text, value=share, unit="share")
    remedy = "If images are larger than twice the model's size, shrink them on the disk once. Workers help only where "
    remedy += "cores are idle."
    return Finding("waiting for data", NOTE if share <= 0.5 else WARNING, text, remedy, share, "share")


def training_rate(speed: Speed, workers: int, world_size: int, is_cuda: bool) -> float:
    """Images a second of the whole job, with the reading."""
    if is_cuda:
        return world_size * min(speed.learning, speed.loading * max(workers, 1))
    return world_size / (1 / speed.learning + 1 / speed.loading)


def pace_of(run: Run, rate: float, save_seconds: float) -> Pace:
    """How fast the run goes at that rate (images/s)."""
    step = run.plan.train_samples / run.plan.steps_per_epoch / rate
    evaluation = FORWARD_SHARE * run.plan.val_samples / rate / run.config.eval.every_epochs
    return Pace(step, evaluation, save_seconds, run.plan.steps_per_epoch)


def duration(run: Run, pace: Pace, rate: float) -> Finding:
    """The whole run: probe, epochs, evaluations, saves."""
    seconds = run.plan.total_steps / run.plan.steps_per_epoch * pace.epoch + _probing(run, rate)
    text = f"about {clock(seconds)} for {run.plan.total_steps} steps at {rate:,.1f} images/s"
    return Finding("whole run", OK, text, value=seconds, unit="s")


def _probing(run: Run, rate: float) -> float:
    """Seconds until the features are there; the head's own steps are quick beside that."""
    if not run.config.probe.epochs:
        return 0.0
    return FORWARD_SHARE * (run.plan.train_samples * run.config.freeze.views + run.plan.val_samples) / rate


def allocation(run: Run, pace: Pace, rate: float, allocation: Allocation, now: float) -> Finding:
    """Whether the run is done before its batch job ends. `now` is in seconds since 1970."""
    end, lead = allocation.end, allocation.lead
    assert end is not None
    found = forecast(pace, run.plan.total_steps, now + _probing(run, rate), end, lead)
    text = describe(found, end, lead)
    left = max(0.0, end - now)
    if found.requeues is None:
        return Finding("job's end", PROBLEM, text, "Ask for more time.", left, "s")
    remedy = "It goes on after each requeue (docs/slurm.md); or ask for more time." if not found.is_done else ""
    return Finding("job's end", OK if found.is_done else NOTE, text, remedy, left, "s")
