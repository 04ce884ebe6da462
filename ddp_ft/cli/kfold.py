"""`ddp-ft kfold`: K models, each validated on another part of the data."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from ddp_ft.cli.early_checks import check_early
from ddp_ft.cli.main import ddp_ft
from ddp_ft.cli.options import PATH, default_run_dir, given_layers
from ddp_ft.cli.output import print_note, print_result
from ddp_ft.config.loading import make_config
from ddp_ft.config.schema import RunConfig
from ddp_ft.distributed.environment import read_launch
from ddp_ft.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError, columns, reason_of
from ddp_ft.run_folder.folds import FEWEST, FILE, fold_folders, forget_unbegun, open_folds, write_results
from ddp_ft.texts import metric_figure, plural

# Those that ask a run to stop and save.
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDED_BY_SIGNAL = 128


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--folds", type=click.IntRange(min=FEWEST), default=5, show_default=True, metavar="K", help="How many parts."
)
@click.option("--run-dir", type=PATH, metavar="PATH", help="Folder of all folds.  [default: runs/<data>-<model>-kfold]")
@click.option(
    "--list", "listed", type=PATH, metavar="FILE",
    help="Train nothing; write each fold's options there, a line each, for slurm/array.sbatch.",
)  # fmt: skip
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="TRAIN_OPTIONS...")
def kfold(folds: int, run_dir: Path | None, listed: Path | None, options: tuple[str, ...]) -> int:
    """Train K models, each on all but one of K parts of the data and validated on that part; all other options are
    those of train.

    Each is a run of its own in the folder; the same command goes on where it stopped. RUN/kfold.json has the mean and
    the spread over folds, and predict and evaluate take the folder as an ensemble.
    """
    if read_launch().distributed:
        raise UserError("ddp-ft kfold starts its runs itself.", "Add --processes N instead of torchrun.")
    config = _config_of(options)
    folder = run_dir or default_run_dir(config).with_name(f"{default_run_dir(config).name}-kfold")
    own = [_own_options(each, fold, folds) for fold, each in enumerate(fold_folders(folder, folds), start=1)]
    open_folds(folder, folds)
    if listed:
        try:
            _write_list(listed, own)
        except UserError:
            forget_unbegun(folder, folds)
            raise
        print_note(
            f"{plural(folds, 'line')} in {listed}: sbatch --array=1-{folds} slurm/array.sbatch {listed} TRAIN_OPTIONS"
        )
        return EXIT_DONE
    for fold, words in enumerate(own, start=1):
        print_note(f"Fold {fold} of {folds}: {words[-1]}")
        if code := _train([*options, *words]):
            forget_unbegun(folder, folds)
            return code
    _print(folder, write_results(folder, folds))
    return EXIT_DONE


def _config_of(options: Sequence[str]) -> RunConfig:
    """What train would make of them. UserError for what it would refuse early, and for what is set here."""
    train = ddp_ft.get_command(click.get_current_context(), "train")
    assert train is not None
    given: dict[str, Any] = train.make_context("train", list(options)).params
    if given.pop("run_dir") is not None or any(given.pop(name) for name in ("extend", "dry_run", "print_run_dir")):
        raise UserError("--extend, --dry-run and --print-run-dir are for a single run: ddp-ft train.")
    config_file, assignments = given.pop("config_file"), given.pop("assignments")
    flags = {name: value for name, value in given.items() if name not in ("tune", "quiet")}
    layers = given_layers(config_file, flags, assignments)
    if layers[-1].get("data.fold"):  # of --set; that of a file, such as config.yaml of a fold, gives way
        raise UserError("data.fold is set for each fold by ddp-ft kfold.", "Leave it out; --folds is their number.")
    config = make_config(*layers, {"data.fold": "1/2"})
    check_early(config)
    return config


def _write_list(file: Path, own: Sequence[Sequence[str]]) -> None:
    """A line for each fold. UserError if the file cannot be written."""
    try:
        file.write_text("".join(f"{shlex.join(words)}\n" for words in own), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--list {file} cannot be written: {reason_of(error)}.", "Name another file.") from None


def _own_options(folder: Path, fold: int, folds: int) -> list[str]:
    return ["--set", f"data.fold={fold}/{folds}", "--run-dir", str(folder)]


def _train(words: Sequence[str]) -> int:
    """Run train as a process to its end, passing signals on; its exit code."""
    # A session of its own: Ctrl-C would reach it twice, once from the terminal, and twice means at once.
    process = subprocess.Popen([sys.executable, "-m", "ddp_ft.train", *words], start_new_session=True)
    with _passing_on(process) as asked:
        code = process.wait()
    if code == EXIT_DONE and asked:  # it was done before it could stop
        return EXIT_STOPPED
    if code < 0 and not asked:
        name = signal.Signals(-code).name
        click.echo(f"Error: the run in {words[-1]} was ended by {name}.\nThe same command goes on.", err=True)
        return EXIT_FAILED
    return code if code >= 0 else _ENDED_BY_SIGNAL - code


@contextmanager
def _passing_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Pass signals on to the process within the block; the list has those that came."""
    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        process.send_signal(number)

    heeded = [number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
    before = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(folder: Path, content: dict[str, Any]) -> None:
    """The mean and the spread of each metric."""
    sets = [name for name in ("val", "test") if name in content]
    rows = {
        f"{name} {metric}": f"{metric_figure(found['mean'])} ± {metric_figure(found['deviation'] or 0.0)}"
        for name in sets
        for metric, found in content[name].items()
    }
    print_result(f"Mean and deviation over {content['folds']} folds\n{columns(rows)}")
    if len(steps := sorted({each for each in content["steps"] if each is not None})) > 1:
        print_note(
            f"Warning: folds took from {steps[0]} to {steps[-1]} steps, so they differ by more than their data. "
            f"--max-minutes depends on the machine; --max-steps {steps[0]} does not."
        )
    print_note(f"{folder / FILE} has each fold.\nUse all: ddp-ft predict {shlex.quote(str(folder))} IMAGE_OR_FOLDER")
