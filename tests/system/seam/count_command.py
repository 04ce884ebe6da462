"""Toy command."""

from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def count(file: Path) -> None:
    """How many rows a file has."""
    click.echo(f"{len(file.read_text().splitlines())} rows")
