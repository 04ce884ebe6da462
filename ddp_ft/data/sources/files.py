"""Image files as sources: plain ones for prediction, and labelled ones."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_ft.contracts import Batch, Sample
from ddp_ft.data.image.decode import open_image
from ddp_ft.data.image.undecoded import decoded
from ddp_ft.data.sources.paths import Paths

FilePaths = Paths | Sequence[Path | str]


class FileSource:
    """Images by their paths; relative ones are below `root`."""

    kind = "image"

    def __init__(self, paths: FilePaths, root: Path | str = "") -> None:
        self.paths = paths if isinstance(paths, Paths) else Paths.of([str(path) for path in paths])
        self.root = str(root)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The image's path, with the root before a relative one."""
        return os.path.join(self.root, self.paths[index])  # noqa: PTH118  (a Path for each takes longer)

    def open(self, index: int) -> Sample:
        """The "image", not yet decoded. Raises BadSample."""
        return {"image": open_image(self.name(index))}

    def read(self, index: int) -> Batch:
        """The same, decoded: "image" is uint8, 3 x H x W; of an array all channels. Raises BadSample."""
        return decoded(self.open(index))


class LabelledFileSource(FileSource):
    """Images with targets; see LabelledSource. `paths` have forward slashes, and do not change when `root` moves."""

    def __init__(
        self,
        root: Path,
        paths: Paths | Sequence[str],
        targets: NDArray[Any],
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        assert len(paths) == len(targets) and (weights is None or len(weights) == len(paths))
        super().__init__(paths, root)
        self.targets = targets
        self.weights = weights

    def open(self, index: int) -> Sample:
        """The "image", not yet decoded, "target", and "weight" (float32, a scalar) if there are any. Raises
        BadSample."""
        sample = {**super().open(index), "target": torch.tensor(self.targets[index])}
        return sample if self.weights is None else {**sample, "weight": torch.tensor(self.weights[index])}
