"""A kind of targets that has no classes and no strata, through all that asks a kind something."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ddp_ft.config.data import DataConfig
from ddp_ft.config.tasks import TASKS, TaskEntry, fitting_tasks
from ddp_ft.contracts import LABEL, LABELS, NUMBERS, WORD_TAGS, Schema
from ddp_ft.data.class_counts import count_classes
from ddp_ft.data.sampler import sampling_weights
from ddp_ft.data.splits.open import Splits, open_part, open_splits
from ddp_ft.data.splits.stratify import Pool, deal, draw
from ddp_ft.data.targets.base import TargetColumns, TargetKind
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError
from tests.support.tables import write_csv

SPANS = np.array([[k % 4, k % 4 + 3] for k in range(40)], np.int64)
SCHEMA = Schema("spans", ("label",))


class Spans(TargetKind):
    """Where something begins and ends; a cell is START-END."""

    name = "spans"

    def read(self, columns: TargetColumns) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        return columns.names, self.read_known(columns, columns.names)

    def read_known(self, columns: TargetColumns, names: tuple[str, ...]) -> NDArray[np.int64]:
        return np.array([cell.split("-") for cell in columns.first]).astype(np.int64)


@pytest.fixture(autouse=True)
def spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "spans", Spans())
    monkeypatch.setitem(TASKS, "find-spans", TaskEntry("", ("spans",), ""))


def opened(folder: Path, stored: Any = None, task: str = "find-spans", spans: Any = SPANS, **more: Any) -> Splits:
    """The splits of a table of `spans`; `more` are further columns, each of which is for the key of its name."""
    cells = {"image": [f"{k}.png" for k in range(len(spans))], "label": [f"{a}-{b}" for a, b in spans]}
    table = write_csv(folder / "t.csv", {**cells, **more})
    return open_splits(DataConfig(path=table, **{key: key for key in more}), 0, stored, task)


def test_every_task_has_kinds_that_are_known() -> None:
    assert {kind for entry in TASKS.values() for kind in entry.kinds} == set(KINDS)
    assert set(KINDS) == {LABEL, LABELS, NUMBERS, WORD_TAGS, "spans"}
    assert fitting_tasks("spans") == ("find-spans",) and fitting_tasks(LABELS) == ("multi-label",)
    assert fitting_tasks(LABEL) == ("single-label", "multi-label")


def test_divided_without_strata() -> None:
    names = [f"{k}.png" for k in range(40)]
    pool = Pool(names, "spans", SPANS)
    assert draw(pool, 0.2, 0).sum() == 8 and (draw(pool, 0.2, 0) != draw(pool, 0.2, 1)).any()
    assert np.bincount(deal(pool, 3, 0)).tolist() == [14, 13, 13]
    # A group may go to either side whatever is in it, so long as one is left.
    groups = [f"g{k // 8}" for k in range(40)]
    drawn = draw(Pool(names, "spans", SPANS, groups), 0.2, 0)
    assert drawn.sum() == 8 and len({groups[k] for k in np.flatnonzero(drawn)}) == 1
    parts = deal(Pool(names, "spans", SPANS, groups), 5, 0)
    assert np.bincount(parts).tolist() == [8] * 5 and not draw(Pool(names, "spans", SPANS, ["g"] * 40), 0.2, 0).any()


def test_splits_of_a_table(tmp_path: Path) -> None:
    splits = opened(tmp_path)
    assert splits.schema == SCHEMA and not splits.notes and len(splits.val) == 6
    assert np.concatenate([splits.train.targets, splits.val.targets]).shape == (40, 2)
    stored = {"fingerprint": splits.fingerprint, **splits.record}
    assert (opened(tmp_path, stored).val.targets == splits.val.targets).all()
    for split, targets in (("val", splits.val.targets), ("all", SPANS)):
        name, part = open_part(DataConfig(path=tmp_path / "t.csv"), SCHEMA, split, stored)
        assert name == split and sorted(part.targets.tolist()) == sorted(targets.tolist())


def test_nothing_is_asked_of_classes(tmp_path: Path) -> None:
    same = np.ones((8, 2), np.int64)
    splits = opened(tmp_path, spans=same, split=["train"] * 6 + ["val"] * 2)
    assert splits.record["given"] and not splits.notes
    assert count_classes(splits.train, splits.schema) is None
    assert KINDS["spans"].absent(same, ("a", "b")) == []


def test_what_is_not_named_is_not_guessed(tmp_path: Path) -> None:
    splits = opened(tmp_path, task="auto")
    assert splits.schema.kind == LABEL and "one of 4 classes each (single-label)" in splits.notes[0]


def test_sampling() -> None:
    weights = np.arange(40, dtype=np.float32)
    assert sampling_weights("natural", SPANS, weights, "spans") is None
    drawn = sampling_weights("weighted", SPANS, weights, "spans")
    assert drawn is not None and drawn.tolist() == weights.tolist()
    with pytest.raises(UserError, match=r"needs classes, but the targets are spans[\s\S]*--sampling weighted"):
        sampling_weights("balanced", SPANS, weights, "spans")
