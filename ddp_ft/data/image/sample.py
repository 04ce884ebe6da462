"""A sample whose picture is decoded when it is known which part of it is needed."""

from typing import NamedTuple, Protocol, cast

from ddp_ft.contracts import Batch, Source
from ddp_ft.data.image.picture import Image, whole


class Sample(NamedTuple):
    """A picture, in memory or still in its file, and the other tensors that `Source.read` gives."""

    image: Image
    rest: Batch


class PictureSource(Source, Protocol):
    """A source whose samples need not be decoded as a whole."""

    def open(self, index: int) -> Sample:
        """As `read`, but for the picture. Raises BadSample, as decoding it may later."""


def open_sample(source: Source, index: int) -> Sample:
    """The sample, undecoded if the source can give it so. Raises BadSample."""
    if hasattr(source, "open"):
        return cast(PictureSource, source).open(index)
    rest = source.read(index)
    return Sample(rest.pop("image"), rest)


def read_whole(sample: Sample) -> Batch:
    """What `Source.read` gives of it. Raises BadSample."""
    return {"image": whole(sample.image), **sample.rest}
