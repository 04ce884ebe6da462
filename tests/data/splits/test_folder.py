import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import LABEL, NUMBERS, Schema
from ddp_ft.data.sources.files import LabelledFileSource
from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.data.splits.folder import open_folder
from ddp_ft.data.splits.open import open_part, open_splits
from ddp_ft.errors import UserError
from tests.data.image.image_files import save_classes, save_image


def names(source: LabelledFileSource | None) -> list[str]:
    assert source is not None
    return [os.path.relpath(source.name(index), source.root) for index in range(len(source))]


def split(path: Path, seed: int = 0, share: float = 0.15, stored: dict | None = None):
    return open_splits(DataConfig(path=path, val_split=share), seed, stored)


def fails(path: Path, *parts: str, **options: object) -> None:
    with pytest.raises(UserError) as caught:
        split(path, **options)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_given_splits(tmp_path: Path, val: str) -> None:
    save_classes(tmp_path / "train", {"b": 3, "a": 2})
    save_classes(tmp_path / val, {"b": 2})
    save_classes(tmp_path / "test", {"a": 1})
    splits = split(tmp_path)
    assert splits.schema.names == ("a", "b")
    assert names(splits.train) == ["train/a/000.png", "train/a/001.png", *(f"train/b/00{k}.png" for k in range(3))]
    assert splits.train.targets.tolist() == [0, 0, 1, 1, 1]
    assert (names(splits.val), splits.val.targets.tolist()) == ([f"{val}/b/000.png", f"{val}/b/001.png"], [1, 1])
    assert (names(splits.test), splits.test and splits.test.targets.tolist()) == (["test/a/000.png"], [0])
    assert splits.record == {"given": True, "counts": {"train": 5, "val": 2, "test": 1}}
    assert splits.notes == () and "--val-split does nothing" in split(tmp_path, share=0.3).notes[-1]
    sample = splits.val.read(0)
    assert sample["image"].shape == (3, 16, 20) and sample["target"].item() == 1
    assert str(sample["target"].dtype) == "torch.int64" and sample["target"].ndim == 0


@pytest.mark.parametrize("inner", ["", "train"])
def test_drawn_split_is_stratified_and_complete(tmp_path: Path, inner: str) -> None:
    save_classes(tmp_path / inner, {"a": 40, "b": 20, "c": 2, "d": 1, "e": 3})
    splits = split(tmp_path)
    assert Counter(splits.val.targets.tolist()) == {0: 6, 1: 3, 2: 1, 4: 1}
    assert Counter(splits.train.targets.tolist()) == {0: 34, 1: 17, 2: 1, 3: 1, 4: 2}
    both = names(splits.train) + names(splits.val)
    assert len(both) == len(set(both)) == 66
    assert names(splits.train) == sorted(names(splits.train))
    assert splits.train.targets.tolist() == ["abcde".index(Path(name).parent.name) for name in names(splits.train)]
    assert splits.test is None


def test_large_share_leaves_each_class_something_to_train_on(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 2, "b": 3})
    assert Counter(split(tmp_path, share=0.9).train.targets.tolist()) == {0: 1, 1: 1}


def test_split_follows_the_seed_alone(tmp_path: Path) -> None:
    save_classes(tmp_path / "one", {"a": 30, "b": 30})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first, again, other = split(tmp_path / "one"), split(tmp_path / "two"), split(tmp_path / "one", seed=1)
    assert names(first.val) == names(again.val) != names(other.val)
    assert first.record == again.record
    assert first.fingerprint == again.fingerprint == other.fingerprint


def test_stored_split_is_taken_exactly(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 10, "b": 10})
    first = split(tmp_path)
    stored = json.loads(json.dumps(first.record))
    save_image(tmp_path / "a" / "new.png")
    again = split(tmp_path, seed=5, share=0.5, stored=stored)
    assert names(again.train) == names(first.train) and names(again.val) == names(first.val)
    assert again.train.targets.tolist() == first.train.targets.tolist()
    assert again.record == first.record
    assert any("1 image is new" in note for note in again.notes)
    assert again.fingerprint != first.fingerprint


