"""Sources of images: labelled ones in class folders, and plain files for prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_ft.contracts import Batch, Sample
from ddp_ft.data.image.decode import open_image
from ddp_ft.data.image.undecoded import decoded
from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.sources.scan import list_classes, subfolders
from ddp_ft.data.sources.table_file import SUFFIXES
from ddp_ft.errors import UserError, shortened


class FolderSource:
    """Images below a root with one label each.

    `paths` are relative to `root`, with forward slashes; `targets` (int64, one an image) number the classes.
    """

    kind = "image"

    def __init__(self, root: Path, paths: Paths | Sequence[str], labels: NDArray[np.int64]) -> None:
        assert len(paths) == len(labels)
        self.root = str(root)
        self.paths = paths if isinstance(paths, Paths) else Paths.of(paths)
        self.targets = labels
        self.weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The image's path, with the root as it was given."""
        return f"{self.root}/{self.paths[index]}"

    def open(self, index: int) -> Sample:
        """The "image", not yet decoded, and "target" (int64, a scalar). Raises BadSample."""
        return {"image": open_image(self.name(index)), "target": torch.tensor(int(self.targets[index]))}

    def read(self, index: int) -> Batch:
        """ "image" (uint8, 3 x H x W) and "target". Raises BadSample."""
        return decoded(self.open(index))


class FileSource:
    """Images without labels, named by the paths as they were given."""

    kind = "image"

    def __init__(self, paths: Paths | Sequence[Path | str]) -> None:
        self.paths = paths if isinstance(paths, Paths) else Paths.of([str(path) for path in paths])

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path as it was given."""
        return self.paths[index]

    def open(self, index: int) -> Sample:
        """The "image", not yet decoded. Raises BadSample."""
        return {"image": open_image(self.paths[index])}

    def read(self, index: int) -> Batch:
        """ "image" (uint8, 3 x H x W). Raises BadSample."""
        return decoded(self.open(index))


def open_folder(folder: Path, classes: Sequence[str]) -> FolderSource:
    """The class folders in `folder` as a source with the labels of a model's classes, to evaluate it.

    Raises UserError if the folder cannot be read, holds no images, or has a class that the model lacks.
    """
    check_folder(folder)
    numbers = {name: number for number, name in enumerate(classes)}
    names = subfolders(folder)
    unknown = [name for name in names if name not in numbers]
    if unknown:
        hint = f"The model's classes: {shortened(classes)}."
        raise UserError(f"{folder} has class folders that the model does not know: {shortened(unknown)}.", hint)
    listing = list_classes(folder)
    if not listing.paths:
        raise UserError(
            f"There are no images in class folders in {folder}.",
            f"Expected e.g. {folder}/{classes[0]}/1.jpg",
        )
    labels = np.array([numbers[name] for name in listing.classes], np.int64)[listing.labels]
    return FolderSource(folder, listing.paths, labels)


def check_folder(folder: Path) -> None:
    """UserError unless this is a folder."""
    if folder.is_dir():
        return
    if folder.exists():
        hint = f"A table ends in {', '.join(SUFFIXES)}. Unpack an archive first."
        raise UserError(f"--data {folder} is a file; expected a folder or a table.", hint)
    hint = f"In {near}: {shortened(subfolders(near)) or 'no folders'}." if (near := _nearest_parent(folder)) else ""
    raise UserError(f"--data {folder} does not exist.", hint)


def _nearest_parent(folder: Path) -> Path | None:
    return next((parent for parent in folder.absolute().parents if parent.is_dir()), None)
