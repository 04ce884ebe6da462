"""The inputs of `predict` for texts: the texts themselves, files, folders, tables and standard input."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ddp_ft.contracts import Sample
from ddp_ft.data.cells import OF_LIST, list_of_cell
from ddp_ft.data.sources.conll import WORDS as TOKENS
from ddp_ft.data.sources.conll import is_tagged
from ddp_ft.data.sources.file_kinds import TEXTS
from ddp_ft.data.sources.scan import check_scannable, find_files
from ddp_ft.data.sources.table_file import is_table, read_table
from ddp_ft.data.text.read import read_text
from ddp_ft.data.text.source import PAIR, TEXT, WORDS, Texts, TextSource
from ddp_ft.errors import UserError, nearest, printable

STDIN = "-"


class GivenTexts(TextSource):
    """Texts, and files that are read when they are opened."""

    def open(self, index: int) -> Sample:
        """The "text"; of a file its content; of a list the "words". Raises BadSample."""
        found = self.texts[index]
        if len(found) == 1 and OF_LIST in found[0]:
            return {WORDS: list_of_cell(found[0])}
        return super().open(index) if found else {TEXT: read_text(self.names[index])}


def open_inputs(inputs: Sequence[str], column: str | None, lines: Iterable[str] | None = None) -> GivenTexts:
    """The texts of these arguments, in their order.

    A file holds one text, a folder's .txt files one each, sorted; a table's are in `column` (None: "text"), with
    second texts in "text_pair" if there is such a column; "-" means `lines`, one text each (None: standard input's).
    What is no path and has a space is a text. UserError for arguments that are none of these.
    """
    if inputs.count(STDIN) > 1:
        raise UserError("Standard input (-) is given twice.", "It can be read once.")
    if column is not None and not any(is_table(Path(given)) and os.path.lexists(given) for given in inputs):
        raise UserError(f"--column {column} is for a table, and none of the inputs is one.", "Leave it out.")
    found = [each for given in inputs for each in _expanded(given, column or TEXT, lines)]
    return GivenTexts([name for name, _ in found], [texts for _, texts in found])


def _expanded(given: str, column: str, lines: Iterable[str] | None) -> Iterator[tuple[str, Texts]]:
    path = Path(given)
    if given == STDIN:
        yield from _from_lines(sys.stdin if lines is None else lines)
    elif path.is_dir():
        yield from ((name, ()) for name in _in_folder(path))
    elif is_table(path) and os.path.lexists(given):
        yield from _in_table(path, column)
    elif os.path.lexists(given):
        yield given, ()
    elif " " in given.strip():
        yield printable(given), (given,)
    else:
        hint = nearest(path.name, [each.name for each in path.parent.glob("*")], folder=path.parent)
        raise UserError(f"No such file or folder: '{given}'.", hint or "A text of its own has a space in it.")


def _from_lines(lines: Iterable[str]) -> Iterator[tuple[str, Texts]]:
    number = 0
    for number, line in enumerate(lines, start=1):
        yield f"{STDIN}:{number}", (line.rstrip("\r\n"),)
    if not number:
        raise UserError("Standard input (-) is empty.", "Expected one text a line.")


def _in_folder(path: Path) -> list[str]:
    check_scannable(path, str(path))
    found = [str(path / relative) for relative in find_files(path, TEXTS).paths]
    if not found:
        raise UserError(f"There are no texts in {path}.", f"Texts are files that end in {TEXTS.suffix_list}.")
    return found


def _in_table(path: Path, column: str) -> Iterator[tuple[str, Texts]]:
    """Of tagged words their lists, if no column is named."""
    column = TOKENS if column == TEXT and is_tagged(path) else column
    names = [column]

    def choose(header: list[str]) -> list[str]:
        if column not in header:
            hint = nearest(column, header) or f"It has {', '.join(map(printable, header))}."
            raise UserError(f"{path} has no column '{column}'.", f"{hint} Name another with --column.")
        names.extend([PAIR] if PAIR in header else [])
        return names

    table = read_table(path, choose)
    rows = zip(*(table.columns[name] for name in names), strict=True)
    yield from ((f"{path}:{number}", texts) for number, texts in zip(table.numbers, rows, strict=True))
