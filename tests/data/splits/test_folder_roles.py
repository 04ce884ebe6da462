"""Which folders are for training, validation and test; and folders that may be classes or not."""

from pathlib import Path

import pytest

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import LABEL, Schema
from ddp_ft.data.roles import role_of, role_within
from ddp_ft.data.splits.open import open_part, open_splits
from ddp_ft.errors import UserError
from tests.data.image.image_files import save_classes

TWO = {"cat": 5, "dog": 5}


def opened(path: Path, stored: dict | None = None, **keys: object):
    return open_splits(DataConfig(path=path, **keys), 0, stored)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        opened(path)
    return str(caught.value)


def test_names_of_roles() -> None:
    for role, names in {
        "train": "train Train TRAINING training_set train-images trainset Train.Data",
        "val": "val valid validation Validation_Set dev valset",
        "test": "test TEST testing Testing-Set test_images",
        "": "cat training_shoes dev_kit contest latest val1 images",
    }.items():
        assert {role_of(name) for name in names.split()} == {role}
    assert [role_within(name) for name in ("train2017", "val(1)", "trn", "te")] == ["train", "val", "train", "test"]
    assert (role_within("seg_train"), role_within("2-test"), role_within("train_vs_test")) == ("train", "test", "")


@pytest.mark.parametrize("names", [("Training", "Testing"), ("training_set", "test_set"), ("TRAIN", "TEST")])
@pytest.mark.parametrize("inner", ["", "images", "Data"])
def test_common_names(tmp_path: Path, names: tuple[str, str], inner: str) -> None:
    save_classes(tmp_path / inner / names[0], TWO)
    save_classes(tmp_path / inner / names[1], TWO)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    splits = opened(tmp_path)
    assert splits.schema.names == ("cat", "dog") and splits.test is not None and len(splits.test) == 10
    part, source = open_part(DataConfig(path=tmp_path), Schema(LABEL, ("cat", "dog")), "test", None)
    assert (part, len(source)) == ("test", 10)
    assert bool(inner) == any("The parts of" in note for note in splits.notes)


def test_a_plain_name_goes_before_others(tmp_path: Path) -> None:
    for name, classes in {"train": TWO, "Val": TWO, "dev": {"cat": 2, "dog": 2}, "training_set": TWO}.items():
        save_classes(tmp_path / name, classes)
    splits = opened(tmp_path)
    assert (len(splits.train), len(splits.val)) == (10, 10)
    assert any(note.endswith("ignored: dev, training_set.") for note in splits.notes)
    _, source = open_part(DataConfig(path=tmp_path), Schema(LABEL, ("cat", "dog")), "val", None)
    assert len(source) == 10


def test_class_folders_within_images_of_each_part(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        save_classes(tmp_path / part / "images", TWO)
    splits = opened(tmp_path)
    assert splits.schema.names == ("cat", "dog") and splits.train.read(0)["target"] == 0
    assert next(iter(splits.val.paths)) == "val/images/cat/000.png"
    _, source = open_part(DataConfig(path=tmp_path), Schema(LABEL, ("cat", "dog")), "test", None)
    assert len(source) == 10


def test_two_folders_of_one_role(tmp_path: Path) -> None:
    for name in ("training_data", "training_set"):
        save_classes(tmp_path / name, TWO)
    assert refused(tmp_path).startswith(f"{tmp_path} has both training_data/ and training_set/.")


@pytest.mark.parametrize(
    ("tops", "inner", "command"),
    [
        (("seg_train", "seg_test"), ("cat", "dog"), "mv {0}/seg_train {0}/train && mv {0}/seg_test {0}/test"),
        (("train2017", "val2017"), ("cat", "dog"), "mv {0}/train2017 {0}/train && mv {0}/val2017 {0}/val"),
        (("1_train", "2_test"), ("in/cat", "in/dog"), "mv {0}/1_train/in {0}/train && mv {0}/2_test/in {0}/test"),
        (("2019", "2020"), ("cat", "dog"), "--data {0}/2019"),
        (("cat", "dog"), ("train", "test"), "train/CLASS"),
    ],
)
def test_folders_that_all_hold_the_same_ones(tmp_path: Path, tops: tuple, inner: tuple, command: str) -> None:
    for top in tops:
        save_classes(tmp_path / top, dict.fromkeys(inner, 5))
    save_classes(tmp_path, {"pred": 3})
    message = refused(tmp_path)
    assert command.format(tmp_path) in message and "--set data.class_folders=top" in message
    splits = opened(tmp_path, class_folders="top")
    assert splits.schema.names == tuple(sorted((*tops, "pred")))
    assert opened(tmp_path, splits.record).schema == splits.schema  # a run that has begun is not asked
    save_classes(tmp_path, dict.fromkeys("abc", 1))
    assert len(opened(tmp_path).schema.names) == 6  # most of them are plain class folders


def test_a_folder_with_the_classes_of_another_part(tmp_path: Path) -> None:
    for part in ("train", "holdout"):
        save_classes(tmp_path / part, TWO)
    save_classes(tmp_path / "other", {"rest": 1, "more": 1})
    assert any("holdout in" in note and "to val or test" in note for note in opened(tmp_path).notes)
    (tmp_path / "train").rename(tmp_path / "trainval")
    (tmp_path / "holdout").rename(tmp_path / "test")
    assert f"If trainval is for training: mv {tmp_path}/trainval {tmp_path}/train" in refused(tmp_path)


def test_top_takes_train_for_a_class(tmp_path: Path) -> None:
    save_classes(tmp_path / "train", {"red": 5, "blue": 5})
    save_classes(tmp_path / "car", {"red": 5})
    assert opened(tmp_path).schema.names == ("blue", "red")
    assert opened(tmp_path, class_folders="top").schema.names == ("car", "train")