def test_stored_split_whose_files_are_gone(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 10, "b": 10})
    stored = split(tmp_path).record
    (tmp_path / "a" / "003.png").unlink()
    (tmp_path / "b" / "004.png").unlink()
    fails(tmp_path, "2 images", "a/003.png", "b/004.png", stored=stored)


def test_stored_split_of_another_layout(tmp_path: Path) -> None:
    save_classes(tmp_path / "train", {"a": 3, "b": 3})
    stored = split(tmp_path).record
    save_classes(tmp_path / "val", {"a": 1, "b": 1})
    fails(tmp_path, "validation folder", stored=stored)
    shutil.rmtree(tmp_path / "val")
    fails(tmp_path, "validation folder", stored={"given": True})


def test_fingerprint_sees_names_sizes_and_labels(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return split(tmp_path).fingerprint

    save_classes(tmp_path, {"a": 3, "b": 3})
    seen = [fingerprint()]
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "x.png")
    seen.append(fingerprint())
    with (tmp_path / "a" / "x.png").open("ab") as file:
        file.write(b"!")
    seen.append(fingerprint())
    (tmp_path / "a" / "001.png").rename(tmp_path / "b" / "zzz.png")
    seen.append(fingerprint())
    save_classes(tmp_path, {"0": 1})
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)
    assert fingerprint() == seen[-1]


def test_suffixes_nesting_hidden_files_and_links(tmp_path: Path) -> None:
    data = save_classes(tmp_path / "data", {"a": 1, "b": 2})
    save_image(data / "a" / "deep" / "er" / "UPPER.JPG")
    save_image(data / "a" / "t.TIF")
    save_image(data / "a" / "w.webp")
    save_image(data / "a" / ".hidden.png")
    save_image(data / "a" / ".hidden" / "x.png")
    save_image(data / ".cache" / "x.png")
    (data / "a" / "notes.txt").write_text("no image")
    save_image(tmp_path / "elsewhere" / "z.png")
    (data / "a" / "folder_link").symlink_to(tmp_path / "elsewhere")
    (data / "a" / "file_link.png").symlink_to(tmp_path / "elsewhere" / "z.png")
    (data / "c").symlink_to(tmp_path / "elsewhere")
    splits = split(data, share=0.01)
    assert splits.schema.names == ("a", "b", "c")
    found = sorted(names(splits.train) + names(splits.val))
    of_a = ["000.png", "deep/er/UPPER.JPG", "file_link.png", "folder_link/z.png", "t.TIF", "w.webp"]
    assert found == [*(f"a/{name}" for name in of_a), "b/000.png", "b/001.png", "c/z.png"]
    assert any("ignored: 1 (" in note and ".txt 1" in note for note in splits.notes)


def test_link_loops_do_not_hang(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "root").symlink_to(tmp_path)
    (tmp_path / "a" / "itself.png").symlink_to(tmp_path / "a" / "itself.png")
    splits = split(tmp_path)
    assert splits.schema.names == ("a", "b")
    found = names(splits.train) + names(splits.val)
    assert sorted(found) == [
        "a/000.png",
        "a/001.png",
        "a/itself.png",  # broken, and so noticed when it is read
        "a/to_b/000.png",
        "a/to_b/001.png",
        "b/000.png",
        "b/001.png",
        "b/to_a/000.png",
        "b/to_a/001.png",
        "b/to_a/itself.png",
    ]


def test_order_is_that_of_whole_paths(tmp_path: Path) -> None:
    save_classes(tmp_path / "train", {"a": 1, "a b": 1, "a-b": 1})
    save_classes(tmp_path / "val", {"a": 1})
    train = split(tmp_path).train
    assert names(train) == ["train/a b/000.png", "train/a-b/000.png", "train/a/000.png"]
    assert train.targets.tolist() == [1, 2, 0]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    save_classes(tmp_path, {"train": 3, "plane": 3, "test": 3})
    assert split(tmp_path).schema.names == ("plane", "test", "train")


def test_notes_on_what_is_left_out(tmp_path: Path) -> None:
    save_classes(tmp_path / "train", {"a": 2, "b": 2})
    save_image(tmp_path / "train" / "loose.png")
    save_image(tmp_path / "test" / "1.png")
    (tmp_path / "extra").mkdir()
    splits = split(tmp_path)
    text = "\n".join(splits.notes)
    assert (
        "extra" in text
        and "beside the class folders of" in text
        and "ignored: 1." in text
        and "test has no class folders" in text
    )
    assert splits.test is None


