"""A command as a process: its error messages and exit codes."""

import errno
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

import click

from ddp_ft.cli.output import LostOutputError, has_colors, protect_streams, restart_in_utf8
from ddp_ft.config.synonyms import flag_answer, named_options
from ddp_ft.distributed.environment import ReportedByAnother, read_launch
from ddp_ft.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNREAD,
    EXIT_USER_ERROR,
    UserError,
    printable,
)  # fmt: skip

# torchrun ends all ranks as soon as one of them exits. A rank that has nothing to print waits this long, so that the
# one that prints is not cut off.
GRACE_SECONDS = 3.0
# What a file system refuses or lacks is the user's to mend, wherever it is met.
_OF_FILES = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ESTALE, errno.EIO,
    errno.EFBIG,
)  # fmt: skip
_PACKAGE = Path(__file__).parents[1]


def run_command(command: click.Command, arguments: list[str] | None = None) -> NoReturn:
    """Run a click command as the whole process. Its exit code is what the command returns (EXIT_DONE if nothing), or
    EXIT_USER_ERROR, EXIT_FAILED, EXIT_INTERRUPTED or EXIT_UNREAD.

    A message is printed once, by one rank, and written to torchrun's error file too.
    """
    restart_in_utf8()
    protect_streams()
    _print_warnings_plainly()
    try:
        _check_working_folder()
        code = command.main(arguments, standalone_mode=False) or EXIT_DONE
    except LostOutputError as lost:
        code = lost.code if lost.code == EXIT_UNREAD else _report(str(lost), "", lost.code)
    except ReportedByAnother:
        time.sleep(GRACE_SECONDS)
        code = EXIT_USER_ERROR
    except UserError as error:
        code = _report(error.message, error.hint, EXIT_USER_ERROR)
    except click.ClickException as error:
        code = _report(_message(error), _usage(error), EXIT_USER_ERROR)
    except (KeyboardInterrupt, click.Abort):
        code = EXIT_INTERRUPTED
    except OSError as error:
        if isinstance(error.filename, (str, bytes)) and error.errno in _OF_FILES:
            code = _report(f"{printable(os.fsdecode(error.filename))}: {error.strerror}.", "", EXIT_USER_ERROR)
        else:
            code = _report_internal(error)
    except Exception as error:
        code = _report_internal(error)
    sys.stdout.flush()
    if code != EXIT_DONE and _is_connected():
        sys.stderr.flush()
        os._exit(code)  # Python's own end would take down NCCL, which may wait for other ranks
    sys.exit(code)


def _print_warnings_plainly() -> None:
    """Those of ddp_ft itself as one line, once each, without Python's line of code; others stay as they are."""
    with_code, printed = warnings.formatwarning, set[str]()

    def text(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if not Path(filename).is_relative_to(_PACKAGE):
            return with_code(message, category, filename, lineno, line)
        # Python's own "once" forgets what it has shown whenever a library changes the filters.
        is_new = str(message) not in printed
        printed.add(str(message))
        return f"Warning: {message}\n" if is_new else ""

    warnings.formatwarning = text


def _report_internal(error: Exception) -> int:
    return _report(f"{type(error).__name__}: {error}", traceback.format_exc(), EXIT_FAILED, is_internal=True)


def _is_connected() -> bool:
    """Whether a failure has left the process group as it was."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _check_working_folder() -> None:
    # Before torch is imported: Intel's library ends the process there, with a message about itself.
    try:
        Path.cwd()
    except OSError as error:
        hint = "It was removed, or is no longer mounted. Change to a folder that is there, and start again."
        raise UserError(f"The working folder cannot be used: {error.strerror}.", hint) from None


def _message(error: click.ClickException) -> str:
    """click's; or what the command calls an option of other tools, if it has it under another name."""
    if isinstance(error, click.NoSuchOption) and error.ctx:
        answer = flag_answer(error.option_name, error.ctx.command.name or "")
        own = {name for each in error.ctx.command.params for name in each.opts}
        if answer and own.issuperset(word for word in named_options(answer) if word.startswith("--")):
            return f"There is no option {error.option_name}. {answer}"
    return error.format_message()


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"Try '{context.command_path} --help'." if context else ""


def _report(message: str, hint: str, code: int, is_internal: bool = False) -> int:
    if _may_print():
        label = "Internal error" if is_internal else "Error"
        label = click.style(f"{label}:", fg="red", bold=True) if has_colors(sys.stderr) else f"{label}:"
        print(f"{label} {message}" + (f"\n{hint}" if hint else ""), file=sys.stderr, flush=True)  # noqa: T201
        write_error_file(message)
    return code


def _may_print() -> bool:
    """Whether this rank is the one to print; returns late on the others."""
    try:
        launch = read_launch()
    except UserError:
        return True
    world = sys.modules.get("ddp_ft.distributed.world")
    if launch.distributed and world is not None and world.failure_store is not None:
        first: bool = world.claim_failure(launch.rank)
        if not first:
            time.sleep(GRACE_SECONDS)
        return first
    # Before the process group is formed most mistakes are found by all ranks, and rank 0 prints. A rank that still
    # runs after the grace has found another one: then one process of its node prints.
    if launch.rank:
        time.sleep(GRACE_SECONDS * (1 + launch.local_rank))
    return True


def write_error_file(message: str) -> None:
    """Write the message for torchrun's table, if torchrun started this process."""
    # The format that torchrun's agent reads (torch.distributed.elastic.multiprocessing.errors). Written here because
    # its own writer adds a traceback.
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
