"""Tables: CSV and Parquet files and JSON lines to columns of text."""

import csv
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddp_ft.data.cells import LISTED, Table, cell_of_list
from ddp_ft.data.sources.conll import SUFFIXES as TAGGED_SUFFIXES
from ddp_ft.data.sources.conll import is_tagged, read_tagged, tagged_header
from ddp_ft.data.sources.json_lines import SUFFIXES as JSON_SUFFIXES
from ddp_ft.data.sources.json_lines import cells_of, read_rows
from ddp_ft.errors import UserError, listed, nearest, one_line

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".parquet", *JSON_SUFFIXES, *TAGGED_SUFFIXES)

# Which columns to read, given the names of all; raises UserError for one that is not there.
Choose = Callable[[list[str]], Sequence[str]]


def is_table(path: Path) -> bool:
    """Whether the path has the suffix of a table and is no folder, which may not be there; or is as of `is_tagged`."""
    return (not path.is_dir() and path.suffix.lower() in SUFFIXES) or is_tagged(path)


def read_table(path: Path, choose: Choose) -> Table:
    """The columns of a CSV or Parquet file, of JSON lines or of tagged words whose names `choose` returns.

    CSV is UTF-8 with a header; a .csv without a comma in its header may be delimited by semicolons, tabs or bars.
    UserError for a file that is missing, empty, damaged or uneven, and if pyarrow is needed and not installed.
    """
    if not path.exists():
        tables = sorted(each.name for each in path.absolute().parent.glob("*") if is_table(each))
        raise UserError(f"--data {path} does not exist.", nearest(path.name, tables, folder=path.parent))
    try:
        table = _reader(path)(path, choose)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not len(table):
        raise UserError(f"{path} has a header and no rows.", "Expected one row for each sample.")
    return table


def read_header(path: Path) -> list[str]:
    """The names of a table's columns; empty for another kind of file, and for one that `read_table` refuses."""
    if is_tagged(path):
        return tagged_header(path)
    if path.suffix.lower() == ".parquet":
        return _parquet_header(path)
    if path.suffix.lower() in JSON_SUFFIXES:
        return _json_header(path)
    if path.suffix.lower() not in DELIMITERS:
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            delimiter = _delimiter(path, stream.readline())
            stream.seek(0)
            return [name.strip() for name in next(csv.reader(stream, delimiter=delimiter), [])]
    except (OSError, ValueError, csv.Error):
        return []


def _reader(path: Path) -> Callable[[Path, Choose], Table]:
    if is_tagged(path):
        return read_tagged
    suffix = path.suffix.lower()
    return _read_json_lines if suffix in JSON_SUFFIXES else _read_parquet if suffix == ".parquet" else _read_csv


def _json_header(path: Path) -> list[str]:
    with suppress(OSError, UserError):
        return list(next(read_rows(path), (0, {}))[1])
    return []


def _read_json_lines(path: Path, choose: Choose) -> Table:
    """Names may be missing in single rows: those of all count."""
    rows = list(read_rows(path))
    header = list(dict.fromkeys(name for _, row in rows for name in row))
    if not header:
        raise UserError(f"{path} is empty.", "Expected one JSON object a line.")
    chosen = list(dict.fromkeys(choose(header)))
    cells = [cells_of(path, chosen, row, number) for number, row in rows]
    columns = {name: [row[place] for row in cells] for place, name in enumerate(chosen)}
    return Table(path, columns, [number for number, _ in rows])


def _parquet_header(path: Path) -> list[str]:
    with suppress(Exception):  # no pyarrow, no file, or no whole one
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        return list(pq.read_schema(path).names)
    return []


def _read_csv(path: Path, choose: Choose) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            reader = csv.reader(stream, delimiter=_delimiter(path, stream.readline()), strict=True)
            stream.seek(0)
            return _parse_csv(path, reader, choose)
        except UnicodeDecodeError:
            raise _not_utf8(path) from None
        except csv.Error as error:
            hint = "Look for a quote without its partner near there."
            raise UserError(f"{path} is damaged at line {reader.line_num}: {error}.", hint) from None


def _delimiter(path: Path, header: str) -> str:
    usual = DELIMITERS[path.suffix.lower()]
    if usual == "," and usual not in header:  # what spreadsheets write where the comma is the decimal point
        return next((other for other in (";", "\t", "|") if other in header), usual)
    return usual


def _parse_csv(path: Path, reader: Any, choose: Choose) -> Table:
    header = [name.strip() for name in next(reader, [])]
    if not any(header):
        raise UserError(f"{path} is empty.", "Expected a header with the columns' names, and one row for each sample.")
    chosen = list(dict.fromkeys(choose(header)))
    _check_unique(path, header, chosen)
    places = [header.index(name) for name in chosen]
    cells: list[list[str]] = [[] for _ in chosen]
    numbers, uneven, start = array("q"), [], reader.line_num + 1
    for row in reader:
        if len(row) == len(header):
            numbers.append(start)
            for column, place in zip(cells, places, strict=True):
                column.append(row[place].strip())
        elif row:  # an empty line is no row
            uneven.append(f"line {start}: {len(row)}")
        start = reader.line_num + 1
    if uneven:
        hint = "\n".join([*listed(uneven, LISTED), "A cell that holds the delimiter needs quotes around it."])
        raise UserError(f"{path}: the header has {len(header)} cells, {len(uneven)} rows have another number:", hint)
    return Table(path, dict(zip(chosen, cells, strict=True)), numbers)


def _not_utf8(path: Path) -> UserError:
    content = path.read_bytes()
    place = ""
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f" at line {content[: error.start].count(10) + 1}"
    return UserError(f"{path} is not UTF-8{place}.", "Save it as 'CSV UTF-8', or convert it with iconv.")


def _check_unique(path: Path, header: Sequence[str], chosen: Iterable[str]) -> None:
    if twice := [name for name in chosen if header.count(name) > 1]:
        raise UserError(f"{path} has several columns named {', '.join(map(repr, twice))}.", "Rename all but one.")


def _read_parquet(path: Path, choose: Choose) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        hint = "Install it: pip install 'ddp_ft[tables]'. Or save the table as CSV."
        raise UserError(f"Reading {path} needs pyarrow, which is not installed.", hint) from None
    try:
        with pq.ParquetFile(path) as file:
            header = list(file.schema_arrow.names)
            chosen = list(dict.fromkeys(choose(header)))
            _check_unique(path, header, chosen)
            columns = file.read(columns=chosen)
            cells = {name: _texts(path, name, columns.column(name), pa) for name in chosen}
            return Table(path, cells, range(1, columns.num_rows + 1))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{path} is no whole Parquet file: {one_line(error)}.", "Write it again.") from None


def _texts(path: Path, name: str, column: Any, pa: Any) -> list[str]:
    """A column of any simple type, or of lists of one, as texts, as in a CSV file."""
    kind = column.type
    if pa.types.is_list(kind) and not pa.types.is_nested(kind.value_type):
        return [cell_of_list(values or ()) for values in column.to_pylist()]
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        hint = "Expected texts or numbers: paths of images, and labels joined by data.separator."
        raise UserError(f"Column '{name}' of {path} holds {kind}.", hint)
    if pa.types.is_boolean(kind):
        return ["" if value is None else str(value) for value in column.to_pylist()]
    return ["" if text is None else text.strip() for text in column.cast(pa.string()).to_pylist()]
