"""The ways in which labelled samples lie on a disk."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from ddp_ft.config.schema import DataConfig
from ddp_ft.contracts import LabelledSource, Schema
from ddp_ft.data.splits.record import SplitRequest, Splits

# Imported when asked for, and asked in this order; a folder is what is left. A further layout is one file and one line
# here.
LAYOUTS = ["ddp_ft.data.splits.table", "ddp_ft.data.splits.folder"]


class Layout(Protocol):
    """The functions of a module of `LAYOUTS`."""

    def takes(self, path: Path) -> bool:
        """Whether data at that path lies so; it need not be there."""

    def open_splits(self, request: SplitRequest, path: Path, task: str) -> Splits:
        """As `open_splits` of `data.splits.open`, without regard to damaged samples."""

    def target_kind(self, kinds: Sequence[str]) -> str:
        """Of which of the kinds that a task can learn the targets of such data are."""

    def config_for(self, config: DataConfig, path: Path, schema: Schema) -> DataConfig:
        """What reads the data for a model with such targets. UserError if it is not there or has others."""

    def open_part(
        self, config: DataConfig, path: Path, schema: Schema, split: str | None
    ) -> tuple[str, LabelledSource]:
        """The part that the data itself has by that name; None: "val" if there is one, else "all". UserError if it
        has none."""


def layout_of(path: Path) -> Layout:
    """How the data at that path lies."""
    modules = (cast(Layout, importlib.import_module(name)) for name in LAYOUTS)
    return next(module for module in modules if module.takes(path))
