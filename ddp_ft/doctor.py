"""`python -m ddp_ft.doctor`, alone or under torchrun: find faults before a run spends hours."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ddp_ft.cli.help import GROUPS
from ddp_ft.cli.options import config_options, default_run_dir, given_layers, importing, run_options
from ddp_ft.cli.output import print_note
from ddp_ft.cli.process import run_command, write_error_file
from ddp_ft.cli.ranks import GroupedCommandOfRanks, run_in_ranks
from ddp_ft.config.loading import make_config
from ddp_ft.errors import EXIT_DONE, EXIT_USER_ERROR


class Doctor(GroupedCommandOfRanks):
    """The command, which takes the options of train and lists the usual ones."""

    groups = {"Usual": (*GROUPS["Usual"], "config", "set"), "Of doctor alone": ("quick", "json", "help")}  # noqa: RUF012
    elsewhere = "All other options of train are taken too: `ddp-ft train --help`."


@click.command(cls=Doctor)
@config_options
@run_options
@click.option("--json", "wants_json", is_flag=True, help="Print JSON, with the paths of all samples concerned.")
@click.option("--quick", is_flag=True, help="Do not read all samples, and measure neither disk nor training.")
def doctor(
    run_dir: Path | None, config_file: Path | None, assignments: tuple[str, ...], wants_json: bool, quick: bool,
    **flags: Any,
) -> int:  # fmt: skip
    """Check the machine, the job, the data and the speed, with the options of train; without --data the machine alone.

    Nothing is trained, and the run folder is left as it is. Exit code 2 if there is a problem, else 0.
    """
    layers = given_layers(config_file, flags, assignments)
    config = make_config(*layers)
    if (code := run_in_ranks("ddp_ft.doctor", config.compute.device == "cpu")) is not None:
        return code
    is_whole = config.data.path is not None and config.model.name is not None
    with importing():
        from ddp_ft.diagnostics.examination import Asked
        from ddp_ft.diagnostics.examine import examine
        from ddp_ft.diagnostics.rendering import as_json, as_text, has_problem, summary

    asked = Asked(tuple(layers), run_dir or (default_run_dir(config) if is_whole else Path("runs")), quick)
    families = examine(asked, progress_printer() if not wants_json or sys.stderr.isatty() else None)
    if families is None:  # rank 0 prints
        return EXIT_DONE
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print_note(as_json(families) if wants_json else as_text(families, columns))
    if not has_problem(families):
        return EXIT_DONE
    write_error_file(f"doctor: {summary(families)}")
    return EXIT_USER_ERROR


def progress_printer() -> Callable[[int, int], None]:
    """Print progress on stderr: a line that is overwritten on a terminal, else a line every 10 s."""
    is_terminal, last = sys.stderr.isatty(), 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        last = last or time.monotonic()  # the clock runs from the first samples on
        if time.monotonic() - last >= (0.2 if is_terminal else 10.0) or (is_terminal and done == total):
            last = time.monotonic()
            end = "\n" if not is_terminal or done == total else "\r"
            click.echo(f"{done} of {total} read{end}", err=True, nl=False)

    return report


if __name__ == "__main__":
    run_command(doctor)
