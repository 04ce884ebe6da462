"""What a prediction has done so far: one file for each chunk of the inputs, complete or absent."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.files import write_bytes
from ddp_ft.run_folder.shared import put_token, seen_by

_KEY = re.compile(r"[0-9a-f]{16}")


class Part(NamedTuple):
    """A chunk's rows, encoded; how many there are, and how many of them have an error."""

    rows: int
    errors: int
    content: bytes


@dataclass
class Parts:
    """The folder OUTPUT.parts/KEY. The key is a hash of all that the rows depend on.

    Ranks that do not see rank 0's folder hold their parts in memory, in `held`.
    """

    folder: Path
    is_shared: bool
    held: dict[int, Part] = field(default_factory=dict)

    def put(self, number: int, part: Part) -> None:
        """Keep the part of that chunk. UserError if it cannot be written."""
        if self.is_shared:
            self._write(number, part)
        else:
            self.held[number] = part

    def _write(self, number: int, part: Part) -> None:
        try:  # a lost part is computed again
            write_bytes(self.folder / f"{number:08d}", _header(part) + part.content, durable=False, contested=True)
        except OSError as error:
            hint = "What is done is kept there: mend it, and the same command goes on."
            if isinstance(error, FileNotFoundError):
                hint = "It was removed meanwhile: does another process write the same --output?"
            raise UserError(f"{self.folder} cannot be written to: {error.strerror}.", hint) from None

    def read(self, number: int) -> Part | None:
        """The part of that chunk; None if it is not there, or not as it was written."""
        try:
            header, _, content = (self.folder / f"{number:08d}").read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        try:
            part = Part(int(json.loads(header)["rows"]), int(json.loads(header)["errors"]), content)
        except (ValueError, KeyError, TypeError):
            return None
        return part if _header(part) == header + b"\n" else None

    def missing(self, chunks: int) -> list[int]:
        """The numbers of the chunks that are still to be done."""
        return [number for number in range(chunks) if self.read(number) is None]

    def all(self, chunks: int) -> Iterator[Part]:
        """Every chunk's part, in their order, one in memory at a time."""
        for number in range(chunks):
            part = self.read(number)
            assert part is not None, "prediction must give one row for each input"
            yield part

    def remove(self) -> None:
        """Remove the folder, and the one that it lies in if that has nothing else."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def _header(part: Part) -> bytes:
    """The first line of a part's file. The hash is for machines that lose power: a file may then be there in part."""
    digest = hashlib.sha256(part.content).hexdigest()
    return json.dumps({"rows": part.rows, "errors": part.errors, "sha256": digest}).encode() + b"\n"


def open_parts(output: Path, key: str, world: World) -> Parts:
    """The parts of this output, empty or those of an interrupted start; on every rank.

    Those of other inputs, models or options are removed. UserError if the folder cannot be written to.
    """
    folder = output.with_name(f"{output.name}.parts") / key
    token = world.from_main(lambda: _prepare(folder))
    return Parts(folder, is_shared=seen_by(world, folder / token)[world.rank])


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
