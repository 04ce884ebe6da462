"""Checks of a run: its data, its folder, its speed. torch is imported only where it is needed."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ddp_ft.diagnostics import machine
from ddp_ft.diagnostics.disk import examine_disk
from ddp_ft.diagnostics.examination import Examination
from ddp_ft.diagnostics.finding import NOTE, OK, Finding
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.slurm.walltime import read_allocation, read_end_time
from ddp_ft.texts import sample_noun

if TYPE_CHECKING:
    from ddp_ft.data.splits.record import Splits
    from ddp_ft.distributed.world import World
    from ddp_ft.training.run import Run

# What looks at all samples of a kind: (sources by split, DataConfig, the model's processor or None, progress) to
# findings. A further kind is a line here; without one its samples are not looked at.
SURVEYS = {
    "image": "ddp_ft.diagnostics.images:examine_images",
    "text": "ddp_ft.diagnostics.texts:examine_texts",
}


def examine_run(known: Examination, world: "World") -> None:
    """Checks that need --data, and --model."""
    splits, composed = (_open(known, world) if known.config.data.path is not None else None), None
    if splits is not None and known.config.model.name is not None:
        composed = known.attempt("run", "composing the run", lambda: _compose(known, world, splits))
    if splits is not None and not known.asked.quick:
        # The others wait outside of collectives, however long it takes.
        world.from_main(lambda: known.check("data", f"{_noun(splits)}s", lambda: _survey(known, splits, composed)))
    if composed is not None:
        known.config = composed.config
        known.check("run", "advice", lambda: _advice(composed, has_sizes=not known.asked.quick))
    elif splits is not None:
        from ddp_ft.diagnostics.advice import advise_on_data

        known.check("run", "advice", lambda: advise_on_data(known.config, splits))
    known.check("disk", "disk", lambda: examine_disk(known, composed))
    if composed is not None and not known.asked.quick:
        _speed(known, composed)


def _open(known: Examination, world: "World") -> "Splits | None":
    """The splits; None and a problem if they cannot be opened. Collective."""
    from ddp_ft.data.splits.open import open_splits_of

    # The survey reports damaged images, so nothing is read here.
    config = replace(known.config, data=replace(known.config.data, on_error="fail"))
    run_dir = known.asked.run_dir
    splits = known.attempt("data", "data", lambda: world.from_main(lambda: open_splits_of(run_dir, config)))
    if splits is not None:
        sizes = {"train": splits.train, "val": splits.val, "test": splits.test}
        text = ", ".join(f"{len(source)} {name}" for name, source in sizes.items() if source is not None)
        found = [Finding("splits", OK, text, value=float(len(splits.train)), unit=f"{_noun(splits)}s")]
        known.check("data", "splits", lambda: [*found, *(Finding("splits", NOTE, note) for note in splits.notes)])
    return splits


def _survey(known: Examination, splits: "Splits", composed: "Run | None") -> Iterator[Finding]:
    module, _, name = SURVEYS.get(splits.train.kind, "").partition(":")
    if not module:
        return
    sources = {"train": splits.train, "val": splits.val, **({"test": splits.test} if splits.test else {})}
    processor = None if composed is None else composed.model.processor
    yield from getattr(import_module(module), name)(sources, known.config.data, processor, known.report)


def _noun(splits: "Splits") -> str:
    return sample_noun(splits.train.kind)


def _compose(known: Examination, world: "World", splits: "Splits") -> "Run":
    """The run, with a training set that replaces damaged images. Collective."""
    from ddp_ft.data.splits.open import lenient
    from ddp_ft.distributed.world import Machine
    from ddp_ft.training.build import compose
    from ddp_ft.training.request import Request

    request = Request(known.asked.run_dir, known.asked.layers)
    composed, _, _ = compose(known.config, request, Machine(world, known.launch), lenient(splits, known.config.seed))
    return composed


def _advice(composed: "Run", has_sizes: bool) -> list[Finding]:
    """`has_sizes`: the sizes of all images are reported elsewhere."""
    from ddp_ft.diagnostics.advice import advise, situation_of

    known = situation_of(composed, read_end_time())
    return advise(replace(known, sizes=()) if has_sizes else known)


def _speed(known: Examination, composed: "Run") -> None:
    """Collective."""
    from ddp_ft.diagnostics import speed

    if composed.config.freeze.cache_features:
        text = "this run trains on features that are computed once; its speed is not measured"
        known.check("speed", "speed", lambda: [Finding("speed", NOTE, text)])
        return
    free_before = machine.usable_memory()
    found = known.attempt("speed", "speed", lambda: speed.measure(composed))
    if found is not None:
        known.check("speed", "speed", lambda: _about_speed(known, composed, found, free_before))


def _about_speed(known: Examination, composed: "Run", found: Any, memory_bytes: int) -> Iterator[Finding]:
    from ddp_ft.diagnostics import speed

    world, plan, is_cuda = composed.world, composed.plan, composed.world.device.type == "cuda"
    cores = max(1, usable_cores() // known.launch.local_world_size)
    yield from speed.rates(found, world.size)
    room = speed.measure_room(composed, memory_bytes, known.launch.local_world_size)
    share = math.ceil(min(composed.config.train.batch_size, plan.train_samples) / world.size)
    yield speed.memory(room, found, min(share, composed.plan.cut or share), is_cuda)
    if found.ran_out:
        return
    yield speed.waiting(found, plan.workers, cores, is_cuda)
    rate = speed.training_rate(found, plan.workers, world.size, is_cuda)
    pace = speed.pace_of(composed, rate)
    yield speed.duration(composed, pace, rate, found.noun)
    allocation = read_allocation(looks=True)
    if allocation.end is not None:
        yield speed.allocation(composed, pace, rate, allocation, time.time())
