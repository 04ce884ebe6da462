"""Files and folders that are whole or absent, whoever is killed while writing them; and durable if that is asked for.

They are written beside the place where they belong, in the same folder: `.NAME.writing` (`.NAME.HEX.writing` if
contested), or `.writing_NAME` for a folder. `durable` content is on the disk on return; other content may be lost when
the machine fails.
"""

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", dict[str, Any], list[Any])

# What the name of a folder begins with while another one takes its place.
OLD = ".old_"
# How file systems say that they lack an operation, such as fsync of a folder.
_NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY)


@contextmanager
def replacing(file: Path, *, durable: bool, contested: bool = False) -> Iterator[Path]:
    """A path to write at, which becomes `file` at the end of the block; after an exception it is removed.

    `contested`: several processes may write the same file at once.
    """
    mark = f".{secrets.token_hex(4)}" if contested else ""
    aside = file.with_name(f".{file.name}{mark}.writing")
    try:
        with _named(file):
            yield aside
        if durable:
            sync(aside)
        _take_place(aside, file)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    if durable:
        sync_names(file.parent)


@contextmanager
def ordinary_mode(file: Path) -> Iterator[None]:
    """In the block a library makes `file`, which then has the permissions that the umask gives all other new files.

    safetensors writes a temporary file, which only its owner can read, and renames it.
    """
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    yield
    with suppress(OSError):  # a file system without permissions
        if stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


@contextmanager
def replacing_folder(folder: Path, *, durable: bool, old: str = OLD) -> Iterator[Path]:
    """A new folder to write files in, which takes the place of `folder` at the end of the block, by `replace_folder`.

    After an exception it is removed. A kill between the two renames leaves `old` + NAME for the caller to restore.
    """
    aside = folder.with_name(f".writing_{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with _named(folder):
            yield aside
        if durable:
            for path in aside.rglob("*"):
                (sync_names if path.is_dir() else sync)(path)
            sync_names(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk needs the room
        raise
    replace_folder(folder, aside, durable=durable, old=old)


def replace_folder(folder: Path, aside: Path, *, durable: bool, old: str = OLD) -> None:
    """Rename `aside` to `folder`. What has that name is called `old` + NAME until then, and removed afterwards."""
    earlier = folder.with_name(f"{old}{folder.name}")
    remove(earlier)
    if folder.exists():
        folder.rename(earlier)
    aside.rename(folder)
    if durable:
        sync_names(folder.parent)
    remove(earlier)


def remove(path: Path) -> None:
    """Remove a folder with all in it, or a file or a link, which may be in a folder's place; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes, *, durable: bool = True, contested: bool = False) -> None:
    """Replace a small file as a whole: readers see the old content or the new one. A device or a pipe stays one."""
    if file.exists() and not file.is_file() and not file.is_dir():
        file.write_bytes(content)
        return
    with replacing(file, durable=durable, contested=contested) as aside:
        aside.write_bytes(content)


def write_text(file: Path, text: str, *, durable: bool = True) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(file, text.encode("utf-8"), durable=durable)


def to_json(value: Any) -> str:
    """JSON for people: indented, one newline at the end. Bytes of names that are no UTF-8 become escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_json(file: Path, kind: type[T]) -> T | None:
    """The dict or list that a JSON file holds; None if there is no file. OSError if it cannot be read.

    ValueError for any other content, which continues the file's name: "is empty".
    """
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise ValueError("holds no text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})" if text.strip(" \t\r\n\0") else "is empty") from None
    if not isinstance(content, kind):
        raise ValueError(f"holds no {'object' if kind is dict else 'list'}")
    return content


def read_sound_json(file: Path, kind: type[T]) -> T:
    """As `read_json`, but empty if the file cannot be read, is damaged, or is missing."""
    with suppress(OSError, ValueError):
        return read_json(file, kind) or kind()
    return kind()


def add_to_digest(digest: Any, file: Path) -> int:
    """Update a digest of hashlib with the content of a file; return how many bytes that is."""
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
        return stream.tell()


def sync(path: Path) -> None:
    """Have what was written to a file reach the disk; where the file system cannot be asked for that, do without."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_opened(descriptor)
    finally:
        os.close(descriptor)


def sync_opened(descriptor: int) -> None:
    """As `sync`, of an open file."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


def sync_names(folder: Path) -> None:
    """As `sync`, the names in a folder, which may be writable and not readable."""
    with suppress(PermissionError, IsADirectoryError):
        sync(folder)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path to an error of the block that names no file, as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _take_place(aside: Path, file: Path) -> None:
    try:
        aside.replace(file)
    except FileExistsError:  # some network drives replace nothing: for a moment there is no file
        file.unlink()
        aside.rename(file)
