"""The rows that a prediction has computed so far: one file for each chunk of the inputs, complete or absent."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.files import write_bytes
from ddp_ft.run_folder.shared import put_token, seen_by

_KEY = re.compile(r"[0-9a-f]{16}")


class Part(NamedTuple):
    """A chunk's encoded rows, their number, and how many of them have an error."""

    rows: int
    errors: int
    content: bytes


@dataclass
class Parts:
    """The folder OUTPUT.parts/KEY, where KEY is a hash of all that the rows depend on.

    A rank that does not see rank 0's folder keeps its parts in memory, in `held`.
    """

    folder: Path
    is_shared: bool
    held: dict[int, Part] = field(default_factory=dict)

    def put(self, number: int, part: Part) -> None:
        """Keep the part of that chunk. UserError if it cannot be written."""
        if not self.is_shared:
            self.held[number] = part
            return
        try:  # a lost part is computed again
            write_bytes(self.folder / f"{number:08d}", _header(part) + part.content, durable=False, contested=True)
        except OSError as error:
            hint = "What is done is kept there: correct that, and the same command continues."
            if isinstance(error, FileNotFoundError):
                hint = "It was removed meanwhile: does another process write the same --output?"
            raise UserError(f"{self.folder} cannot be written to: {error.strerror}.", hint) from None

    def read(self, number: int) -> Part | None:
        """The part of that chunk; None if it is missing or damaged."""
        try:
            header, _, content = (self.folder / f"{number:08d}").read_bytes().partition(b"\n")
            described = json.loads(header)
            part = Part(int(described["rows"]), int(described["errors"]), content)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return part if _header(part) == header + b"\n" else None

    def all(self, chunks: int) -> Iterator[Part]:
        """The part of each chunk, in their order, one in memory at a time."""
        for number in range(chunks):
            part = self.read(number)
            assert part is not None, "prediction must compute one row for each input"
            yield part

    def remove(self) -> None:
        """Remove the folder, and its parent if that is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()


def _header(part: Part) -> bytes:
    """The first line of a part's file. The hash is for machines that lose power: a file may then be incomplete."""
    digest = hashlib.sha256(part.content).hexdigest()
    return json.dumps({"rows": part.rows, "errors": part.errors, "sha256": digest}).encode() + b"\n"


def parts_folder(output: Path, key: str) -> Path:
    """Where the parts of that output are."""
    return output.with_name(f"{output.name}.parts") / key


def open_parts(output: Path, key: str, world: World) -> Parts:
    """The parts of this output, none or those of an interrupted start; on every rank.

    Parts of other inputs, models or options are removed. UserError if the folder cannot be written to.
    """
    folder = parts_folder(output, key)
    token = world.from_main(lambda: _prepare(folder))
    seen = seen_by(world, folder / token)
    return Parts(folder, is_shared=world.is_main or seen[world.rank])  # rank 0 assembles the file from that folder


def _prepare(folder: Path) -> str:
    """Rank 0: make the folder, and a file in it that the other ranks look for. Return that file's name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.parent.iterdir():
            if other != folder and _KEY.fullmatch(other.name):
                shutil.rmtree(other, ignore_errors=True)
        for torn in folder.glob(".*"):
            torn.unlink(missing_ok=True)
        return put_token(folder)
    except OSError as error:
        hint = "Choose another --output."
        raise UserError(f"{folder.parent} cannot be written to: {error.strerror}.", hint) from None