def test_folder_that_is_none(tmp_path: Path) -> None:
    save_classes(tmp_path / "pets", {"a": 1})
    fails(tmp_path / "pet", "does not exist", "pets")
    save_image(tmp_path / "a.png")
    fails(tmp_path / "a.png", "is a file")
    with pytest.raises(UserError, match="--data"):
        open_splits(DataConfig(), 0)


def test_folders_without_images(tmp_path: Path) -> None:
    fails(tmp_path, "no images", "CLASS")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "readme.txt").touch()
    fails(tmp_path, "no images", ".jpg")
    save_image(tmp_path / "x.png")
    save_image(tmp_path / "Y.PNG")
    fails(tmp_path, "no images in class folders", "directly: 2")


def test_one_class_only(tmp_path: Path) -> None:
    save_classes(tmp_path / "pets", {"a": 3})
    fails(tmp_path / "pets", "one class only, a")
    save_classes(tmp_path / "pets", {"b": 3})
    fails(tmp_path, "one class only, pets", f"Did you mean --data {tmp_path / 'pets'}?")


def test_a_folder_beside_what_was_meant(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 2, "b": 2})
    fails(tmp_path / "b", "no images in class folders", f"If a, b are the classes: --data {tmp_path}")
    (tmp_path / "labels.csv").touch()
    fails(tmp_path / "b", "name it", f"--data {tmp_path / 'labels.csv'}")
    shutil.rmtree(tmp_path / "b")
    fails(tmp_path, "one class only, a", f"--data {tmp_path / 'labels.csv'}")


def test_empty_classes_are_all_named(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 3, "b": 0, "c": 2, "d": 0})
    fails(tmp_path, "without images", "b, d")


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_without_images_to_evaluate(tmp_path: Path, part: str) -> None:
    for name in ("train", "val", "test"):
        save_classes(tmp_path / name, {"a": 3, "b": 0 if name == part else 2})
    splits = split(tmp_path)
    assert len(splits.val if part == "val" else splits.test or ()) == 3
    assert splits.notes == (f"{tmp_path / part} has no images of these classes, which no metric there measures: b.",)
    shutil.rmtree(tmp_path / "train" / "b")
    fails(tmp_path, "has one class only")


@pytest.mark.parametrize(("names", "note"), [(["1", "2", "10"], "output 1 is class '10'"), (["01", "02", "10"], "")])
def test_class_names_that_are_numbers(tmp_path: Path, names: list[str], note: str) -> None:
    save_classes(tmp_path, dict.fromkeys(names, 3))
    splits = split(tmp_path)
    assert splits.schema.names == tuple(sorted(names))  # whatever they are, as in all runs before
    assert note in " ".join(splits.notes) and bool(splits.notes) == bool(note)


@pytest.mark.parametrize("part", ["val", "test"])
def test_class_that_training_lacks(tmp_path: Path, part: str) -> None:
    save_classes(tmp_path / "train", {"a": 3, "b": 2})
    save_classes(tmp_path / part, {"a": 3, "c": 2, "zebra": 1})
    fails(tmp_path, f"{part} has classes that training lacks: c, zebra", "a, b")


def test_other_layouts(tmp_path: Path) -> None:
    save_classes(tmp_path / "val", {"a": 3, "b": 2})
    fails(tmp_path, "has val/ but no train/")
    save_classes(tmp_path / "train", {"a": 3, "b": 2})
    save_classes(tmp_path / "valid", {"a": 3, "b": 2})
    fails(tmp_path, "both val/ and valid/")


def test_too_few_to_split(tmp_path: Path) -> None:
    save_classes(tmp_path / "train", {"a": 1, "b": 1})
    fails(tmp_path, "too few images", "val/")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a").chmod(0)
    try:
        fails(tmp_path, "cannot be read")
    finally:
        (tmp_path / "a").chmod(0o755)


