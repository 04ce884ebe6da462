"""`ddp-ft replay RUN STEP`: one step of a run again, to see where it stops being finite."""

from pathlib import Path

import click

from ddp_ft.cli.options import PATH, data_option, device_option
from ddp_ft.cli.output import print_result
from ddp_ft.distributed.environment import read_launch
from ddp_ft.errors import EXIT_DONE, EXIT_FAILED


@click.command()
@click.argument("run", type=PATH, metavar="RUN")
@click.argument("step", type=int, metavar="STEP")
@data_option
@device_option
def replay(run: Path, step: int, data: Path | None, device: str) -> int:
    """Run the batch of one step of RUN again, in one process, and change nothing.

    STEP counts as in metrics.jsonl, from 1. The batch has the same images with the same augmentation, mixing and
    random masks, in the same precision and micro-batches. The weights are those at the start of the step if it was a
    bad one (bad_batches/), else those of the newest checkpoint before it. Prints each image with its loss, and the
    gradient by layer. Exit code 0 if all is finite, 1 if something is not.
    """
    launch = read_launch()
    from ddp_ft.diagnostics.step_replay import replay_step
    from ddp_ft.diagnostics.stored_run import one_process

    with one_process(device, launch) as here:
        return EXIT_DONE if replay_step(run, step, data, here, print_result) else EXIT_FAILED
