"""Test-time augmentation: several views of each image."""

import math
from dataclasses import dataclass, replace

import torch
from torchvision.transforms.v2.functional import five_crop

from ddp_ft.contracts import Batch
from ddp_ft.data.image.preprocess import Preprocess

# An image with its mirror image; five crops of it, each with its mirror image.
FLIP, CROPS = "flip", "crops"
# Forward passes of an image.
PASSES = {FLIP: 2, CROPS: 10}
# The five crops are cut from an image at least that much wider: 256 for crops of 224 pixels (AlexNet's ten views).
CROPS_SHARE = 224 / 256


@dataclass(frozen=True)
class ImageViews:
    """The views of an image; those of CROPS have `size`, (height, width), and are cut from a larger image."""

    views: str
    size: tuple[int, int]

    def __call__(self, batch: Batch) -> list[Batch]:
        """Return the views of a prepared batch ("image" float B x C x H x W)."""
        images = batch["image"]
        # Models may rely on the memory format that they have in training.
        is_last = images.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if is_last else torch.contiguous_format
        crops = five_crop(images, list(self.size)) if self.views == CROPS else [images]
        views = [view for crop in crops for view in (crop, crop.flip(-1))]
        return [{**batch, "image": view.contiguous(memory_format=memory_format)} for view in views]


def widened(preprocess: Preprocess, views: str) -> Preprocess:
    """The preprocessing of the images that these views are cut from."""
    if views != CROPS:
        return preprocess
    share = min(preprocess.crop_pct, CROPS_SHARE)
    height, width = (math.floor(pixels / share) for pixels in preprocess.size)
    return replace(preprocess, size=(height, width), crop_pct=1.0)
