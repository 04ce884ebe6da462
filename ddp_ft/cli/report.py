"""`ddp-ft report RUN...`: a run as one page, or several runs beside each other."""

from pathlib import Path

import click

from ddp_ft.cli.options import PATH, PathOf, data_option
from ddp_ft.cli.output import print_note
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
def report(runs: tuple[Path, ...], output: Path | None, data: Path | None) -> None:
    """Write a page about a run, finished or not: RUN/report.html, and RUN/model_card.md beside it.

    For several runs, the page compares their results with intervals, the differences of their recipes, their curves,
    and tests on the images of their common validation set whether one is really better. The first run determines the
    metric. No model is run and no GPU is needed; --data is for the images on the page.
    """
    if output is not None or len(runs) > 1:
        check_output_file(output or COMPARISON, streams=True)
    if len(runs) > 1 and data is not None:
        raise UserError("--data is for the images of one run; a comparison shows none.", "Leave --data out.")
    # torch and matplotlib take seconds, which mistakes need not wait for.
    if len(runs) == 1:
        from ddp_ft.reporting.writing import write_report

        print_note("\n".join(write_report(runs[0], output, data=data)))
    else:
        from ddp_ft.reporting.comparison import write_comparison

        print_note("\n".join(write_comparison(runs, output or COMPARISON)))
