"""Charts and grids, looked at as pixels; and the process that draws them."""

import gc
import io
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddp_ft.data.image import fonts
from ddp_ft.tasks.scored.ranking import Curve
from ddp_ft.trackers import charts
from ddp_ft.trackers.figure_process import Studio


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_confusion_matrix_has_the_shares_as_colours():
    matrix = np.array([[10, 0], [5, 5]])
    drawn = pixels(charts.chart_png(charts.confusion_chart, matrix, ["$a$ and $b", "名\n"]))
    colours, counts = np.unique(drawn.reshape(-1, 3), axis=0, return_counts=True)
    common = {tuple(map(int, colour)) for colour in colours[np.argsort(-counts)[:6]]}
    assert (8, 48, 107) in common and (247, 251, 255) in common  # the ends of matplotlib's Blues


def test_charts_of_many_and_of_nothing():
    draw = charts.chart_png
    assert draw(charts.confusion_chart, np.eye(40, dtype=np.int64), [f"class {n}" * 9 for n in range(40)])
    assert draw(charts.confusion_chart, np.zeros((2, 2), dtype=np.int64), ["a", "b"])
    assert draw(charts.reliability_chart, np.array([0.5]), np.array([1.0]), np.array([3]))
    assert draw(charts.scatter_chart, np.array([1.0, 2]), np.array([1.5, 2]), "age")
    assert draw(charts.roc_chart, [Curve("a 猫", np.array([0.0, 1]), np.array([0.0, 1]), 0.5)] * 9)


def test_labels_of_a_confusion_matrix_are_inside_and_apart():
    """Also where only a few classes have long names."""
    for names in (["a long name of a class", "another name of a class"], ["cat", "dog", "bird"]):
        figure = charts.confusion_chart(np.eye(len(names), dtype=np.int64), names)
        figure.draw_without_rendering()
        axes, page = figure.axes[0], figure.bbox
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        for box in (*boxes, *(each.get_window_extent() for each in (axes.yaxis.label, *axes.get_yticklabels()))):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1


def test_letters_without_a_font_are_code_points(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    files = fonts.font_files(["猫 a\n"])
    assert files == [fonts._default()] and fonts.drawable("猫 a\n", files) == "\\u732b a\\n"


def test_a_font_that_has_them_is_found(monkeypatch):
    other = f"{Path(fonts._default()).parent}/STIXGeneral.ttf"  # which has small capitals of phonetics
    letter = next(chr(code) for code in sorted(fonts._letters(other) - fonts._letters(fonts._default())))
    monkeypatch.setattr(fonts, "_installed", lambda: ("nowhere.ttf", other))
    files = fonts.font_files([letter])
    assert files[1:] == [other] and fonts.drawable(f"a{letter}", files) == f"a{letter}"
    assert fonts.Pen(files, 14).length(f"a{letter}") > fonts.Pen(files, 14).length("a")


def test_long_captions_keep_both_ends():
    pen = fonts.Pen(fonts.font_files([]), charts.FONT_SIZE)
    assert charts.wrapped("true cat", pen) == ["true cat"]
    lines = charts.wrapped(f"predicted {'long ' * 30}name (35 %)", pen)
    assert len(lines) == charts.MOST_LINES and lines[0].startswith("predicted") and lines[-1].endswith("(35 %)")
    assert all(pen.length(line) <= charts.CELL for line in lines)


def test_a_grid_has_its_images_and_their_captions(tmp_path: Path):
    red = np.full((10, 10, 3), (255, 0, 0), dtype=np.uint8)
    Image.fromarray(red).save(tmp_path / "red.png")
    (tmp_path / "not.png").write_text("no image")
    files = [str(tmp_path / name) for name in ("red.png", "not.png", "missing.png", "red.png", "red.png")]
    page = pixels(charts.files_png(files, [["says a", f"{'long ' * 30}", "\x1b[31m"]] * 5))
    middles = [
        page[charts.MARGIN + 64, charts.MARGIN + 64 + place * (128 + charts.MARGIN)].tolist() for place in (0, 1)
    ]
    assert middles == [[255, 0, 0], [128, 128, 128]]
    assert page.shape[1] == 4 * (128 + charts.MARGIN) + charts.MARGIN  # five images: a second row
    below = page[charts.MARGIN + 128 : charts.MARGIN + 128 + 3 * charts.LINE, : 128 + 2 * charts.MARGIN]
    assert (below < 100).any() and (below[:, -charts.MARGIN :] == 255).all()  # text, cut at the image's width


def slow_png(seconds: float, name: str, begun: Path) -> bytes:
    begun.with_suffix(".writing").write_text(str(os.getpid()))
    begun.with_suffix(".writing").rename(begun)
    time.sleep(seconds)
    return f"{name} by {os.getpid()}".encode()


def wait_until(is_so):
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def orders(tmp_path, monkeypatch) -> Path:
    """Where studios keep their files."""
    folder = tmp_path / "orders"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def broken_png() -> bytes:
    raise ValueError("no colours left")


def die() -> bytes:
    os._exit(3)


def test_the_studio_draws_elsewhere_and_drops_what_is_outdated(orders, tmp_path, capsys):
    studio = Studio()
    studio.order("slow", 1, slow_png, 0.5, "first", tmp_path / "begun")
    wait_until((tmp_path / "begun").exists)
    assert list(studio.finished()) == []
    for step in (2, 3, 4):
        studio.order("chart", step, slow_png, 0.0, f"chart {step}", tmp_path / str(step))
    studio.order("broken", 4, broken_png)
    found = [(tag, step, png.decode().split(" by ")) for tag, step, png in studio.finished(30)]
    assert [(tag, step, text) for tag, step, (text, _) in found] == [("slow", 1, "first"), ("chart", 4, "chart 4")]
    assert all(int(pid) != os.getpid() for _, _, (_, pid) in found)
    assert "broken could not be drawn: ValueError: no colours left" in capsys.readouterr().err
    studio.close()
    assert list(orders.iterdir()) == [] and list(studio.finished(1)) == []


def test_a_studio_that_dies_is_told_of(capsys):
    studio = Studio()
    studio.order("deadly", 1, die)
    assert list(studio.finished(30)) == []
    assert "deadly could not be drawn: the drawing process has died" in capsys.readouterr().err
    studio.close()


def test_it_ends_with_its_parent(orders, tmp_path: Path):
    """Which is killed while an image is being drawn."""
    begun, pid = tmp_path / "begun", os.fork()
    if pid == 0:
        gc.disable()  # what it would collect of the parent's joins threads that a fork does not have
        studio = Studio()
        studio.order("slow", 1, slow_png, 1.0, "first", begun)
        wait_until(begun.exists)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    wait_until(lambda: not list(orders.iterdir()) and not Path(f"/proc/{begun.read_text()}").exists())
