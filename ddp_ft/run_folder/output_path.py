"""Where a command writes its result: tried before the work, which may take hours."""

import os
import secrets
import shutil
from pathlib import Path

from ddp_ft.errors import UserError, printable
from ddp_ft.run_folder.contents import check_encodable

# What a probe writes, in bytes: a full disk may still have room for an empty file.
PROBE = 4096
HINT = "Choose another --output."


def check_output_file(output: Path, option: str = "--output", streams: bool = False, room: int = 0) -> None:
    """UserError unless a file of that name can be written: as a whole, so beside it first, with `room` bytes.

    With `streams` it may be a device or a pipe, such as /dev/stdout.
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
    _try(folder, f".{output.name}.{secrets.token_hex(4)}.writing", given, room)


def check_output_folder(output: Path, option: str = "--output", room: int = 0) -> None:
    """UserError unless a folder of that name can be made, with those above it, and `room` bytes be written to it."""
    check_encodable(output)
    given, folder = f"{option} {printable(str(output))}", output.absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{given}: {printable(str(folder))} is a file, and no folder.", HINT)
    _try(folder, f".writing_{output.name}.{secrets.token_hex(4)}", given, room)


def weights_size(path: Path) -> int:
    """The bytes of the weights of a run folder or model folder; 0 if they are not there, which their reader reports."""
    files = [folder / "model.safetensors" for folder in (path, path / "best")]
    return next((file.stat().st_size for file in files if file.is_file()), 0)


def _try(folder: Path, name: str, given: str, room: int) -> None:
    probe = folder / name
    try:
        try:
            with probe.open("xb") as stream:
                stream.write(b"\0" * PROBE)
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"{given} cannot be written: {error.strerror}.", HINT) from None
    if free < room:
        text = f"{given}: {room / 2**20:.0f} MiB are needed, and {free / 2**20:.0f} MiB are free there."
        raise UserError(text, f"Make room, or: {HINT}")
