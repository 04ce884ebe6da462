"""Charts and grids of images. matplotlib is imported when the first chart is drawn: it takes most of a second."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ddp_ft.data.image.pillow import Pixels, quiet_pillow, read_pixels
from ddp_ft.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

# The most classes of a readable confusion matrix, and of one whose cells have room for a number.
MOST_CLASSES, CLASSES_WITH_NUMBERS = 40, 15
LONGEST_NAME = 18
DPI = 100
# Of a grid of images, in pixels.
CELL, LINE, MARGIN, FONT_SIZE = 128, 17, 6, 14


def new_figure(width: float = 6.0, height: float = 5.0) -> "Figure":
    """An empty figure of that size in inches; not from pyplot, whose figures belong to the main thread."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """The name in one line, cut if it is longer than `longest`."""
    name = printable(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def confusion_chart(matrix: NDArray[np.int64], names: Sequence[str]) -> "Figure":
    """A confusion matrix (rows: true, columns: predicted), coloured by each row's shares, with its counts."""
    classes = len(names)
    side = 3.5 + 0.28 * classes
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    labels = [_label(name) for name in names]
    axes.set_xticks(range(classes), labels, rotation=90 if classes > 4 else 0)
    axes.set_yticks(range(classes), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
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
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=1)
    axes.plot(confidence, accuracy, color="tab:blue", linewidth=1)
    axes.scatter(confidence, accuracy, s=20 + 180 * samples / max(1, samples.max()), color="tab:blue", alpha=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="share that is right")
    axes.set_title(f"{samples.sum()} answers; the area of a dot is their number", fontsize=9)
    return figure


def scatter_chart(true: Floats, predicted: Floats, name: str) -> "Figure":
    """Predicted over true values of one number."""
    figure = new_figure()
    axes = figure.add_subplot()
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, linestyle="--", color="grey", linewidth=1)
    axes.scatter(true, predicted, s=8, alpha=0.6)
    axes.set(xlabel=f"true {_label(name)}", ylabel="predicted")
    return figure


def chart_png(chart: "Callable[..., Figure]", *arguments: Any) -> bytes:
    """One of the charts above as a PNG."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box
        chart(*arguments).savefig(stream, format="png")
    return stream.getvalue()


def pixels_png(images: Sequence[Pixels], captions: Sequence[Sequence[str]]) -> bytes:
    """`image_grid` as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image_grid(images, captions)).save(stream, format="PNG")
    return stream.getvalue()


def files_png(files: Sequence[str], captions: Sequence[Sequence[str]]) -> bytes:
    """The same for image files; one that cannot be read is a grey square."""
    return pixels_png([thumbnail(file) for file in files], captions)


def thumbnail(file: str, side: int = 2 * CELL) -> Pixels:
    """The whole image, at most `side` pixels wide and high; grey if it cannot be read."""
    try:
        with quiet_pillow():
            image = Image.fromarray(read_pixels(file))
    except Exception:  # Pillow raises all sorts over damaged files
        return np.full((side, side, 3), 128, dtype=np.uint8)
    image.thumbnail((side, side))
    return np.asarray(image)


def image_grid(images: Sequence[Pixels], captions: Sequence[Sequence[str]], columns: int = 4) -> Pixels:
    """Images (uint8, H x W x 3, of any size) side by side, each above its lines of text."""
    lines = max((len(caption) for caption in captions), default=0)
    width, height = CELL + MARGIN, CELL + MARGIN + lines * LINE
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(page), _font()
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = MARGIN + place % columns * width, MARGIN + place // columns * height
        page.paste(_fitted(image), (left, top))
        for number, text in enumerate(caption):
            draw.text((left, top + CELL + number * LINE), _cut(text, font), fill="black", font=font)
    return np.asarray(page)


def _fitted(pixels: Pixels) -> Image.Image:
    """The image in the size of a cell; small images are enlarged without blur, to show what the model sees."""
    image = Image.fromarray(pixels)
    factor = CELL / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR)


def _font() -> Any:
    """DejaVu, which comes with matplotlib and has far more letters than Pillow's own font."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", FONT_SIZE)


def _cut(text: str, font: Any) -> str:
    """The end of the text that fits under an image: the end of a path is the most specific."""
    text = printable(text)
    if font.getlength(text) <= CELL:
        return text
    while text and font.getlength("…" + text) > CELL:
        text = text[1:]
    return "…" + text
