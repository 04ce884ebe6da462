"""Fine-tuning loops of PyTorch's and timm's guides, and the same with the flags that are known to help.

By the book: images through Pillow, one transform after the other, a new set of workers each epoch, the loss read in
every step. At its best: channels_last if ddp_ft has it, workers that stay, pinned memory, uint8 to the device, a
fused optimizer, cudnn's search for kernels, buckets as views, and no step that waits for the device.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import datasets, transforms
from torchvision.transforms import InterpolationMode, v2

from benchmarks.workload import Clock, Outcome, Workload, adamw, autocast, build
from ddp_ft.contracts import BuiltModel
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.models.precision import is_convolutional

RATIO = (3 / 4, 4 / 3)


def crop_and_flip(workload: Workload, preprocess: Preprocess, best: bool) -> list[Any]:
    """The common augmentation, from torchvision's first or second version of transforms."""
    library: Any = v2 if best else transforms
    how = InterpolationMode(preprocess.interpolation)
    crop = library.RandomResizedCrop(preprocess.size, scale=(workload.crop_min, 1.0), ratio=RATIO, interpolation=how)
    return [crop, library.RandomHorizontalFlip(workload.flip)]


def image_folder(workload: Workload, preprocess: Preprocess, best: bool = False) -> "Dataset[tuple[Tensor, int]]":
    """torchvision's ImageFolder of train/; normalised float32 3 x H x W, or uint8 if `best`."""
    last = (
        [v2.PILToTensor()] if best else [transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std)]
    )
    compose: Any = v2.Compose if best else transforms.Compose
    steps = [*crop_and_flip(workload, preprocess, best), *last]
    return datasets.ImageFolder(str(Path(workload.data, "train")), compose(steps))


def loader_options(workload: Workload, best: bool) -> dict[str, Any]:
    """Arguments of the DataLoader besides the data, the batch and the order."""
    options: dict[str, Any] = {"num_workers": workload.workers}
    if best and workload.workers:
        options |= {"persistent_workers": True}
    return options | {"pin_memory": workload.device == "cuda"}


def to_channels_last(module: nn.Module) -> torch.memory_format:
    """The memory format that ddp_ft's rule chooses for this model."""
    return torch.channels_last if is_convolutional(module) else torch.contiguous_format


class Place:
    """This process's rank and device, and the process group for as long as the block lasts."""

    def __init__(self, workload: Workload) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", self.rank) if workload.device == "cuda" else torch.device("cpu")

    def __enter__(self) -> "Place":
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(self, *_: object) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    def wrap(self, module: nn.Module, best: bool) -> nn.Module:
        """Wrap it in DDP if there are several processes."""
        if self.size == 1:
            return module
        ids = [self.rank] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=best)


def train(workload: Workload, best: bool = False) -> Outcome:
    """Plain PyTorch: ImageFolder, DataLoader, DistributedSampler, DDP."""
    with Place(workload) as place:
        built = build(workload)
        data = image_folder(workload, built.processor.preprocess, best)
        sampler: Any = DistributedSampler(data) if place.size > 1 else None  # type: ignore[arg-type]
        loader = DataLoader(
            data, workload.batch, shuffle=sampler is None, sampler=sampler, **loader_options(workload, best)
        )
        return _loop(workload, place, built, loader, sampler, best)


def train_with_timm(workload: Workload) -> Outcome:
    """timm's own data set and loader, with the options of its training script, in the best loop above."""
    from timm.data import create_dataset, create_loader

    with Place(workload) as place:
        built = build(workload)
        preprocess = built.processor.preprocess
        data = create_dataset("", root=str(Path(workload.data, "train")), is_training=True)
        loader = create_loader(
            data,
            input_size=(3, *preprocess.size),
            batch_size=workload.batch,
            is_training=True,
            scale=(workload.crop_min, 1.0),
            ratio=RATIO,
            hflip=workload.flip,
            color_jitter=0.0,
            interpolation=preprocess.interpolation,
            mean=preprocess.mean,
            std=preprocess.std,
            num_workers=workload.workers,
            distributed=place.size > 1,
            # Its prefetcher normalises on the GPU, on a stream of its own; it is for CUDA alone.
            use_prefetcher=workload.device == "cuda",
            pin_memory=workload.device == "cuda",
            persistent_workers=workload.workers > 0,
            device=place.device,
        )
        return _loop(workload, place, built, loader, loader.sampler, best=True)


def _loop(
    workload: Workload, place: Place, built: BuiltModel, loader: Iterable[Any], sampler: Any, best: bool
) -> Outcome:
    torch.backends.cudnn.benchmark = best
    memory_format = to_channels_last(built.module) if best else torch.contiguous_format
    model = built.module.to(place.device, memory_format=memory_format).train()
    optimizer = adamw(workload, model, fused=best)
    replica = place.wrap(model, best)
    criterion = nn.CrossEntropyLoss(label_smoothing=workload.label_smoothing)
    normalise = Normalise(built.processor.preprocess, place.device)
    clock, running = Clock(workload.device), 0.0
    for epoch in range(workload.epochs):
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(epoch)
        for images, labels in loader:
            inputs = images.to(place.device, non_blocking=best, memory_format=memory_format)
            targets = labels.to(place.device, non_blocking=best)
            with autocast(workload):
                loss = criterion(replica(normalise(inputs)), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if not best:
                running += loss.item()  # the guides' way to a mean of the epoch
            clock.tick(len(labels) * place.size)
    return clock.stop(f"channels_last={memory_format == torch.channels_last}")


class Normalise:
    """uint8 images on the device to float32; what is float already is left as it is."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self.mean = 255 * torch.tensor(preprocess.mean, device=device).view(1, -1, 1, 1)
        self.std = 255 * torch.tensor(preprocess.std, device=device).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return images if images.is_floating_point() else images.float().sub_(self.mean).div_(self.std)
