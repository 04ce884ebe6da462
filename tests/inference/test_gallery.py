"""`predict --show`: the images of a prediction with the answers below them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ddp_ft.data.image.captioned import Line
from ddp_ft.errors import UserError
from ddp_ft.inference.gallery import lines_of
from tests.support.runs import call_on
from tests.support.tables import write_csv
from tests.support.trained import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m", 1)


def predict(*args):
    from ddp_ft.predict import predict as command

    return command.main([*map(str, args), "--device", "cpu"], standalone_mode=False)


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def test_each_image_that_can_be_read_is_drawn_once_whatever_its_name_and_size(model, tmp_path):
    sizes = {"a/same.png": (1, 1), "b/same.png": (3, 900), "b/odd\n;é.png": (2500, 40), "c/same.jpg": (400, 640)}
    for name, (height, width) in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (width, height), "red").save(tmp_path / name)
    (tmp_path / "b/bad.png").write_text("no image")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    inputs = [tmp_path / name for name in "abc"]
    predict(model, *inputs, "--output", tmp_path / "p.csv", "--show", tmp_path / "new" / "shown", "--top-k", 3)
    shown = tmp_path / "new" / "shown"
    assert names(shown) == ["1_same.jpg", "3_odd__é.jpg", "4_same.jpg", "5_same.jpg"]
    assert {file: file.read_bytes() for file in before} == before
    for name, (height, width) in zip(names(shown), ((320, 320), (1280, 320), (1, 900), (400, 640)), strict=True):
        pixels = np.asarray(Image.open(shown / name).convert("RGB")).astype(int)
        assert pixels.shape[1] == width and height + 3 * 14 < pixels.shape[0] < height + 8 * 27, name
        is_red = np.abs(pixels - [254, 0, 0]).max(2) < 16
        assert is_red[:height].any(0).sum() >= 15 and not is_red[height + 2 :].any(), name
        strip = pixels[height + 2 :].max(2)
        assert (strip < 60).sum() > 100 and (strip > 240).mean() > 0.5, name  # black letters on white


def test_after_a_kill_what_is_missing_is_drawn(model, shapes, tmp_path):
    images = sorted((shapes / "val").rglob("*.png"))
    table = write_csv(tmp_path / "t.csv", {"image": [str(images[k % 3]) if k else "gone.png" for k in range(150)]})
    shown, output = tmp_path / "shown", tmp_path / "p.csv"
    args = (model, table, "--output", output, "--show", shown, "--device", "cpu")
    (tmp_path / ".p.csv.writing").mkdir()  # the rows cannot be joined, so their parts stay
    with pytest.raises(UserError, match="All rows are kept"):
        predict(*args)
    (tmp_path / ".p.csv.writing").rmdir()
    whole = {name: (shown / name).read_bytes() for name in names(shown)}
    assert len(whole) == 149
    [parts] = (tmp_path / "p.csv.parts").iterdir()
    (parts / "00000002").unlink()
    for number in range(128, 150):
        next(shown.glob(f"{number + 1}_*")).unlink()
    (shown / names(shown)[70]).unlink()  # of a chunk whose rows are there
    said = call_on(2, "ddp_ft.predict", *args)
    assert "150 rows" in said and "(64 were there from an interrupted start)" in said
    assert {name: (shown / name).read_bytes() for name in names(shown)} == whole


def test_where_images_are_not_drawn(model, shapes, tmp_path):
    photos = shutil.copytree(shapes / "val/disc", tmp_path / "photos")
    (tmp_path / "file").write_text("")
    wishes = {
        "lies in .*photos, whose images are read": photos / "shown",
        "lies in .*photos, whose": photos,
        "is a file, and no folder(.|\n)*another --show": tmp_path / "file",
        "is not empty": shapes,
    }
    for message, folder in wishes.items():
        with pytest.raises(UserError, match=message):
            predict(model, photos, "--show", folder)
    with pytest.raises(UserError, match="holds images that are read"):
        predict(model, next(photos.iterdir()), "--show", tmp_path)
    assert names(tmp_path) == ["file", "photos"] and len(names(photos)) == 4


def test_what_is_written_below_an_image():
    shares = {f"c{k}": k / 100 for k in range(12)}
    assert lines_of({"class": "c11", "probability": 0.11, "probabilities": shares}, 2) == [
        ("c11", "11.0%"),
        ("c10", "10.0%"),
    ]
    labels = {"classes": ["c3", "c9"], "probabilities": shares}
    assert lines_of(labels, 1) == [Line("c9", "9.0%"), Line("c3", "3.0%")]
    assert lines_of({**labels, "classes": []}, 1) == [Line("none", "")]
    numbers = lines_of({"values": shares}, 1)
    assert numbers[1] == ("c1", "0.01") and len(numbers) == 8 and numbers[-1].name == "and 5 more"
