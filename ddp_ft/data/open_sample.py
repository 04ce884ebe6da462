"""A sample that is opened, and decoded when it is known which part of it is needed."""

from typing import Protocol, cast

from ddp_ft.contracts import Sample, Source


class OpeningSource(Source, Protocol):
    """A source whose samples need not be decoded as a whole."""

    def open(self, index: int) -> Sample:
        """As `read`, but for what is still in its file. Raises BadSample, as decoding it may later."""


def open_sample(source: Source, index: int) -> Sample:
    """The sample, undecoded if the source can give it so. Raises BadSample."""
    return cast(OpeningSource, source).open(index) if hasattr(source, "open") else source.read(index)
