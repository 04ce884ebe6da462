"""The splits of a run: those that its folder has a record of, or new ones."""

from pathlib import Path

from ddp_ft.config.schema import RunConfig
from ddp_ft.data.splits.open import open_splits
from ddp_ft.data.splits.record import Splits
from ddp_ft.run_folder.folder import RunFolder, check_same_data


def open_splits_of(run_dir: Path, config: RunConfig) -> Splits:
    """The splits of a run's data, as `open_splits`. UserError too if they are not those that the run began with."""
    folder = RunFolder(run_dir)
    stored = folder.read_json("split.json")
    splits = open_splits(config.data, config.seed, stored, config.task)
    check_same_data(folder, stored, splits.fingerprint)
    return splits
