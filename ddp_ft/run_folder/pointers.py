"""`last` and `best`: links to a folder beside them; where links cannot be made, small files with its name."""

from contextlib import suppress
from pathlib import Path

from ddp_ft.files import remove, replacing, sync_names

_LONGEST_NAME = 255


def point(pointer: Path, name: str) -> None:
    """Have the pointer name a folder beside it; whatever had its place is removed."""
    if pointer.is_dir() and not pointer.is_symlink():  # a copy of a run whose links were followed
        remove(pointer)
    with replacing(pointer, durable=False) as aside:
        remove(aside)
        try:
            aside.symlink_to(name)
        except OSError:  # FAT, and many network drives
            aside.write_text(f"{name}\n", encoding="utf-8")
    sync_names(pointer.parent)


def target_of(pointer: Path) -> str:
    """The name of the folder that a pointer names; empty if there is no pointer."""
    with suppress(OSError):
        if pointer.is_symlink():
            return pointer.readlink().name
        with pointer.open("rb") as stream:
            content = stream.read(_LONGEST_NAME + 2)
        name = content.decode("utf-8", "replace").strip()
        if len(content) <= _LONGEST_NAME + 1 and name not in ("", ".", "..") and "/" not in name and "\0" not in name:
            return name
    return ""


def followed(path: Path) -> Path:
    """The folder that `path` names: itself, or the one beside it if it is a pointer of a run's checkpoints."""
    if path.parent.name != "checkpoints" or not path.is_file() or not (name := target_of(path)):
        return path
    return path.with_name(name)
