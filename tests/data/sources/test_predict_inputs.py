"""What `predict` makes of its arguments: files, folders, patterns, tables and standard input."""

import pytest
from PIL import Image

from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.errors import UserError
from tests.support.tables import write_csv, write_parquet


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.png", "a/2.JPG", "b/deep/3.png", "b/x.txt", "odd[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*", ["a/1.png", "a/2.JPG", "b/deep/3.png", "odd[1].png"]),
        ("**", ["a/1.png", "a/2.JPG", "b/deep/3.png", "odd[1].png"]),
        ("?/*", ["a/1.png", "a/2.JPG", "b/deep/3.png"]),
        ("a/*.png", ["a/1.png"]),
        ("[ab]", ["a/1.png", "a/2.JPG", "b/deep/3.png"]),
        ("odd[1].png", ["odd[1].png"]),  # there is a file of that very name
        ("b/x.txt", ["b/x.txt"]),  # named, and so taken
    ],
)
def test_patterns_match_images_once_and_in_order(folder, pattern, expected):
    assert list(list_images([str(folder / pattern)])) == [str(folder / name) for name in expected]


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_a_table_names_images_relative_to_itself(folder, write):
    name = "t.csv" if write is write_csv else "t.parquet"
    table = write(folder / "sub" / name, {"image": ["x.png", "gone.png"], "scan": ["../a/1.png", "/else/2.png"]})
    assert list(list_images([str(table)])) == [f"{folder}/sub/x.png", f"{folder}/sub/gone.png"]
    assert list(list_images([str(table)], "scan")) == [f"{folder}/sub/../a/1.png", "/else/2.png"]
    with pytest.raises(UserError, match=r"no column 'scam'") as caught:
        list_images([str(table)], "scam")
    assert "scan" in caught.value.hint


def test_standard_input_keeps_its_place_and_need_not_exist(folder):
    given = [str(folder / "a/1.png"), "-", str(folder / "b")]
    lines = ["one.png\n", "\n", "two words.png\r\n", "last.png"]
    expected = [f"{folder}/a/1.png", "one.png", "two words.png", "last.png", f"{folder}/b/deep/3.png"]
    assert list(list_images(given, lines=lines)) == expected


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (["-"], {"lines": ["\n"]}, "Standard input"),
        (["-", "-"], {"lines": ["a"]}, "twice"),
        (["-"], {"lines": ["a\0b"]}, "NUL"),
        (["{}/*.webp"], {}, "No image matches"),
        (["{}/a"], {"column": "image"}, "--column image is for a table"),
        (["{}/nowhere", "{}/neither"], {}, "neither"),
        (["{}/holes.csv"], {}, "line 3"),
    ],
)
def test_what_cannot_be_is_said(folder, inputs, options, message):
    write_csv(folder / "holes.csv", {"image": ["x.png", ""]})
    with pytest.raises(UserError, match=message):
        list_images([each.format(folder) for each in inputs], **options)
