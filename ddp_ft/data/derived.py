"""Sets whose samples are those of another set, and what is the same of both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_ft.contracts import Batch, LabelledSource, Sample, Source
from ddp_ft.data.batch import LENGTH
from ddp_ft.data.open_sample import open_sample


class Derived:
    """A set whose samples are those of another one, each at its `place` there."""

    def __init__(self, source: LabelledSource) -> None:
        self.source = source
        self.targets: NDArray[Any] = source.targets
        self.weights: NDArray[np.float32] | None = source.weights

    def __len__(self) -> int:
        return len(self.source)

    @property
    def kind(self) -> str:
        """The kind of the other set."""
        return self.source.kind

    def place(self, index: int) -> int:
        """The sample's index in the other set."""
        return index

    def name(self, index: int) -> str:
        """The sample's name in the other set."""
        return self.source.name(self.place(index))

    def open(self, index: int) -> Sample:
        """The sample, without its weight if `weights` is None. Raises BadSample."""
        return self._weighted(open_sample(self.source, self.place(index)))

    def read(self, index: int) -> Batch:
        """The same, decoded."""
        return dict(self._weighted(self.source.read(self.place(index))))

    def _weighted(self, sample: Sample) -> Sample:
        return sample if self.weights is not None else {n: value for n, value in sample.items() if n != "weight"}


def path_of(source: Source, index: int) -> str:
    """The path of a sample as in split.json, which does not change when the data is moved; else its name."""
    if isinstance(source, Derived):
        return path_of(source.source, source.place(index))
    paths: Sequence[str] | None = getattr(source, "paths", None)
    return source.name(index) if paths is None else paths[index]


def labels_of(source: LabelledSource, index: int) -> Batch:
    """What a task learns of a sample: its "target", with "target_length" if samples have uneven numbers of them, and
    "weight" (float32, a scalar) if there are weights."""
    labels = {"target": torch.tensor(source.targets[index])}
    if source.targets.dtype == object:
        labels[f"target{LENGTH}"] = torch.tensor(len(labels["target"]))
    return labels if source.weights is None else {**labels, "weight": torch.tensor(source.weights[index])}
