"""Charts and grids of images. matplotlib is imported when the first chart is drawn: it takes most of a second."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, UnidentifiedImageError

from ddp_ft.data.image.arrays import look_at
from ddp_ft.data.image.fonts import Pen, drawable, families, font_files
from ddp_ft.data.image.pillow import Pixels, quiet_pillow, read_pixels
from ddp_ft.errors import printable
from ddp_ft.tasks.scored.ranking import Curve
from ddp_ft.texts import plural, readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

# The most classes of a readable confusion matrix, and of one whose cells have room for a number.
MOST_CLASSES, CLASSES_WITH_NUMBERS = 40, 15
LONGEST_NAME = 22
DPI = 100
# Of a grid of images, in pixels; and the lines that one text below an image may take.
CELL, LINE, MARGIN, FONT_SIZE = 128, 16, 8, 13
MOST_LINES = 3
# More letters never fit into them.
MOST_LETTERS = 150
# Of the legend below curves of classes: the longest names that leave room for two columns; a row's height in inches.
TWO_COLUMNS, LEGEND_ROW = 8, 0.2
# Colours that can be told apart, also by most who confuse red and green.
SERIES = ("#1f77b4", "#d9822b", "#2f9e6e", "#9a5fc4", "#c94f6d", "#7d8a2e", "#2aa3b8", "#8c6d57")


def new_figure(width: float = 6.0, height: float = 5.0) -> "Figure":
    """An empty figure of that size in inches; not from pyplot, whose figures belong to the main thread."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """The name in one line; of one that is longer than `longest` its two ends, since names that are alike differ at
    either."""
    name, end = printable(name), (longest - 1) // 2
    return name if len(name) <= longest else f"{name[: longest - 1 - end]}…{name[-end:]}"


def confusion_chart(matrix: NDArray[np.int64], names: Sequence[str]) -> "Figure":
    """A confusion matrix (rows: true, columns: predicted), coloured by each row's shares, with its counts."""
    classes = len(names)
    labels = [_label(name) for name in names]
    # Names below the columns are upright if they would touch, and need room then.
    is_upright = classes > 4 or max(map(len, labels)) > 8
    room = 0.09 * max(map(len, labels))
    side = 2.6 + (0.34 if classes <= CLASSES_WITH_NUMBERS else 0.25) * classes
    figure = new_figure(side + room + 1.1, side + (room if is_upright else 0.2))
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    axes.set_xticks(range(classes), labels, rotation=90 if is_upright else 0)
    axes.set_yticks(range(classes), labels)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if classes <= CLASSES_WITH_NUMBERS:
        for row, column in np.ndindex(classes, classes):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return figure


def _label(name: str) -> str:
    return short(name).replace("$", r"\$")  # matplotlib draws text between two of them as a formula


def reliability_chart(confidence: Floats, accuracy: Floats, samples: NDArray[np.int64]) -> "Figure":
    """The share of right answers over their confidence, in bins: points below the diagonal are overconfident."""
    figure = new_figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=1, label="perfectly calibrated")
    axes.plot(confidence, accuracy, color="tab:blue", linewidth=1, clip_on=False, label="this model")
    sizes = 20 + 180 * samples / max(1, samples.max())
    axes.scatter(confidence, accuracy, s=sizes, color="tab:blue", alpha=0.8, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="fraction correct")
    axes.set_title(f"{plural(int(samples.sum()), 'prediction')}; the area of a dot is their number", fontsize=9, pad=12)
    axes.legend(loc="upper left")
    return figure


def scatter_chart(true: Floats, predicted: Floats, name: str) -> "Figure":
    """Predicted over true values of one number."""
    figure = new_figure()
    axes = figure.add_subplot()
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, linestyle="--", color="grey", linewidth=1, label="predicted = true")
    axes.scatter(true, predicted, s=8, alpha=0.6, label=f"{plural(len(true), 'image')}")
    axes.set(xlabel=f"true {_label(name)}", ylabel=f"predicted {_label(name)}")
    for axis in (axes.xaxis, axes.yaxis):
        plain_ticks(axis)
    axes.legend(loc="upper left")
    return figure


def roc_chart(curves: Sequence[Curve]) -> "Figure":
    """True over false positive rates of some classes."""
    figure = _unit_chart(curves, "AUROC", ("false positive rate", "true positive rate"))
    figure.axes[0].plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=1)
    return figure


def pr_chart(curves: Sequence[Curve]) -> "Figure":
    """Precision over recall of some classes."""
    return _unit_chart(curves, "AP", ("recall", "precision"))


def _unit_chart(curves: Sequence[Curve], area: str, labels: tuple[str, str]) -> "Figure":
    figure = new_figure(5.5, 4.8 + LEGEND_ROW * legend_rows(curves))
    axes = figure.add_subplot()
    for each, colour in zip(curves, SERIES, strict=False):
        label = f"{_label(each.name)} ({area} {each.area:.2f})"
        axes.plot(each.x, each.y, color=colour, linewidth=1.4, clip_on=False, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=labels[0], ylabel=labels[1])
    figure.legend(loc="outside lower left", ncols=_legend_columns(curves))  # inside it would hide curves
    return figure


