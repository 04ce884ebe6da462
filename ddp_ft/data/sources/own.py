"""A data set of the user's own, FILE.py:NAME: made for each role, and read sample by sample."""

import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddp_ft.contracts import BadSample, Batch, Sample, StorageFault
from ddp_ft.data.image import undecoded
from ddp_ft.data.image.decode import from_pillow, open_image
from ddp_ft.data.rng import drawing_from, others_drawing_from_torch
from ddp_ft.data.roles import ROLE_NAMES
from ddp_ft.errors import UserError, is_of_the_machine
from ddp_ft.plugins import described, digest_of, explained, load_object, running

EXPECTED = (
    "It is called with 'train', 'val' and 'test', and returns for each a data set with __len__ and __getitem__, or "
    "None if there is none."
)
_ITEM = "Expected (image, target); an image is Pillow's, a path, a uint8 tensor C x H x W, or an array H x W x C."
# Code of the user's own is called by one thread at a time, whoever reads.
_ONE = threading.Lock()


def dataset_of(reference: str, role: str) -> Any | None:
    """What NAME(role) returns, made once in a process. UserError if that fails or is no data set."""
    return _made(reference, role, digest_of(reference))


@lru_cache(maxsize=16)
def _made(reference: str, role: str, _digest: str | None) -> Any | None:
    make = load_object(reference)
    if not callable(make):
        raise UserError(f"--data {reference} is a {type(make).__name__}, which cannot be called.", EXPECTED)
    call = f"--data {reference}('{role}')"
    with running(f"{call} failed", EXPECTED), drawing_from(0), others_drawing_from_torch():
        found = make(role)
        if found is None:
            return None
        if not (hasattr(found, "__getitem__") and hasattr(found, "__len__")):
            raise UserError(f"{call} returned a {type(found).__name__}, which has no length or no items.", EXPECTED)
        if not len(found):
            raise UserError(f"{call} returned a data set without samples.", EXPECTED)
    return found


class OwnSource:
    """Samples of NAME's data sets: sample i is number `indices[i]` of the role ROLE_NAMES[`roles[i]`].

    What __getitem__ draws at random follows the sample alone. A pickled source makes its data sets anew.
    """

    kind = "image"
    weights: NDArray[np.float32] | None = None

    def __init__(
        self, reference: str, roles: NDArray[np.uint8], indices: NDArray[np.int64], targets: NDArray[Any]
    ) -> None:
        assert len(roles) == len(indices) == len(targets)
        self.reference, self.roles, self.indices, self.targets = reference, roles, indices, targets
        self._datasets = {number: dataset_of(reference, ROLE_NAMES[number]) for number in np.unique(roles).tolist()}

    def __reduce__(self) -> tuple[type["OwnSource"], tuple[Any, ...]]:
        return OwnSource, (self.reference, self.roles, self.indices, self.targets)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Such as train[17]."""
        return f"{ROLE_NAMES[self.roles[index]]}[{self.indices[index]}]"

    def where(self, chosen: NDArray[np.bool_]) -> "OwnSource":
        """The chosen ones of its samples."""
        return OwnSource(self.reference, self.roles[chosen], self.indices[chosen], self.targets[chosen])

    def item(self, index: int) -> tuple[Any, Any]:
        """The image and the target that the data set returns. BadSample if it raises, UserError for something else."""
        dataset: Any = self._datasets[int(self.roles[index])]
        number = int(self.indices[index])
        try:
            with _ONE, redirect_stdout(sys.stderr), drawing_from(number), others_drawing_from_torch():
                found = dataset[number]
        except (Exception, SystemExit) as error:
            kind = StorageFault if is_of_the_machine(error) else BadSample
            raise kind(f"{self.name(index)}: {explained(error)}") from error
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise self._refused(index, f"a {type(found).__name__}")
        return found[0], found[1]

    def open(self, index: int) -> Sample:
        """The "image", decoded or not, and "target". Raises as `item`."""
        return {"image": self._image(index), "target": torch.tensor(self.targets[index])}

    def read(self, index: int) -> Batch:
        """The same, decoded: "image" is uint8, C x H x W."""
        return undecoded.decoded(self.open(index))

    def _image(self, index: int) -> undecoded.Image:
        given = self.item(index)[0]
        if isinstance(given, (str, Path)):
            return open_image(given)
        if isinstance(given, Image.Image):
            return from_pillow(given)
        if isinstance(given, np.ndarray):
            if given.dtype != np.uint8 or given.ndim not in (2, 3):
                raise self._refused(index, f"an array {described(given)} as the image")
            # A copy, since torch takes no negative strides, as a reversed axis has (BGR as RGB).
            given = undecoded.as_tensor(np.array(given[..., None] if given.ndim == 2 else given, order="C"))
        if not isinstance(given, Tensor):
            raise self._refused(index, f"a {type(given).__name__} as the image")
        pixels = given.as_subclass(Tensor)
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if pixels.dtype != torch.uint8 or pixels.ndim != 3:
            raise self._refused(index, f"{described(given)} as the image")
        if not pixels.numel():
            raise BadSample(f"{self.name(index)}: an image without pixels")
        return pixels

    def _refused(self, index: int, what: str) -> UserError:
        return UserError(f"--data {self.reference} returned {what} for {self.name(index)}.", _ITEM)


def whole_source(reference: str, targets: dict[str, NDArray[Any]], roles: Sequence[str]) -> OwnSource:
    """All samples of these roles, one role after the other; `targets` are those of each."""
    sizes = [len(targets[role]) for role in roles]
    numbers = np.array([ROLE_NAMES.index(role) for role in roles], np.uint8)
    indices = np.concatenate([np.arange(size) for size in sizes])
    return OwnSource(reference, np.repeat(numbers, sizes), indices, np.concatenate([targets[role] for role in roles]))
