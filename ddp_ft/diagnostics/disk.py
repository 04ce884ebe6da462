"""Where a run writes: whether it may, how much fits, how fast it is, and what a checkpoint takes. Free of torch."""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddp_ft.diagnostics.finding import OK, PROBLEM, WARNING, Finding

GIB, MIB = 2**30, 2**20
# Written and synchronised to measure the disk: small enough for a slow one, large enough not to measure its latency.
PROBE_BYTES, PROBE_SECONDS = 32 * MIB, 4.0
# What torchrun gives its workers between SIGTERM and SIGKILL (torch 2.15's --shutdown-timeout).
TORCHRUN_GRACE = 30.0
SLURM_PATIENCE = 5.0
# Tensors of the size of the weights that an optimizer keeps; two for all others.
STATES = {"sgd": 1, "momentum": 1, "nesterov": 1, "sgdp": 1, "sgdw": 1, "lion": 1, "rmsprop": 1, "lars": 1}


@dataclass(frozen=True)
class Need:
    """What a run writes: bytes of a checkpoint, how many there are at most, of the best model, and of features."""

    checkpoint: int
    checkpoints: int
    best: int
    features: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.checkpoint * self.checkpoints + self.best + self.features


def need_of(weights: int, optimizer: str, has_average: bool, kept: int, features: int) -> Need:
    """From the bytes of all weights and buffers, and how many checkpoints are `kept`: one more is there while it is
    written."""
    states = STATES.get(optimizer.lower().removeprefix("lookahead_"), 2)
    return Need(weights * (1 + states + has_average), kept + 1, weights, features)


def nearest_folder(run_dir: Path) -> Path:
    """The folder itself, or the one that it would be made in."""
    return next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.is_dir())


def writable(run_dir: Path) -> Finding:
    """Whether the run folder is there, or can be made."""
    if run_dir.exists() and not run_dir.is_dir():
        return Finding("run folder", PROBLEM, f"{run_dir} is a file", "Choose another with --run-dir.")
    folder = nearest_folder(run_dir)
    blocking = [parent for parent in run_dir.absolute().parents if parent.exists() and not parent.is_dir()]
    if blocking:
        return Finding("run folder", PROBLEM, f"{blocking[0]} is a file", "Choose another with --run-dir.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"{folder} cannot be written to: {error.strerror}"
        return Finding("run folder", PROBLEM, text, "Choose another with --run-dir.")
    return Finding("run folder", OK, f"{run_dir} can be written" if run_dir == folder else f"{run_dir} can be made")


def space(free: int, need: Need | None) -> Finding:
    """Free space against what the run writes; without a model it is only told."""
    if need is None:
        return Finding("disk space", OK, f"{free / GIB:.1f} GiB free", value=free / GIB, unit="GiB")
    text = f"{free / GIB:.1f} GiB free; {need.checkpoints} checkpoints of {_size(need.checkpoint)}, best/ of "
    text += f"{_size(need.best)}" + (f" and features of {_size(need.features)}" if need.features else "")
    if free < need.total:
        remedy = f"{_size(need.total)} are needed. Make room, choose another --run-dir, or --set checkpoint.keep=1."
        return Finding("disk space", PROBLEM, text, remedy, free / GIB, "GiB")
    if free < 2 * need.total:
        remedy = "Others write too, and the run's logs grow: make room."
        return Finding("disk space", WARNING, text, remedy, free / GIB, "GiB")
    return Finding("disk space", OK, text, value=free / GIB, unit="GiB")


def measure_writing(folder: Path, size: int = PROBE_BYTES, seconds: float = PROBE_SECONDS) -> float:
    """Bytes a second that reach the disk: parts of 4 MiB, each made durable, until `size` or `seconds` are reached."""
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
    """How long a checkpoint takes at that speed (bytes/s), against the grace that `giver` leaves."""
    text = f"{speed / MIB:,.0f} MiB/s with fsync"
    if need is None:
        return Finding("disk speed", OK, text, value=speed / MIB, unit="MiB/s")
    seconds = need.checkpoint / speed
    text += f": {seconds:.1f} s for a checkpoint, of {grace:.0f} s that {giver} leaves"
    if seconds > grace:
        remedy = (
            "A killed run would lose what it did since the last one. Write to a faster disk; under Slurm give more "
        )
        remedy += "time with sbatch --signal=B:USR2@SECONDS, and --set checkpoint.every_minutes=5."
        return Finding("disk speed", PROBLEM, text, remedy, speed / MIB, "MiB/s")
    if seconds > grace / 3:
        remedy = "It is close when several write at a time. Consider a faster disk, or more grace."
        return Finding("disk speed", WARNING, text, remedy, speed / MIB, "MiB/s")
    return Finding("disk speed", OK, text, value=speed / MIB, unit="MiB/s")


def grace_of(environ: Mapping[str, str], show: Callable[[list[str]], str] | None = None) -> tuple[float, str]:
    """How many seconds a run has between being told to end and its end at worst, and who says so.

    Slurm's KillWait and its partition's GraceTime where they can be asked for, else torchrun's patience.
    """
    patience = environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    torchrun = float(patience) if patience.isdecimal() else TORCHRUN_GRACE
    if not environ.get("SLURM_JOB_ID"):
        return torchrun, "torchrun"
    ask = show or _scontrol
    found = re.search(r"\bKillWait\s*=\s*(\d+)", ask(["config"]))
    if found is None:
        return torchrun, "torchrun"
    partition = environ.get("SLURM_JOB_PARTITION")
    grace = re.search(r"\bGraceTime=(\d+)", ask(["partition", partition])) if partition else None
    # A preempted job has the partition's grace, and then KillWait.
    kill_wait, preempted = float(found.group(1)), float(grace.group(1)) if grace else 0.0
    return kill_wait + preempted, "Slurm (KillWait" + (" and GraceTime)" if preempted else ")")


def _scontrol(what: list[str]) -> str:
    try:
        done = subprocess.run(["scontrol", "show", *what], capture_output=True, text=True, timeout=SLURM_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def all_of(run_dir: Path, need: Need | None, environ: Mapping[str, str], quick: bool) -> Iterator[Finding]:
    """Everything about the run folder; `quick` leaves the measuring out."""
    place = writable(run_dir)
    yield place
    if place.verdict == PROBLEM:
        return
    folder = nearest_folder(run_dir)
    status = os.statvfs(folder)
    yield space(status.f_bavail * status.f_frsize, need)
    if not quick:
        yield saving(measure_writing(folder), need, *grace_of(environ))


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
