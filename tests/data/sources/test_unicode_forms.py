"""Names in another Unicode form: matched where one thing can be meant, else named."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from ddp_ft.config.data import DataConfig
from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.data.sources.unicode_forms import NamesOnDisk
from ddp_ft.data.splits.folder import open_folder
from ddp_ft.data.splits.open import open_splits
from ddp_ft.errors import UserError
from tests.data.image.image_files import save_classes, save_image

ONE, TWO = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
# Both forms differ from it: only the first accent is composed.
MIXED, MIXED_ONE, MIXED_TWO = "\u00e9e\u0301", "\u00e9\u00e9", "e\u0301e\u0301"


def write_table(file: Path, cells: list[str]) -> Path:
    rows = [f"{cell},{'ab'[number % 2]}" for number, cell in enumerate(cells)]
    file.write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    return file


@pytest.mark.parametrize(("table", "disk"), [(ONE, TWO), (TWO, ONE)])
def test_paths_of_a_table(tmp_path: Path, table: str, disk: str) -> None:
    paths = [str(save_image(tmp_path / disk / f"{disk}{k}.png").relative_to(tmp_path)) for k in range(6)]
    cells = [path.replace(disk, table) for path in paths]
    file = write_table(tmp_path / "t.csv", cells)
    splits = open_splits(DataConfig(path=file), 0)
    assert sorted([*splits.train.paths, *splits.val.paths]) == paths
    assert list(list_images([str(file)])) == [str(tmp_path / path) for path in paths]
    absolute = str(tmp_path / cells[0])
    assert list(list_images(["-"], lines=[absolute])) == [str(tmp_path / paths[0])]


def test_what_may_be_two_files_is_named(tmp_path: Path) -> None:
    for name in (MIXED_ONE, MIXED_TWO):
        save_image(tmp_path / f"{name}.png")
    assert NamesOnDisk(str(tmp_path)).find(f"{MIXED}.png") == f"{MIXED}.png"
    file = write_table(tmp_path / "t.csv", [f"{MIXED}.png", f"{MIXED_ONE}.png"])
    with pytest.raises(UserError, match=f"1 of 2 images are not there(.|\n)*{MIXED}"):
        open_splits(DataConfig(path=file), 0)


def test_class_folders_of_validation_and_of_a_model(tmp_path: Path) -> None:
    save_classes(tmp_path / "train", {ONE: 4, "tea": 4})
    save_classes(tmp_path / "val", {TWO: 2, "tea": 1})
    splits = open_splits(DataConfig(path=tmp_path), 0)
    assert splits.schema.names == (ONE, "tea") and splits.val.targets.tolist() == [0, 0, 1]
    assert np.bincount(open_folder(tmp_path / "val", [ONE, "tea"]).targets).tolist() == [2, 1]


def test_two_classes_that_look_the_same(tmp_path: Path) -> None:
    save_classes(tmp_path, {ONE: 4, TWO: 4})
    assert any("Unicode form" in note and ONE in note for note in open_splits(DataConfig(path=tmp_path), 0).notes)
