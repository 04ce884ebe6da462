"""How a command ends as a process, and what its exceptions become."""

import errno
import sys
import warnings
from pathlib import Path

import click
import pytest

from ddp_ft.cli import process
from ddp_ft.cli.process import run_command
from ddp_ft.errors import UserError
from tests.support.fork_server import PATIENCE, become, fork


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "of_ann"), 2, "Error: of_ann: Permission denied.\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"a\xff"), 2, "Error: a\\udcff: File name too long.\n"),
        (OSError(errno.EFBIG, "File too large", "x.csv"), 2, "Error: x.csv: File too large.\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "plan"), 1, "Internal error: FileNotFoundError"),
        (OSError("of no file"), 1, "Internal error: OSError: of no file"),
    ],
)  # fmt: skip
def test_what_a_file_system_refuses_is_one_message(
    error: OSError, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(command, [])
    printed = capsys.readouterr().err
    assert ended.value.code == code and printed.startswith(message)
    assert ("Traceback" in printed) == (code == 1)


def test_a_warning_is_one_line_and_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def command() -> None:
        for line in (1, 2):
            print(warnings.formatwarning("net.py has changed.", UserWarning, process.__file__, line), end="")
        print(warnings.formatwarning("of a library", UserWarning, "/lib/torch.py", 3), end="")

    before = warnings.formatwarning
    try:
        with pytest.raises(SystemExit):
            run_command(command, [])
    finally:
        warnings.formatwarning = before
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Warning: net.py has changed." and second.startswith("/lib/torch.py:3: UserWarning")


def test_a_working_folder_that_vanished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as ended:
        run_command(click.Command("train"), [])
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.startswith("Error: The working folder") and "Traceback" not in printed


def fail(folder: Path, connected: bool) -> None:
    """A command that fails, with a process group or without; Python's own end leaves a file."""
    become({}, folder)
    from torch import distributed

    from ddp_ft.cli.process import run_command

    @click.command()
    def command() -> None:
        if connected:
            distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        raise UserError("It failed.")

    with Path("printed").open("w") as sys.stderr:
        try:
            run_command(command, [])
        finally:
            Path("ended").touch()


@pytest.mark.parametrize("connected", [True, False])
def test_a_failure_within_a_process_group_ends_at_once(tmp_path, connected):
    """The message first; then nothing that could wait for other ranks, as NCCL does when it is taken down."""
    process = fork(fail, tmp_path, connected)
    process.join(PATIENCE)
    assert process.exitcode == 2 and (tmp_path / "printed").read_text() == "Error: It failed.\n"
    assert (tmp_path / "ended").exists() != connected
