"""Which images are for training, validation and test: given by the data, drawn, or read back."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ddp_ft.config.schema import DataConfig
from ddp_ft.contracts import LabelledSource
from ddp_ft.data.bad_samples.quarantine import Quarantine
from ddp_ft.data.bad_samples.replace import Lenient, leave_out_damaged, left_out
from ddp_ft.data.roles import TEST, TRAIN, VAL
from ddp_ft.data.sampler import sampling_weights
from ddp_ft.data.splits.folder import EXAMPLE
from ddp_ft.data.splits.layouts import layout_of
from ddp_ft.data.splits.record import SplitRequest, Splits
from ddp_ft.errors import UserError, printable, shortened


def open_splits(config: DataConfig, seed: int, stored: Mapping[str, Any] | None = None, task: str = "auto") -> Splits:
    """Look at a folder or table and split it, or take the split that is stored (split.json of a run).

    `task` is the configuration's; it decides how a table's targets are read. Raises UserError, with all that is
    wrong of its kind in one message: for data that is missing, empty, damaged or of another layout, for a single
    class, empty class folders, classes that training lacks, images that are not there, too few images to
    split, and for a stored split whose images are gone.

    With data.on_error = skip the validation and test sets are read now, and come without their damaged images; in
    the training set others take the place of those as they are met. UserError if there are too many.
    """
    if config.path is None:
        raise UserError("No data is given.", f"Example: --data ~/pets\n{EXAMPLE}")
    request = SplitRequest(config, seed, stored)
    splits = layout_of(config.path).open_splits(request, config.path, task)
    return tolerate(splits, config, seed) if config.on_error == "skip" else splits


def tolerate(splits: Splits, config: DataConfig, seed: int) -> Splits:
    """The splits with samples to replace those of the training set, and without damaged ones in the other sets.

    Raises UserError if more are damaged of those than data.max_damaged allows.
    """
    given = {TRAIN: splits.train, VAL: splits.val, **({TEST: splits.test} if splits.test else {})}
    quarantine = Quarantine({name: len(source) for name, source in given.items()}, config.max_damaged)
    rest = {name: leave_out_damaged(given[name], name, quarantine) for name in given if name != TRAIN}
    quarantine.check()
    train = splits.train
    weights = sampling_weights(config.sampling, train.targets, train.weights, splits.schema.kind)
    return replace(
        splits,
        train=Lenient(train, seed, weights, quarantine),
        val=rest[VAL],
        test=rest.get(TEST),
        notes=(*splits.notes, *_notes(given, rest)),
        quarantine=quarantine,
    )


def _notes(given: Mapping[str, LabelledSource], rest: Mapping[str, LabelledSource]) -> Iterator[str]:
    for name, source in rest.items():
        if lost := left_out(source):
            told = shortened([f"{printable(path)} ({printable(reason)})" for path, reason in lost.items()], 5)
            yield f"{len(lost)} of {len(given[name])} {name} images cannot be read and count in no metric: {told}."


def lenient(splits: Splits, seed: int) -> Splits:
    """The splits with samples to replace those of the training set, however many; the other sets as they are."""
    quarantine = Quarantine({TRAIN: len(splits.train)}, 1.0)
    return replace(splits, train=Lenient(splits.train, seed, None, quarantine))
