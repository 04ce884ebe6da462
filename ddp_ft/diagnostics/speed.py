"""How fast the run's samples are read and its model learns, and what follows for waiting, memory and time."""

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from ddp_ft.contracts import TRAIN
from ddp_ft.data.batch import cut
from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING, Finding
from ddp_ft.diagnostics.machine import MIB
from ddp_ft.features.dataset import one_thread
from ddp_ft.slurm.walltime import Allocation, Pace, describe, forecast
from ddp_ft.texts import plural, sample_noun
from ddp_ft.trackers.console import clock
from ddp_ft.training.ema import Ema
from ddp_ft.training.run import Run
from ddp_ft.training.step import StepSums
from ddp_ft.tuning.steps import ENDLESS, MICRO_BATCH, WORKERS, first_batches, open_steps, rule_of

LOADING_SECONDS, STEP_SECONDS = 3.0, 6.0
# Images of a rank in the first, short steps; even, so that mixing has pairs.
FEW, MOST_STEPS = 8, 10
# A pass of evaluation takes about a third of a training step, and so does one that computes features.
FORWARD_SHARE = 1 / 3
# Seconds of a step of the head alone on features in memory, with its share of evaluations and of the start: 1.6 ms for
# the step and 6 for all were measured in 500 steps on an idle core, twice as much on a busy one.
HEAD_STEP = 0.005
# Up to this share of the time, the time for reading is no loss worth a note.
SMALL_SHARE = 0.15
# What makes reading faster, by the kind of samples.
_FASTER = {"image": "Shrink the images on the disk once, ask for more cores, or try --set data.decoder=nvjpeg."}
_SMALLER = {"image": "If images are larger than twice the model's size, shrink them on the disk once. "}


@dataclass(frozen=True)
class Speed:
    """What was measured: samples a second that one core loads, and that one rank learns from in steps of `samples` in
    memory. `ran_out`: memory was too small for a step. `noun`: what a sample is."""

    loading: float
    learning: float
    samples: int
    ran_out: bool = False
    noun: str = "image"


@dataclass(frozen=True)
class Room:
    """Bytes: `peak` was the most in use, `total` is what the device has, or what the node may use."""

    peak: int
    total: int


def measure(run: Run) -> Speed:
    """Read images for some seconds, then take some steps. Collective; the run must not be used afterwards."""
    loading = _measure_loading(run)
    share = math.ceil(min(run.config.train.batch_size, run.plan.train_samples) / run.world.size)
    few = min(share, FEW)
    seconds, ran_out = _measure_steps(run, few)
    # A GPU is measured with the whole share; on a CPU that may take too long.
    fits_in_time = run.world.device.type == "cuda" or seconds * share / few <= STEP_SECONDS
    if share > few and fits_in_time and not ran_out:
        few = share
        seconds, ran_out = _measure_steps(run, few)
    return Speed(loading, few / seconds, few, ran_out, sample_noun(run.model.processor.kind))


def _measure_loading(run: Run) -> float:
    """Images a second of one core: from the file through the run's own loader, without workers."""
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
    """The run with a global batch of that many images for each rank."""
    batch_size = min(images * run.world.size, run.config.train.batch_size)
    return replace(run, config=replace(run.config, train=replace(run.config.train, batch_size=batch_size)))


def _measure_steps(run: Run, images: int) -> tuple[float, bool]:
    """Seconds of a step with that many images of each rank, in memory; and whether a step ran out of memory."""
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
    micro_batches = cut([batch], size, run.model.least) if size else [batch]
    # As in training, the moving average takes memory and time.
    ema = Ema(run.model.module, run.plan.ema_decay, run.model.base) if run.plan.ema_decay else None

    def step() -> StepSums:
        sums = phase.learner.step(micro_batches)
        if ema is not None:
            ema.update(run.model.module, sums.is_bad)
        return sums

    first = step()
    if float(first.odd_ranks):  # nothing was computed
        phase.search_unused()
        first = step()
    if float(first.oom_ranks):
        return 1.0, True
    seconds, spent = math.inf, 0.0
    for number in range(MOST_STEPS):
        began = time.perf_counter()
        float(step().loss)
        taken = run.world.slowest(time.perf_counter() - began)
        # The fastest one, since other programs on the machine only ever make steps slower.
        seconds, spent = min(seconds, taken), spent + taken
        if number > 0 and spent > STEP_SECONDS / 2:
            break
    return seconds, False


