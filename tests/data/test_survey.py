"""All images looked at: real damage, doubles, oddities, sizes; and the findings that follow."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ddp_ft.config.loading import make_config
from ddp_ft.data.splits.open import open_splits
from ddp_ft.data.survey import ALPHA, ANIMATED, CMYK, DEEP, ODDITIES, PALETTE, SUFFIX, TURNED, survey
from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING
from ddp_ft.diagnostics.images import HUGE_PIXELS, about_survey
from tests.data.image.image_files import save_classes, save_image

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 sound images, and one of each kind of trouble."""
    root = tmp_path_factory.mktemp("survey")
    train = save_classes(root / "train", {"cat": 4, "dog": 4})
    save_classes(root / "val", {"cat": 2, "dog": 2}).joinpath("dog", "001.png").unlink()
    save_image(root / "val" / "dog" / "001.png", seed=77)
    save_image(root / "val" / "cat" / "000.png", seed=78)
    save_image(root / "val" / "cat" / "001.png", seed=79)
    save_image(root / "val" / "dog" / "000.png", seed=80)
    torn = save_image(train / "cat" / "torn.jpg", seed=90, size=(200, 200))
    torn.write_bytes(torn.read_bytes()[:-300])
    (train / "cat" / "empty.png").touch()
    (train / "cat" / "again.png").write_bytes((train / "cat" / "empty.png").read_bytes())  # as damaged, and no double
    shutil.copy(train / "cat" / "000.png", root / "val" / "cat" / "leak.png")
    shutil.copy(train / "cat" / "001.png", train / "dog" / "mistaken.png")
    shutil.copy(train / "cat" / "002.png", train / "cat" / "copy.png")
    shutil.move(save_image(train / "dog" / "x.png", seed=91), train / "dog" / "really_png.jpg")
    sound = Image.open(save_image(train / "dog" / "base.png", seed=92))
    sound.convert("CMYK").save(train / "dog" / "cmyk.jpg")
    sound.convert("P").save(train / "dog" / "palette.png")
    sound.convert("RGBA").save(train / "dog" / "alpha.png")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100).save(train / "dog" / "deep.png")
    sound.save(train / "dog" / "moves.gif", save_all=True, append_images=[sound.transpose(Image.Transpose.ROTATE_180)])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    sound.save(train / "dog" / "turned.jpg", exif=exif)
    return root


@pytest.fixture(scope="module")
def found(folder):
    splits = open_splits(make_config({"data.path": folder}).data, 0)
    told = []
    seen = survey({"train": splits.train, "val": splits.val}, lambda *done: told.append(done), processes=2)
    assert told == [(len(seen), len(seen))]
    return seen


def names(found, numbers):
    return [found.name(number).rsplit("/", 1)[1] for number in numbers]


def test_damaged_ones_are_named_with_their_reasons(found):
    assert sorted(names(found, found.damaged)) == ["again.png", "empty.png", "torn.jpg"]
    reasons = dict(zip(names(found, found.damaged), found.damaged.values(), strict=True))
    assert reasons["empty.png"] == "the file is empty"
    assert "truncated" in reasons["torn.jpg"]


def test_oddities(found):
    odd = {oddity: names(found, found.having(oddity)) for oddity in ODDITIES}
    assert odd == {
        SUFFIX: ["really_png.jpg"], CMYK: ["cmyk.jpg"], DEEP: ["deep.png"], PALETTE: ["moves.gif", "palette.png"],
        ALPHA: ["alpha.png"], ANIMATED: ["moves.gif"], TURNED: ["turned.jpg"],
    }  # fmt: skip


def test_sizes_are_those_of_the_files(found):
    by_name = dict(zip(names(found, range(len(found))), found.sizes.tolist(), strict=True))
    assert (by_name["base.png"], by_name["deep.png"], by_name["empty.png"]) == ([16, 20], [20, 20], [0, 0])


def test_findings(found):
    told = {finding.name: finding for finding in about_survey(found, tolerates=False, input_size=(32, 64))}
    assert {name: finding.verdict for name, finding in told.items()} == {
        "readable": PROBLEM, "leakage": PROBLEM, "label noise": WARNING, "duplicates": NOTE, "formats": NOTE,
        "modes": NOTE, "sizes": OK, "small images": WARNING,
    }  # fmt: skip
    assert all(finding.remedy for finding in told.values() if finding.verdict != OK)
    paths = {name: [path.replace(found.sources[0].root, "") for path in told[name].paths] for name in told}
    assert paths["leakage"] == ["/train/cat/000.png = /val/cat/leak.png"]
    assert paths["label noise"] == ["/train/cat/001.png = /train/dog/mistaken.png"]
    assert paths["duplicates"] == ["/train/cat/002.png = /train/cat/copy.png"]
    assert told["readable"].value == 3 and "/train/cat/empty.png: the file is empty" in paths["readable"]
    assert next(about_survey(found, tolerates=True, input_size=None)).verdict == WARNING


def test_a_sound_set_has_no_findings(tmp_path):
    save_classes(tmp_path, {"cat": 40, "dog": 40})
    splits = open_splits(make_config({"data.path": tmp_path}).data, 0)
    seen = survey({"train": splits.train, "val": splits.val})
    assert len(seen) == 80  # more than one part
    assert [f for f in about_survey(seen, False, (16, 16)) if f.verdict != OK] == []
    seen.sizes[3] = (4000, HUGE_PIXELS // 4000 + 1)
    [huge] = [f for f in about_survey(seen, False, (16, 16)) if f.verdict != OK]
    assert (huge.name, len(huge.paths)) == ("huge images", 1)
    seen.sizes[5] = (15, 20)
    assert {f.name: f.verdict for f in about_survey(seen, False, (16, 16))}["small images"] == NOTE


def test_the_same_file_twice_in_a_table_with_other_numbers(tmp_path):
    save_classes(tmp_path, {"a": 5})
    rows = [
        (0, 1.5, "train"),
        (0, 1.5, "train"),
        (1, 2.5, "train"),
        (1, 3.5, "train"),
        (2, 1.0, "val"),
        (3, 2.0, "val"),
    ]
    lines = [f"a/{number:03}.png,{value},{split}" for number, value, split in rows]
    (tmp_path / "t.csv").write_text("\n".join(["image,age,split", *lines]))
    config = make_config({"data.path": tmp_path / "t.csv", "data.target": "age", "task": "regression"})
    splits = open_splits(config.data, 0, task="regression")
    seen = survey({"train": splits.train, "val": splits.val})
    told = {finding.name: finding for finding in about_survey(seen, False, None)}
    assert sorted(names(seen, group) for group in seen.twins()) == [["000.png"] * 2, ["001.png"] * 2]
    assert "001.png" in told["label noise"].paths[0] and "000.png" in told["duplicates"].paths[0]
    assert told["leakage"].verdict == OK
