"""Images as a Python program gives them: files, Pillow's images, pixels."""

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from ddp_ft.config.paths import path_of
from ddp_ft.contracts import Batch, Processor, Sample
from ddp_ft.data.image.decode import ArrayFile, from_pillow, open_image
from ddp_ft.data.image.processor import preprocess_of
from ddp_ft.data.image.undecoded import Image
from ddp_ft.errors import UserError

# A file, an image of Pillow's, or pixels: uint8 H x W x 3; of a model for other channels H x W x C of any numbers.
ImageLike = str | os.PathLike[str] | Pillow.Image | NDArray[np.uint8] | Tensor


def is_one(given: Any) -> bool:
    """Whether it is one image: everything but a list or a tuple."""
    return not isinstance(given, (list, tuple))


def sample_of(given: Any, processor: Processor) -> Sample:
    """The image as a sample, not yet decoded. UserError for what is no image; raises BadSample for a file that is
    none."""
    return {"image": _opened(given, preprocess_of(processor).channels)}


def prepared_of(batch: Batch) -> Tensor:
    """The image of a prepared batch of one: float32 C x height x width."""
    return batch["image"][0]


def _opened(image: ImageLike, channels: int) -> Image:
    if isinstance(image, (str, os.PathLike)):
        return open_image(path_of(os.fspath(image)))
    if isinstance(image, Pillow.Image):
        return from_pillow(image)
    if channels != 3 and isinstance(image, (np.ndarray, Tensor)):
        return ArrayFile(image.cpu().numpy() if isinstance(image, Tensor) else image)
    # A copy, because torch warns of arrays that are read-only, as Pillow's are.
    pixels = torch.from_numpy(np.array(image)) if isinstance(image, np.ndarray) else image
    if not isinstance(pixels, Tensor):
        raise UserError(
            f"A {type(image).__name__} is no image.", "Expected a path, a Pillow image, or uint8 H x W x 3."
        )
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.numel():
        kind, shape = str(pixels.dtype).removeprefix("torch."), " x ".join(map(str, pixels.shape))
        raise UserError(f"Pixels of {kind}, {shape}, were given.", "Expected uint8, H x W x 3 (RGB).")
    return pixels.cpu().permute(2, 0, 1)
