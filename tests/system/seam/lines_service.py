"""Toy tracker: what it is told, one line each."""

from collections.abc import Callable, Mapping
from typing import Any

from ddp_ft.trackers.services.base import Row, Start


class Lines:
    def __init__(self, start: Start, log: Callable[[str], None]) -> None:
        start.folder.mkdir(exist_ok=True)
        self.file = start.folder / "lines.txt"

    def log(self, row: Row) -> None:
        with self.file.open("a") as stream:
            stream.write(f"{row['split']} {row['step']} {row['loss']}\n")

    def warn(self, step: int, text: str) -> None:
        pass

    def image(self, tag: str, step: int, png: bytes) -> None:
        pass

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        with self.file.open("a") as stream:
            stream.write(f"finished {sorted(metrics)}\n")

    def close(self) -> None:
        pass
