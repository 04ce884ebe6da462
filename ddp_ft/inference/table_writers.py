"""Predictions as files: CSV, JSON lines and Parquet, joined from parts that any process may have encoded."""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rich.cells import cell_len, set_cell_size

from ddp_ft.contracts import Task
from ddp_ft.errors import UserError, printable, shortened
from ddp_ft.run_folder.output_path import check_output_file
from ddp_ft.texts import plural

FILE, ERROR = "file", "error"
_OF_A_PLACE = (("class", str), ("probability", float))
# Rows of a row group of a Parquet file.
GROUP_ROWS = 1 << 16

# Of lines for people.
_SHOWN, _MOST_NUMBERS, _WIDEST_PATH, _WIDEST_NAME = 3, 8, 60, 40

Outcome = Mapping[str, Any] | str  # one of Task.answers, or why there is none


def check_output(output: Path, inputs: Sequence[str]) -> None:
    """UserError for a file of an unknown kind, of one that needs what is not installed, that cannot be written, or that
    is one of the inputs."""
    suffix = output.suffix.lower()
    if suffix not in TABLES and not output.is_dir():
        raise UserError(f"--output {output}: a file of an unknown kind.", f"Expected {', '.join(TABLES)}.")
    if suffix == ".parquet":
        _pyarrow()
    check_output_file(output, inputs=[Path(each) for each in inputs])


def open_format(kind: str, task: Task, top_k: int) -> "PredictionTable":
    """The table of that kind, one of FORMATS. UserError if the task has not as many classes as `top_k`, or none."""
    if top_k > 1 and not task.can_rank:
        hint = "Its rows have all probabilities or values."
        raise UserError(f"--top-k {top_k} is for one class for each image; the model is for {task.name}.", hint)
    if top_k > (classes := len(task.names)):
        has = plural(classes, "class", "classes")
        raise UserError(f"--top-k {top_k}: the model has {has}.", f"At most {classes} can be.")
    return FORMATS[kind](task, top_k)


