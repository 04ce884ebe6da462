"""Prints what a run folder holds: the table of results of its best model, and the first rows of a prediction."""

import csv
import json
import sys
from itertools import islice
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

Row = tuple[str, ...]


def result_rows(summary: dict[str, object]) -> list[Row]:
    """(name, value) of each metric and measure of a summary.json, as text."""
    groups = [(f"{part} {name}", value) for part in ("val", "test") for name, value in _items(summary.get(part))]
    measures = [(name, summary[name]) for name in ("images_per_second", "data_wait_share", "wall_seconds")]
    return [(name.replace("_", " "), f"{value:.4g}") for name, value in groups + measures]


def _items(group: object) -> list[tuple[str, object]]:
    return list(group.items()) if isinstance(group, dict) else []


def make_table(header: Row, rows: list[Row]) -> Table:
    """A table with its first column to the left and all others to the right."""
    table = Table()
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def read_csv(file: Path, count: int) -> tuple[Row, list[Row]]:
    """The header of a table of predictions and its first `count` rows, fit for reading.

    Numbers are shortened and paths cut to the name; empty columns and those of single classes (prob_*) are left out.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        header, *rows = islice(csv.reader(lines), count + 1)
    shown = [n for n, name in enumerate(header) if not name.startswith("prob_") and any(row[n] for row in rows)]
    return tuple(header[n] for n in shown), [tuple(_shorten(row[n]) for n in shown) for row in rows]


def _shorten(cell: str) -> str:
    try:
        return f"{float(cell):.3f}"
    except ValueError:
        return Path(cell).name


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--predictions",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Show this CSV instead.",
)
def main(run: Path, predictions: Path | None) -> None:
    """Print the results of the folder RUN."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    if predictions is not None:
        click.echo(f"{predictions}:")
        console.print(make_table(*read_csv(predictions, 8)))
        return
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    click.echo(f"{run}: {summary['status']} after {summary['step']} steps")
    console.print(make_table(("best model", "value"), result_rows(summary)))


if __name__ == "__main__":
    main()
