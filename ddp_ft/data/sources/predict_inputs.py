"""The inputs of `predict` for images: files, folders, patterns, tables and standard input, as one list of paths."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ddp_ft.data.sources.file_kinds import IMAGES
from ddp_ft.data.sources.files import FileSource
from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.sources.scan import check_scannable, find_files
from ddp_ft.data.sources.table_file import is_table, read_table
from ddp_ft.data.sources.unicode_forms import NamesOnDisk
from ddp_ft.errors import UserError, nearest, printable

STDIN = "-"
IMAGE_COLUMN = "image"


def list_images(inputs: Sequence[str], column: str | None = None, lines: Iterable[str] | None = None) -> Paths:
    """The images of these arguments, in their order.

    A named file is taken whatever its suffix; a folder's images are sorted by path, and so are the images and folders
    that match a pattern (`*`, `?`, `[ab]`, `**` for any depth). A table has them in `column` (None: "image"), relative
    to its own folder; "-" means `lines`, one path each (None: standard input's). What a table or standard input names
    need not be there: reading reports it. UserError for arguments that do not exist or match nothing, for a folder
    without images, and for a column that is not there.
    """
    if missing := [each for each in inputs if not (each == STDIN or os.path.lexists(each) or glob.has_magic(each))]:
        raise UserError(f"No such file or folder: {', '.join(map(repr, missing))}.", _advice(missing[0]))
    if column is not None and not any(_is_table(given) for given in inputs):
        raise UserError(f"--column {column} is for a table, and none of the inputs is one.", "Leave it out.")
    if inputs.count(STDIN) > 1:
        raise UserError("Standard input (-) is given twice.", "It can be read once.")
    given_lines = sys.stdin if lines is None else lines
    listed = [path for given in inputs for path in _expanded(given, column or IMAGE_COLUMN, given_lines)]
    try:
        return Paths.of(listed)
    except ValueError:
        raise UserError("A path has a NUL inside.", "Paths on standard input end with a line break.") from None


def open_inputs(inputs: Sequence[str], column: str | None) -> FileSource:
    """The images of `list_images`."""
    return FileSource(list_images(inputs, column))


def _advice(missing: str) -> str:
    """What to do about an input that is not there."""
    if "://" in missing:
        return "Addresses are not read: download it, and name the file."
    folder = Path(missing).parent
    with suppress(OSError):
        return nearest(Path(missing).name, [each.name for each in folder.iterdir()], folder=folder)
    return ""


def _is_table(given: str) -> bool:
    return given != STDIN and is_table(Path(given)) and os.path.lexists(given)


def _expanded(given: str, column: str, lines: Iterable[str]) -> Iterator[str]:
    path = Path(given)
    if given == STDIN:
        yield from _from_lines(lines)
    elif path.is_dir():
        check_scannable(path, given)
        images = find_files(path).paths
        if not images:
            raise UserError(f"There are no images in {path}.", f"Images are files that end in {IMAGES.suffix_list}.")
        yield from (str(path / relative) for relative in images)
    elif _is_table(given):
        yield from _in_table(path, column)
    elif os.path.lexists(given):
        yield str(path)
    else:
        yield from _matching(given)


def _matching(pattern: str) -> list[str]:
    """Images that match, and those in folders that do, each once; arrays where no images match."""
    found, arrays = dict[str, None](), dict[str, None]()
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207  (Path.glob takes no absolute ones)
        path = Path(match)
        if path.is_dir():
            found.update(dict.fromkeys(str(path / relative) for relative in find_files(path).paths))
        elif IMAGES.has_name(path.name) or IMAGES.begins(match):
            found[str(path)] = None
        elif path.suffix.lower() == IMAGES.spare:
            arrays[str(path)] = None
    found = found or arrays
    if not found:
        raise UserError(f"No image matches {pattern!r}.", f"Images are files that end in {IMAGES.suffix_list}.")
    return list(found)


def _from_lines(lines: Iterable[str]) -> list[str]:
    here = NamesOnDisk("")
    if named := [here.find(path) for line in lines if (path := line.rstrip("\r\n"))]:
        return named
    raise UserError("Standard input (-) is empty.", "Expected one path a line: find photos -name '*.jpg' | ...")


def _in_table(path: Path, column: str) -> list[str]:
    def choose(header: list[str]) -> list[str]:
        if column in header:
            return [column]
        hint = nearest(column, header) or f"It has {', '.join(map(printable, header))}."
        raise UserError(f"{path} has no column '{column}'.", f"{hint} Name another with --column.")

    here = NamesOnDisk(str(path.parent))
    return [str(path.parent / here.find(cell)) for cell in read_table(path, choose).filled(column)]
