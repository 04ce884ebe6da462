"""`ddp-ft report RUN...`: a run as one page, or several runs beside each other."""

from pathlib import Path

import click

from ddp_ft.cli.options import PATH, PathOf, data_option, device_option, importing
from ddp_ft.cli.output import print_note, print_result
from ddp_ft.distributed.environment import read_launch
from ddp_ft.errors import UserError
from ddp_ft.run_folder.output_path import check_output_file

COMPARISON = Path("comparison.html")


@click.command()
@click.argument("runs", type=PATH, metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--output", type=PathOf(path_type=Path, dir_okay=False), metavar="FILE",
    help=f"The page.  [default: report.html in RUN; of several {COMPARISON} here]",
)  # fmt: skip
@data_option
@click.option(
    "--learning-curve", is_flag=True,
    help="First measure, with heads on frozen features, what 1/8 to all of the images give: would more help?",
)  # fmt: skip
@device_option
def report(runs: tuple[Path, ...], output: Path | None, data: Path | None, learning_curve: bool, device: str) -> None:
    """Write a page about a run, finished or not: RUN/report.html, and RUN/model_card.md beside it.

    For several runs, the page compares their results with intervals, the differences of their recipes, their curves,
    and tests on the images of their common validation set whether one is really better. The first run determines the
    metric. No model is run and no GPU is needed, but for --learning-curve; --data is for the images on the page.
    """
    if output is not None or len(runs) > 1:
        check_output_file(output or COMPARISON, streams=True)
    if len(runs) > 1 and data is not None:
        raise UserError("--data is for the images of one run; a comparison shows none.", "Leave --data out.")
    if learning_curve and len(runs) > 1:
        raise UserError("--learning-curve is of one run.", "Name a single one.")
    if learning_curve:
        _measure_curve(runs[0], data, device)
    # torch and matplotlib take seconds, which mistakes need not wait for.
    if len(runs) == 1:
        from ddp_ft.reporting.writing import write_report

        print_note("\n".join(write_report(runs[0], output, data=data)))
    else:
        from ddp_ft.reporting.comparison import write_comparison

        print_note("\n".join(write_comparison(runs, output or COMPARISON)))


def _measure_curve(run: Path, data: Path | None, device: str) -> None:
    with importing():
        from ddp_ft.diagnostics.learning_curve import learning_curve
        from ddp_ft.diagnostics.stored_run import one_process
        from ddp_ft.reporting.curve import describe

    with one_process(device, read_launch()) as here:
        print_result(describe(learning_curve(run, data, here, print_note)))
