"""Files of one sample each as sources: plain ones for prediction, and labelled ones."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import Batch, Sample
from ddp_ft.data.derived import labels_of
from ddp_ft.data.image.decode import open_image
from ddp_ft.data.image.undecoded import decoded
from ddp_ft.data.sources.file_kinds import IMAGES, TEXTS
from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.text.read import encoded, read_text

FilePaths = Paths | Sequence[Path | str]
# By the kinds of files.
_OPENERS: dict[str, Callable[[str], Any]] = {IMAGES.name: open_image, TEXTS.name: read_text}


class FileSource:
    """Images by their paths, or files of another kind; relative ones are below `root`."""

    def __init__(self, paths: FilePaths, root: Path | str = "", kind: str = IMAGES.name) -> None:
        self.kind = kind
        self.paths = paths if isinstance(paths, Paths) else Paths.of([str(path) for path in paths])
        self.root = str(root)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's path, with the root before a relative one."""
        return os.path.join(self.root, self.paths[index])  # noqa: PTH118  (a Path for each takes longer)

    def open(self, index: int) -> Sample:
        """The "image", not yet decoded, or the "text". Raises BadSample."""
        return {self.kind: _OPENERS[self.kind](self.name(index))}

    def read(self, index: int) -> Batch:
        """The same, decoded: "image" is uint8, 3 x H x W; of an array all channels. "text": its UTF-8, uint8, with
        "text_length". Raises BadSample."""
        return decoded(self.open(index)) if self.kind == IMAGES.name else encoded(self.open(index))


class LabelledFileSource(FileSource):
    """Files with targets; see LabelledSource. `paths` have forward slashes, and do not change when `root` moves."""

    def __init__(
        self,
        root: Path,
        paths: Paths | Sequence[str],
        targets: NDArray[Any],
        weights: NDArray[np.float32] | None = None,
        kind: str = IMAGES.name,
    ) -> None:
        assert len(paths) == len(targets) and (weights is None or len(weights) == len(paths))
        super().__init__(paths, root, kind)
        self.targets = targets
        self.weights = weights

    def open(self, index: int) -> Sample:
        """As `FileSource.open`, with "target", and "weight" (float32, a scalar) if there are any. Raises
        BadSample."""
        return {**self.unlabelled(index), **labels_of(self, index)}

    def unlabelled(self, index: int) -> Sample:
        """As `FileSource.open`."""
        return super().open(index)
