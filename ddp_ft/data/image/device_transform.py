"""Normalising and mixing a batch of images on the device, and the way back."""

import torch
from torch import Tensor

from ddp_ft.contracts import Batch
from ddp_ft.data.image.arrays import shown
from ddp_ft.data.image.mixup import mix_images
from ddp_ft.data.image.nvjpeg import JPEG, decoded_on
from ddp_ft.data.image.pillow import Pixels
from ddp_ft.data.image.preprocess import Preprocess


class DeviceTransform:
    """Moves a batch to the device, and normalises and mixes its "image".

    "image" uint8 B x C x H x W becomes float32 of the same shape, (value / 255 - mean) / std, in channels-last memory
    if asked; with "mix_share", "mix_partner" and "mix_box" in the batch, partners' images are mixed. All other
    tensors are only moved. On CUDA pinned tensors are moved without waiting, in a stream of their own: the next batch
    is copied while the device computes with the one before. JPEGs that the loader has not decoded are decoded on the
    device, in the same stream.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device | str, channels_last: bool) -> None:
        self.device = torch.device(device)
        self.preprocess = preprocess
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # Scaled to 0..255 once, so that each batch takes two passes over memory and not three.
        self.mean = 255 * torch.tensor(preprocess.mean, device=self.device).view(1, -1, 1, 1)
        self.std = 255 * torch.tensor(preprocess.std, device=self.device).view(1, -1, 1, 1)

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device; the given one is not changed."""
        moved = self._moved(batch)
        image = moved["image"].to(dtype=torch.float32, memory_format=self.memory_format)
        image.sub_(self.mean).div_(self.std)
        if "mix_share" in moved:
            image = mix_images(image, moved["mix_share"], moved["mix_partner"], moved["mix_box"])
        return {**moved, "image": image}

    def _moved(self, batch: Batch) -> Batch:
        if self.copies is None:
            whole = decoded_on(self.device, batch, self.preprocess) if JPEG in batch else batch
            return {name: tensor.to(self.device) for name, tensor in whole.items()}
        with torch.cuda.stream(self.copies):
            if JPEG in batch:
                # nvJPEG writes at once (torchcodec's pull request 1634) to memory that torch hands out for the current
                # stream, whose queued work may still read it. This stream has little work, unlike that of the steps.
                self.copies.synchronize()
                batch = decoded_on(self.device, batch, self.preprocess)
            moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.copies)
        for tensor in moved.values():
            tensor.record_stream(computing)  # its memory is not for the next copy before it has been used
        return moved


def as_pixels(images: Tensor, preprocess: Preprocess) -> list[Pixels]:
    """Normalised images (B x C x H x W) as they were before, each H x W x 3, as `shown`."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    levels = (images.float().cpu() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    return [shown(each.permute(1, 2, 0).numpy()) for each in levels]
