"""The processor of images for vision models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddp_ft.config.schema import DataConfig, RunConfig
from ddp_ft.contracts import Address, Batch, Kept, Processor, Sample, Source, nothing_kept
from ddp_ft.data.batch import stacked
from ddp_ft.data.image.device_transform import DeviceTransform, as_pixels
from ddp_ft.data.image.measured import measure_inputs
from ddp_ft.data.image.mixup import Mixing, draw_mixes
from ddp_ft.data.image.nvjpeg import NVJPEG, EncodedTransform, check_nvjpeg
from ddp_ft.data.image.pillow import Pixels, known_formats
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import check_augmentation, check_colours, eval_transform, train_transform
from ddp_ft.data.image.views import ImageViews, widened
from ddp_ft.errors import UserError


class ImageTransform:
    """Turns samples with an "image" into batches: by `seen` each image (into a tensor, or several by name), and by
    draws from `seed` how the pairs of a training batch are mixed."""

    def __init__(self, seen: Callable[[Any], Tensor | Batch], mixing: Mixing | None = None, seed: int = 0) -> None:
        known_formats()  # imports Pillow's modules here once, and not in each worker of each evaluation
        self.seen = seen
        self.mixing = mixing
        self.seed = seed

    def __call__(self, sample: Sample) -> Batch:
        """The sample with the image that the model sees. Raises BadSample."""
        seen = self.seen(sample["image"])
        return {**sample, **(seen if isinstance(seen, dict) else {"image": seen})}

    def collate(self, samples: list[Batch]) -> Batch:
        """The samples as a batch, images in channels-last memory as they are: reordering took 170 us each."""
        batch = stacked([{**sample, "image": sample["image"].permute(1, 2, 0)} for sample in samples])
        return {**batch, "image": batch["image"].permute(0, 3, 1, 2)}

    def finish(self, batch: Batch, addresses: Sequence[Address]) -> Batch:
        """Add `draw_mixes` if images are mixed."""
        if self.mixing is None:
            return batch
        return batch | draw_mixes(self.mixing, self.seed, addresses, *batch["image"].shape[-2:])


@dataclass(frozen=True)
class ImageProcessor:
    """Prepares images as `preprocess` says."""

    preprocess: Preprocess
    kind = "image"

    @staticmethod
    def from_mapping(values: Mapping[str, Any], kept: Kept = nothing_kept) -> "ImageProcessor":
        """The inverse of `to_mapping`."""
        return ImageProcessor(Preprocess.from_mapping(values))

    def to_mapping(self) -> dict[str, Any]:
        """The preprocessing."""
        return self.preprocess.to_mapping()

    def files(self) -> Mapping[str, bytes]:
        """None: model.json has all."""
        return {}

    def configured(self, data: DataConfig) -> "ImageProcessor":
        """data.decoder, "full" for nvjpeg: only training decodes on the GPU; evaluation is the same everywhere."""
        found = {"auto": "shrink", NVJPEG: "full"}.get(data.decoder, data.decoder)
        return ImageProcessor(replace(self.preprocess, decoder=found))

    def measure(self, data: DataConfig, source: Source) -> dict[str, Any]:
        """The values of black and white, if there are images of more than 8 bits, and each channel's mean and
        deviation, if they are not the model's own. UserError for images of another number of channels."""
        return measure_inputs(self.preprocess, data, source)

    def fitted(self, inputs: Mapping[str, Any]) -> "ImageProcessor":
        """With those values."""
        ends = inputs.get("value_range")
        mean, std = (tuple(inputs.get(name) or getattr(self.preprocess, name)) for name in ("mean", "std"))
        known = None if ends is None else (ends[0], ends[1])
        return ImageProcessor(replace(self.preprocess, mean=mean, std=std, value_range=known))

    def of_channels(self, channels: int) -> "ImageProcessor":
        """For images of so many channels, whose mean and deviation are not known yet if they are not 3."""
        if channels == self.preprocess.channels:
            return self
        mean, std = (0.5,) * channels, (0.25,) * channels
        return ImageProcessor(replace(self.preprocess, channels=channels, mean=mean, std=std))

    def check(self, config: RunConfig, target_kind: str, device: torch.device) -> None:
        """Raise UserError for mixing or decoding on the GPU that cannot be done, and for code of the user's own that
        breaks its contract."""
        if (mixing := Mixing.of(config.augment)) is not None:
            mixing.check(target_kind, config.train)
        check_colours(config.augment, self.preprocess.channels)
        check_nvjpeg(config, self.preprocess, device)
        check_augmentation(config.augment, self.example(1)["image"][0])

    def pairs(self, config: RunConfig) -> bool:
        """Whether mixup or cutmix is configured."""
        return Mixing.of(config.augment) is not None

    def train_transform(self, config: RunConfig) -> ImageTransform:
        """Crops, flips and distortions as `augment` says; JPEGs stay undecoded with the decoder nvjpeg."""
        seen = EncodedTransform if config.data.decoder == NVJPEG else train_transform
        return ImageTransform(seen(self.preprocess, config.augment), Mixing.of(config.augment), config.seed)

    def eval_transform(self) -> ImageTransform:
        """As timm's evaluation."""
        return ImageTransform(eval_transform(self.preprocess))

    def packing(self) -> None:
        """Images are decoded anew: they take far more room than their files."""

    def volume(self, batch: Batch) -> None:
        """Images have no padding."""

    def on_device(self, device: torch.device, channels_last: bool) -> DeviceTransform:
        """Normalising and mixing."""
        return DeviceTransform(self.preprocess, device, channels_last)

    def example(self, samples: int) -> Batch:
        """Images of noise, always the same."""
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (samples, self.preprocess.channels, *self.preprocess.size)
        return {"image": torch.randint(256, shape, generator=generator, dtype=torch.uint8, device="cpu")}

    def viewed(self, views: str) -> "tuple[ImageProcessor, ImageViews]":
        """The views FLIP or CROPS of `data.image.views`."""
        return ImageProcessor(widened(self.preprocess, views)), ImageViews(views, self.preprocess.size)

    def pixels(self, batch: Batch) -> list[Pixels]:
        """The images of a prepared batch as they were before they were normalised; of other than 3 channels those that
        can be shown."""
        return as_pixels(batch["image"], self.preprocess)

    def texts(self, batch: Batch) -> list[str]:
        """None."""
        return []

    def extent(self, batch: Batch, place: int) -> tuple[str, str]:
        """The least and the largest pixel."""
        least, most = batch["image"][place].aminmax()
        return "pixels", f"{int(least)}..{int(most)}"

    def shape(self) -> tuple[int, ...]:
        """(height, width)."""
        return self.preprocess.size


def preprocess_of(processor: Processor) -> Preprocess:
    """The preprocessing of images. UserError for a processor of another kind."""
    if not isinstance(processor, ImageProcessor):
        raise UserError(f"This is for models of images, and this one takes '{processor.kind}'.")
    return processor.preprocess
