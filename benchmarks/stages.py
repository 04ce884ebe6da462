"""Where the time of ddp_ft goes, stage by stage: `python -m benchmarks.stages WORKLOAD.json OUTCOME.json`.

The parts are those that `ddp_ft.train` composes, called one after the other with the device waited for in between, so
their sum is what a step would take if nothing overlapped. Each figure is the median of its repetitions, on rank 0;
under torchrun all ranks do the same at the same time.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contenders import our_settings, write_on_main
from benchmarks.workload import Workload
from ddp_ft.contracts import Batch
from ddp_ft.data.image.transforms import train_transform
from ddp_ft.data.loader import Reader, TrainLoader
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import read_launch
from ddp_ft.distributed.world import Machine, World, connect
from ddp_ft.models.precision import autocast
from ddp_ft.run_folder.background_writer import copied
from ddp_ft.trackers.console import make_console
from ddp_ft.trackers.fan_out import FanOut, make_trackers
from ddp_ft.trackers.jsonl import Resumed
from ddp_ft.training.build import compose
from ddp_ft.training.data_phase import DataPhase
from ddp_ft.training.request import Request
from ddp_ft.training.state import TrainState

# Repetitions of a stage: as many as fit into some seconds, and at least so many.
REPEATS, MIN_REPEATS, SECONDS = 25, 3, 3.0
SAMPLES = 64  # images to decode and transform
FLAGS = [0.0, 0.0, 0.0, 0.0]  # of ddp_ft.distributed.agreement.Agreement.flags: nothing is asked for

Stage = dict[str, float | str]
Stages = dict[str, Stage]


def measure(workload: Workload, repeats: int = REPEATS) -> Stages:
    """All stages, in the order of an image's way. On every process; the figures are its own."""
    launch = read_launch()
    device = pick_device(workload.device, launch)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        world = stack.enter_context(connect(launch, device, 10))
        # The folder is each process's own here: nothing is written into it but rank 0's log.
        phase, state = open_workload(workload, folder, Machine(world, launch))
        watch = _Watch(workload, world, repeats)
        return {**_loading(phase, workload, watch), **_step(phase, watch), **_around(phase, state, watch)}


def open_workload(workload: Workload, folder: Path, machine: Machine) -> tuple[DataPhase, TrainState]:
    """As `ddp_ft.train` does for this workload."""
    from ddp_ft.config.loading import make_config

    settings = our_settings(workload)
    settings["data.path"] = Path(workload.data)
    run, state, _ = compose(make_config(settings), Request(folder, (settings,)), machine)
    return DataPhase(run, state), state


class _Watch:
    """Takes medians of milliseconds."""

    def __init__(self, workload: Workload, world: World, repeats: int) -> None:
        self.workload, self.world, self.repeats = workload, world, repeats

    def take(self, work: Callable[[], Any], prepare: Callable[[], Any] | None = None) -> float:
        """Of `work`; `prepare` is run before each, and not counted. The same number of times on all ranks."""
        self._time(work, prepare)  # builds kernels
        seconds = torch.tensor([self._time(work, prepare)], device=self.world.device)
        mean = float(self.world.sum(seconds)) / self.world.size
        count = max(MIN_REPEATS, min(self.repeats, int(SECONDS / max(mean, 1e-9))))
        return 1000 * median(self._time(work, prepare) for _ in range(count))

    def _time(self, work: Callable[[], Any], prepare: Callable[[], Any] | None) -> float:
        if prepare is not None:
            prepare()
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.workload.device == "cuda":
            torch.cuda.synchronize()

    def per_image(self, total: float, images: int, about: str) -> Stage:
        """A stage of the loader, from the milliseconds of some images."""
        each = total / images
        return {"ms": each, "unit": "image", "per_step": each * self.workload.batch, "about": about}

    @staticmethod
    def per_step(ms: float, about: str) -> Stage:
        """A stage of the step."""
        return {"ms": ms, "unit": "step", "per_step": ms, "about": about}


def _loading(phase: DataPhase, workload: Workload, watch: _Watch) -> Stages:
    run = phase.run
    source, transform = run.splits.train, train_transform(run.model.processor.preprocess, run.config.augment)
    count = min(SAMPLES, len(source))
    images = [source.read(index)["image"] for index in range(count)]
    decode = watch.take(lambda: [source.read(index) for index in range(count)])
    turn = watch.take(lambda: [transform(image) for image in images])
    alone = _loader(phase, 0)
    fetch = watch.take(lambda: next(alone))
    rest = max(0.0, fetch / workload.batch - (decode + turn) / count)
    stages = {
        "decode": watch.per_image(decode, count, "reading and decoding a file, one thread"),
        "transform": watch.per_image(turn, count, "crop, resize, flip, one thread"),
        "collate": watch.per_image(rest, 1, "what the loader takes besides, one thread"),
    }
    alone.close()
    if workload.workers:
        spaced = _loader(phase, workload.workers)
        together = _pace(spaced, workload)
        stages["loader"] = watch.per_image(
            together, workload.batch, f"all of it in {workload.workers} worker(s), nothing else running"
        )
    return stages