def measure_room(run: Run, memory_bytes: int, processes: int) -> Room:
    """The memory that the steps took of the GPU, or of what `processes` of this node may use together (`memory_bytes`:
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
    """Whether a micro-batch fits; `share`: images of a rank in a step."""
    name = "gpu memory" if is_cuda else "memory"
    if speed.ran_out:
        text = f"{plural(speed.samples, speed.noun)} per process: out of memory"
        remedy = "Set --micro-batch: the same result in parts. Training would halve it by itself, after a failed step."
        return Finding(name, PROBLEM, text, remedy)
    samples = plural(speed.samples, speed.noun)
    text = f"{room.peak / MIB:,.0f} of {room.total / MIB:,.0f} MiB with {samples} per process and step"
    if speed.samples < share and not is_cuda:
        text += f" (the run has {share})"
    found = Finding(name, WARNING, text, "Lower --micro-batch: the same result in parts.", room.peak / MIB, "MiB")
    return found.unless(room.peak / room.total <= 0.9)


def rates(speed: Speed, world_size: int) -> Iterator[Finding]:
    """The two measured speeds."""
    text = f"{speed.loading:,.0f} {speed.noun}s/s of one core: read, decode, transform"
    yield Finding("loading", OK, text, value=speed.loading, unit=f"{speed.noun}s/s")
    if not speed.ran_out:
        text = f"{speed.learning:,.1f} {speed.noun}s/s of a process, {speed.learning * world_size:,.1f} of all"
        text += ", from memory"
        yield Finding("learning", OK, text, value=speed.learning, unit=f"{speed.noun}s/s")


def waiting(speed: Speed, workers: int, cores: int, is_cuda: bool) -> Finding:
    """Whether the run will wait for data; `cores` and `workers` (loader processes) are those of a rank."""
    if not is_cuda:
        return _sharing(speed)
    needed, supply = math.ceil(speed.learning / speed.loading), speed.loading * max(workers, 1)
    text = f"{plural(workers, 'worker')}: {supply:,.0f} {speed.noun}s/s; the model takes {speed.learning:,.0f}"
    if supply < speed.learning:
        text += f": this job is going to wait for data {1 - supply / speed.learning:.0%} of its time"
    remedy = f"--workers {needed} would do."
    if needed > max(1, cores - 1):
        remedy = f"It would take {plural(needed, 'worker')}, and each process has {plural(cores, 'core')}. "
        remedy += _FASTER.get(speed.noun, "Ask for more cores.")
    found = Finding("waiting for data", WARNING, text, remedy, supply / speed.learning, "times what is taken")
    return found.unless(supply >= speed.learning)


def _sharing(speed: Speed) -> Finding:
    """On a CPU, model and loader share the cores: the time for reading is lost for computing."""
    share = speed.learning / (speed.learning + speed.loading)
    text = f"reading takes {share:.0%} of a process's time"
    remedy = _SMALLER.get(speed.noun, "")
    verdict = NOTE if share <= 0.5 else WARNING
    found = Finding("waiting for data", verdict, text, f"{remedy}Workers help only if cores are idle.", share, "share")
    return found.unless(share <= SMALL_SHARE)


def training_rate(speed: Speed, workers: int, world_size: int, is_cuda: bool) -> float:
    """Samples a second of the whole job, with the time for reading."""
    if is_cuda:
        return world_size * min(speed.learning, speed.loading * max(workers, 1))
    return world_size / (1 / speed.learning + 1 / speed.loading)


def pace_of(run: Run, rate: float) -> Pace:
    """Seconds of steps and evaluations at that rate (samples/s); saves are taken to cost nothing."""
    is_head_alone = run.config.freeze.cache_features
    step = HEAD_STEP if is_head_alone else run.plan.train_samples / run.plan.steps_per_epoch / rate
    models = 0 if is_head_alone else len(run.evaluated(TRAIN))
    evaluation = models * FORWARD_SHARE * run.plan.val_samples / rate / run.plan.evaluation_epochs
    return Pace(step, evaluation, 0.0, run.plan.steps_per_epoch)


def duration(run: Run, pace: Pace, rate: float, noun: str = "image") -> Finding:
    """The time for the whole run: probe, epochs, evaluations."""
    seconds = run.plan.total_steps / run.plan.steps_per_epoch * pace.epoch + _probing(run, rate)
    text = f"about {clock(seconds)} for {plural(run.plan.total_steps, 'step')}"
    text += " of the head alone, and for the features" if run.config.freeze.cache_features else ""
    text += f" at {rate:,.1f} {noun}s/s" if not run.config.freeze.cache_features else ""
    if minutes := run.config.train.max_minutes:
        text += f"; --max-minutes {minutes:g} ends it sooner" if seconds > 60 * minutes else ""
    return Finding("whole run", OK, text, value=seconds, unit="s")


def _probing(run: Run, rate: float) -> float:
    """Seconds to compute the features; those of the probe's own steps are negligible."""
    if not (run.config.probe.epochs or run.config.freeze.cache_features):
        return 0.0
    return FORWARD_SHARE * (run.plan.train_samples * run.config.freeze.views + run.plan.val_samples) / rate


def allocation(run: Run, pace: Pace, rate: float, allocation: Allocation, now: float) -> Finding:
    """Whether the run is done before its batch job ends. `now` is in seconds since 1970."""
    end, lead = allocation.end, allocation.lead
    assert end is not None
    found = forecast(pace, run.plan.total_steps, now + _probing(run, rate), end, lead)
    verdict, remedy = NOTE, "It resumes after each requeue (docs/slurm.md); or ask for more time."
    if found.requeues is None:
        verdict, remedy = PROBLEM, "Ask for more time."
    finding = Finding("job's end", verdict, describe(found, end, lead), remedy, max(0.0, end - now), "s")
    return finding.unless(found.is_done)
