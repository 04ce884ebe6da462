"""The run folder at a start: made, claimed, checked to be shared, and the run described in it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ddp_ft.errors import UserError
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.lease import Lease
from ddp_ft.run_folder.provenance import record_start
from ddp_ft.run_folder.shared import wait_for
from ddp_ft.training.state import Job


def open_folder(job: Job, lease: Lease) -> None:
    """Make the run folder and take the right to write it; check that every node sees it. UserError if that cannot be.

    A request to stop that is older than this launch is removed, and so is the summary of an earlier start.
    """
    folder, world = job.folder, job.world
    token = world.from_main(lambda: _create_folder(job, lease))
    sees = wait_for(folder.path / ".shared", token)
    seen = world.gather(sees)
    blind = world.from_main(lambda: [rank for rank, good in enumerate(seen or []) if not good])
    if blind:
        raise UserError(
            f"Run folder {folder.path} is not shared: rank 0 wrote to it, "
            f"but rank(s) {', '.join(map(str, blind))} do not see that.",
            "Give --run-dir a folder on a file system that all nodes mount.",
        )


def _create_folder(job: Job, lease: Lease) -> str:
    folder = job.folder
    folder.create()
    lease.take()
    token = secrets.token_hex(8)
    with _writable(folder):
        folder.clear_old_stop(job.launched)
        (folder.path / "summary.json").unlink(missing_ok=True)
        (folder.path / ".shared").write_text(token)
    return token


@contextmanager
def _writable(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Run folder {folder.path} cannot be written to: {error.strerror}.", "Make room, or choose another."
        ) from None


def describe_run(job: Job) -> None:
    """Write what a run is described by into its folder. UserError if it cannot be written to."""
    job.world.from_main(lambda: _write_description(job))
    job.splits = replace(job.splits, record={})  # it names every picture, and is needed no more


def _write_description(job: Job) -> None:
    folder = job.folder
    with _writable(folder):
        _write_small_files(job, folder)


def _write_small_files(job: Job, folder: RunFolder) -> None:
    folder.write_config(job.config)
    folder.write_json("classes.json", list(job.splits.schema.names))
    if not (folder.path / "split.json").exists():
        folder.write_json("split.json", {"fingerprint": job.splits.fingerprint, **job.splits.record})
    folder.write_json("plan.json", job.plan.to_mapping())
    record_start(folder.path, job.world)
    if job.splits.quarantine is not None:
        job.splits.quarantine.open(folder.path)
