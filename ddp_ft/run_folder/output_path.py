"""Where a command writes its result: tried before the work, which may take hours."""

import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ddp_ft.errors import UserError, printable
from ddp_ft.run_folder.contents import PURPOSES, check_encodable
from ddp_ft.run_folder.recognise import is_output

# What a probe writes, in bytes: a full disk may still have room for an empty file.
PROBE = 4096
HINT = "Choose another --output."


def check_output_file(
    output: Path, option: str = "--output", streams: bool = False, room: int = 0, inputs: Sequence[Path] = ()
) -> None:
    """UserError unless a file of that name can be written: as a whole, so beside it first, with `room` bytes.

    With `streams` it may be a device or a pipe, such as /dev/stdout. It may be none of `inputs`, and no file by which a
    run or a model is known.
    """
    given = f"{option} {printable(str(output))}".lstrip()
    if output.is_dir():
        raise UserError(f"{given} is a folder.", f"Expected the name of a file. {HINT}")
    if output.exists() and not output.is_file():
        if streams:
            return
        raise UserError(f"{given} is no regular file.", HINT)
    folder = output.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{given}: there is no folder {printable(str(folder))}.", f"Make it, or: {HINT}")
    if _is_one_of(output, inputs):
        raise UserError(f"{given} is what is read too, and would be lost.", HINT)
    if output.name in PURPOSES and output.exists() and is_output({each.name for each in folder.iterdir()}):
        raise UserError(f"{given} holds {PURPOSES[output.name][0]}, and would be lost.", HINT)
    _try(folder / f".{output.name}.{secrets.token_hex(4)}.writing", given, room, HINT)


def check_output_folder(output: Path, option: str = "--output", room: int = 0) -> None:
    """UserError unless a folder of that name can be made, with those above it, and `room` bytes be written to it."""
    check_encodable(output)
    given, folder = f"{option} {printable(str(output))}", output.absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{given}: {printable(str(folder))} is a file, and no folder.", f"Choose another {option}.")
    _try(folder / f".writing_{output.name}.{secrets.token_hex(4)}", given, room, f"Choose another {option}.")


def weights_size(path: Path) -> int:
    """The bytes of the weights of a run folder or model folder; 0 if they are not there, which their reader reports."""
    files = [folder / "model.safetensors" for folder in (path, path / "best")]
    return next((file.stat().st_size for file in files if file.is_file()), 0)


def _is_one_of(output: Path, inputs: Sequence[Path]) -> bool:
    for each in inputs:
        with suppress(OSError, ValueError):  # one is absent; a pattern, or a name that no file can have
            if each.samefile(output):
                return True
    return False


def _try(probe: Path, given: str, room: int, hint: str) -> None:
    try:
        try:
            with probe.open("xb") as stream:
                stream.write(b"\0" * PROBE)
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(probe.parent).free
    except OSError as error:
        raise UserError(f"{given} cannot be written: {error.strerror}.", hint) from None
    if free < room:
        text = f"{given}: {room / 2**20:.0f} MiB are needed, and {free / 2**20:.0f} MiB are free there."
        raise UserError(text, f"Make room, or: {hint}")