def test_open_folder_uses_the_classes_of_the_model(tmp_path: Path) -> None:
    save_classes(tmp_path, {"b": 2, "d": 1})
    source = open_folder(tmp_path, ["a", "b", "c", "d"])
    assert (names(source), source.targets.tolist()) == (["b/000.png", "b/001.png", "d/000.png"], [1, 1, 3])
    with pytest.raises(UserError, match="does not know: d"):
        open_folder(tmp_path, ["a", "b"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        open_folder(tmp_path / "empty", ["a", "b"])


def test_keys_that_only_a_table_can_follow(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 4, "b": 4})
    for key in ("image", "target", "group", "weight", "split", "separator"):
        with pytest.raises(UserError, match=rf"data\.{key}: this is for tables"):
            open_splits(DataConfig(path=tmp_path, **{key: "x"}), 0)


@pytest.mark.parametrize("inner", ["", "train"])
def test_folds_of_a_folder(tmp_path: Path, inner: str) -> None:
    save_classes(tmp_path / inner, {"a": 9, "b": 6})
    folds = [open_splits(DataConfig(path=tmp_path, fold=f"{k}/3"), 1) for k in (1, 2, 3)]
    everything = sorted(names(folds[0].train) + names(folds[0].val))
    assert len(set(everything)) == 15
    assert sorted(name for splits in folds for name in names(splits.val)) == everything
    assert all(sorted(names(splits.train) + names(splits.val)) == everything for splits in folds)
    assert all(Counter(splits.val.targets.tolist()) == {0: 3, 1: 2} for splits in folds)
    again = open_splits(DataConfig(path=tmp_path, fold="2/3"), 1)
    assert names(again.val) == names(folds[1].val) and again.record == folds[1].record
    stored = json.loads(json.dumps(folds[1].record))
    assert names(open_splits(DataConfig(path=tmp_path, fold="2/3"), 9, stored).val) == names(folds[1].val)


def test_folds_that_cannot_be(tmp_path: Path) -> None:
    save_classes(tmp_path / "train", {"a": 2, "b": 2})
    for fold, text in {"3/2": "not k/n", "1/5": "only 4 images"}.items():
        with pytest.raises(UserError, match=text):
            open_splits(DataConfig(path=tmp_path, fold=fold), 0)
    save_classes(tmp_path / "val", {"a": 1, "b": 1})
    with pytest.raises(UserError, match=r"^data\.fold = '1/2'"):
        open_splits(DataConfig(path=tmp_path, fold="1/2"), 0)


ABC = Schema(LABEL, ("a", "b", "c"))


def part(path: Path, split: str | None = None, stored: dict | None = None, schema: Schema = ABC):
    name, source = open_part(DataConfig(path=path, group="of the table that the model saw"), schema, split, stored)
    return name, names(source), source.targets.tolist()


@pytest.mark.parametrize("val", ["val", "Validation"])
def test_parts_of_given_folders(tmp_path: Path, val: str) -> None:
    save_classes(tmp_path / "train", {"c": 1})
    save_classes(tmp_path / val, {"b": 2})
    assert part(tmp_path) == part(tmp_path, "val") == ("val", ["b/000.png", "b/001.png"], [1, 1])
    assert part(tmp_path, "train") == ("train", ["c/000.png"], [2])
    with pytest.raises(UserError, match="no test part"):
        part(tmp_path, "test")
    with pytest.raises(UserError, match="does not know: b"):
        part(tmp_path, schema=Schema(LABEL, ("a", "c")))
    with pytest.raises(UserError, match="other targets"):
        part(tmp_path, schema=Schema(NUMBERS, ("b",)))


def test_parts_of_a_drawn_split(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 10, "b": 10, "c": 10})
    splits = split(tmp_path, seed=3)
    stored = json.loads(json.dumps({"fingerprint": splits.fingerprint, **splits.record}))
    assert part(tmp_path, None, stored) == ("val", names(splits.val), splits.val.targets.tolist())
    assert part(tmp_path, "train", stored) == ("train", names(splits.train), splits.train.targets.tolist())
    assert len(part(tmp_path, "all", stored)[1]) == 30
    assert part(tmp_path)[0] == part(tmp_path, None, {"given": True})[0] == "all"
    save_image(tmp_path / "a" / "new.png")
    assert part(tmp_path, None, stored)[0] == "all"
    with pytest.raises(UserError, match="no val part"):
        part(tmp_path, "val", stored)
    with pytest.raises(UserError, match="does not exist"):
        part(tmp_path / "gone", "val", stored)


