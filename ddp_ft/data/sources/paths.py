"""Paths of very many images in two arrays, which forked workers share and ranks send unchanged."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 16  # paths made into strings at a time: some 10 MB


class Paths(Sequence[str]):
    """Strings without NUL, never changed.

    Not a list of str: each access to one writes its count of references, so that a forked worker would copy, page by
    page, all that it reads: 100 bytes for each image and worker. `text` (uint8) holds the strings in UTF-8, each with a
    NUL after it, and `starts` (int64, one more than strings) where each begins.
    """

    def __init__(self, text: NDArray[np.uint8]) -> None:
        self.text = text
        self.starts: NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(text == 0) + 1])

    @staticmethod
    def of(strings: Iterable[str]) -> "Paths":
        """These strings. ValueError if one has a NUL inside."""
        known = strings if isinstance(strings, (list, tuple)) else list(strings)
        text = "".join([f"{each}\0" for each in known])
        made = Paths(np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8))
        if len(made) != len(known):
            raise ValueError("a string with a NUL inside")
        return made

    @staticmethod
    def joined(parts: Sequence["Paths"]) -> "Paths":
        """All strings of the parts, in their order."""
        return Paths(np.concatenate([np.empty(0, np.uint8), *(part.text for part in parts)]))

    def where(self, chosen: NDArray[np.bool_]) -> "Paths":
        """The strings at which `chosen` is true."""
        return Paths(self.text[np.repeat(chosen, np.diff(self.starts))])

    def __reduce__(self) -> tuple[type["Paths"], tuple[NDArray[np.uint8]]]:
        return Paths, (self.text,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Paths": ...
    def __getitem__(self, index: int | slice) -> "str | Paths":
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise ValueError("a part of Paths has no steps")
            return Paths(self.text[self.starts[first] : self.starts[max(first, last)]])
        place = range(len(self))[index]  # raises IndexError, and counts from the end
        return _decoded(self.text[self.starts[place] : self.starts[place + 1] - 1])

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            last = min(first + _BLOCK, len(self))
            yield from _decoded(self.text[self.starts[first] : self.starts[last] - 1]).split("\0")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths) and np.array_equal(self.text, other.text)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Paths({len(self)} strings)"


def _decoded(text: NDArray[np.uint8]) -> str:
    return text.tobytes().decode("utf-8", "surrogateescape")
