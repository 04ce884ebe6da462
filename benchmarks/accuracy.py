"""The recipes against fine-tuning by the book, on real images and real weights: `python -m benchmarks.accuracy`.

See benchmarks/README.md. Finished trainings are kept below .cache/accuracy/ and not run again.
"""

import json
import shlex
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.datasets import DATA_SETS, DataSet
from benchmarks.methods import METHODS, MODELS, Model, Run, Sizes, make_draws, make_runs, one_in_turn
from benchmarks.report import Facts, read_findings, render
from benchmarks.runner import Result, Stopped, collect, load_result, run_all, write_draws
from ddp_ft.cli.process import run_command
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.errors import EXIT_FAILED, EXIT_STOPPED, UserError, nearest
from launch.demo_assets import written_aside

ROOT = Path(".cache") / "accuracy"
ALL = "all"
FEWEST_TO_TRAIN = 10


class Journal:
    """Prints each end of a training with an estimate of the time left, and rewrites the page after each seed."""

    def __init__(self, jobs: int, writer: "PageWriter") -> None:
        self.jobs, self.writer = jobs, writer
        self.seconds: list[float] = []
        self.failures = 0
        self.seed: int | None = None

    def tell(self, run: Run, outcome: Result | BaseException, left: int) -> None:
        """One line about the run that has ended."""
        name = f"{run.data_set} {run.sizes.train} {run.model} {run.method} seed {run.seed}"
        if not isinstance(outcome, Result):
            self.failures += 1
            click.echo(f"{name}: FAILED: {type(outcome).__name__}: {outcome}", err=True)
            return
        self.seconds.append(outcome.seconds)
        minutes = left * sum(self.seconds) / len(self.seconds) / self.jobs / 60
        figures = f"val {outcome.val['accuracy']:.4f}, test {outcome.test['accuracy']:.4f}, {outcome.seconds:.1f} s"
        click.echo(f"{name}: {figures}; {left} left, about {minutes:.0f} min")
        if self.seed not in (None, run.seed):
            self.writer.write()
        self.seed = run.seed


class PageWriter:
    """Writes the page, and the rows as JSON, from what is finished."""

    def __init__(self, runs: Sequence[Run], facts: Facts, output: Path, rows: Path | None) -> None:
        self.runs, self.facts, self.output, self.rows = runs, facts, output, rows
        _findings(output)  # a page that would not be written over is told now

    def write(self) -> int:
        """Return the number of results; with none nothing is written."""
        finished = {run: result for run in self.runs if (result := load_result(ROOT, run)) is not None}
        results = collect(self.runs, finished)
        if results:
            _write(self.output, render(results, self.facts, _findings(self.output)))
            if self.rows is not None:
                _write(self.rows, json.dumps([asdict(each) for each in results], indent=1))
        return len(results)


def _findings(page: Path) -> str:
    try:
        return read_findings(page)
    except ValueError as error:
        raise UserError(f"{error}.", "Move the file away, or give another --output.") from None


def _write(file: Path, text: str) -> None:
    with written_aside(file) as target:
        target.write_text(text, encoding="utf-8")


def choose(given: str, known: Collection[str], what: str) -> list[str]:
    """Return the names in `given`, separated by commas, in the order of `known`. UserError for an unknown one."""
    if given == ALL:
        return list(known)
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in known:
            raise UserError(
                f"There is no {what} '{name}'.", nearest(name, list(known)) or f"There are {', '.join(known)}."
            )
    return [name for name in known if name in names]


def parse_sizes(given: str) -> list[int]:
    """Return the numbers of images in `given`, separated by commas. UserError unless all are at least 10."""
    sizes = [int(word) if word.strip().isdecimal() else 0 for word in given.split(",")]
    if min(sizes) < FEWEST_TO_TRAIN:
        raise UserError(f"--train {given}: numbers of images are wanted.", f"As 100,400; {FEWEST_TO_TRAIN} or more.")
    return sizes


