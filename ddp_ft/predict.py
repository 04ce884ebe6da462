"""`python -m ddp_ft.predict RUN INPUT... [--output FILE]`, alone or under torchrun: one row for each image."""

from pathlib import Path
from typing import BinaryIO, cast

import click

from ddp_ft.cli.options import PATH, PATTERN, asked_options, data_settings, importing
from ddp_ft.cli.output import ResultStream, print_note
from ddp_ft.cli.process import run_command
from ddp_ft.cli.ranks import CommandOfRanks, run_in_ranks
from ddp_ft.distributed.environment import read_launch
from ddp_ft.errors import EXIT_DONE, UserError
from ddp_ft.inference.asked import Asked
from ddp_ft.texts import plural

STREAM = "-"


@click.command(cls=CommandOfRanks)
@asked_options
@click.argument("inputs", nargs=-1, required=True, type=PATTERN, metavar="INPUT...")
@click.option("--output", type=PATH, help="File: .csv, .jsonl or .parquet; -: print them.  [default: lines to look at]")
@click.option("--format", "kind", type=click.Choice(["csv", "jsonl"]), help="Of --output -.  [default: csv]")
@click.option("--column", metavar="NAME", help="A table's column of paths.  [default: as the run's table, or image]")
@click.option(
    "--set", "assignments", multiple=True, metavar="data.image=NAME", help="The same as --column, as for evaluate."
)
@click.option(
    "--show", type=PATH, metavar="FOLDER",
    help="Write the images into this new folder, with the answers below them.",
)  # fmt: skip
@click.option(
    "--top-k", type=click.IntRange(min=1), default=1, show_default=True, metavar="K",
    help="The K likeliest classes, with their probabilities.",
)  # fmt: skip
def predict(
    asked: Asked,
    inputs: tuple[str, ...],
    output: Path | None,
    kind: str | None,
    column: str | None,
    assignments: tuple[str, ...],
    show: Path | None,
    top_k: int,
) -> int:
    """Classify images with a run folder's best model, or with an exported one.

    An INPUT is an image, a folder of them, a pattern in quotes ('photos/**/*.jpg'), a CSV or Parquet table with a
    column of paths (relative to the table), or - for standard input, one path a line.

    One row for each image, in input order; an image that cannot be read has its reason in `error`. After a kill, the
    same command with a file computes the missing rows, also on another number of processes.
    """
    launch, named = read_launch(), data_settings(assignments, only=("data.image",))
    if kind and output and str(output) != STREAM:
        raise UserError(f"--format {kind} is for --output -: the suffix of {output} names its format.")
    if (code := run_in_ranks("ddp_ft.predict", asked.device == "cpu")) is not None:
        return code
    with importing():
        from ddp_ft.inference.predict_files import predict_files
        from ddp_ft.inference.predict_request import Request
        from ddp_ft.inference.predict_stream import predict_to_stream
        from ddp_ft.inference.table_writers import LINES

    request = Request(asked, inputs, named.get("data.image", column), top_k, show)
    if output is None or str(output) == STREAM:
        form = f".{kind or 'csv'}" if output or kind else LINES
        predict_to_stream(request, form, cast(BinaryIO, ResultStream()), launch)
        return EXIT_DONE
    answer = predict_files(request, output, launch)
    if launch.rank == 0:
        faulty = f", {answer.errors} with an error" if answer.errors else ""
        old = f" ({answer.taken_over} were there from an interrupted start)" if answer.taken_over else ""
        shown = f"; images in {show}" if show else ""
        print_note(f"{plural(answer.rows, 'row')} in {output}{faulty}{old}{shown}")
    return EXIT_DONE


if __name__ == "__main__":
    run_command(predict)
