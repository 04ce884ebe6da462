"""The folder that a run writes to: permission, space, speed, locks, recipe. torch is imported only where needed."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_ft.diagnostics import machine
from ddp_ft.diagnostics.examination import Examination
from ddp_ft.diagnostics.finding import OK, PROBLEM, WARNING, Finding, tried
from ddp_ft.distributed.environment import number_or, output_of
from ddp_ft.slurm.walltime import PATIENCE
from ddp_ft.texts import plural

if TYPE_CHECKING:
    from ddp_ft.training.run import Run

GIB, MIB = 2**30, 2**20
# Written to measure the disk: few enough for a slow one, many enough not to measure its latency.
PROBE_BYTES, PROBE_SECONDS = 32 * MIB, 4.0
# What torchrun gives its workers between SIGTERM and SIGKILL (torch 2.15's --shutdown-timeout).
TORCHRUN_GRACE = 30
# Tensors of the size of the weights that an optimizer keeps; two for all others.
STATES = {"sgd": 1, "momentum": 1, "nesterov": 1, "sgdp": 1, "sgdw": 1, "lion": 1, "rmsprop": 1, "lars": 1}


@dataclass(frozen=True)
class Need:
    """What a run writes: bytes of a checkpoint, the largest number of them, bytes of the best model and of features."""

    checkpoint: int
    checkpoints: int
    best: int
    features: int = 0

    @property
    def total(self) -> int:
        """All bytes together."""
        return self.checkpoint * self.checkpoints + self.best + self.features


def need_of(weights: int, optimizer: str, has_average: bool, kept: int, features: int) -> Need:
    """The need of a run with `weights` bytes of weights and buffers, of which `kept` checkpoints stay, and one more
    while it is written."""
    states = STATES.get(optimizer.lower().removeprefix("lookahead_"), 2)
    return Need(weights * (1 + states + has_average), kept + 1, weights, features)


def nearest_folder(run_dir: Path) -> Path:
    """The folder itself, or its nearest parent that is there."""
    return next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.is_dir())


def writable(run_dir: Path) -> Finding:
    """Whether the run folder can be written, or made."""
    folder = nearest_folder(run_dir)
    files = [each for each in (run_dir, *run_dir.absolute().parents) if each.exists() and not each.is_dir()]
    if files:
        return Finding("run folder", PROBLEM, f"{files[0]} is a file", "Choose another with --run-dir.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"{folder} cannot be written to: {error.strerror}"
        return Finding("run folder", PROBLEM, text, "Choose another with --run-dir.")
    return Finding("run folder", OK, f"{run_dir} can be {'written' if run_dir == folder else 'made'}")


def space(free: int, need: Need | None) -> Finding:
    """Whether what the run writes fits into the free bytes; without a model, the free space alone."""
    if need is None:
        return Finding("disk space", OK, f"{free / GIB:.1f} GiB free", value=free / GIB, unit="GiB")
    text = f"{free / GIB:.1f} GiB free; {plural(need.checkpoints, 'checkpoint')} of {_size(need.checkpoint)}, best/ of "
    text += f"{_size(need.best)}" + (f" and features of {_size(need.features)}" if need.features else "")
    verdict, remedy = WARNING, "Others write too, and the run's logs grow: make room."
    if free < need.total:
        remedy = f"{_size(need.total)} are needed. Make room, choose another --run-dir, or --set checkpoint.keep=1."
        verdict = PROBLEM
    return Finding("disk space", verdict, text, remedy, free / GIB, "GiB").unless(free >= 2 * need.total)


def measure_writing(folder: Path, size: int = PROBE_BYTES, seconds: float = PROBE_SECONDS) -> float:
    """Bytes a second that reach the disk: parts of 4 MiB, with fsync, until `size` or `seconds` are reached."""
    part, written = os.urandom(4 * MIB), 0
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor_") as file:
        began = time.perf_counter()
        while written < size and time.perf_counter() - began < seconds:
            file.write(part)
            file.flush()
            os.fsync(file.fileno())
            written += len(part)
        return written / (time.perf_counter() - began)


def saving(speed: float, need: Need | None, grace: float, giver: str) -> Finding:
    """Whether a checkpoint can be written at that speed (bytes/s) within the grace (s) that `giver` allows."""
    text = f"{speed / MIB:,.0f} MiB/s with fsync"
    if need is None:
        return Finding("disk speed", OK, text, value=speed / MIB, unit="MiB/s")
    seconds = need.checkpoint / speed
    text += f": {seconds:.1f} s for a checkpoint, of {grace:.0f} s that {giver} leaves"
    verdict, remedy = WARNING, "It is close when several write at a time. Consider a faster disk, or more grace."
    if seconds > grace:
        verdict, remedy = PROBLEM, (
            "A killed run would lose what it did since the last one. Write to a faster disk; under Slurm give more "
            "time with sbatch --signal=B:USR2@SECONDS, and --set checkpoint.every_minutes=5."
        )  # fmt: skip
    return Finding("disk speed", verdict, text, remedy, speed / MIB, "MiB/s").unless(seconds <= grace / 3)


def _scontrol(what: list[str]) -> str:
    return output_of(["scontrol", "show", *what], PATIENCE) or ""


def grace_of(environ: Mapping[str, str], show: Callable[[list[str]], str] = _scontrol) -> tuple[float, str]:
    """The shortest time (s) between the request to end a run and its kill, and what sets it.

    Slurm's KillWait and its partition's GraceTime if `show` (scontrol) prints them, else torchrun's time limit.
    """
    found = re.search(r"\bKillWait\s*=\s*(\d+)", show(["config"])) if environ.get("SLURM_JOB_ID") else None
    if found is None:
        return float(number_or(TORCHRUN_GRACE, environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")), "torchrun"
    partition = environ.get("SLURM_JOB_PARTITION")
    grace = re.search(r"\bGraceTime=(\d+)", show(["partition", partition])) if partition else None
    # A preempted job has the partition's grace, and then KillWait.
    kill_wait, preempted = float(found.group(1)), float(grace.group(1)) if grace else 0.0
    return kill_wait + preempted, "Slurm (KillWait" + (" and GraceTime)" if preempted else ")")


def examine_disk(known: Examination, composed: "Run | None") -> Iterator[Finding]:
    """Everything about the run folder; with what the run will write, if that could be composed."""
    from ddp_ft.run_folder.folder import RunFolder, check_same_recipe

    run_dir, need = known.asked.run_dir, None if composed is None else _need(composed)
    place = writable(run_dir)
    yield place
    if place.verdict == PROBLEM:
        return
    folder = nearest_folder(run_dir)
    yield space(shutil.disk_usage(folder).free, need)
    if not known.asked.quick:
        yield saving(measure_writing(folder), need, *grace_of(os.environ))
    yield machine.locks(folder)
    if run_dir.is_dir():
        _, other = tried("run folder", lambda: check_same_recipe(RunFolder(folder), known.config, extend=True))
        yield from (replace(each, verdict=WARNING) for each in other)


def _need(composed: "Run") -> Need:
    from ddp_ft.models.backbone import feature_width

    config, built = composed.config, composed.model
    tensors = dict([*built.module.named_parameters(), *built.module.named_buffers()])
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    features = 0
    if config.probe.epochs or config.freeze.cache_features:
        rows = composed.plan.train_samples * config.freeze.views + composed.plan.val_samples
        features = min(4 * rows * feature_width(built), int(config.freeze.cache_gb * GIB))
    stored = sum(size for name, size in sizes.items() if name not in built.base)
    keep = config.checkpoint.keep + config.checkpoint.keep_best
    need = need_of(stored, config.optim.name, bool(composed.plan.ema_decay), keep, features)
    return replace(need, best=sum(sizes.values()))


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
