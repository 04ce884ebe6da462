"""Samples that are opened, and decoded once it is known which part of them is needed."""

from ddp_ft.contracts import Sample, Source


def open_sample(source: Source, index: int) -> Sample:
    """The sample by the source's `open(index)`, with values that are not decoded yet; by `read` if it has no `open`.

    Raises BadSample, as decoding may later.
    """
    sample: Sample = getattr(source, "open", source.read)(index)
    return sample
