"""The questions of `--tune`: candidates for each open setting, raced on steps of the run."""

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch.nn.modules.batchnorm import _BatchNorm

from ddp_ft.contracts import Batch
from ddp_ft.data.batch import cut, first_samples
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.errors import UserError
from ddp_ft.models.batch_norm import is_synchronised
from ddp_ft.models.precision import resolve_precision
from ddp_ft.training.data_phase import DataPhase
from ddp_ft.training.run import Run
from ddp_ft.tuning.decoders import FULL, PILLOW, SHRINK, Decoding, find_jpegs
from ddp_ft.tuning.memory_limit import fits_on_gpu, largest_that_fits
from ddp_ft.tuning.steps import (
    DECODER,
    ENDLESS,
    FORMAT,
    MICRO_BATCH,
    PRECISION,
    WORKERS,
    Values,
    first_batches,
    open_steps,
)
from ddp_ft.tuning.timing import Result, Turn, race, winner

TUNED = (FORMAT, PRECISION, MICRO_BATCH, DECODER, WORKERS)
# Seconds for each of the four questions, so that all take about a minute: little compared with a training of hours.
SECONDS = 15.0
# A turn is as many steps as take so long; five rounds of four candidates then fill the time of a question.
TURN_SECONDS = 0.5
MOST_STEPS = 50
# The seconds of a step that does not fit into the memory.
NEVER = 1e9
# A step on a batch in memory that takes longer is measured with fewer images, but at least FEWEST: the optimizer and
# the reduction are still a small part of it then.
SLOW_STEP, FEWEST = 1.0, 8
# Smaller micro-batches gain nothing; and batch norm's statistics of so few images become so noisy that the result
# suffers (arXiv 1803.08494, figure 1), which no speed is worth.
SMALLEST, SMALLEST_WITH_BATCH_NORM = 4, 16
NUMBERS_OF_WORKERS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
IMAGES = 32  # to decode: a second or two of photos of 12 megapixels
T = TypeVar("T")