def test_list_images(tmp_path: Path) -> None:
    save_classes(tmp_path / "set", {"b": 1, "a": 2})
    save_image(tmp_path / "set" / ".hidden.png")
    (tmp_path / "set" / "x.txt").touch()
    (tmp_path / "odd.dat").touch()
    given = [str(tmp_path / "odd.dat"), str(tmp_path / "set"), str(tmp_path / "set" / "b" / "000.png")]
    expected = ["odd.dat", "set/a/000.png", "set/a/001.png", "set/b/000.png", "set/b/000.png"]
    assert list(list_images(given)) == [str(tmp_path / name) for name in expected]


def test_list_images_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        list_images([str(tmp_path), "not/there.png", ""])
    assert "'not/there.png', ''" in caught.value.message
    with pytest.raises(UserError, match="no images"):
        list_images([str(tmp_path)])


def test_images_by_their_names_or_their_content(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 3, "b": 3})
    for suffix in (".jfif", ".jpe", ".avif", ".jp2"):
        save_image(tmp_path / "a" / f"by name{suffix}")
    content = {suffix: save_image(tmp_path / f"x{suffix}").read_bytes() for suffix in (".jpg", ".png", ".tif")}
    for name, suffix in {"none": ".jpg", "odd.jpg_large": ".png", "b.jpg?w=2": ".png", "scan": ".tif"}.items():
        (tmp_path / "b" / name).write_bytes(content[suffix])
    for name, data in {"x.txt": content[".png"], "x.nef": content[".tif"], "README": b"hello", "none2": b""}.items():
        (tmp_path / "b" / name).write_bytes(data)
    splits = split(tmp_path)
    found = {*names(splits.train), *names(splits.val)}
    assert {f"a/by name{suffix}" for suffix in (".jfif", ".jpe", ".avif", ".jp2")} < found
    assert found & {"b/none", "b/odd.jpg_large", "b/b.jpg?w=2", "b/scan"} and len(found) == 14
    assert all(source.read(k)["image"].shape == (3, 16, 20) for source in (splits.train, splits.val) for k in (0, 1))
    assert str(tmp_path / "b" / "none") in list_images([str(tmp_path / "b" / "*")])


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_what_programs_wrote_into_the_data_folder_is_no_data(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 5, "b": 5})
    before = split(tmp_path)
    touch(tmp_path / "runs" / "x", "config.yaml", "plan.json", "checkpoints/step_1/state.pt", "wandb/media/loss.png")
    touch(tmp_path / "runs" / "killed at once", ".lease", "lease.json")
    touch(tmp_path / "a" / "deep" / "runs" / "y", "config.yaml", "split.json", "curve.png")
    touch(tmp_path / "exported", "model.json", "model.safetensors")
    touch(tmp_path / "features" / "0f", "key.json", "rows.f32")
    touch(tmp_path / "venv", "pyvenv.cfg", "lib/matplotlib/logo.png")
    touch(tmp_path, "__MACOSX/a/._000.png", "@eaDir/a/thumb.jpg", "lost+found/x", "out.csv", "out.csv.parts/0f/1")
    touch(tmp_path, ".git/logo.png", "a/.ipynb_checkpoints/000.png", "a/.cache/000.png", "a/@eaDir/000.png")
    after = split(tmp_path)
    assert (names(after.train), after.fingerprint) == (names(before.train), before.fingerprint)
    [note] = after.notes
    assert all(name in note for name in ("runs", "exported", "features", "venv", "a/deep/runs/y"))
    assert list(list_images([str(tmp_path)])) == [str(tmp_path / c / f"00{k}.png") for c in "ab" for k in range(5)]
    touch(tmp_path, "empty/notes.txt")
    fails(tmp_path, "Class folders without images", "empty")


def test_a_run_right_in_the_data_folder(tmp_path: Path) -> None:
    save_classes(tmp_path, {"a": 5, "b": 5})
    touch(tmp_path, "config.yaml", "plan.json", "best/model.json", "logs/rank_0.txt", "wandb/media/loss.png")
    assert split(tmp_path).schema.names == ("a", "b")
    assert len(open_folder(tmp_path, ["a", "b"])) == 10
    assert len(list_images([str(tmp_path)])) == 10
