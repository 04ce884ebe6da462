"""Images with lines of text below them, at a size to look at."""

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from PIL import Image as Pillow
from PIL import ImageDraw

from ddp_ft.data.image.arrays import shown
from ddp_ft.data.image.fonts import Pen, drawable
from ddp_ft.data.image.undecoded import Box, Image, cut, size_of

# The longest side of an image is brought between these, in pixels.
LEAST_SIDE, MOST_SIDE = 320, 1280
# Text that is a 24th of the width, and never smaller than can be read.
_PER_WIDTH, _LEAST_TEXT = 24, 14
_QUALITY = 90


class Line(NamedTuple):
    """A name, which is shortened if there is no room for it, and what is written beside it."""

    name: str
    value: str


def captioned_jpeg(image: Image, lines: Sequence[Line], fonts: tuple[str, ...]) -> bytes:
    """The image with the lines in a strip below it, as a JPEG; `fonts` are files, as of `font_files`. Raises
    BadSample."""
    above = _resized(image)
    width = max(above.width, LEAST_SIDE)
    size = max(_LEAST_TEXT, width // _PER_WIDTH)
    pen, height = _pen(fonts, size), round(size * 1.4)
    page = Pillow.new("RGB", (width, above.height + len(lines) * height + height // 2), "white")
    page.paste(above, ((width - above.width) // 2, 0))
    draw, margin = ImageDraw.Draw(page), size // 2
    for number, (name, value) in enumerate(lines):
        top = above.height + height // 4 + number * height
        end = width - margin - pen.length(value)
        pen.write(draw, (margin, top), _shortened(drawable(name, fonts), pen, end - 2 * margin))
        pen.write(draw, (end, top), value)
    stream = io.BytesIO()
    page.save(stream, format="JPEG", quality=_QUALITY)
    return stream.getvalue()


def _resized(image: Image) -> Pillow.Image:
    """Small images are enlarged by a whole factor and without blur, so that their pixels can be seen."""
    height, width = size_of(image)
    longest = max(height, width)
    scale = min(1.0, MOST_SIDE / longest) if longest >= LEAST_SIDE else float(-(-LEAST_SIDE // longest))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = cut(image, Box(0, 0, height, width), size)
    page = Pillow.fromarray(shown(pixels.permute(1, 2, 0).contiguous().numpy()))
    return page.resize(size[::-1], Pillow.Resampling.NEAREST if scale > 1 else Pillow.Resampling.BILINEAR)


@lru_cache
def _pen(fonts: tuple[str, ...], size: int) -> Pen:
    return Pen(fonts, size)


def _shortened(text: str, pen: Pen, room: float) -> str:
    """As much of the text's beginning and end as fits."""
    if pen.length(text) <= room:
        return text
    kept = len(text)
    while kept and pen.length(short := f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}") > room:
        kept -= 1
    return short if kept else "…"
