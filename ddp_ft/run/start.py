"""The start of a run: what is asked for is composed, given its run folder, tuned if asked, described, and trained."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from ddp_ft.contracts import DONE
from ddp_ft.distributed.agreement import StopAgreed
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.stop_request import STOP_FILE_VARIABLE
from ddp_ft.distributed.world import Machine
from ddp_ft.reporting.startup_table import print_start
from ddp_ft.run.joined import joined
from ddp_ft.run.phases import resume, stop_before_training, train_run
from ddp_ft.run_folder.folder import STOP_FILE, RunFolder
from ddp_ft.run_folder.lease import Lease
from ddp_ft.slurm.walltime import read_allocation
from ddp_ft.trackers.console import make_console
from ddp_ft.trackers.rank_log import logging_to
from ddp_ft.trackers.services.registry import service_names
from ddp_ft.training.build import compose
from ddp_ft.training.compile import check_compiling
from ddp_ft.training.open_run import describe_run, open_folder
from ddp_ft.training.plan import earlier_plan
from ddp_ft.training.request import Request, begun_with, is_finished
from ddp_ft.tuning.tune import before_measuring, keys_to_measure, print_measured, tune


def fine_tune(request: Request, launch: Launch) -> str:
    """Begin or continue a run; return DONE or STOPPED. Raises UserError for what the user can correct."""
    config = request.config()
    service_names(config.log.trackers)  # an unknown name is reported now
    with joined(config.compute, launch, _stop_files(request), request.run_dir / "stacks") as machine:
        return _fine_tune(request, machine)


def _stop_files(request: Request) -> list[Path]:
    named = os.environ.get(STOP_FILE_VARIABLE)
    own = [] if request.dry_run else [request.run_dir / STOP_FILE]  # a dry run does not remove an old one
    return [*own, *([Path(named)] if named else [])]


def _fine_tune(request: Request, machine: Machine) -> str:
    world, folder = machine.world, RunFolder(request.run_dir)
    console = make_console(world.is_main, request.config().log.level)
    request = request.after(*world.from_main(lambda: (earlier_plan(folder, console.print), begun_with(folder))))
    recipe = request.earlier.recipe if request.earlier else None  # what `auto` became holds for all further starts
    config = request.config(recipe)
    if world.from_main(lambda: is_finished(folder, config, request.extend)):
        how = "" if config.data.fold else " Add --extend with more --epochs to lengthen it."  # kfold takes no --extend
        console.print(f"{folder.path} holds this run, which is finished.{how}")
        return DONE
    keys = keys_to_measure(request)
    check_compiling(config, world, machine.launch)
    allocation = read_allocation(looks=world.is_main)
    machine.stop.deadline = allocation.stop_at
    with before_measuring(keys):
        run, state, report = compose(config, request, machine)
    lease = Lease(folder.path, lambda: state.progress.step)
    try:
        if not request.dry_run:
            open_folder(run, lease)
        with nullcontext() if request.dry_run else logging_to(folder.path, world.rank), lease.noting_mistakes():
            if keys:
                tuned, rows = tune(run, keys, machine.launch.local_world_size)
                print_measured(rows, console)
                measured = [*request.measured, *rows]
                request = replace(request, tuned={**request.tuned, **tuned}, measured=measured)
                run, state, report = compose(request.config(recipe), request, machine, run.splits)
            print_start(run, report, request.earlier, console, allocation.end)
            if request.dry_run:
                console.print("Dry run: nothing was trained and nothing was written.")
                return DONE
            describe_run(run)
            run = resume(run, state, console)
            lease.begin_at(state.progress.step)
            return train_run(run, state, console, allocation)
    except StopAgreed:  # while something was measured
        return stop_before_training(run, state, console, writes=not request.dry_run)
    finally:
        run.writer.wait()
        lease.release()
