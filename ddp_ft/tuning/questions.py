"""The questions of `--tune`, each asked with the answers before it: candidates, raced on steps of the run."""

import gc
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ddp_ft.contracts import TRAIN, Batch
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.micro_batches import cut, first_samples
from ddp_ft.errors import UserError
from ddp_ft.models.freezing import TrainingMode, freeze_parameters
from ddp_ft.models.precision import place, resolve_precision
from ddp_ft.training.build import groups_of
from ddp_ft.training.optim import make_optimizer, set_rates
from ddp_ft.training.phases import open_phase
from ddp_ft.training.progress import Progress
from ddp_ft.training.state import Job, Phase
from ddp_ft.tuning.decoders import FULL, PILLOW, SHRINK, Decoding, find_jpegs
from ddp_ft.tuning.memory_limit import fits_on_gpu, largest_that_fits
from ddp_ft.tuning.timing import Result, Turn, race, slowest, winner

FORMAT, PRECISION, MICRO_BATCH = "compute.memory_format", "compute.precision", "train.micro_batch"
DECODER, WORKERS = "data.decoder", "data.workers"
TUNED = (FORMAT, PRECISION, MICRO_BATCH, DECODER, WORKERS)
# Each of the four questions has so long, so that the whole takes about a minute: little beside a training of hours.
SECONDS = 15.0
# A turn is as many steps as take so long; with five rounds of four candidates that fills the time of a question.
TURN_SECONDS = 0.5
MOST_STEPS = 50
# A step on a batch in memory that takes longer is measured with fewer pictures, but no fewer than FEWEST: with these
# the optimizer and the reduction still are a small part of it.
SLOW_STEP, FEWEST = 1.0, 8
# Below these a micro-batch has nothing left to gain; and batch norm's statistics of so few pictures become so noisy
# that the result suffers (arXiv 1803.08494, figure 1), which no speed is worth.
SMALLEST, SMALLEST_WITH_BATCH_NORM = 4, 16
NUMBERS_OF_WORKERS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
PICTURES = 32  # to decode: a second or two of photos of 12 megapixels
ENDLESS = 10**6  # steps, of which as many are taken as there is time for
Values = Mapping[str, Any]
T = TypeVar("T")


def rule_of(job: Job) -> dict[str, Any]:
    """What the keys are without any measuring."""
    return {
        FORMAT: "channels_last" if job.plan.channels_last else "contiguous",
        PRECISION: job.plan.precision,
        MICRO_BATCH: job.config.train.micro_batch,
        DECODER: job.built.preprocess.decoder,
        WORKERS: job.plan.workers,
    }