@dataclass
class Questions:
    """The questions, and the answers so far: each is asked with the answers before it."""

    run: Run
    keys: Collection[str]
    cores: int
    values: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    _batch: Batch | None = field(default=None, init=False)

    def formats(self) -> None:
        """Decide memory format and precision, by whole steps on a batch in memory."""
        formats = _all_of(self.values[FORMAT], ("contiguous", "channels_last") if FORMAT in self.keys else ())
        precisions = _all_of(self.values[PRECISION], self._precisions() if PRECISION in self.keys else ())
        choices = {f"{f}, {p}": {FORMAT: f, PRECISION: p} for p in precisions for f in formats}
        if len(choices) > 1:
            self._ask("format", choices, partial(self._turn_in_memory, few=self._few_if_slow()))

    def _few_if_slow(self) -> int | None:
        """Return the samples per rank for which a step stays under SLOW_STEP seconds; None if the full share does. What
        is faster for a few images is faster for many, and there may be no time for steps of them all."""
        batch, phase = self._in_memory(), open_steps(self.run, self.values, ENDLESS)
        pace = self.run.world.slowest(self._steps(phase, itertools.repeat([batch]), 1))
        share = math.ceil(phase.sampler.batch_length(0) / self.run.world.size)
        few = _whole_pairs(max(FEWEST, int(share * SLOW_STEP / pace)), phase)
        return few if few < share else None

    def _precisions(self) -> list[str]:
        found = []
        for precision in ("fp32", "bf16", "fp16"):
            with suppress(UserError):  # the device does not compute in it
                found.append(resolve_precision(precision, self.run.world.device))
        return found

    def micro_batches(self) -> None:
        """Decide the micro-batch: on a CPU the fastest of the share and its halves, on CUDA the largest that fits. The
        whole share with SyncBatchNorm, in whose passes a rank without memory would keep the others waiting."""
        if MICRO_BATCH not in self.keys or is_synchronised(self.run.model.module):
            return
        share = math.ceil(self.run.config.train.batch_size / self.run.world.size)
        if self.run.world.device.type == "cuda":
            self._fit(share)
            return
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.run.model.module.modules())
        trains_it = has_batch_norm and self.run.config.model.batch_norm != "frozen"
        sizes: list[int | None] = [None, *_halves(share, SMALLEST_WITH_BATCH_NORM if trains_it else SMALLEST)]
        choices = {f"all {share}" if size is None else str(size): {MICRO_BATCH: size} for size in sizes}
        self._ask("micro-batch", choices, self._turn_in_memory)

    def _fit(self, share: int) -> None:
        with_all = self.values | {MICRO_BATCH: None}
        batch, phase = self._in_memory(), open_steps(self.run, with_all, ENDLESS)
        phase.learner.step([first_samples(batch, SMALLEST)])

        def fits(size: int) -> bool:
            self.run.agreement.check()
            part = first_samples(batch, _whole_pairs(size, phase))
            return self.run.world.slowest(float(not fits_on_gpu(phase.learner, part))) == 0

        size = _whole_pairs(largest_that_fits(fits, share), phase)
        self.values[MICRO_BATCH] = None if size >= share - 1 else size

    def decoders(self) -> None:
        """Decide how JPEGs are decoded, by the speed of one core from the file to the model's size."""
        run, processor = self.run, self.run.model.processor
        if DECODER not in self.keys or not isinstance(processor, ImageProcessor):
            return
        sampler = open_steps(run, self.values, ENDLESS).sampler
        addresses = itertools.chain.from_iterable(map(sampler.global_batch, range(sampler.steps_per_epoch)))
        source = run.splits.train
        jpegs = find_jpegs(source, itertools.islice(addresses, IMAGES))
        if not jpegs:
            return
        decoding = Decoding(source, jpegs, processor.preprocess, run.config.augment, run.config.seed)

        def turn(name: str) -> Turn:
            began = time.perf_counter()
            decoding.train(name)
            return len(jpegs), time.perf_counter() - began

        names = [*_all_of(self.values[DECODER], (SHRINK, FULL)), PILLOW]
        results = race(names, turn, run.world, run.agreement, SECONDS)
        self.values[DECODER] = winner([result for result in results if result.name != PILLOW])
        notes = {name: f"off by {decoding.difference(name)} of 255" for name in names[:-1]}
        self._write("decoder", results, self.values[DECODER], notes | {PILLOW: "for comparison"})

    def workers(self) -> None:
        """Decide the number of workers, by steps with the loader: they take cores from the model, or use idle ones."""
        if WORKERS not in self.keys:
            return
        numbers = _all_of(self.values[WORKERS], [n for n in NUMBERS_OF_WORKERS if n <= self.cores])
        self._ask("workers", {str(number): {WORKERS: number} for number in numbers}, self._turn_with_loader)

    def _ask(self, what: str, choices: Mapping[str, Values], turn: Callable[[Values], Turn]) -> None:
        """Race the choices, the first of which is the fixed rule, and keep the winner's values."""
        if len(choices) == 1:
            return
        run, names = self.run, list(choices)
        results = race(names, lambda name: turn({**self.values, **choices[name]}), run.world, run.agreement, SECONDS)
        best = winner(results)
        self.values |= choices[best]
        self._write(what, results, best, {})

    def _write(self, what: str, results: Sequence[Result], best: str, notes: Mapping[str, str]) -> None:
        for result in results:
            row = {"what": what, "candidate": result.name, "per_second": result.speed, "ratio": result.ratio}
            self.rows.append({**row, "chosen": result.name == best, "note": notes.get(result.name, "")})

    def _turn_in_memory(self, values: Values, few: int | None = None) -> Turn:
        """Time steps on a batch in memory: the rank's first `few` samples, or its share."""
        batch, phase = self._in_memory(), open_steps(self.run, values, ENDLESS)
        size, images = values[MICRO_BATCH], phase.sampler.batch_length(0)
        if few is not None:
            batch, images = first_samples(batch, few), few * self.run.world.size
        least = self.run.model.least
        batches = itertools.repeat(cut([batch], _whole_pairs(size, phase), least) if size else [batch])
        return self._turn(phase, batches, images, warm_up=1)

    def _turn_with_loader(self, values: Values) -> Turn:
        phase = open_steps(self.run, values, ENDLESS)
        with closing(first_batches(phase)) as batches:
            # Batches that the workers had ready with the first one must be used up before the clock starts.
            return self._turn(phase, batches, phase.sampler.batch_length(0), warm_up=values[WORKERS] + 1)

    def _in_memory(self) -> Batch:
        """Return the rank's whole share of the first step."""
        if self._batch is None:
            phase = open_steps(self.run, self.values | {MICRO_BATCH: None, WORKERS: 0}, 1)
            with closing(first_batches(phase)) as batches:
                [self._batch] = next(batches)
        return self._batch

    def _turn(self, phase: DataPhase, batches: Iterator[list[Batch]], images: int, warm_up: int) -> Turn:
        self._steps(phase, batches, warm_up)
        first = self._steps(phase, batches, 1)
        count = min(MOST_STEPS, round(TURN_SECONDS / self.run.world.slowest(first)))
        if count <= 1:  # it was a turn of its own
            return images, first
        return count * images, self._steps(phase, batches, count)

    def _steps(self, phase: DataPhase, batches: Iterator[list[Batch]], count: int) -> float:
        """Return the seconds of so many steps, until the device has done them; NEVER if memory was short on a rank,
        after which steps compute nothing, and so fast."""
        began, run = time.perf_counter(), self.run
        for _ in range(count):
            run.agreement.check()
            sums = phase.learner.step(next(batches))
        if float(sums.odd_ranks):  # nothing was computed
            phase.search_unused()
            return self._steps(phase, batches, count)
        is_out_of_memory = float(sums.oom_ranks) > 0  # waits for the device
        return NEVER if is_out_of_memory else time.perf_counter() - began


def _all_of(rule: T, others: Iterable[T]) -> list[T]:
    """Return the fixed rule, then the others."""
    return [rule, *(other for other in others if other != rule)]


def _halves(share: int, least: int) -> list[int]:
    """Return share / 2, share / 4 and so on, rounded up, not below `least`."""
    half = math.ceil(share / 2)
    return [half, *_halves(half, least)] if least <= half < share else []


def _whole_pairs(size: int, phase: DataPhase) -> int:
    """Return the size that the loader uses for it: one less if it would part a pair of mixed images, and no less than
    the model takes."""
    return max(2, size - size % 2) if phase.sampler.pairs else max(phase.run.model.least, size)
