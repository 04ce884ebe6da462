"""A set whose samples were packed once; and the lengths of a set's samples, if they are known."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import LabelledSource, Sample, Source
from ddp_ft.data.batch import LENGTH
from ddp_ft.data.derived import Derived, labels_of
from ddp_ft.data.packed import PART, Part


class PackedSource(Derived):
    """The samples of another set, as parts of PART samples have them; `measure` is as in `Packing`.

    A sample that could not be read when it was packed is read again.
    """

    def __init__(self, source: LabelledSource, parts: Sequence[Part], measure: str) -> None:
        super().__init__(source)
        self.parts = parts
        lengths = [part.arrays[measure + LENGTH] for part in parts]
        self.lengths: NDArray[np.int32] = np.concatenate(lengths) if lengths else np.zeros(0, np.int32)

    def open(self, index: int) -> Sample:
        """Its tensors and labels, without the input itself. Raises BadSample."""
        part, place = self.parts[index // PART], index % PART
        if place in part.damaged:
            return super().open(index)
        return {**part.sample(place), **labels_of(self, index)}


def with_parts(source: LabelledSource, packed: Callable[[LabelledSource], LabelledSource]) -> LabelledSource:
    """The set with the outcome of `packed` in the place of the innermost set that it is made of, packed or not."""
    if isinstance(source, PackedSource) or not isinstance(source, Derived):
        return packed(source)
    changed = copy.copy(source)
    changed.source = with_parts(source.source, packed)
    return changed


def lengths_of(source: Source) -> NDArray[np.int32] | None:
    """The lengths of all samples (N); None if they are not known."""
    if isinstance(source, PackedSource):
        return source.lengths
    if not isinstance(source, Derived):
        return None
    inner = lengths_of(source.source)
    return None if inner is None else inner[[source.place(index) for index in range(len(source))]]


def by_length(source: Source) -> NDArray[np.int64] | None:
    """An order of the samples (N) in which neighbours are of similar length, the longest first; None if lengths are not
    known."""
    lengths = lengths_of(source)
    return None if lengths is None else np.argsort(-lengths.astype(np.int64), kind="stable")


def as_given(source: LabelledSource) -> LabelledSource:
    """The set as it was before its samples were packed, whose samples have the input itself."""
    if isinstance(source, PackedSource):
        return source.source
    return with_parts(source, as_given) if isinstance(source, Derived) else source