@dataclass
class Questions:
    """The questions, and the answers so far: each is asked with the answers before it."""

    job: Job
    keys: Collection[str]
    cores: int
    values: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._batch: Batch | None = None
        self._pictures: int | None = None  # of the share, in memory; None: all

    def formats(self) -> None:
        """Memory format and precision: whole steps on a batch in memory."""
        formats = _all_of(self.values[FORMAT], ("contiguous", "channels_last") if FORMAT in self.keys else ())
        precisions = _all_of(self.values[PRECISION], self._precisions() if PRECISION in self.keys else ())
        choices = {f"{f}, {p}": {FORMAT: f, PRECISION: p} for p in precisions for f in formats}
        if len(choices) > 1:
            self._pictures = self._few_if_slow()
            self._ask("format", choices, self._turn_in_memory)
            self._pictures = None

    def _few_if_slow(self) -> int | None:
        """With how many pictures of the share a step takes SLOW_STEP at most; None: with all.

        What is faster for a few pictures is so for many, while there may be no time for steps of them all.
        """
        batch, phase = self._in_memory(), open_steps(self.job, self.values, ENDLESS)
        pace = slowest(self.job.world, self._steps(phase, itertools.repeat([batch]), 1))
        share = math.ceil(phase.sampler.batch_length(0) / self.job.world.size)
        few = _whole_pairs(max(FEWEST, int(share * SLOW_STEP / pace)), phase)
        return few if few < share else None

    def _precisions(self) -> list[str]:
        return [precision for precision in ("fp32", "bf16", "fp16") if _is_had(precision, self.job.world.device)]

    def micro_batches(self) -> None:
        """On a CPU the fastest of the whole share and its halves; on CUDA the largest that fits."""
        if MICRO_BATCH not in self.keys:
            return
        share = math.ceil(self.job.config.train.batch_size / self.job.world.size)
        if self.job.world.device.type == "cuda":
            self._fit(share)
            return
        sizes: list[int | None] = [None, *_halves(share, _smallest(self.job))]
        choices = {f"all {share}" if size is None else str(size): {MICRO_BATCH: size} for size in sizes}
        self._ask("micro-batch", choices, self._turn_in_memory)

    def _fit(self, share: int) -> None:
        with_all = self.values | {MICRO_BATCH: None}
        batch, phase = self._in_memory(), open_steps(self.job, with_all, ENDLESS)
        phase.learner.step([first_samples(batch, SMALLEST)])

        def fits(size: int) -> bool:
            self.job.agreement.check()
            part = first_samples(batch, _whole_pairs(size, phase))
            return slowest(self.job.world, float(not fits_on_gpu(phase.learner, part))) == 0

        size = _whole_pairs(largest_that_fits(fits, share), phase)
        self.values[MICRO_BATCH] = None if size >= share - 1 else size

    def decoders(self) -> None:
        """Pictures of one core, from the file to the model's size."""
        if DECODER not in self.keys:
            return
        job, preprocess = self.job, self.job.built.preprocess
        sampler = open_steps(job, self.values, ENDLESS).sampler
        addresses = itertools.chain.from_iterable(map(sampler.global_batch, range(sampler.steps_per_epoch)))
        source = job.splits.train
        jpegs = find_jpegs(source, itertools.islice(addresses, PICTURES))
        if not jpegs:
            return
        decoding = Decoding(source, jpegs, preprocess, job.config.augment, job.config.seed)

        def turn(name: str) -> Turn:
            began = time.perf_counter()
            decoding.train(name)
            return len(jpegs), time.perf_counter() - began

        names = [*_all_of(self.values[DECODER], (SHRINK, FULL)), PILLOW]
        results = race(names, turn, job.world, job.agreement, SECONDS)
        self.values[DECODER] = winner([result for result in results if result.name != PILLOW])
        notes = {name: f"off by {decoding.difference(name)} of 255" for name in names[:-1]}
        self._write("decoder", results, self.values[DECODER], notes | {PILLOW: "for comparison"})

    def workers(self) -> None:
        """Whole steps with the loader running: its workers take cores from the model, or fill those that are idle."""
        if WORKERS not in self.keys:
            return
        numbers = _all_of(self.values[WORKERS], [n for n in NUMBERS_OF_WORKERS if n <= self.cores])
        self._ask("workers", {str(number): {WORKERS: number} for number in numbers}, self._turn_with_loader)

    def _ask(self, what: str, choices: Mapping[str, Values], turn: Callable[[Values], Turn]) -> None:
        """Race the choices, of which the first is the rule, and keep the winner's values."""
        if len(choices) == 1:
            return
        job, names = self.job, list(choices)
        results = race(names, lambda name: turn({**self.values, **choices[name]}), job.world, job.agreement, SECONDS)
        best = winner(results)
        self.values |= choices[best]
        self._write(what, results, best, {})

    def _write(self, what: str, results: Sequence[Result], best: str, notes: Mapping[str, str]) -> None:
        for result in results:
            row = {"what": what, "candidate": result.name, "per_second": result.speed, "ratio": result.ratio}
            self.rows.append({**row, "chosen": result.name == best, "note": notes.get(result.name, "")})

    def _turn_in_memory(self, values: Values) -> Turn:
        batch, phase = self._in_memory(), open_steps(self.job, values, ENDLESS)
        size, pictures = values[MICRO_BATCH], phase.sampler.batch_length(0)
        if self._pictures is not None:
            batch, pictures = first_samples(batch, self._pictures), self._pictures * self.job.world.size
        batches = itertools.repeat(cut([batch], _whole_pairs(size, phase)) if size else [batch])
        return self._turn(phase, batches, pictures, warm_up=1)

    def _turn_with_loader(self, values: Values) -> Turn:
        phase = open_steps(self.job, values, ENDLESS)
        with closing(phase.batches(0)) as batches:
            # What the workers had ready when the first batch came must be used up before the clock runs.
            return self._turn(phase, batches, phase.sampler.batch_length(0), warm_up=values[WORKERS] + 1)

    def _in_memory(self) -> Batch:
        """The rank's whole share of the first step."""
        if self._batch is None:
            phase = open_steps(self.job, self.values | {MICRO_BATCH: None, WORKERS: 0}, 1)
            with closing(phase.batches(0)) as batches:
                [self._batch] = next(batches)
        return self._batch

    def _turn(self, phase: Phase, batches: Iterator[list[Batch]], pictures: int, warm_up: int) -> Turn:
        self._steps(phase, batches, warm_up)
        first = self._steps(phase, batches, 1)
        count = min(MOST_STEPS, round(TURN_SECONDS / slowest(self.job.world, first)))
        if count <= 1:  # it was a turn of its own
            return pictures, first
        return count * pictures, self._steps(phase, batches, count)

    def _steps(self, phase: Phase, batches: Iterator[list[Batch]], count: int) -> float:
        """The seconds that so many steps take, until the device has done them."""
        began, job = time.perf_counter(), self.job
        for _ in range(count):
            job.agreement.check()
            sums = phase.learner.step(next(batches))
        float(sums.loss)
        return time.perf_counter() - began


