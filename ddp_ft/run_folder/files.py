"""Files of a run folder: whole or absent, and on the disk when they are told to be."""

import json
import os
from pathlib import Path
from typing import Any


def write_text(file: Path, text: str) -> None:
    """Replace a small file as a whole: readers see the old text or the new one."""
    aside = file.with_name(f".{file.name}.writing")
    aside.write_text(text, encoding="utf-8")
    sync_file(aside)
    aside.replace(file)
    sync_file(file.parent)


def to_json(value: Any) -> str:
    """JSON for people: indented, one newline at the end. Bytes of names that are no UTF-8 become escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def sync_folder(folder: Path) -> None:
    """`sync_file` for a folder and all files in it."""
    for file in folder.iterdir():
        sync_file(file)
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
