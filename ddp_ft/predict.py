"""`python -m ddp_ft.predict RUN INPUT... --output FILE`, alone or under torchrun: one row for each picture."""

from pathlib import Path

import click

from ddp_ft.command import also_option, device_option, run_command, views_option
from ddp_ft.environment import read_launch


@click.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="RUN_OR_MODEL")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="CSV file to write.")
@device_option
@also_option
@views_option
def predict(model: Path, inputs: tuple[str, ...], output: Path, device: str, also: tuple[Path, ...], tta: str) -> None:
    """Classify pictures (files, or folders of them) with a run folder's best model.

    One row for each picture, in input order; a picture that cannot be read has its reason in the column `error`.
    """
    launch = read_launch()
    from ddp_ft.scoring import predict_files

    rows, errors = predict_files([model, *also], inputs, output, tta, device, launch)
    if launch.rank == 0:
        click.echo(f"{rows} rows in {output}" + (f", {errors} with an error" if errors else ""))


if __name__ == "__main__":
    run_command(predict)
