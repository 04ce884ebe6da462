"""The sizes of a few images from their headers, within the time that a start has for it."""

import os
import time

from PIL import Image

from ddp_ft.contracts import Source
from ddp_ft.data.image.pillow import known_formats, quiet_pillow


def glance(source: Source, most: int = 64, seconds: float = 0.5) -> list[tuple[int, int]]:
    """(height, width) of at most `most` images, evenly spread over the set; fewer if `seconds` are over.

    Nothing is decoded. What is no file, or cannot be read, is skipped.
    """
    deadline = time.monotonic() + seconds
    count = min(most, len(source))
    # In strides, so that the sizes read in time are spread over the set as well.
    order = sorted(range(count), key=lambda place: (place * 37) % max(count, 1))
    sizes: list[tuple[int, int]] = []
    with quiet_pillow():
        for place in order:
            if time.monotonic() > deadline:
                break
            if size := _size(source.name(place * len(source) // count)):
                sizes.append(size)
    return sizes


def _size(name: str) -> tuple[int, int] | None:
    try:
        if not os.path.isfile(name):  # noqa: PTH113  (a pipe might never end)
            return None
        with Image.open(name, formats=known_formats()) as image:
            return image.height, image.width
    except Exception:  # training will meet it, and report what is wrong
        return None