class PredictionTable(ABC):
    """A kind of file: file, the task's columns, class_2, probability_2 and so on, error."""

    def __init__(self, task: Task, top_k: int) -> None:
        self.task = task
        self.top_k = top_k
        more = [(f"{name}_{place}", kind) for place in range(2, top_k + 1) for name, kind in _OF_A_PLACE]
        self.columns = [(FILE, str), *task.columns().items(), *more, (ERROR, str)]  # with the type of their values

    @abstractmethod
    def encode(self, paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
        """These rows, as a part."""

    @abstractmethod
    def write(self, stream: BinaryIO, parts: Iterable[bytes]) -> None:
        """Write the file: all parts in their order."""

    def ranked(self, answer: Mapping[str, Any]) -> list[tuple[str, float]]:
        """The `top_k` likeliest classes with their probabilities, equal ones in the order of classes; none for 1."""
        if self.top_k == 1:
            return []
        return sorted(answer["probabilities"].items(), key=lambda item: -item[1])[: self.top_k]


class CsvTable(PredictionTable):
    """Numbers are rounded as the task writes them."""

    def encode(self, paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
        """Lines of CSV."""
        return _csv(self._row(*each) for each in zip(paths, outcomes, strict=True))

    def _row(self, path: str, outcome: Outcome) -> list[str]:
        if isinstance(outcome, str):
            return [path, *[""] * (len(self.columns) - 2), outcome]
        more = [text for name, p in self.ranked(outcome)[1:] for text in (name, f"{p:.6f}")]
        return [path, *self.task.row(outcome), *more, ""]

    def write(self, stream: BinaryIO, parts: Iterable[bytes]) -> None:
        """The header, and all parts."""
        stream.write(_csv([[name for name, _ in self.columns]]))
        stream.writelines(parts)


class JsonLines(PredictionTable):
    """One object a line: "file", and the task's record with "top" (a list), or "error"."""

    def encode(self, paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
        """Lines of JSON."""
        rows = (self._row(*each) for each in zip(paths, outcomes, strict=True))
        return _utf8("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _row(self, path: str, outcome: Outcome) -> dict[str, Any]:
        if isinstance(outcome, str):
            return {FILE: path, ERROR: outcome}
        top = [{"class": name, "probability": p} for name, p in self.ranked(outcome)]
        rounded: dict[str, Any] = _rounded({**outcome, **({"top": top} if top else {})})
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


class ParquetTable(PredictionTable):
    """The columns have types: texts, lists of texts, float64, and null for no value. A part is a stream of Arrow."""

    def encode(self, paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
        """A table of Arrow, as its stream."""
        arrow, _ = _pyarrow()
        rows = [self._row(*each) for each in zip(paths, outcomes, strict=True)]
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, self._schema()) as writer:
            writer.write_table(arrow.Table.from_pylist(rows, schema=self._schema()))
        encoded: bytes = sink.getvalue().to_pybytes()
        return encoded

    def _row(self, path: str, outcome: Outcome) -> dict[str, Any]:
        if isinstance(outcome, str):
            return {FILE: _text(path), ERROR: _text(outcome)}
        more = [cell for each in self.ranked(outcome)[1:] for cell in each]
        cells = [path, *self.task.cells(outcome), *more, None]
        return {_text(name): _text(cell) for (name, _), cell in zip(self.columns, cells, strict=True)}

    def _schema(self) -> Any:
        arrow, _ = _pyarrow()
        types = {str: arrow.string(), float: arrow.float64(), list: arrow.list_(arrow.string())}
        return arrow.schema([(_text(name), types[kind]) for name, kind in self.columns])

    def write(self, stream: BinaryIO, parts: Iterable[bytes]) -> None:
        """All parts, joined to row groups of about GROUP_ROWS rows."""
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


class Lines(PredictionTable):
    """For people: the file, what is decided, and the `_SHOWN` greatest probabilities, or all numbers."""

    def encode(self, paths: Sequence[str], outcomes: Sequence[Outcome]) -> bytes:
        """Lines of two cells, with a tab between."""
        rows = zip(paths, outcomes, strict=True)
        return _utf8("".join(f"{printable(path)}\t{self._words(outcome)}\n" for path, outcome in rows))

    def _words(self, outcome: Outcome) -> str:
        if isinstance(outcome, str):
            return f"{ERROR}: {outcome}"
        first, *_ = outcome.values()
        if isinstance(first, dict):
            return shortened([f"{_brief(name)} {value:.4g}" for name, value in first.items()], _MOST_NUMBERS)
        if any(isinstance(each, dict) for each in first):  # entities
            return shortened(self.task.cells(outcome)[0], _MOST_NUMBERS)
        decided = _brief(first) if isinstance(first, str) else shortened([*map(_brief, first)], _SHOWN) or "none"
        if self.task.can_rank:
            decided = _padded(decided, max(cell_len(_brief(name)) for name in self.task.names))
        shares = sorted(outcome.get("probabilities", {}).items(), key=lambda item: -item[1])
        top = [f"{_brief(name)} {share:.1%}" for name, share in shares[: max(self.top_k, _SHOWN)]]
        return decided + (f"  ({', '.join(top)})" if top else "")

    def write(self, stream: BinaryIO, parts: Iterable[bytes]) -> None:
        """All parts, each aligned; on a terminal, which has `columns`, no line is wider than it."""
        columns: int = getattr(stream, "columns", 0)
        stream.writelines(_utf8(_aligned(part.decode().splitlines(), columns)) for part in parts)


def _aligned(lines: Sequence[str], columns: int) -> str:
    most = min(_WIDEST_PATH, columns // 2) if columns else _WIDEST_PATH
    rows = [line.split("\t", 1) for line in lines]
    width = min(max(cell_len(path) for path, _ in rows), most)
    if not columns:
        return "".join(f"{_padded(path, width)}  {words}\n" for path, words in rows)
    return "".join(f"{_cut(_padded(_end_of(path, width), width) + '  ' + words, columns)}\n" for path, words in rows)


def _end_of(path: str, width: int) -> str:
    """As much of a path's end as fits, which is its most specific part."""
    start = 0
    while cell_len(path[start:]) > width - (start > 0):
        start += 1
    return f"…{path[start:]}" if start else path


def _cut(line: str, columns: int) -> str:
    return line if cell_len(line) <= columns else f"{set_cell_size(line, columns - 1)}…"


def _brief(name: str) -> str:
    """A class's name as there is room for in a line."""
    text = printable(name)
    return text if len(text) <= _WIDEST_NAME else f"{text[: _WIDEST_NAME - 1]}…"


def _padded(text: str, width: int) -> str:
    """With blanks to that many columns of a terminal, of which some letters take two."""
    return text + " " * (width - cell_len(text))


TABLES: dict[str, type[PredictionTable]] = {".csv": CsvTable, ".jsonl": JsonLines, ".parquet": ParquetTable}
# Those that can be streamed, too.
LINES = "lines"
FORMATS: dict[str, type[PredictionTable]] = {**TABLES, LINES: Lines}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        hint = "Install it: pip install 'ddp_ft[tables]'. Or write .csv or .jsonl."
        raise UserError("Writing Parquet needs pyarrow, which is not installed.", hint) from None
    return pyarrow, pyarrow.parquet


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    return _utf8(stream.getvalue())


def _text(value: Any) -> Any:
    """A text, or each of a list, as `_utf8` encodes it; other values unchanged."""
    if isinstance(value, list):
        return [_text(each) for each in value]
    return _utf8(value).decode() if isinstance(value, str) else value


def _utf8(text: str) -> bytes:
    """The text in UTF-8; bytes of names that are no UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace")
