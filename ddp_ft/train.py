"""`python -m ddp_ft.train`, alone or under torchrun: fine-tune a model, or resume an unfinished run."""

from pathlib import Path
from typing import Any

import click

from ddp_ft.cli.early_checks import check_early, check_texts
from ddp_ft.cli.options import config_options, default_run_dir, given_layers, importing, run_options
from ddp_ft.cli.output import print_result
from ddp_ft.cli.own_code import is_own_code_alone, try_own_code
from ddp_ft.cli.process import run_command
from ddp_ft.cli.ranks import GroupedCommandOfRanks, run_in_ranks
from ddp_ft.config.loading import make_config
from ddp_ft.distributed.environment import read_launch
from ddp_ft.errors import EXIT_DONE, EXIT_STOPPED
from ddp_ft.version import __version__


@click.command(cls=GroupedCommandOfRanks)
@config_options
@run_options
@click.option("--extend", is_flag=True, help="Lengthen the run in --run-dir to --epochs.")
@click.option("--dry-run", is_flag=True, help="Write nothing, do no step; without --data: try your own code.")
@click.option("--tune", is_flag=True, help="Measure at the first start what else is decided by fixed rules.")
@click.option("--quiet", is_flag=True, help="Print warnings and errors alone, as --log-level warning.")
@click.option("--print-run-dir", is_flag=True, help="Check the options, print the run folder, and do no more.")
@click.version_option(__version__, prog_name="ddp_ft")
def train(
    run_dir: Path | None, config_file: Path | None, assignments: tuple[str, ...], extend: bool, dry_run: bool,
    tune: bool, quiet: bool, print_run_dir: bool, **flags: Any,
) -> int:  # fmt: skip
    """Fine-tune a pretrained vision model on your images.

    Started again with the same options, it resumes. In brackets: the default. All keys of --set: `ddp-ft config
    --list`.
    """
    launch = read_launch()
    layers = given_layers(config_file, flags, assignments)
    layers += [{"log.level": "warning"}] if quiet else []
    config = make_config(*layers)
    if dry_run and not print_run_dir and is_own_code_alone(config):
        check_texts(config)
        return try_own_code(config, print_result if launch.rank == 0 else lambda line: None)
    check_early(config)
    folder = run_dir or default_run_dir(config)
    if print_run_dir:
        print_result(str(folder.absolute()))
        return EXIT_DONE
    on_cpu = config.compute.device == "cpu"
    if (code := run_in_ranks("ddp_ft.train", on_cpu, None if dry_run else folder)) is not None:
        return code
    with importing():  # takes seconds, which the mistakes above need not wait for
        from ddp_ft.run import fine_tune
        from ddp_ft.training.request import Request

    status = fine_tune(Request(folder, tuple(layers), extend, dry_run, tune), launch)
    # For a worker of torchrun a stop is a success: the agent would restart or report any other exit code.
    return EXIT_STOPPED if status == "stopped" and not launch.distributed else EXIT_DONE


if __name__ == "__main__":
    run_command(train)
