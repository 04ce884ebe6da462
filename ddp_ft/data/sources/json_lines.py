"""Tables as JSON lines: an object for each row."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddp_ft.data.cells import cell_of_list
from ddp_ft.errors import UserError

SUFFIXES = (".jsonl", ".ndjson")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of UTF-8, with their line numbers; empty lines are none. UserError for other lines."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:  # of both kinds
                raise _no_object(path, number, str(error)) from None
            if not isinstance(row, dict):
                raise _no_object(path, number, f"it holds a {type(row).__name__}")
            yield number, row


def _no_object(path: Path, number: int, why: str) -> UserError:
    hint = 'Expected one object a line, in UTF-8: {"text": "...", "label": "..."}'
    return UserError(f"{path}: line {number} is no JSON object: {why}.", hint)


def cells_of(path: Path, names: Sequence[str], row: dict[str, Any], number: int) -> list[str]:
    """The values of these names as texts; "" for what is null or not there. UserError for objects."""
    return [_cell(path, number, name, row.get(name)) for name in names]


def _cell(path: Path, number: int, name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and not any(isinstance(each, (list, dict)) for each in value):
        return cell_of_list(value)
    if isinstance(value, (list, dict)):
        raise UserError(
            f"{path}: line {number}: '{name}' holds {json.dumps(value)[:60]}.", "Expected a text or number."
        )
    return value.strip() if isinstance(value, str) else str(value)
