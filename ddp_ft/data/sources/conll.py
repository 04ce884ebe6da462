"""Words and their tags in CoNLL's form: a word and its tag in a line, perhaps others between, an empty line after each
sentence. A file, or a folder with a file for each part. Free of torch until sentences are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ddp_ft.data.cells import LISTED, Table, cell_of_list
from ddp_ft.data.roles import role_of, role_within
from ddp_ft.data.tag_names import TAG
from ddp_ft.data.text.encoding import OtherEncodingError, decoded
from ddp_ft.errors import UserError, listed, shortened

SUFFIXES = (".conll", ".iob", ".iob2", ".bio", ".bioes")
# The columns of the table that such data become.
WORDS, TAGS, SPLIT = "tokens", "tags", "split"
_DOCUMENT = "-DOCSTART-"
# How much of a file without a suffix of these is looked at.
_BEGINNING = 4096
_HINT = "Expected a word and its tag (O, B-TYPE, I-TYPE, ...) in each line, and an empty line after each sentence."


def is_tagged(path: Path) -> bool:
    """Whether it is such a file, by its suffix or its first lines, or a folder with one for training."""
    if path.is_dir():
        return bool(_parts_of(path))
    return path.suffix.lower() in SUFFIXES or (bool(role_of(path.suffix)) and _looks_tagged(path))


def tagged_header(path: Path) -> list[str]:
    """The names of its columns."""
    return [WORDS, TAGS, *([SPLIT] if path.is_dir() else [])]


def read_tagged(path: Path, choose: Callable[[list[str]], Sequence[str]]) -> Table:
    """The sentences as rows of a table, with lists of words and tags in its cells, and of a folder the part in "split".

    The rows' numbers are those of the lines in which sentences begin. UserError for lines without a tag, and for other
    encodings than UTF-8.
    """
    files = _parts_of(path) if path.is_dir() else {"": path}
    rows = [(role, *found) for role, file in files.items() for found in _sentences(file)]
    columns = {
        WORDS: [cell_of_list(words) for _, _, words, _ in rows],
        TAGS: [cell_of_list(tags) for _, _, _, tags in rows],
        SPLIT: [role for role, *_ in rows],
    }
    return Table(path, {name: columns[name] for name in choose(tagged_header(path))}, [row[1] for row in rows])


def _parts_of(folder: Path) -> dict[str, Path]:
    """The file of each part, by its role; empty if none is for training. UserError for several of one part."""
    found: dict[str, list[Path]] = {}
    others: list[str] = []
    with suppress(OSError):
        for file in sorted(folder.iterdir()):
            role, is_named = role_of(file.suffix) or role_of(file.stem), file.suffix.lower() in SUFFIXES
            role = role or role_within(file.stem)
            if role and file.is_file() and (is_named or _looks_tagged(file)):
                found.setdefault(role, []).append(file)
            elif file.is_file() and (is_named or (role and file.suffix.lower() in ("", ".txt"))):
                others.append(file.name)
    for role, files in found.items():
        if len(files) > 1:
            names = shortened([file.name for file in files])
            raise UserError(f"{folder} has several files for {role}: {names}.", "Leave one of each part there.")
    if "train" in found and others:
        raise UserError(
            f"{folder} has files that are no tagged words, or of no part: {shortened(others)}.",
            f"{_HINT} Parts are files such as train.conll, dev.conll and test.conll; remove the others.",
        )
    return {role: files[0] for role, files in found.items()} if "train" in found else {}


def _looks_tagged(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            lines = stream.read(_BEGINNING).decode("utf-8-sig", "ignore").splitlines()[:-1]
    except OSError:
        return False
    rows = [line.split() for line in lines if line.strip() and not line.startswith(_DOCUMENT)]
    return bool(rows) and all(len(row) > 1 and TAG.fullmatch(row[-1]) for row in rows)


def _sentences(file: Path) -> Iterator[tuple[int, list[str], list[str]]]:
    """The line, the words and the tags of each sentence."""
    start, words, tags, bad = 0, list[str](), list[str](), list[str]()
    for number, line in enumerate([*_lines(file), ""], start=1):
        cells = [cell.strip() for cell in line.split("\t")] if "\t" in line.strip() else line.split()
        if not cells or cells[0] == _DOCUMENT:
            if words:
                yield start, words, tags
            words, tags = [], []
            continue
        if len(cells) < 2 or not TAG.fullmatch(cells[-1]):
            bad.append(f"line {number}: {line[:60]!r}")
            continue
        start = start if words else number
        words.append(cells[0])
        tags.append(cells[-1])
    if not start and not bad:
        raise UserError(f"{file} is empty.", _HINT)
    if bad:
        raise UserError(
            f"{file}: {len(bad)} lines hold no word with its tag:", "\n".join([*listed(bad, LISTED), _HINT])
        )


def _lines(file: Path) -> list[str]:
    try:
        return decoded(file.read_bytes()).split("\n")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from None
    except OtherEncodingError as error:
        raise UserError(f"{file}: {error}.") from None
