"""`python -m ddp_ft.doctor`, alone or under torchrun: what is wrong, before hours are spent."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ddp_ft.cli.options import config_options, default_run_dir, given_layers, importing, run_options
from ddp_ft.cli.process import DONE, USER_ERROR, run_command, write_error_file
from ddp_ft.config.loading import make_config


@click.command()
@config_options
@run_options
@click.option("--json", "wants_json", is_flag=True, help="Print JSON, with the paths of all images concerned.")
@click.option("--quick", is_flag=True, help="Do not read all images, and measure neither disk nor training.")
def doctor(
    run_dir: Path | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    wants_json: bool,
    quick: bool,
    **flags: Any,
) -> int:
    """Look at the machine, the job, the data and the speed, with the options of train; without --data at the machine.

    Nothing is trained, and the run folder is left as it is. Exit code 2 if there is a problem; warnings give 0.
    """
    layers = given_layers(config_file, flags, assignments)
    config = make_config(*layers)
    is_whole = config.data.path is not None and config.model.name is not None
    with importing():
        from ddp_ft.diagnostics.examination import Asked
        from ddp_ft.diagnostics.examine import examine
        from ddp_ft.diagnostics.rendering import as_json, as_text, has_problem, summary

    asked = Asked(tuple(layers), run_dir or (default_run_dir(config) if is_whole else Path("runs")), quick)
    families = examine(asked, teller() if not wants_json or sys.stderr.isatty() else None)
    if families is None:  # another rank speaks
        return DONE
    click.echo(as_json(families) if wants_json else as_text(families))
    if not has_problem(families):
        return DONE
    write_error_file(f"doctor: {summary(families)}")
    return USER_ERROR


def teller(every: float = 10.0) -> Callable[[int, int], None]:
    """Progress on stderr: a line that is written over on a terminal, else one line every so many seconds."""
    is_terminal, last = sys.stderr.isatty(), [0.0]

    def tell(done: int, total: int) -> None:
        last[0] = last[0] or time.monotonic()  # the clock runs from the first images on
        if time.monotonic() - last[0] >= (0.2 if is_terminal else every) or (is_terminal and done == total):
            last[0] = time.monotonic()
            end = "\n" if not is_terminal or done == total else "\r"
            click.echo(f"{done} of {total} images read{end}", err=True, nl=False)

    return tell


if __name__ == "__main__":
    run_command(doctor)
