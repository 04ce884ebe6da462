"""`python -m ddp_ft.evaluate RUN --data DIR`, alone or under torchrun: metrics of a trained model or several."""

from pathlib import Path

import click

from ddp_ft.cli.options import PATH, PATTERN, asked_options, data_settings, data_settings_option, importing
from ddp_ft.cli.output import json_text, print_note, print_result
from ddp_ft.cli.process import run_command
from ddp_ft.cli.ranks import CommandOfRanks, run_in_ranks
from ddp_ft.distributed.environment import read_launch
from ddp_ft.errors import EXIT_DONE, UserError
from ddp_ft.files import to_json, write_text
from ddp_ft.inference.asked import VALIDATION, Asked
from ddp_ft.run_folder.output_path import check_output_file

_NOT_HONEST = (
    "Note: the thresholds were chosen for the largest F1 on the run's validation images. On these, F1 and exact_match "
    "are better than on new ones: --split test, or other data, shows how good they are."
)


@click.command(cls=CommandOfRanks)
@asked_options
@click.argument("others", nargs=-1, type=PATTERN, metavar="")
@click.option("--data", type=PATH, help="Class folders, split or not, or a table.  [default: the run's own]")
@click.option(
    "--split",
    type=click.Choice(["val", "test", "train", "all"]),
    help="Which part; default: val if there is one, else all.",
)
@data_settings_option
@click.option("--output", type=PATH, help="Write the metrics to this JSON file too.")
def evaluate(
    asked: Asked,
    others: tuple[str, ...],
    data: Path | None,
    split: str | None,
    assignments: tuple[str, ...],
    output: Path | None,
) -> int:
    """Print the metrics of a run folder's best model on a data set, as JSON.

    Every image counts exactly once, whatever the number of processes.
    """
    if others:
        raise UserError(f"evaluate takes one model, and no further argument: {others[0]}.", "Data: --data PATH.")
    launch, settings = read_launch(), data_settings(assignments)
    if output and launch.rank == 0:
        check_output_file(output, streams=True, inputs=[data] if data else [])
    if (code := run_in_ranks("ddp_ft.evaluate", asked.device == "cpu")) is not None:
        return code
    with importing():
        from ddp_ft.inference.evaluate_models import Request, score_models

    metrics = score_models(Request(asked, data, split, settings), launch)
    if launch.rank == 0:
        if asked.thresholds == VALIDATION and metrics["split"] != "test":
            click.echo(_NOT_HONEST, err=True)
        if output:
            write_text(output, to_json(metrics), durable=False)
        (print_note if output else print_result)(json_text(metrics))
    return EXIT_DONE


if __name__ == "__main__":
    run_command(evaluate)
