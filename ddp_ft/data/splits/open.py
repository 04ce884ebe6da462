"""Which pictures are for training, validation and test: given by the data, drawn, or read back."""

from collections.abc import Mapping
from typing import Any

from ddp_ft.config.schema import DataConfig
from ddp_ft.data.bad_samples.replace import tolerate
from ddp_ft.data.sources.table_file import is_table
from ddp_ft.data.splits.folder import EXAMPLE, open_folder_splits
from ddp_ft.data.splits.record import Splits
from ddp_ft.data.splits.table import open_table_splits
from ddp_ft.errors import UserError

__all__ = ["Splits", "open_splits"]


def open_splits(config: DataConfig, seed: int, stored: Mapping[str, Any] | None = None, task: str = "auto") -> Splits:
    """Look at a folder or table and split it, or take the split that is stored (split.json of a run).

    `task` is the configuration's; it decides how a table's targets are read. Raises UserError, with all that is
    wrong of its kind in one message: for data that is missing, empty, damaged or of another layout, for a single
    class, empty class folders, classes that training lacks, pictures that are not there, too few pictures to
    split, and for a stored split whose pictures are gone.

    With data.on_error = skip the validation and test sets are read now, and come without their damaged pictures; in
    the training set others take the place of those as they are met. UserError if there are too many.
    """
    if config.path is None:
        raise UserError("No data is given.", f"Example: --data ~/pets\n{EXAMPLE}")
    if is_table(config.path):
        splits = open_table_splits(config, config.path, seed, stored, task)
    else:
        splits = open_folder_splits(config, config.path, seed, stored)
    return tolerate(splits, config, seed) if config.on_error == "skip" else splits
