"""ddp_ft.train and a rival at the same time, each alone on half of the cores: `python -m benchmarks.side_by_side`.

On a machine whose speed changes from minute to minute, measurements one after the other differ by more than the
programs do. Side by side both meet the same minutes; then they change places, so that neither has the better cores.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from statistics import median

import click

from benchmarks.contenders import CONTENDERS, OURS, Contender, measure
from benchmarks.jpegs import ImageSet, write_jpegs
from benchmarks.speed_table import describe
from benchmarks.throughput import CACHE, Options, choose, machine, make_workload
from benchmarks.workload import Outcome, Workload
from ddp_ft.cli.process import run_command
from ddp_ft.errors import UserError

PATIENCE = 900.0


@click.command()
@click.option("--rivals", default="limit,torch_best,timm,lightning_best", show_default=True)
@click.option("--model", default="tf_efficientnet_lite0", show_default=True, help="Of timm; with random weights.")
@click.option("--image-size", default=128, show_default=True, type=click.IntRange(16))
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Images a step.")
@click.option("--images", default=1280, show_default=True, type=click.IntRange(8))
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1), help="Each in both places.")
def side_by_side(rivals: str, model: str, image_size: int, batch: int, images: int, epochs: int, rounds: int) -> None:
    """Measure ddp_ft.train against each rival, one process each, at the same time."""
    halves = halves_of(sorted(os.sched_getaffinity(0)))
    chosen, missing = choose(rivals)
    options = Options(
        ImageSet(images, max(10, images // 4)), model, image_size, batch, "auto", "cpu", 0, epochs, rounds,
        threads=len(halves[0]),
    )  # fmt: skip
    workload = make_workload(options, write_jpegs(CACHE / "jpegs", options.images), 1)
    click.echo(f"{machine()}\n\n{describe(workload)}; each beside another")
    for name in missing:
        click.echo(f"Not installed, so not measured: {name}.")
    for rival in chosen:
        ratios = []
        for number in range(rounds):
            ratios.append(sqrt(_ratio(rival, workload, halves) * _ratio(rival, workload, halves[::-1])))
            click.echo(f"{rival.key:18s} round {number + 1}/{rounds}: ours is {ratios[-1]:.3f} times as fast", err=True)
        click.echo(f"| {rival.title} | {median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |")


def halves_of(cores: Sequence[int]) -> list[list[int]]:
    """The first half and the second one, as many in each. UserError for a single core."""
    if len(cores) < 2:
        raise UserError("Two programs side by side need two cores, and this process may use one.", "Allow it more.")
    half = len(cores) // 2
    return [list(cores[:half]), list(cores[half : 2 * half])]


def _ratio(rival: Contender, workload: Workload, halves: list[list[int]]) -> float:
    with ThreadPoolExecutor(2) as both:
        pairs = [(CONTENDERS[OURS], halves[0]), (rival, halves[1])]
        found = list(both.map(lambda each: _measure(*each, workload), pairs))
    return found[0].images_per_second / found[1].images_per_second


def _measure(contender: Contender, cores: list[int], workload: Workload) -> Outcome:
    os.sched_setaffinity(0, cores)  # of this thread, and of the processes that it starts
    return measure(contender, workload, PATIENCE)


if __name__ == "__main__":
    run_command(side_by_side)
