"""`ddp-ft average RUN --last K --output FOLDER`: several checkpoints of a run as one model."""

from pathlib import Path

import click

from ddp_ft.cli.options import PATH, data_option, device_option
from ddp_ft.cli.output import print_note
from ddp_ft.distributed.environment import read_launch
from ddp_ft.run_folder.output_path import check_output_folder, weights_size

COUNT = click.IntRange(min=1)


@click.command()
@click.argument("run", type=PATH, metavar="RUN")
@click.option("--last", type=COUNT, metavar="K", help="Average the K newest checkpoints (SWA).")
@click.option("--best", type=COUNT, metavar="K", help="Average the K checkpoints with the best validation.")
@click.option(
    "--greedy",
    is_flag=True,
    help="From the best checkpoint on, take in each that does not lower the validation (greedy soup).",
)
@click.option(
    "--output", type=PATH, required=True, metavar="FOLDER",
    help="New model folder; within the run folder, evaluate finds the run's split.",
)  # fmt: skip
@data_option
@device_option
def average(
    run: Path, last: int | None, best: int | None, greedy: bool, output: Path, data: Path | None, device: str
) -> None:
    """Average the weights of checkpoints of RUN into one model, for evaluate and predict.

    Only checkpoints that are still there can be averaged: a run keeps the checkpoint.keep newest and the
    checkpoint.keep_best best. The data is for batch norm's statistics and for validation. Runs as one process, without
    torchrun.
    """
    launch = read_launch()
    check_output_folder(output, room=weights_size(run))
    from ddp_ft.inference.weight_averaging import AverageRequest, average_checkpoints

    average_checkpoints(AverageRequest(run, output, last, best, greedy, data, device), launch, print_note)