def find_sets(names: Sequence[str]) -> tuple[dict[str, DataSet], list[str]]:
    """The sets that are on this machine, and a line for each that is not."""
    here = {name: DATA_SETS[name] for name in names if DATA_SETS[name].is_here()}
    lines = [f"{DATA_SETS[name].title}: needs {DATA_SETS[name].needs}." for name in names if name not in here]
    return here, lines


def find_models(names: Sequence[str]) -> tuple[dict[str, tuple[Model, str]], list[str]]:
    """The models whose weights are on this machine, with these, and a line for each other."""
    found = {name: MODELS[name].find_weights() for name in names}
    here = {name: (MODELS[name], weights) for name, weights in found.items() if weights is not None}
    return here, [f"{MODELS[name].name}: needs {MODELS[name].needs}." for name in names if name not in here]


@click.command()
@click.option("--sets", default=ALL, show_default=True, help=f"Of {', '.join(DATA_SETS)}; separated by commas.")
@click.option("--models", default=ALL, show_default=True, help=f"Of {', '.join(MODELS)}.")
@click.option("--methods", default=ALL, show_default=True, help=f"Of {', '.join(METHODS)}.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="How many, from 0 on.")
@click.option("--epochs", type=click.IntRange(1), help="Of every training.  [default: those of --epochs auto]")
@click.option("--train", default="100,400", show_default=True, help="Images to train on; half as many to choose by.")
@click.option("--test", default=Sizes.test, show_default=True, type=click.IntRange(10), help="Images to report on.")
@click.option("--in-turn", is_flag=True, help="One model for each set and size, in turn, instead of all.")
@click.option("--jobs", type=click.IntRange(1), help="Trainings at a time.  [default: one a core, of one thread]")
@click.option("--device", default="cpu", show_default=True, help="As for ddp_ft.train.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/accuracy.md"), show_default=True)
@click.option("--json", "rows", type=click.Path(path_type=Path), help="Write all results here too.")
@click.option("--render-only", is_flag=True, help="Train nothing; make the page of what is finished.")
def accuracy(
    sets: str, models: str, methods: str, seeds: int, epochs: int | None, train: str, test: int, in_turn: bool,
    jobs: int | None, device: str, output: Path, rows: Path | None, render_only: bool,
) -> int:  # fmt: skip
    """Train every method on every set with every model and seed, and write the results as a page."""
    here, missing_sets = find_sets(choose(sets, DATA_SETS, "set"))
    backbones, missing_models = find_models(choose(models, MODELS, "model"))
    draws = make_draws(here, parse_sizes(train), test, epochs)
    skipped = [*missing_sets, *missing_models]
    for line in skipped:
        click.echo(f"Left out: {line}")
    combined = one_in_turn(draws, list(backbones)) if in_turn else [(*d, name) for d in draws for name in backbones]
    runs = make_runs(here, backbones, choose(methods, METHODS, "method"), range(seeds), combined, device)
    facts = Facts(_command(), draws, here, {name: model.name for name, (model, _) in backbones.items()}, skipped)
    writer = PageWriter(runs, facts, output, rows)
    code = 0 if render_only else _train(runs, here, jobs or usable_cores(), writer)
    count = writer.write()
    click.echo(f"{count} of {len(runs)} results" + (f" in {output}" if count else "; nothing was written"))
    return code


def _train(runs: Sequence[Run], sets: Mapping[str, DataSet], jobs: int, writer: PageWriter) -> int:
    journal = Journal(jobs, writer)
    start = time.monotonic()
    try:
        write_draws(ROOT, runs, sets)
        run_all(ROOT, runs, jobs, max(1, usable_cores() // jobs), journal.tell)
    except (KeyboardInterrupt, Stopped):
        click.echo("Stopped. The same command goes on from here.", err=True)
        return EXIT_STOPPED
    click.echo(f"{len(journal.seconds)} trainings in {(time.monotonic() - start) / 60:.1f} min")
    return EXIT_FAILED if journal.failures else 0


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks.accuracy", *(a for a in sys.argv[1:] if a != "--render-only")])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop that waits for the trainings under way
    run_command(accuracy)
