"""An augmentation of the user's own: FILE.py:NAME, called with each training image after all others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.tv_tensors import Image

from ddp_ft.data.rng import drawing_from, others_drawing_from_torch
from ddp_ft.errors import UserError
from ddp_ft.plugins import described, instance_of, running

KEY = "augment.transform"
EXPECTED = "It is called with an image, uint8 C x H x W, and must return one of the same shape and dtype."
_CALLABLE = (
    "Expected a function, a transform such as those of torchvision.transforms.v2, or a class of such objects that "
    f"needs no arguments. {EXPECTED}"
)
# Seeds of the object that is made, and of the trial.
_MAKING, _TRIAL = 0, 1


class OwnTransform:
    """Calls FILE.py:NAME. Its draws, from the generators of torch, Python and numpy, follow torch's alone.

    The file is read when this is made. In a spawned process it is read again, since code cannot be sent.
    """

    def __init__(self, reference: str) -> None:
        self.reference = reference
        with drawing_from(_MAKING), others_drawing_from_torch():  # the same object in every process and start
            function = instance_of(reference)
        if not callable(function):
            raise UserError(f"{KEY}: {reference} is a {type(function).__name__}, which cannot be called.", _CALLABLE)
        self._function: Callable[[Tensor], Any] = function

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 C x H x W -> the same. UserError if the code fails or returns something else."""
        with running(f"{KEY}: {self.reference} failed on {described(image)}", EXPECTED), others_drawing_from_torch():
            found = self._function(Image(image))
        if not isinstance(found, Tensor):
            raise UserError(f"{KEY}: {self.reference} returned a {type(found).__name__}.", EXPECTED)
        if (found.shape, found.dtype) != (image.shape, image.dtype) or found.device != image.device:
            hint = f"{EXPECTED} Values in 0..1 become such an image by v2.ToDtype(torch.uint8, scale=True)."
            raise UserError(f"{KEY}: {self.reference} returned {described(found)} for {described(image)}.", hint)
        return found.as_subclass(Tensor)

    def __reduce__(self) -> tuple[type["OwnTransform"], tuple[str]]:
        return OwnTransform, (self.reference,)


def check_own_transform(reference: str, image: Tensor) -> str:
    """Call it with an image (uint8 C x H x W) before the training, and return what was seen. UserError if it fails, or
    returns something else, or another image for the same draws."""
    transform = OwnTransform(reference)
    results = []
    for _ in range(2):
        with drawing_from(_TRIAL):
            results.append(transform(image.clone()))
    if not torch.equal(*results):
        hint = (
            "It must keep nothing from one image to the next, and draw from the global generators of torch, random or "
            "numpy, which are seeded for each image: else a resumed run would not repeat."
        )
        raise UserError(f"{KEY}: {reference} returned two images for the same image and the same draws.", hint)
    return f"called with an image {described(image)}, returned one of that shape, and the same for the same draws"
