"""Tables of images: what they are read as, how they are split, and what is wrong with them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddp_ft.config.data import DataConfig
from ddp_ft.config.forms import check_forms
from ddp_ft.config.loading import make_config
from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import LABEL, LABELS, NUMBERS, LabelledSource, Schema
from ddp_ft.data.sources.table import read_rows
from ddp_ft.data.splits.open import Splits, open_part, open_splits, open_splits_of
from ddp_ft.errors import UserError
from tests.support.tables import write_csv, write_parquet, write_shape_table


def images(count: int) -> list[str]:
    return [f"p/{k:03d}.png" for k in range(count)]


def columns(count: int = 40, **more: list[Any]) -> dict[str, list[Any]]:
    return {"image": images(count), "label": [("cat", "dog")[k % 2] for k in range(count)], **more}


def names(source: LabelledSource | None) -> list[str]:
    assert source is not None
    return [os.path.relpath(source.name(index), source.root) for index in range(len(source))]  # type: ignore[attr-defined]


def opened(path: Path, seed: int = 0, stored: Any = None, task: str = "auto", **config: Any) -> Splits:
    return open_splits(DataConfig(path=path, **config), seed, stored, task)


def fails(path: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        opened(path, **options)
    for part in parts:
        assert part in str(caught.value)


def target_of(splits: Splits, name: str) -> Any:
    for source in (splits.train, splits.val):
        if name in names(source):
            return source.targets[names(source).index(name)]
    raise AssertionError(name)


# What the columns are read as.


def test_samples_of_a_table(tmp_path: Path) -> None:
    table = write_shape_table(tmp_path / "t.csv")
    splits = opened(table, target="label", group="patient", weight="w", split="part")
    assert splits.schema == Schema(LABEL, ("disc", "square", "stripes"))
    assert (len(splits.train), len(splits.val), splits.test) == (27, 9, None)
    assert splits.record == {"given": True, "counts": {"train": 27, "val": 9}}
    assert names(splits.train) == sorted(names(splits.train))
    sample = splits.train.read(4)
    assert sample["image"].shape == (3, 40, 48) and sample["image"].dtype == torch.uint8
    assert (sample["target"].dtype, sample["target"].item()) == (torch.int64, 1)
    assert (sample["weight"].dtype, sample["weight"].shape, sample["weight"].item()) == (torch.float32, (), 1.0)
    assert splits.train.weights.dtype == np.float32 and splits.train.weights[:3].tolist() == [1, 2, 1]
    assert splits.val.weights is not None and len(splits.val.weights) == 9
    assert "weight" not in opened(table, split="part").train.read(0)


@pytest.mark.parametrize(
    ("target", "kind", "expected"), [("tags", LABELS, (4,)), ("area", NUMBERS, (1,)), ("area,w", NUMBERS, (2,))]
)
def test_targets_of_several_values(tmp_path: Path, target: str, kind: str, expected: tuple[int, ...]) -> None:
    splits = opened(write_shape_table(tmp_path / "t.csv"), target=target)
    assert splits.schema.kind == kind and splits.train.targets.dtype == np.float32
    sample = splits.train.read(0)["target"]
    assert sample.shape == expected and sample.dtype == torch.float32
    assert sample.tolist() == splits.train.targets[0].tolist()


@pytest.mark.parametrize(
    ("cells", "kind", "classes"),
    [
        (["b", "a", "b", "a"], LABEL, ("a", "b")),
        ([1, 0, 0, 1], LABEL, ("0", "1")),
        (["1.0", "0.0", "0", "1"], LABEL, ("0", "1")),
        (["007", "008", "007", "008"], LABEL, ("007", "008")),
        (["True", "False", "True", "False"], LABEL, ("False", "True")),
        (["1", "x", "1", "x"], LABEL, ("1", "x")),
        ([0.5, 1, 2, 3], NUMBERS, ("label",)),
        (["1e-3", "-4", "2", "7.5"], NUMBERS, ("label",)),
        (["b; a", "a", "", ";c;"], LABELS, ("a", "b", "c")),
    ],
)
def test_kind_of_one_column(tmp_path: Path, cells: list[Any], kind: str, classes: tuple[str, ...]) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(4), "label": cells})
    splits = opened(table)
    assert splits.schema == Schema(kind, classes)
    assert any("--task" in note for note in splits.notes)


def test_labels_of_one_column(tmp_path: Path) -> None:
    cells = ["b; a", "a", "", "b;b"] * 3
    splits = opened(write_csv(tmp_path / "t.csv", {"image": images(12), "label": cells}))
    rows = [target_of(splits, name).tolist() for name in images(4)]
    assert rows == [[1, 1], [1, 0], [0, 0], [0, 1]]
    other = write_csv(tmp_path / "u.csv", {"image": images(4), "label": ["a|b", "a", "b", "b"]})
    assert opened(other, separator="|").schema == Schema(LABELS, ("a", "b"))
    assert opened(other).schema == Schema(LABEL, ("a", "a|b", "b"))


def test_kind_of_several_columns(tmp_path: Path) -> None:
    flags = {"image": images(8), "x": [0, 1] * 4, "y": ["1.0", "False"] * 4, "z": [0.5, 2] * 4}
    table = write_csv(tmp_path / "t.csv", flags)
    splits = opened(table, target="y, x")
    assert splits.schema == Schema(LABELS, ("y", "x"))
    assert target_of(splits, "p/001.png").tolist() == [0, 1]
    assert opened(table, target="x,z").schema == Schema(NUMBERS, ("x", "z"))
    fails(table, "'y'", "no finite numbers", target="y,z")
    fails(table, "different", target="x,x")
    fails(table, "2 columns", target="x,y", task="single-label")
    fails(table, "'z'", "neither 0 nor 1", "line 2: '0.5'", target="x,z", task="multi-label")


def test_a_name_with_a_comma(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(4), "kind, fine": ["a", "b", "a", "b"]})
    assert opened(table, target="kind, fine").schema.names == ("a", "b")


def test_task_decides_how_targets_are_read(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(40), "label": [k % 20 for k in range(40)]})
    assert opened(table).schema.kind == LABEL
    assert not any("taken as" in note for note in opened(table, task="single-label").notes)
    assert opened(table, task="regression").schema == Schema(NUMBERS, ("label",))
    assert opened(table, task="multi-label").schema.kind == LABELS
    scores = write_csv(tmp_path / "s.csv", {"image": images(8), "label": [0.5, 1.5] * 4})
    assert opened(scores, task="single-label").schema.names == ("0.5", "1.5")


@pytest.mark.parametrize("cells", [list(range(42)) + list(range(42)), list(range(9))])
def test_whole_numbers_that_may_be_either(tmp_path: Path, cells: list[int]) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(len(cells)), "label": cells})
    fails(table, "classes or quantities", "--task single-label or --task regression")
    assert opened(table, task="regression").schema.kind == NUMBERS


@pytest.mark.parametrize("bad", ["inf", "1e99", "1_000", "0,5,5", "<1", "2-3"])
def test_cells_that_are_no_numbers(tmp_path: Path, bad: str) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(9), "label": [0.5] * 3 + [bad] + [1.5] * 5})
    fails(table, "1 cells of column 'label' are no finite numbers", f"line 5: '{bad}'", task="regression")
    fails(table, "no finite numbers", task="auto")


def test_listed_are_the_first_five(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(9), "label": [""] * 7 + ["a", "b"]})
    fails(table, "7 rows have no target", "line 6: ''", "... and 2 more", "--task multi-label")
    with pytest.raises(UserError) as caught:
        opened(table)
    assert "line 7" not in str(caught.value)


def test_targets_without_content(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(6) | {"label": ["a"] * 6, "none": [""] * 6, "same": [0.5] * 6})
    fails(table, "one class only, a")
    fails(table, "no labels", target="none", task="multi-label")
    fails(table, "same number", "same", target="same")
    fails(table, "separator is empty", separator="", task="multi-label")


# Weights, groups and splits.


@pytest.mark.parametrize("bad", ["-1", "nan", "heavy", "", "inf"])
def test_bad_weights(tmp_path: Path, bad: str) -> None:
    table = write_csv(tmp_path / "t.csv", columns(4, w=["1", "2", bad, "0"]))
    fails(table, "1 cells of column 'w' are", f"line 4: '{bad}'", weight="w")


def test_weights_that_leave_nothing(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(8, w=[0] * 8))
    fails(table, "weights of all", "are 0", weight="w")
    parts = write_csv(tmp_path / "u.csv", columns(8, w=[0] * 4 + [1] * 4, split=["train"] * 4 + ["val"] * 4))
    fails(parts, "weights of all 4 images for training are 0", weight="w")


def test_given_splits(tmp_path: Path) -> None:
    words = ["train", "Val", "TEST", "validation", "valid", "test", "Train", "train"]
    table = write_csv(tmp_path / "t.csv", columns(8, part=words) | {"label": ["a", "b", "a", "a", "b", "b", "b", "a"]})
    splits = opened(table, split="part")
    assert names(splits.train) == ["p/000.png", "p/006.png", "p/007.png"]
    assert names(splits.val) == ["p/001.png", "p/003.png", "p/004.png"]
    assert names(splits.test) == ["p/002.png", "p/005.png"]
    assert splits.train.targets.tolist() == [0, 1, 0] and splits.test and splits.test.targets.tolist() == [0, 1]
    assert opened(table).record["given"] is False, "the column is not named split"
    fails(table, "data.fold = '1/2'", split="part", fold="1/2")


def test_a_column_named_split_is_taken(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(8, split=["train"] * 5 + ["val"] * 3))
    assert (len(opened(table).train), len(opened(table).val)) == (5, 3)
    odd = write_csv(tmp_path / "odd.csv", columns(3, split=["train", "fold 2", ""]))
    fails(
        odd,
        "2 cells of column 'split' name no split",
        "line 3: 'fold 2'",
        "line 4: ''",
        "Known: train, val, test",
        "data.fold",
    )


def test_validation_is_drawn_from_training_rows(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(40, split=["train"] * 30 + ["test"] * 10))
    splits = opened(table, val_split=0.2)
    assert names(splits.test) == images(40)[30:]
    assert sorted(names(splits.train) + names(splits.val)) == images(30)
    assert np.bincount(splits.val.targets).tolist() == [3, 3]
    folded = opened(table, fold="1/3")
    assert len(folded.val) == 10 and names(folded.test) == images(40)[30:]


def test_splits_that_do_not_fit(tmp_path: Path) -> None:
    only = write_csv(tmp_path / "a.csv", columns(4, split=["val", "test"] * 2))
    fails(only, "no rows for training", "val and test")
    new = write_csv(tmp_path / "b.csv", columns(4, split=["train"] * 3 + ["test"]) | {"label": ["a", "b", "a", "c"]})
    fails(new, "only its val or test rows have: c")
    labels = {"label": ["a", "b;a", "a", "b;c"]}
    tags = write_csv(tmp_path / "c.csv", columns(4, split=["train"] * 3 + ["val"]) | labels)
    assert any("no image for training has: c" in note for note in opened(tags).notes)
    twice = {"image": ["p/1.png", "p/2.png", "p/../p/1.png", "p/3.png"]}
    double = write_csv(tmp_path / "d.csv", columns(4, split=["train", "train", "val", "val"]) | twice)
    fails(double, "1 image in more than one of its splits: p/1.png")
    torn = write_csv(tmp_path / "e.csv", columns(4, split=["train", "train", "val", "val"], who=["x", "y", "y", "z"]))
    fails(torn, "1 group (data.group) in more than one of its splits: y", group="who")


@pytest.mark.parametrize("options", [{}, {"fold": "2/3"}])
def test_groups_stay_together(tmp_path: Path, options: dict[str, str]) -> None:
    who = [f"w{k // 4}" for k in range(60)]
    table = write_csv(tmp_path / "t.csv", columns(60, who=who))
    splits = opened(table, group="who", val_split=0.3, **options)
    home = dict(zip(images(60), who, strict=True))
    train, val = ({home[name] for name in names(source)} for source in (splits.train, splits.val))
    assert not train & val and train | val == set(who)
    assert len(splits.val) == 20 if options else 16 <= len(splits.val) <= 20
    lone = opened(table, val_split=0.3, **options)
    assert {home[name] for name in names(lone.train)} & {home[name] for name in names(lone.val)}


def test_groups_that_cannot_be_split(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(8, one=["x"] * 8, gap=["x", "y", "", "z"] * 2))
    fails(table, "No group", "without losing a class: x", group="one")
    fails(table, "No group", "cat, dog", group="label")
    fails(table, "2 cells of column 'gap' are empty", "line 4", group="gap")
    fails(table, "2 parts", "1 groups", group="one", fold="1/2")
    double = write_csv(tmp_path / "u.csv", columns(3, who=["x", "y", "z"]) | {"image": ["a.png", "b.png", "./a.png"]})
    fails(double, "1 image in more than one group: a.png", group="who")


def test_far_share_is_told(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(40, who=[f"w{k // 20}" for k in range(40)]))
    assert any("50% of the images validate" in note for note in opened(table, group="who").notes)


def test_rows_of_one_image_stay_together(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(60) | {"image": [f"{k // 3}.png" for k in range(60)]})
    splits = opened(table, val_split=0.3)
    assert not set(names(splits.train)) & set(names(splits.val)) and len(splits.train) + len(splits.val) == 60
    assert any("40 rows name an image" in note for note in splits.notes)
    again = opened(table, seed=3, stored=json.loads(json.dumps(splits.record)))
    assert names(again.train) == names(splits.train) and again.train.targets.tolist() == splits.train.targets.tolist()


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_cover_everything_once(tmp_path: Path, grouped: bool) -> None:
    table = write_csv(tmp_path / "t.csv", columns(50, who=[f"w{k % 17}" for k in range(50)]))
    group = "who" if grouped else None
    folds = [opened(table, fold=f"{k}/5", group=group) for k in range(1, 6)]
    assert sorted(name for splits in folds for name in names(splits.val)) == images(50)
    assert all(sorted(names(splits.val) + names(splits.train)) == images(50) for splits in folds)
    assert names(opened(table, fold="2/5", group=group).val) == names(folds[1].val)
    assert folds[1].record["fold"] == "2/5" and "val_split" not in folds[1].record
    fails(table, "data.fold", fold="6/5", group=group)
    fails(table, "51 parts", fold="1/51")


def test_the_tables_own_folds(tmp_path: Path) -> None:
    """In the order of their numbers, of which 10 is the last."""
    folds = [("1", "2", "10")[k % 3] for k in range(30)]
    table = write_csv(tmp_path / "t.csv", columns(30, part=folds, who=[f"w{k % 6}" for k in range(30)]))
    for k, fold in enumerate(("1", "2", "10")):
        wanted = [name for name, own in zip(columns(30)["image"], folds, strict=True) if own == fold]
        found = opened(table, fold=f"{k + 1}/3", folds="part", group="who")
        assert sorted(names(found.val)) == sorted(wanted) and len(found.train) == 20
    assert opened(table, fold="1/3", folds="part").fingerprint != opened(table, fold="1/3").fingerprint
    fails(table, "asks for 5 folds, but the column data.folds has 3", "1, 2, 10", fold="1/5", folds="part")
    fails(table, "no column 'prat' (data.folds)", "part", fold="1/3", folds="prat")
    torn = write_csv(tmp_path / "e.csv", columns(6, part=["a", "b"] * 3, who=["x"] * 6))
    fails(torn, "1 group in more than one fold: x", fold="1/2", folds="part", group="who")
    twice = write_csv(tmp_path / "f.csv", columns(6, part=["a", "b"] * 3) | {"image": [*images(5), images(1)[0]]})
    fails(twice, "1 image in more than one fold", fold="1/2", folds="part")
    empty = write_csv(tmp_path / "g.csv", columns(4, part=["a", "", "b", "b"]))
    fails(empty, "empty", fold="1/2", folds="part")


def test_folds_of_a_folder_are_none(shapes: Path) -> None:
    with pytest.raises(UserError, match="is no table"):
        open_splits(DataConfig(path=shapes / "train", fold="1/2", folds="part"), 0)


def test_folds_need_to_know_which(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not which of its folds"):
        check_forms(make_config({"data.folds": "part"}))


def test_a_fold_without_a_class_is_told(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(9) | {"label": ["a", "b"] * 4 + ["once"]})
    notes = [note for k in (1, 2, 3) for note in opened(table, fold=f"{k}/3").notes if "once" in note]
    assert notes == ["Classes without an image for training: once."]
    fails(write_csv(tmp_path / "u.csv", columns(2)), "too few images")


def test_stored_split(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(40))
    first = opened(table)
    stored = json.loads(json.dumps({"fingerprint": first.fingerprint, **first.record}))
    write_csv(table, columns(42))
    again = opened(table, seed=4, stored=stored, val_split=0.5)
    assert names(again.train) == names(first.train) and names(again.val) == names(first.val)
    assert again.train.targets.tolist() == first.train.targets.tolist()
    assert any("2 images are new" in note for note in again.notes)
    write_csv(table, columns(38))
    fails(table, "2 images of this run are gone", "p/038.png", stored=stored)
    write_csv(table, columns(40, split=["train", "val"] * 20) | {"label": ["a", "a", "b", "b"] * 10})
    fails(table, "began without a validation folder or rows", stored=stored)


def test_fingerprint(tmp_path: Path) -> None:
    more = {"who": [f"w{k // 2}" for k in range(12)], "w": [1.0] * 12, "part": ["train"] * 8 + ["val"] * 4}
    base = columns(12, **more)
    keys = {"group": "who", "weight": "w", "split": "part"}
    path = tmp_path / "t.csv"

    def fingerprint(changed: dict[str, list[Any]]) -> str:
        return opened(write_csv(path, base | changed), **keys).fingerprint

    def with_first(name: str, value: Any) -> dict[str, list[Any]]:
        return {name: [value, *base[name][1:]]}

    changes = [with_first("image", "p/new.png"), with_first("label", "dog"), with_first("w", 2.0)]
    changes += [with_first("who", "w1"), {"part": ["train"] * 6 + ["val"] * 6}, {"label": ["CAT", "DOG"] * 6}]
    seen = [fingerprint({}), *map(fingerprint, changes)]
    (tmp_path / "p" / "003.png").write_bytes(b"longer than before")
    seen.append(fingerprint({}))
    assert len(set(seen)) == len(seen)
    backwards = {name: values[::-1] for name, values in base.items()}
    assert fingerprint(backwards) == seen[-1]
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert opened(tmp_path / "moved" / "t.csv", **keys).fingerprint == seen[-1]


def test_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    base = columns(40)
    first = opened(write_csv(tmp_path / "t.csv", base))
    order = np.random.default_rng(0).permutation(40)
    second = opened(write_csv(tmp_path / "u.csv", {name: [cells[k] for k in order] for name, cells in base.items()}))
    assert names(first.train) == names(second.train) and names(first.val) == names(second.val)
    assert first.train.targets.tolist() == second.train.targets.tolist() and first.fingerprint == second.fingerprint
    assert names(first.val) != names(opened(tmp_path / "t.csv", seed=1).val)


# Files.


def test_parquet_is_csv(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values: dict[str, list[Any]] = {
        "number": [round(float(value), 6) for value in generator.random(40)],
        "whole": [k % 5 for k in range(40)],
        "as_float": [float(k % 5) for k in range(40)],
        "flag": [k % 3 == 0 for k in range(40)],
        "tags": [("a;b", "b", "")[k % 3] for k in range(40)],
        "who": [k // 3 for k in range(40)],
        "w": [0.5 * (k % 4) for k in range(40)],
    }
    table = columns(40, **values)
    paths = write_csv(tmp_path / "t.csv", table), write_parquet(tmp_path / "t.parquet", table)
    for target in ("label", "number", "whole", "as_float", "flag", "tags", "number,whole", "flag,flag2"):
        if target == "flag,flag2":
            table["flag2"] = table["flag"][::-1]
            paths = write_csv(paths[0], table), write_parquet(paths[1], table)
        one, two = (opened(path, target=target, group="who", weight="w") for path in paths)
        assert one.schema == two.schema and one.fingerprint == two.fingerprint and one.record == two.record
        assert names(one.train) == names(two.train) and (one.train.targets == two.train.targets).all()
        assert (one.train.weights == two.train.weights).all()


def test_parquet_cells(tmp_path: Path) -> None:
    table = columns(4, w=[1.0, None, float("nan"), 2.0], nested=[[["a"]], [["b"]], [], [["a"]]], raw=[b"a"] * 4)
    path = write_parquet(tmp_path / "t.parquet", table)
    fails(path, "2 cells of column 'w'", "row 2: ''", "row 3: 'nan'", weight="w")
    fails(path, "Column 'nested'", "list<", target="nested")
    fails(path, "Column 'raw'", "binary", target="raw")


def test_parquet_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "t.parquet", columns(40))
    content = path.read_bytes()
    for damaged in (b"", b"no parquet", content[: len(content) // 2], content[:200] + bytes(300) + content[500:]):
        path.write_bytes(damaged)
        fails(path, "no whole Parquet file")
    path.write_bytes(content)
    assert len(opened(path).val) == 6
    fails(write_parquet(tmp_path / "none.parquet", columns(0)), "no rows")
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    fails(path, "needs pyarrow", "pip install 'ddp_ft[tables]'")
    assert len(opened(write_csv(tmp_path / "t.csv", columns(40))).val) == 6


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("is empty",)),
        (b"\n", ("is empty",)),
        (b"image,label\n", ("no rows",)),
        (b"image,label\na.png,x\na.png\nb.png,y,z\n", ("header has 2 cells, 2 rows", "line 3: 1", "line 4: 3")),
        (b'image,label\n"a.png,x\nb.png,y\n', ("damaged at line", "quote")),
        ("image,label\na.png,Käse\n".encode("latin-1"), ("not UTF-8 at line 2",)),
        ("image,label\na.png,x\n".encode("utf-16"), ("not UTF-8",)),
        (b"image,label,label\na.png,x,y\n", ("several columns named 'label'",)),
        (b"a.png,x\nb.png,y\n", ("no column 'image' (data.image), 'label' (data.target)", "'a.png', 'x'")),
    ],
)
def test_broken_csv(tmp_path: Path, content: bytes, parts: tuple[str, ...]) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    fails(tmp_path / "t.csv", *parts)


@pytest.mark.parametrize(
    ("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("csv", "|"), ("tsv", "\t"), ("CSV", ",")]
)
def test_csv_dialects(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = write_csv(tmp_path / f"t.{suffix}", columns(8) | {"label": ["a, b;", "c"] * 4}, delimiter)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\r\n")  # as spreadsheets begin and end them
    assert opened(path, task="single-label").schema.names == ("a, b;", "c")


def test_lines_are_counted_as_editors_do(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", columns(4))
    (tmp_path / "t.csv").write_text('image,label,note\np/000.png,a,"two\nlines"\n\np/001.png,,x\np/002.png,b,x\n')
    fails(tmp_path / "t.csv", "line 5: ''")


def test_column_of_images(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(40))
    table.write_text(table.read_text().replace("image,", "file name,"))
    assert len(opened(table, image="file name").train) == 34


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(4, patient=list("abcd")))
    fails(
        table,
        "no column 'file' (data.image), 'patents' (data.group)",
        "patient",
        "--set",
        image="file",
        group="patents",
    )
    fails(table, "'w' (data.weight)", weight="w")
    fails(table, "'part' (data.split)", split="part")
    fails(table, "'lable' (data.target)", "Did you mean label?", target="label,lable")


def test_images_that_are_not_there(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(40))
    for k in range(5, 30):
        (tmp_path / "p" / f"{k:03d}.png").unlink()
    (tmp_path / "p" / "005.png").mkdir()
    fails(table, "25 of 40 images are not there", "line 7: 'p/005.png'", "line 26: 'p/024.png'", "and 5 more")
    empty = write_csv(tmp_path / "e.csv", {"image": ["p/000.png", " ", "p/001.png"], "label": list("aba")})
    fails(empty, "1 cells of column 'image' are empty", "line 3")
    slashes = write_csv(tmp_path / "s.csv", {"image": ["p\\000.png", "p\\005.png"], "label": list("ab")})
    (tmp_path / "p\\005.png").unlink()
    fails(slashes, "1 of 2 images", "line 3: 'p\\\\005.png'")


def test_absolute_paths(tmp_path: Path) -> None:
    base = columns(40)
    relative = opened(write_csv(tmp_path / "t.csv", base))
    inside = opened(write_csv(tmp_path / "u.csv", base | {"image": [str(tmp_path / name) for name in base["image"]]}))
    assert inside.record == relative.record and inside.fingerprint == relative.fingerprint
    (tmp_path / "deep").mkdir()
    outside = tmp_path / "deep" / "t.csv"
    outside.write_text((tmp_path / "u.csv").read_text())
    splits = opened(outside)
    assert {splits.val.name(k) for k in range(len(splits.val))} <= {str(tmp_path / name) for name in base["image"]}


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").touch()
    fails(tmp_path / "t.xlsx", "is a file", ".csv, .tsv, .parquet")
    write_csv(tmp_path / "labels.csv", columns(4))
    fails(tmp_path / "label.csv", "does not exist", "labels.csv")


# One part of a data set, for a trained model.


def part(path: Path, schema: Schema, asked: str | None = None, stored: Any = None, **config: Any) -> tuple[str, Any]:
    return open_part(DataConfig(path=path, **config), schema, asked, stored)


def test_parts_of_a_given_split(tmp_path: Path) -> None:
    words = ["train"] * 4 + ["val"] * 3 + ["test"]
    table = write_csv(tmp_path / "t.csv", columns(8, part=words, w=[1] * 8))
    schema = Schema(LABEL, ("ant", "cat", "dog"))
    for split, expected in {None: (4, 7), "val": (4, 7), "train": (0, 4), "test": (7, 8), "all": (0, 8)}.items():
        name, source = part(table, schema, split, {"given": True}, split="part", weight="w", group="gone")
        assert name == (split or "val") and names(source) == images(8)[slice(*expected)]
        assert source.targets.tolist() == [1 + k % 2 for k in range(*expected)] and source.weights is None
    assert part(table, schema)[0] == "all"
    with pytest.raises(UserError, match=r"no val rows.*\n.*no column of splits.*all"):
        part(table, schema, "val")
    with pytest.raises(UserError, match="none of train"):
        part(table, schema, "dev")


def test_parts_of_a_drawn_split(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(40, who=[f"w{k // 2}" for k in range(40)]))
    splits = opened(table, seed=5, group="who")
    stored = json.loads(json.dumps({"fingerprint": splits.fingerprint, **splits.record}))
    for split, source in {None: splits.val, "val": splits.val, "train": splits.train}.items():
        name, found = part(table, splits.schema, split, stored, group="who")
        assert name == (split or "val") and names(found) == names(source)
        assert found.targets.tolist() == source.targets.tolist()
    assert part(table, splits.schema, "all", stored, group="who")[0] == "all"
    write_csv(table, columns(41, who=["w"] * 41))
    assert part(table, splits.schema, None, stored, group="who")[0] == "all"
    with pytest.raises(UserError, match="no val rows"):
        part(table, splits.schema, "val", stored, group="who")


def test_another_table_for_a_model(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(4))
    name, source = part(table, Schema(LABEL, ("cat", "dog")), group="who", weight="w")
    assert (name, len(source)) == ("all", 4)
    assert part(table, Schema(LABEL, ("cat", "dog")), split="part")[0] == "all"
    with pytest.raises(UserError, match=r"does not know: dog\..*\n.*: cat, cow"):
        part(table, Schema(LABEL, ("cat", "cow")))
    whole = write_parquet(tmp_path / "t.parquet", columns(4) | {"label": [1.0, 0.0, 1.0, 2.0]})
    assert part(whole, Schema(LABEL, ("0", "1", "2")))[1].targets.tolist() == [1, 0, 1, 2]
    one = write_csv(tmp_path / "one.csv", columns(3) | {"label": ["dog"] * 3})
    assert part(one, Schema(LABEL, ("cat", "dog")))[1].targets.tolist() == [1, 1, 1]


def test_other_targets_for_a_model(tmp_path: Path) -> None:
    cells = {"label": ["b", "a;b", "", "c"], "a": [0, 1, 0, 0], "b": [1, 1, 0, 0], "c": [0, 0, 0, 1]}
    table = write_csv(tmp_path / "t.csv", columns(4) | cells)
    expected = [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]
    schema = Schema(LABELS, ("b", "a", "c"))
    assert part(table, schema)[1].targets.tolist() == expected
    assert part(table, schema, target="a,b,c")[1].targets.tolist() == expected
    with pytest.raises(UserError, match="does not know: c"):
        part(table, Schema(LABELS, ("a", "b")))
    with pytest.raises(UserError, match="lacks columns that the model predicts: c"):
        part(table, schema, target="a,b")
    assert part(table, Schema(NUMBERS, ("c", "a")), target="a,c")[1].targets.tolist() == [
        [0, 0],
        [0, 1],
        [0, 0],
        [1, 0],
    ]
    assert part(table, Schema(NUMBERS, ("age",)), target="c")[1].targets.tolist() == [[0], [0], [0], [1]]
    with pytest.raises(UserError, match=r"does not know: b\..*\n.*numbers: c, a"):
        part(table, Schema(NUMBERS, ("c", "a")), target="a,b")
    with pytest.raises(UserError, match="no target"):
        part(table, Schema(NUMBERS, ("age",)))


MISSING = ["nan", "NA", "N/A", "NULL", "None", "<NA>", "?", "-", "—", "n.a.", "(null)", "#REF!", "[]", "NaT"]


@pytest.mark.parametrize("word", MISSING)
def test_a_word_for_a_missing_label_is_no_class_unless_it_is_called_one(tmp_path: Path, word: str) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(10), "label": ["a", "b"] * 4 + [word] * 2})
    fails(table, "2 rows have no target", f"line 10: '{word}'", "data.unknown=drop", "data.unknown=class")
    fails(table, "mask is for several labels", unknown="mask")
    dropped = opened(table, unknown="drop")
    assert (dropped.schema.names, len(dropped.train) + len(dropped.val)) == (("a", "b"), 8)
    assert any("2 of 10 rows have no target" in note for note in dropped.notes)
    assert set(opened(table, unknown="class").schema.names) == {"a", "b", word}
    assert part(table, Schema(LABEL, ("a", "b", word)))[1].targets.tolist()[-2:] == [2, 2]
    empty = write_csv(tmp_path / "e.csv", {"image": images(3), "label": ["a", "b", ""]})
    fails(empty, "--task multi-label")
    with pytest.raises(UserError, match="1 row has no target") as caught:  # a trained model has a task
        part(empty, Schema(LABEL, ("a", "b")))
    assert "data.unknown=drop" in caught.value.hint and "--task" not in caught.value.hint


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        (["a", "b", "a|b", "a"], "--set data.separator='|'"),
        (["a", "b", "a|new", "b|new"], "--set data.separator='|'"),
        (["a", "b", "a, b", "a"], "look like several labels"),
        (["['a']", "['b']", "['a', 'b']", "['a']"], "look like lists of labels"),
        (["a", "b", "Unknown", "a"], "Unknown among the classes"),
        (["a", "b", "-999", "a"], "-999 among the classes"),
        (["a", "b", "A", "b"], "only in upper and lower case: A, a"),
        (["1.5", "2.5", "-999", "3.5"], "has -999 in 3 rows, far from all other numbers"),
    ],
)
def test_what_cells_may_mean_is_noted(tmp_path: Path, cells: list[str], note: str) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(12), "label": cells * 3})
    assert any(note in each for each in read_rows(DataConfig(), table).notes)
    plain = write_csv(tmp_path / "p.csv", {"image": images(12), "label": ["big cat", "dog", "cat 2", "c-d"] * 3})
    assert len(read_rows(DataConfig(), plain).notes) == 1


def test_columns_of_yes_and_no_are_labels_and_of_other_numbers_a_doubt(tmp_path: Path) -> None:
    cells = {"image": images(8), "p": ["yes", "no"] * 4, "q": ["N", "y"] * 4}
    rows = read_rows(DataConfig(target="p,q"), write_csv(tmp_path / "t.csv", cells))
    assert (rows.schema.kind, rows.targets[:2].tolist()) == (LABELS, [[1, 0], [0, 1]])
    odd = {"image": images(8), "p": ["1", "0"] * 4, "q": ["0", "1", "1", "9"] * 2}
    rows = read_rows(DataConfig(target="p,q"), write_csv(tmp_path / "o.csv", odd))
    assert rows.schema.kind == NUMBERS and "--task multi-label" in rows.notes[-1]


def test_missing_numbers_are_refused_or_left_out(tmp_path: Path) -> None:
    cells = {"image": images(12), "x": ["1,5", "2", "nan"] * 4, "y": ["0.5", "", "1"] * 4}
    table = write_csv(tmp_path / "t.csv", cells)
    fails(table, "4 rows have no target", "data.unknown=drop", target="x")
    fails(table, "8 rows have no target", target="x,y")
    splits = opened(table, target="x", unknown="drop")
    assert sorted({*splits.train.targets[:, 0].tolist(), *splits.val.targets[:, 0].tolist()}) == [1.5, 2]
    assert any("'1,5' is 1.5" in note for note in splits.notes)


def test_unknown_labels_are_nan_where_they_are_masked(tmp_path: Path) -> None:
    cells = {"image": images(8), "p": ["1", "0", "-1", ""] * 2, "q": ["0", "1", "0", "1"] * 2}
    table = write_csv(tmp_path / "t.csv", cells)
    fails(table, "hold -1 beside 0 and 1", "data.unknown=mask", "--task regression", target="p,q")
    fails(table, "4 rows have no target", "data.unknown=mask", "data.unknown=drop", target="p,q", task="multi-label")
    targets = read_rows(DataConfig(target="p,q", unknown="mask"), table).targets
    assert np.isnan(targets[:, 0]).tolist() == [False, False, True, True] * 2
    assert not np.isnan(targets[:, 1]).any()
    assert len(read_rows(DataConfig(target="p,q", unknown="drop"), table).names) == 4
    tags = write_csv(tmp_path / "s.csv", {"image": images(4), "label": ["a;b", "nan", "", "b"]})
    known = ~np.isnan(read_rows(DataConfig(unknown="mask"), tags).targets)
    assert known.tolist() == [[True] * 2, [False] * 2, [True] * 2, [True] * 2]


def test_a_table_without_names_of_columns_and_one_of_a_class_for_each_image(tmp_path: Path) -> None:
    (tmp_path / "cat.png").touch()
    (tmp_path / "t.csv").write_text("cat.png,a\ncat.png,b\n")
    fails(tmp_path / "t.csv", "has no column 'image'", "first line holds no names of columns, but an image")
    own = write_csv(tmp_path / "o.csv", {"image": images(3), "label": ["x", "y", "z"]})
    fails(own, "one of each class", "--task regression")


def test_numbers_that_may_be_two(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(4), "label": ["1,234", "2,345", "3,456", "4,567"]})
    fails(table, "'1,234'", "may be 1234", "or 1.234", "--task single-label")
    with pytest.raises(UserError, match="may be 1234") as caught:
        opened(table, task="regression")
    assert "--task" not in caught.value.hint
    sizes = write_csv(tmp_path / "s.csv", {"image": images(4), "label": ["1 kg", "20 g", "3 kg", "4,5 g"]})
    fails(sizes, "look like numbers with different units (g, kg)", "--task regression")
    fails(sizes, "no finite numbers", "different units", task="regression")


def test_classes_that_look_like_quantities_have_a_note(tmp_path: Path) -> None:
    cells = {"image": images(12), "t": ["1.5T", "3T"] * 6, "n": ["0", "1", "-1"] * 4, "c": ["a", "b"] * 6}
    table = write_csv(tmp_path / "t.csv", cells)
    for target, doubt in (("t", "numbers with the unit T."), ("n", "-1 is one of the classes"), ("c", "")):
        [note] = [each for each in opened(table, target=target).notes if "is taken as one of" in each]
        assert doubt in note and note.endswith(".")
    pairs = write_csv(tmp_path / "p.csv", {"image": images(6), "label": ["1,2,3", "2,3", "1"] * 2})
    fails(pairs, "no finite numbers", "--set data.separator=,")
    assert opened(pairs, separator=",").schema.names == ("1", "2", "3")


def test_a_separator_that_no_cell_has_is_a_mistake(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(4), "label": ["a|b", "b", "a", "b"]})
    fails(table, "is in no cell of column 'label'", separator="\\t")
    assert opened(table, separator="|").schema.names == ("a", "b")
    flags = write_csv(tmp_path / "f.csv", {"image": images(4), "a": ["1", "0"] * 2, "b": ["0", "1"] * 2})
    assert opened(flags, target="a,b", separator="|").schema == Schema(LABELS, ("a", "b"))


def test_a_run_that_has_begun_is_not_asked_what_its_table_holds(tmp_path: Path) -> None:
    cells = {"image": images(12), "p": ["1", "0", "-1"] * 4, "q": ["0", "1", "-1", "1"] * 3}
    table = write_csv(tmp_path / "t.csv", cells)
    config = RunConfig(data=DataConfig(path=table, target="p,q"))
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="-1 beside 0 and 1"):
        open_splits_of(run, config)
    (run / "plan.json").write_text('{"task": "regression"}')
    splits = open_splits_of(run, config)
    assert splits.schema == Schema(NUMBERS, ("p", "q"))
    (run / "plan.json").write_text("{")  # training makes it anew
    with pytest.raises(UserError, match="-1 beside 0 and 1"):
        open_splits_of(run, config)


def test_a_missing_group_is_no_group(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", columns(6) | {"patient": ["nan", "nan", "p", "q", "r", "s"]})
    fails(table, "2 cells of column 'patient' are empty", group="patient")


def test_a_misspelt_column_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", {"image": images(2), "label": ["a", "b"]})
    words = ["--data", str(table), "--model", "x", "--set", "data.target=lable"]
    code = f"import sys\nfrom ddp_ft.train import train\ntry:\n    train.main({words!r}, standalone_mode=False)\n"
    code += "except Exception as error:\n    print(error, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "no column 'lable' (data.target)" in done.stdout and "Name another: --set data.target" in done.stdout
    assert done.stdout.rstrip().endswith("False"), done.stdout + done.stderr