def _loader(phase: DataPhase, workers: int) -> Any:
    run = phase.run
    reader = Reader(run.splits.train, run.model.processor.train_transform(run.config), workers)
    return iter(TrainLoader(reader, phase.sampler, None, range(10_000)))  # as long as anybody asks


def _pace(batches: Any, workload: Workload) -> float:
    """Milliseconds a batch once the workers' queues are empty, as they are filled while nobody looks."""
    ahead = 2 * workload.workers + 2
    steps = max(10, 2 * ahead)
    for _ in range(ahead):
        next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    spent = 1000 * (time.perf_counter() - began) / steps
    batches.close()
    return spent


def _step(phase: DataPhase, watch: _Watch) -> Stages:
    learner, device = phase.learner, phase.run.world.device
    batches = _loader(phase, 0)
    [loaded] = next(batches)
    batches.close()
    if device.type == "cuda":
        loaded = {name: tensor.pin_memory() for name, tensor in loaded.items()}
    ready = learner.prepare(loaded)
    passes = _Passes(phase, ready)
    prepare = watch.take(lambda: learner.prepare(loaded))
    forward = watch.take(passes.forward)
    both = watch.take(passes.forward_and_backward, prepare=passes.clear)
    stages = {
        "transfer and normalise": watch.per_step(prepare, "a batch of uint8 to the device, float32"),
        "forward": watch.per_step(forward, "with the loss"),
        "backward": watch.per_step(both - forward, "this process's own"),
    }
    reduced = both
    if isinstance(learner.replica, DistributedDataParallel):
        reduced = watch.take(passes.reduced, prepare=passes.clear)
        stages["all-reduce"] = watch.per_step(reduced - both, "what reducing adds to forward and backward")
    optimizer = watch.take(learner.optimizer.step)
    whole = watch.take(lambda: learner.step([loaded], FLAGS))
    rest = whole - prepare - reduced - optimizer
    stages["optimizer"] = watch.per_step(optimizer, type(learner.optimizer).__name__)
    stages["rest of the step"] = watch.per_step(rest, "clipping, sums over ranks, batch norm's copies")
    stages["whole step"] = watch.per_step(whole, "Learner.step, without the loader")
    return stages


class _Passes:
    """A forward and backward pass as the Learner does them, with and without the reduction."""

    def __init__(self, phase: DataPhase, batch: Batch) -> None:
        self.learner, self.batch = phase.learner, batch
        self.learner.set_training()

    def clear(self) -> None:
        self.learner.optimizer.zero_grad(set_to_none=True)

    def forward(self) -> torch.Tensor:
        with autocast(self.learner.world.device, self.learner.precision):
            outputs = self.learner.replica(self.batch)
        loss, _ = self.learner.task.loss(outputs, self.batch)
        return loss

    def reduced(self) -> None:
        torch.autograd.backward(self.forward())

    def forward_and_backward(self) -> None:
        replica = self.learner.replica
        if isinstance(replica, DistributedDataParallel):
            with replica.no_sync():
                self.reduced()
        else:
            self.reduced()


def _around(phase: DataPhase, state: TrainState, watch: _Watch) -> Stages:
    run, every = phase.run, phase.cadence(state.progress).row_every
    batch = first_micro_batches(phase)
    sums = phase.learner.step(batch, FLAGS)
    agree = watch.take(lambda: phase.decide(state, sums, FLAGS, True))
    run.folder.path.mkdir(parents=True, exist_ok=True)
    trackers = make_trackers(run.folder.path, make_console(False), Resumed()) if run.world.is_main else FanOut()
    row = {"loss": 1.0, "grad_norm": 1.0, "lr/body": 1e-3, "images_per_second": 1.0, "data_wait_share": 0.1}
    logging = watch.take(lambda: trackers.log("train", 1, 0.1, row))
    trackers.close()
    module, optimizer = run.model.module, phase.learner.optimizer
    copy = watch.take(lambda: (copied(module.state_dict()), copied(optimizer.state_dict())))
    return {
        "agreement": watch.per_step(agree, "reading what ranks want, and the loss"),
        "logging": {"ms": logging, "unit": "row", "per_step": logging / every, "about": f"a row every {every} steps"},
        "checkpoint copy": {"ms": copy, "unit": "save", "about": "weights and optimizer to the CPU; writing is behind"},
    }


def first_micro_batches(phase: DataPhase) -> list[Batch]:
    """This rank's share of the first step."""
    with closing(_loader(phase, 0)) as batches:
        found: list[Batch] = next(batches)
        return found


if __name__ == "__main__":
    _given, _found = sys.argv[1:]
    write_on_main(measure(Workload.read(Path(_given))), _found)
