"""What is done to images on their way from a file to a vision model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import Address, Batch, Processor, Sample
from ddp_ft.data.batch import stacked
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.mixup import Mixing, draw_mixes
from ddp_ft.data.image.nvjpeg import NVJPEG, EncodedTransform, check_nvjpeg
from ddp_ft.data.image.pillow import Pixels, known_formats
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import eval_transform, train_transform
from ddp_ft.data.image.views import ImageViews, widened
from ddp_ft.errors import UserError


class ImageTransform:
    """What a loader makes of samples with an "image": `seen` of each (a tensor, or all tensors that come of it), and
    of a training batch what says how its pairs are mixed, drawn from `seed`."""

    def __init__(self, seen: Callable[[Any], Tensor | Batch], mixing: Mixing | None = None, seed: int = 0) -> None:
        known_formats()  # Pillow's modules are imported here once, and not by each worker of each evaluation
        self.seen = seen
        self.mixing = mixing
        self.seed = seed

    def __call__(self, sample: Sample) -> Batch:
        """The sample with the image that the model is to see. Raises BadSample."""
        seen = self.seen(sample["image"])
        return {**sample, **(seen if isinstance(seen, dict) else {"image": seen})}

    def collate(self, samples: list[Batch]) -> Batch:
        """Images are stacked in channels-last memory, as they come: reordering took 170 us each."""
        batch = stacked([{**sample, "image": sample["image"].permute(1, 2, 0)} for sample in samples])
        return {**batch, "image": batch["image"].permute(0, 3, 1, 2)}

    def finish(self, batch: Batch, addresses: Sequence[Address]) -> Batch:
        """With `draw_mixes`, where images are mixed."""
        if self.mixing is None:
            return batch
        return batch | draw_mixes(self.mixing, self.seed, addresses, *batch["image"].shape[-2:])


@dataclass(frozen=True)
class ImageProcessor:
    """The way of images to a model that wants them as `preprocess` says."""

    preprocess: Preprocess
    kind = "image"

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "ImageProcessor":
        """The inverse of `to_mapping`."""
        return ImageProcessor(Preprocess.from_mapping(values))

    def to_mapping(self) -> dict[str, Any]:
        """That of the preprocessing."""
        return self.preprocess.to_mapping()

    def configured(self, decoder: str) -> "ImageProcessor":
        """What the GPU decodes is to train on; evaluation is the same on every machine."""
        found = {"auto": "shrink", NVJPEG: "full"}.get(decoder, decoder)
        return ImageProcessor(replace(self.preprocess, decoder=found))

    def check(self, config: RunConfig, target_kind: str, device: torch.device) -> None:
        """Of mixing, and of decoding on the GPU."""
        if (mixing := Mixing.of(config.augment)) is not None:
            mixing.check(target_kind, config.train)
        check_nvjpeg(config, self.preprocess, device)

    def pairs(self, config: RunConfig) -> bool:
        """Where mixup or cutmix is asked for."""
        return Mixing.of(config.augment) is not None

    def train_transform(self, config: RunConfig) -> ImageTransform:
        """Crops, flips and distortions as `augment` says; left undecoded for the GPU, if that is asked for."""
        seen = EncodedTransform if config.data.decoder == NVJPEG else train_transform
        return ImageTransform(seen(self.preprocess, config.augment), Mixing.of(config.augment), config.seed)

    def eval_transform(self) -> ImageTransform:
        """What timm's evaluation does to an image."""
        return ImageTransform(eval_transform(self.preprocess))

    def on_device(self, device: torch.device, channels_last: bool) -> DeviceTransform:
        """Normalising and mixing."""
        return DeviceTransform(self.preprocess, device, channels_last)

    def example(self, samples: int) -> Batch:
        """Images of noise, always the same."""
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (samples, 3, *self.preprocess.size)
        return {"image": torch.randint(256, shape, generator=generator, dtype=torch.uint8, device="cpu")}

    def viewed(self, views: str) -> "tuple[ImageProcessor, ImageViews]":
        """FLIP or CROPS, as in `data.image.views`."""
        return ImageProcessor(widened(self.preprocess, views)), ImageViews(views, self.preprocess.size)

    def pixels(self, batch: Batch) -> list[Pixels]:
        """The images of a prepared batch as they were before they were normalised."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.preprocess.mean, self.preprocess.std))
        shown = (batch["image"].float().cpu() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        return [each.permute(1, 2, 0).contiguous().numpy() for each in shown]

    def extent(self, batch: Batch, place: int) -> tuple[str, str]:
        """The least and the largest pixel."""
        least, most = batch["image"][place].aminmax()
        return "pixels", f"{int(least)}..{int(most)}"

    def shape(self) -> tuple[int, ...]:
        """(height, width)."""
        return self.preprocess.size


def preprocess_of(processor: Processor) -> Preprocess:
    """What is done to images. UserError for a processor of another kind."""
    if not isinstance(processor, ImageProcessor):
        raise UserError(f"This is for models of images, and this one takes '{processor.kind}'.")
    return processor.preprocess
