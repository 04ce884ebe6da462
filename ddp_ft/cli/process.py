"""A command as a process: what its errors print, and its exit codes."""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import click

from ddp_ft.distributed.environment import Launch, read_launch
from ddp_ft.errors import UserError

DONE, FAILED, USER_ERROR, STOPPED = 0, 1, 2, 75
# torchrun ends all ranks as soon as one of them exits. A rank that has nothing to add waits this long, so
# that the one that speaks is not cut off.
GRACE_SECONDS = 3.0


def run_command(command: click.Command, arguments: list[str] | None = None) -> NoReturn:
    """Run a click command as the whole process: its exit code is DONE, STOPPED, USER_ERROR or FAILED.

    A message is printed once, by one rank, and stands in torchrun's error file too.
    """
    try:
        code = command.main(arguments, standalone_mode=False) or DONE
    except UserError as error:
        code = _report(error.message, error.hint, USER_ERROR)
    except click.ClickException as error:
        code = _report(error.format_message(), _usage(error), USER_ERROR)
    except (KeyboardInterrupt, click.Abort):
        code = 130  # as shells report an interrupt
    except Exception as error:
        code = _report(f"{type(error).__name__}: {error}", traceback.format_exc(), FAILED)
    sys.stdout.flush()
    sys.exit(code)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"Try '{context.command_path} --help'." if context else ""


def _report(message: str, hint: str, code: int) -> int:
    if _may_speak():
        label = "Error" if code == USER_ERROR else "Internal error"
        print(f"{label}: {message}" + (f"\n{hint}" if hint else ""), file=sys.stderr, flush=True)  # noqa: T201
        write_error_file(message)
    return code


def _may_speak() -> bool:
    """Whether this rank is the one to print; returns late on those that are not."""
    try:
        launch = read_launch()
    except UserError:
        return True
    if not launch.distributed:
        return True
    distributed = sys.modules.get("ddp_ft.distributed.world")
    if distributed is not None and distributed.failure_store is not None:
        first: bool = distributed.claim_failure(launch.rank)
        if not first:
            time.sleep(GRACE_SECONDS)
        return first
    return _is_alone_before_the_group(launch)


def _is_alone_before_the_group(launch: Launch) -> bool:
    # Most mistakes found this early are found by all ranks alike, and rank 0 tells. Who is still alive after
    # the grace has met one that rank 0 did not: one process of the node then speaks.
    if launch.rank == 0:
        return True
    time.sleep(GRACE_SECONDS * (1 + launch.local_rank))
    return True


def write_error_file(message: str) -> None:
    """Let torchrun's table show the message, if there is a torchrun."""
    # The format that torchrun's agent reads (torch.distributed.elastic.multiprocessing.errors); a plain text is
    # shown as it is. Written here because its own writer adds a traceback.
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