def legend_rows(curves: Sequence[Curve]) -> int:
    """The rows of the legend below such a chart."""
    return -(-len(curves) // _legend_columns(curves))


def _legend_columns(curves: Sequence[Curve]) -> int:
    return 2 if all(len(each.name) <= TWO_COLUMNS for each in curves) else 1


def plain_ticks(axis: Any) -> None:
    """Write the numbers at an axis as people read them, not as powers of 10; at most six."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: readable(value, 6)))


def chart_png(chart: "Callable[..., Figure]", *arguments: Any) -> bytes:
    """One of the charts above as a PNG."""
    from matplotlib import rc_context

    stream, files = io.BytesIO(), font_files(_texts(arguments))
    with rc_context({"font.family": families(files)}):
        chart(*_with_texts(arguments, files)).savefig(stream, format="png")
    return stream.getvalue()


def _texts(values: Any) -> Iterator[str]:
    """All texts among a chart's arguments."""
    if isinstance(values, (str, Curve)):
        yield values if isinstance(values, str) else values.name
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _texts(value)


def _with_texts(values: Any, files: Sequence[str]) -> Any:
    """The same arguments with texts that these fonts can draw."""
    if isinstance(values, str):
        return drawable(values, files)
    if isinstance(values, Curve):
        return replace(values, name=drawable(values.name, files))
    return [_with_texts(value, files) for value in values] if isinstance(values, (list, tuple)) else values


def pixels_png(images: Sequence[Pixels], captions: Sequence[Sequence[str]]) -> bytes:
    """`image_grid` as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image_grid(images, captions)).save(stream, format="PNG")
    return stream.getvalue()


# Kinds of samples whose files are images.
DRAWN = ("image",)


def files_png(files: Sequence[str], captions: Sequence[Sequence[str]]) -> bytes:
    """The same for image files; one that cannot be read is a grey square."""
    return pixels_png([thumbnail(file) for file in files], captions)


def thumbnail(file: str, side: int = 2 * CELL) -> Pixels:
    """The whole image, at most `side` pixels wide and high; grey if it cannot be read."""
    try:
        with quiet_pillow():
            image = Image.fromarray(_pixels(file))
    except Exception:  # Pillow raises all sorts over damaged files
        return np.full((side, side, 3), 128, dtype=np.uint8)
    image.thumbnail((side, side))
    return np.asarray(image)


def _pixels(file: str) -> Pixels:
    """What Pillow reads; of an array, or a TIFF that only tifffile reads, what can be shown of its channels."""
    with suppress(UnidentifiedImageError):
        return read_pixels(file)
    return look_at(file)


def image_grid(images: Sequence[Pixels], captions: Sequence[Sequence[str]], columns: int = 4) -> Pixels:
    """Images (uint8, H x W x 3, of any size) side by side, each above its texts, which are wrapped."""
    files = font_files(text for caption in captions for text in caption)
    pen = Pen(files, FONT_SIZE)
    below = [[line for text in caption for line in wrapped(drawable(text, files), pen)] for caption in captions]
    starts = range(0, len(images), columns)
    heights = [CELL + MARGIN + LINE * max(map(len, below[start : start + columns]), default=0) for start in starts]
    page = Image.new("RGB", (columns * (CELL + MARGIN) + MARGIN, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    for place, (image, lines) in enumerate(zip(images, below, strict=True)):
        left, top = MARGIN + place % columns * (CELL + MARGIN), MARGIN + sum(heights[: place // columns])
        page.paste(_fitted(image), (left, top))
        for number, line in enumerate(lines):
            pen.write(draw, (left, top + CELL + number * LINE), line)
    return np.asarray(page)


def _fitted(pixels: Pixels) -> Image.Image:
    """The image in the size of a cell; small images are enlarged without blur, to show what the model sees."""
    image = Image.fromarray(pixels)
    factor = CELL / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR)


def wrapped(text: str, pen: Pen) -> list[str]:
    """The text in at most MOST_LINES lines of a cell's width; one that is too long loses its middle, since names that
    are alike differ at either end, and paths at their end."""
    lines, kept = _lines(text, pen), min(len(text), MOST_LETTERS)
    while len(lines) > MOST_LINES:
        kept -= 1
        lines = _lines(f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}", pen)
    return lines


def _lines(text: str, pen: Pen) -> list[str]:
    """The text in lines of a cell's width, broken after a blank or a slash if one is in a line's second half."""
    lines, rest = [], text
    while pen.length(rest) > CELL:
        widths = np.cumsum([pen.length(letter) for letter in rest])
        end = max(1, int(np.searchsorted(widths, CELL, side="right")))
        breaks = (n for n in range(min(end, len(rest) - 2), end // 2, -1) if rest[n] in " /" and rest[n + 1] != "%")
        cut = next((n + 1 for n in breaks if rest[n] == " " or n < end), end)
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:]
    return [*lines, rest] if rest else lines