def open_steps(job: Job, values: Values, steps: int) -> Phase:
    """The training that the job would do with these values, as it is when all parts learn that ever do.

    The rate is 0: steps cost what they cost, and nothing moves. The phase that was opened before must be let go.
    """
    module, device, config = job.built.module, job.world.device, job.config
    module.zero_grad(set_to_none=True)
    gc.collect()  # the hooks of the DDP before stay on the parameters as long as it lives
    is_last = values[FORMAT] == "channels_last"
    place(module, device, is_last)
    freeze_parameters(module, job.stages[-1].frozen)
    preprocess = replace(job.built.preprocess, decoder=values[DECODER])
    scratch = replace(
        job,
        config=replace(config, train=replace(config.train, micro_batch=values[MICRO_BATCH])),
        plan=replace(
            job.plan,
            precision=values[PRECISION],
            channels_last=is_last,
            micro_batch=values[MICRO_BATCH],
            lowered=None,
            workers=values[WORKERS],
            total_steps=steps,
        ),
        built=replace(job.built, preprocess=preprocess),
        training_mode=TrainingMode(module, config.model.batch_norm),
        optimizer=make_optimizer(groups_of(job.built, config, job.plan.lr), config.optim),
        prepare=DeviceTransform(preprocess, device, is_last),
        progress=Progress(phase=TRAIN),
        ema=None,
    )
    phase = open_phase(scratch)
    set_rates(phase.learner.optimizer, 0.0)
    return phase


def _is_had(precision: str, device: torch.device) -> bool:
    try:
        return resolve_precision(precision, device) == precision
    except UserError:
        return False


def _all_of(rule: T, others: Iterable[T]) -> list[T]:
    """The fixed rule first, then the others."""
    return [rule, *(other for other in others if other != rule)]


def _halves(share: int, least: int) -> list[int]:
    """share / 2, share / 4 and so on, rounded up, as long as they are not below `least`."""
    half = math.ceil(share / 2)
    return [half, *_halves(half, least)] if least <= half < share else []


def _whole_pairs(size: int, phase: Phase) -> int:
    """The size that the loader takes in place of it: one less where it would part a pair of mixed pictures."""
    return max(2, size - size % 2) if phase.sampler.pairs else size


def _smallest(job: Job) -> int:
    layers = [module for module in job.built.module.modules() if isinstance(module, _BatchNorm)]
    return SMALLEST_WITH_BATCH_NORM if layers and job.config.model.batch_norm != "frozen" else SMALLEST
