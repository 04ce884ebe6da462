"""The layouts of labelled samples on a disk."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import LabelledSource, Schema
from ddp_ft.data.splits.record import SplitRequest, Splits

# Imported when needed, and tried in this order; a folder takes the rest. A further layout is a file and a line here.
LAYOUTS = ["ddp_ft.data.splits.own", "ddp_ft.data.splits.table", "ddp_ft.data.splits.folder"]


class Layout(Protocol):
    """The functions of a module of `LAYOUTS`."""

    def takes(self, path: Path) -> bool:
        """Whether data at that path has this layout; it may not be there."""

    def open_splits(self, request: SplitRequest, path: Path, task: str) -> Splits:
        """As `open_splits` of `data.splits.open`, damaged samples included."""

    def target_kind(self, kinds: Sequence[str]) -> str:
        """The kind of such data's targets, one of those that a task can learn."""

    def config_for(self, config: DataConfig, path: Path, schema: Schema) -> DataConfig:
        """The configuration that reads the data for a model with such targets. UserError if it is not there or has
        others."""

    def open_part(
        self, config: DataConfig, path: Path, schema: Schema, split: str | None
    ) -> tuple[str, LabelledSource]:
        """The part of that name in the data; None: "val" if there is one, else "all". UserError if there is none."""


def layout_of(path: Path) -> Layout:
    """The layout of the data at that path."""
    modules = (cast(Layout, importlib.import_module(name)) for name in LAYOUTS)
    return next(module for module in modules if module.takes(path))
