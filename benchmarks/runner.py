"""Runs trainings, several at a time, each in one thread; what is finished is kept and not run again."""

import json
import multiprocessing
import os
import platform
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.datasets import DataSet, write_draw
from benchmarks.intervals import Place
from benchmarks.methods import AUTO, METHODS, Run, same_but_for_the_name

RESULT = "result.json"
KEPT = (RESULT, "summary.json", "plan.json", "config.yaml", "metrics.jsonl", "output.txt")


class Stopped(Exception):
    """A training was asked to stop; it will begin anew."""


@dataclass(frozen=True)
class Result:
    """What a training on `train` images gave: accuracies of the model that val/ chose, as shares, and its cost."""

    data_set: str
    model: str
    train: int
    method: str
    seed: int
    recipe: str
    val: Mapping[str, float]
    test: Mapping[str, float]
    seconds: float
    cpu_seconds: float
    machine: str
    shared: bool = False  # not run again, as auto was known to be this recipe

    @property
    def place(self) -> Place:
        """What it shares with the other methods that are compared with it."""
        return self.data_set, f"{self.model} {self.train}", self.seed


def load_result(root: Path, run: Run) -> Result | None:
    """The result of a finished run; None if it is not finished."""
    file = root / run.folder / RESULT
    return Result(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def write_draws(root: Path, runs: Sequence[Run], sets: Mapping[str, DataSet]) -> None:
    """The images of all runs, where they are not there yet."""
    for name, data_set in sets.items():
        missing = {
            run.draw_folder: run for run in runs if run.data_set == name and not (root / run.draw_folder).exists()
        }
        if missing:
            pool = data_set.open()
            for folder, run in missing.items():
                write_draw(pool, run.sizes.counts, run.seed, root / folder)


def prepare_worker(threads: int) -> None:
    """First thing in a worker process: its threads, before torch is imported, and the imports."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    import ddp_ft.run
    import ddp_ft.train  # noqa: F401

    torch.set_num_threads(threads)


def train_once(root: Path, run: Run) -> Result:
    """Run the real command, keep its small files, and give the result. Raises Stopped, and what the command raises.

    A training that was cut short begins anew, so that its seconds are those of a whole one.
    """
    from ddp_ft.errors import EXIT_STOPPED
    from ddp_ft.train import train

    folder = root / run.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start, cpu_start = time.perf_counter(), time.process_time()
    with (folder / "output.txt").open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        code = train.main(run.arguments(root), standalone_mode=False)
    if code == EXIT_STOPPED:
        raise Stopped
    cost = time.perf_counter() - start, time.process_time() - cpu_start
    result = _read_result(folder, run, *cost)
    (folder / "result.tmp").write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    (folder / "result.tmp").rename(folder / RESULT)
    _keep_small_files(folder)
    return result


def _read_result(folder: Path, run: Run, seconds: float, cpu_seconds: float) -> Result:
    summary, plan = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("summary.json", "plan.json"))
    if run.sizes.counts[:2] != (plan["train_samples"], plan["val_samples"]):
        raise ValueError(f"{folder}: trained on other images than were drawn")
    return Result(
        data_set=run.data_set,
        model=run.model,
        train=run.sizes.train,
        method=run.method,
        seed=run.seed,
        recipe=plan["recipe"],
        val=summary["val"],
        test=summary["test"],
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        machine=machine(),
    )


def _keep_small_files(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in KEPT:
            entry.unlink()


def machine() -> str:
    """What the seconds were taken on."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    threads = f"{torch.get_num_threads()} thread(s) a training"
    return f"{os.cpu_count()} cores, {cpu}, torch {torch.__version__}, Python {platform.python_version()}, {threads}"


def twin_of_auto(run: Run, runs: Sequence[Run], finished: Mapping[Run, Result]) -> Run | None:
    """The run that gives what this run of `auto` would, if an earlier seed's plan said which recipe auto becomes.

    auto goes by the number of images, the model and what is frozen, which seeds do not change. None if that is not
    known yet, or if its configuration is not that recipe's in all keys.
    """
    first = _first_auto(run, finished)
    if run.method != AUTO or first is None or first.seed == run.seed or first.recipe not in METHODS:
        return None
    for other in runs:
        if other.place == run.place and other.method == first.recipe:
            return other if same_but_for_the_name(run.settings, other.settings, first.recipe) else None
    return None


def _first_auto(run: Run, finished: Mapping[Run, Result]) -> Result | None:
    found = [each for each in finished.values() if each.place[:2] == run.place[:2] and each.method == AUTO]
    return min(found, key=lambda each: each.seed, default=None)


def collect(runs: Sequence[Run], finished: Mapping[Run, Result]) -> list[Result]:
    """The results of all runs that have one; those of auto that were not run are their twins'."""
    found = []
    for run in runs:
        result = finished.get(run)
        if result is None and (twin := twin_of_auto(run, runs, finished)) is not None and twin in finished:
            result = Result(**{**asdict(finished[twin]), "method": AUTO, "shared": True})
        if result is not None:
            found.append(result)
    return found


def run_all(
    root: Path, runs: Sequence[Run], jobs: int, threads: int, tell: Callable[[Run, Result | BaseException, int], None]
) -> dict[Run, Result]:
    """Train what is not finished, `jobs` at a time, in order; `tell` hears of each end and how many are left.

    A training that fails is told of, and the others go on. Raises Stopped when one was asked to stop.
    """
    finished = {run: result for run in runs if (result := load_result(root, run)) is not None}
    waiting = deque(run for run in runs if run not in finished)
    going: dict[Future[Result], Run] = {}
    # A fork of this process would inherit the state of its libraries' threads.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(jobs, context, prepare_worker, (threads,)) as pool:
        while waiting or going:
            while waiting and len(going) < jobs:
                run = waiting.popleft()
                if twin_of_auto(run, runs, finished) is None:
                    going[pool.submit(train_once, root, run)] = run
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                run, error = going.pop(future), future.exception()
                if isinstance(error, Stopped):
                    raise error
                if error is None:
                    finished[run] = future.result()
                tell(run, error or finished[run], len(waiting) + len(going))
    return finished
