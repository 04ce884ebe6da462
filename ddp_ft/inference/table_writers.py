"""Predictions as files: CSV, JSON lines and Parquet, made of parts that any process may have encoded."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ddp_ft.contracts import Task
from ddp_ft.errors import UserError

FILE, ERROR = "file", "error"
# Rows of a row group of a Parquet file.
GROUP_ROWS = 1 << 16

Outcome = Mapping[str, Any] | str  # one of Task.answers, or why there is none


class PredictionTable(Protocol):
    """A kind of file."""

    def encode(self, paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
        """These rows, as a part."""

    def write(self, stream: BinaryIO, parts: Iterable[bytes]) -> None:
        """The file, of all parts in their order."""


def check_format(output: Path) -> None:
    """UserError for a file of an unknown kind, or of one that needs what is not installed."""
    suffix = output.suffix.lower()
    if suffix not in TABLES:
        raise UserError(f"--output {output}: the name does not say which kind of file.", f"Expected {_known()}.")
    if suffix == ".parquet":
        _pyarrow()


def open_format(output: Path, task: Task, top_k: int) -> PredictionTable:
    """The kind that the name ends in, with the `top_k` likeliest classes. UserError if the task has not so many."""
    if top_k > 1 and not task.ranks:
        hint = "Its rows have all probabilities or values."
        raise UserError(f"--top-k {top_k} is for one class for each image; the model is for {task.name}.", hint)
    if top_k > (classes := len(task.names)):
        raise UserError(f"--top-k {top_k}: the model has {classes} classes.", f"At most {classes} can be.")
    return TABLES[output.suffix.lower()](task, top_k)


def _known() -> str:
    return ", ".join(TABLES)


def _columns(task: Task, top_k: int) -> list[tuple[str, type]]:
    """Those of a table, and what is in them."""
    more = [
        each for place in range(2, top_k + 1) for each in ((f"class_{place}", str), (f"probability_{place}", float))
    ]
    return [(FILE, str), *task.columns().items(), *more, (ERROR, str)]


def ranking(probabilities: dict[str, float], count: int) -> list[tuple[str, float]]:
    """The likeliest names with their probabilities; equal ones in the order of the classes."""
    return sorted(probabilities.items(), key=lambda item: -item[1])[:count]


class CsvTable:
    """file, the task's columns, class_2, probability_2 and so on, error; numbers rounded as the task writes them."""

    def __init__(self, task: Task, top_k: int) -> None:
        self.task = task
        self.top_k = top_k
        self.header = [name for name, _ in _columns(task, top_k)]

    def encode(self, paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
        """Lines of CSV."""
        stream = io.StringIO(newline="")
        csv.writer(stream).writerows(self._row(*each) for each in zip(paths, outcomes, strict=True))
        return _utf8(stream.getvalue())

    def _row(self, path: str, outcome: Outcome) -> list[str]:
        if isinstance(outcome, str):
            return [path, *("" for _ in self.header[2:]), outcome]
        rest: list[str] = []
        if self.top_k > 1:
            ranked = ranking(outcome["probabilities"], self.top_k)
            rest = [text for name, p in ranked[1:] for text in (name, f"{p:.6f}")]
        return [path, *self.task.row(outcome), *rest, ""]

    def write(self, stream: BinaryIO, parts: Iterable[bytes]) -> None:
        """The header, and all parts."""
        first = io.StringIO(newline="")
        csv.writer(first).writerow(self.header)
        stream.write(_utf8(first.getvalue()))
        stream.writelines(parts)


class JsonLines:
    """One object a line: "file", and the task's record with "top" (a list), or "error"."""

    def __init__(self, task: Task, top_k: int) -> None:
        self.task = task
        self.top_k = top_k

    def encode(self, paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
        """Lines of JSON."""
        rows = (self._row(*each) for each in zip(paths, outcomes, strict=True))
        return _utf8("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _row(self, path: str, outcome: Outcome) -> dict[str, Any]:
        if isinstance(outcome, str):
            return {FILE: path, ERROR: outcome}
        record = dict(outcome)
        if self.top_k > 1:
            ranked = ranking(record["probabilities"], self.top_k)
            record["top"] = [{"class": name, "probability": p} for name, p in ranked]
        rounded: dict[str, Any] = _rounded(record)
        return {FILE: path, **rounded}

    def write(self, stream: BinaryIO, parts: Iterable[bytes]) -> None:
        """All parts."""
        stream.writelines(parts)


def _rounded(value: Any) -> Any:
    """Numbers with the digits that a float32 has."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


class ParquetTable:
    """The columns of the CSV file with their own types: texts, lists of texts, float64, and null where there is none.

    A part is a stream of Arrow's.
    """

    def __init__(self, task: Task, top_k: int) -> None:
        self.task = task
        self.top_k = top_k
        self.columns = _columns(task, top_k)
        self.own = list(task.columns())

    def encode(self, paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
        """A table of Arrow's, as its stream."""
        arrow, _ = _pyarrow()
        rows = [self._row(*each) for each in zip(paths, outcomes, strict=True)]
        table = arrow.Table.from_pylist(rows, schema=self._schema())
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        encoded: bytes = sink.getvalue().to_pybytes()
        return encoded

    def _row(self, path: str, outcome: Outcome) -> dict[str, Any]:
        if isinstance(outcome, str):
            return {FILE: _text(path), ERROR: _text(outcome)}
        record = {FILE: path, **dict(zip(self.own, self.task.cells(outcome), strict=True))}
        ranked = ranking(outcome["probabilities"], self.top_k)[1:] if self.top_k > 1 else []
        for place, (name, p) in enumerate(ranked, start=2):
            record |= {f"class_{place}": name, f"probability_{place}": p}
        return {_text(name): _text(value) for name, value in record.items()}

    def _schema(self) -> Any:
        arrow, _ = _pyarrow()
        types = {str: arrow.string(), float: arrow.float64(), list: arrow.list_(arrow.string())}
        return arrow.schema([(_text(name), types[kind]) for name, kind in self.columns])

    def write(self, stream: BinaryIO, parts: Iterable[bytes]) -> None:
        """Parts joined to row groups of about GROUP_ROWS rows."""
        arrow, parquet = _pyarrow()
        with parquet.ParquetWriter(stream, self._schema()) as writer:
            for group in _groups(arrow.ipc.open_stream(part).read_all() for part in parts):
                writer.write_table(arrow.concat_tables(group), row_group_size=2 * GROUP_ROWS)


def _groups(tables: Iterable[Any]) -> Iterator[list[Any]]:
    group: list[Any] = []
    for table in tables:
        group.append(table)
        if sum(map(len, group)) >= GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group


TABLES: dict[str, type[CsvTable] | type[JsonLines] | type[ParquetTable]] = {
    ".csv": CsvTable,
    ".jsonl": JsonLines,
    ".parquet": ParquetTable,
}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        hint = "Install it: pip install 'ddp_ft[tables]'. Or write .csv or .jsonl."
        raise UserError("Writing Parquet needs pyarrow, which is not installed.", hint) from None
    return pyarrow, pyarrow.parquet


def _text(value: Any) -> Any:
    """A text, or each of a list, as `_utf8` would have it; other values as they are."""
    if isinstance(value, list):
        return [_text(each) for each in value]
    return _utf8(value).decode() if isinstance(value, str) else value


def _utf8(text: str) -> bytes:
    """Names that are no UTF-8 get escapes."""
    return text.encode("utf-8", "backslashreplace")
