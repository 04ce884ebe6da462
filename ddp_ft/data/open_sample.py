"""Samples that are opened, and decoded once it is known which part of them is needed."""

from typing import Protocol, cast

from ddp_ft.contracts import Sample, Source


class OpeningSource(Source, Protocol):
    """A source whose samples need not be decoded as a whole."""

    def open(self, index: int) -> Sample:
        """As `read`, with values that are not decoded yet. Raises BadSample, as decoding may later."""


def open_sample(source: Source, index: int) -> Sample:
    """The sample, undecoded if the source can. Raises BadSample."""
    return cast(OpeningSource, source).open(index) if hasattr(source, "open") else source.read(index)
