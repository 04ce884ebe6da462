"""What a command's exceptions become."""

import errno

import click
import pytest

from ddp_ft.cli.process import run_command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "of_ann"), 2, "Error: of_ann: Permission denied.\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"a\xff"), 2, "Error: a\\udcff: File name too long.\n"),
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
