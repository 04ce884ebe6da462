"""Kills runs at random moments and starts them again until they are done: `python -m benchmarks.chaos --kills 50`.

Then the result is compared with that of an unbroken run. See benchmarks/README.md.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import click

from ddp_ft.cli.process import run_command
from ddp_ft.errors import EXIT_FAILED, UserError
from tests.support import images, nets
from tests.system.faults.comparing import curve
from tests.system.faults.forks import ForkedJob

DEMO = Path(".cache") / "demo"
PHOTOS = {"train": 10, "val": 4}  # of each of the demo's four classes
# The longest life of a start, as a share of an unbroken run's time; lives are drawn evenly from 0 on.
LONGEST_LIFE = 0.4
MOST_SECONDS = 900.0
COLUMNS = ("case", "processes", "kills", "runs", "starts", "bytes equal", "rows equal", "seconds")


@dataclass(frozen=True)
class Case:
    """A run: options of `train` but the run folder, and how many processes."""

    name: str
    world_size: int
    options: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The result of a case; `equal_bytes` and `equal_rows` count runs."""

    case: Case
    kills: int
    runs: int
    starts: int
    equal_bytes: int
    equal_rows: int
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether every run ended as the unbroken one."""
        return self.equal_bytes == self.equal_rows == self.runs > 0

    def row(self) -> str:
        """A line of the table."""
        equal = [f"{count} of {self.runs}" for count in (self.equal_bytes, self.equal_rows)]
        cells = (self.case.name, self.case.world_size, self.kills, self.runs, self.starts, *equal, round(self.seconds))
        return _line(cells)


class Job(Protocol):
    """One start of the command."""

    def is_alive(self) -> bool: ...
    def kill(self, rank: int | None) -> None: ...
    def end(self) -> str: ...


class Forks:
    """Forks of a process that has imported torch already: a start takes a second, so most of its time is training."""

    def __init__(self, world_size: int, args: list[str]) -> None:
        self._job = ForkedJob(world_size, args)

    def is_alive(self) -> bool:
        """Whether no rank has ended yet."""
        return all(process.is_alive() for process in self._job.processes)

    def kill(self, rank: int | None) -> None:
        """SIGKILL one rank, or all."""
        self._job.signal(signal.SIGKILL, rank)

    def end(self) -> str:
        """The end of the output, when all ranks have ended."""
        return self._job.end(MOST_SECONDS)[1]


class Torchrun:
    """The real launcher, in a session of its own."""

    def __init__(self, world_size: int, args: list[str]) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
        self._log = Path(args[args.index("--run-dir") + 1]).with_suffix(".log")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *launcher, "-m", "ddp_ft.train", *args],
                stdout=stream, stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip

    def is_alive(self) -> bool:
        """Whether the launcher runs."""
        return self._process.poll() is None

    def kill(self, rank: int | None) -> None:
        """SIGKILL one worker, or the launcher and all of them."""
        workers = self._workers()
        if rank is not None:
            workers = workers[rank : rank + 1]
        else:
            self._process.kill()
        for worker in workers:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(worker, signal.SIGKILL)

    def end(self) -> str:
        """The end of the output, when the launcher has ended."""
        self._process.wait(MOST_SECONDS)
        return self._log.read_text(encoding="utf-8")[-3000:]

    def _workers(self) -> list[int]:
        pid = self._process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


LAUNCHERS: dict[str, type[Forks] | type[Torchrun]] = {"fork": Forks, "torchrun": Torchrun}


def torture(case: Case, root: Path, kills: int, launcher: str, draw: random.Random) -> Outcome:
    """Run the case unbroken, then run after run, until all kills have been used."""
    LAUNCHERS[launcher](case.world_size, [*case.options, "--run-dir", str(root / "dry"), "--dry-run"]).end()
    start = time.monotonic()
    whole = root / "whole"
    _live(case, whole, launcher, None, None)
    longest = LONGEST_LIFE * (time.monotonic() - start)
    left, starts, runs = kills, 0, 0
    equal_bytes = equal_rows = 0
    while left:
        run = root / f"run_{runs}"
        finished = False
        while not finished:
            life = draw.uniform(0, longest) if left else None
            victim = draw.randrange(case.world_size) if draw.random() < 0.5 else None
            finished = _live(case, run, launcher, life, victim)
            left, starts = left - (not finished), starts + 1
        runs += 1
        equal_bytes += _same_bytes(run, whole)
        equal_rows += _same_rows(run, whole)
    return Outcome(case, kills, runs, starts, equal_bytes, equal_rows, time.monotonic() - start)


def _live(case: Case, run: Path, launcher: str, life: float | None, victim: int | None) -> bool:
    """One start of at most `life` seconds; whether the run is finished. Fails if it ends by itself in another way."""
    job = LAUNCHERS[launcher](case.world_size, [*case.options, "--run-dir", str(run)])
    death = time.monotonic() + (MOST_SECONDS if life is None else life)
    while job.is_alive() and time.monotonic() < death:
        time.sleep(0.002)
    is_killed = job.is_alive()
    if is_killed:
        job.kill(victim)
    said = job.end()
    is_finished = (run / "summary.json").exists()  # a new start removes it first
    if (life is None and is_killed) or not (is_killed or is_finished):
        raise RuntimeError(f"{case.name}: a start that was not killed did not end well:\n{said}")
    return is_finished


def _same_bytes(run: Path, whole: Path) -> bool:
    files = ("best/model.safetensors", "best/model.json", "checkpoints/last/model.safetensors")
    return all((run / file).read_bytes() == (whole / file).read_bytes() for file in files)


def _same_rows(run: Path, whole: Path) -> bool:
    kinds = [(split, phase) for split in ("train", "val") for phase in ("probe", "train")]
    return all(curve(run, *kind) == curve(whole, *kind) for kind in kinds)


def tiny_case(root: Path, world_size: int) -> Case:
    """A net of 1,491 weights with batch norm, dropout, a moving average and mixup, 48 steps, a checkpoint every 3."""
    data = root / "shapes"
    if not data.exists():
        images.write_shapes(data)
    recipe = ["--epochs", "12", "--batch-size", "8", "--image-size", "32", "--ema", "0.9", "--mixup", "0.2"]
    return _case("tiny net", world_size, data, f"{nets.THIS_FILE}:with_batch_norm", "none", recipe)


def demo_case(root: Path, world_size: int) -> Case:
    """The demo's model and weights by the default recipe, with its probe, on a few of the demo's photos."""
    if not DEMO.exists():
        raise UserError(f"The demo's photos and weights are not in {DEMO}.", "Make them with ./launch/demo.sh.")
    data = root / "photos"
    for part, count in PHOTOS.items():
        for folder in (DEMO / "elpv" / part).iterdir():
            (data / part / folder.name).mkdir(parents=True, exist_ok=True)
            for photo in sorted(folder.iterdir())[:count]:
                shutil.copyfile(photo, data / part / folder.name / photo.name)
    recipe = ["--epochs", "3", "--batch-size", "8", "--image-size", "64", "--ema", "0.9"]
    return _case("demo", world_size, data, "timm/tf_efficientnet_lite0", str(DEMO / "lite0.safetensors"), recipe)


def _case(name: str, world_size: int, data: Path, model: str, weights: str, more: Sequence[str]) -> Case:
    what = ["--data", str(data), "--model", model, "--weights", weights, "--device", "cpu"]
    cadence = ["--set", "log.every_steps=1", "--set", "checkpoint.every_steps=3"]
    return Case(name, world_size, (*what, *cadence, *more))


CASES = {"tiny": tiny_case, "demo": demo_case}


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--kills", default=50, show_default=True, type=click.IntRange(1), help="Of each case.")
@click.option("--cases", default="tiny", show_default=True, help=f"Of {', '.join(CASES)}, or none; with commas.")
@click.option("--worlds", default="1,2,3", show_default=True, help="Numbers of processes of each case.")
@click.option("--launcher", default="fork", show_default=True, type=click.Choice(list(LAUNCHERS)))
@click.option("--seed", default=0, show_default=True, help="Of the moments and the victims.")
@click.option("--root", type=click.Path(path_type=Path), default=Path(".cache/chaos"), show_default=True)
@click.argument("own", nargs=-1, type=click.UNPROCESSED)
def chaos(kills: int, cases: str, worlds: str, launcher: str, seed: int, root: Path, own: tuple[str, ...]) -> int:
    """Kill runs at random moments, and print a table of the results.

    Options of `train` after -- make a case of their own.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    click.echo(_line(COLUMNS) + "\n" + _line(["---"] * len(COLUMNS)))
    is_good = True
    for world_size in map(int, worlds.split(",")):
        chosen = [CASES[name](root, world_size) for name in cases.split(",") if name in CASES]
        chosen += [Case("own", world_size, own)] if own else []
        for case in chosen:
            folder = root / f"{case.name.replace(' ', '_')}_{world_size}"
            outcome = torture(case, folder, kills, launcher, random.Random(f"{seed} {case.name} {world_size}"))
            click.echo(outcome.row())
            is_good &= outcome.is_good
    return 0 if is_good else EXIT_FAILED


if __name__ == "__main__":
    run_command(chaos)
