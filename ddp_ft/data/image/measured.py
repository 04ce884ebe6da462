"""What the preprocessing has to know of a training set: the values of black and white, and each channel's mean and
deviation."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import BadSample, Source, StorageFault
from ddp_ft.data.image.arrays import Misfit, unused_channels
from ddp_ft.data.image.channels import with_channels
from ddp_ft.data.image.pillow import quiet_pillow
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import ImageFunction, eval_transform
from ddp_ft.data.image.undecoded import asked, size_of
from ddp_ft.data.image.value_range import measure, spread
from ddp_ft.data.open_sample import open_sample
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.errors import UserError, printable

# How many images, evenly spread over the set, are looked at for mean and deviation.
SAMPLE = 256
# And of how many the channels are counted at the start; a set is rarely mixed.
_COUNTED = 8
_TIFF = (".tif", ".tiff")
_TRAIN = "train"  # the word for what is measured
_NUMBERS = 6  # how many a note shows


def measure_inputs(preprocess: Preprocess, data: DataConfig, source: Source) -> dict[str, Any]:
    """The values of black and white, if there are images of more than 8 bits; "mean" and "std", if these are not the
    model's own; and a "note" on both for the start. UserError for settings that do not fit."""
    if source.kind != "image":  # which will be refused
        return {}
    _check_channels(preprocess.channels, data, source)
    found = measure(data.range, source, preprocess.channels)
    ends = found.get("value_range")
    scaled = replace(preprocess, value_range=(ends[0], ends[1]) if ends else None)
    statistics = _statistics(scaled, data, source)
    notes = [str(found["note"])] if "note" in found else []
    notes += [_note(statistics, data)] if statistics else []
    notes += _on_unused(source) if data.channels is None else []
    return {**found, **statistics, **({"note": " ".join(notes)} if notes else {})}


def _on_unused(source: Source) -> list[str]:
    """A note on channels that are left out, if the first images are TIFFs of several."""
    names = [name for name in map(source.name, spread(source, _COUNTED)) if name.lower().endswith(_TIFF)]
    if channels := next(filter(None, map(unused_channels, names)), 0):
        return [f"TIFFs have {channels} channels or pages, and are read as photos; data.channels={channels} takes all."]
    return []


def _check_channels(channels: int, data: DataConfig, source: Source) -> None:
    for index in spread(source, _COUNTED):
        try:
            image = open_sample(source, index)["image"]
            if isinstance(image, Tensor):
                with_channels(image[:, :1, :1], channels)
            else:
                size_of(asked(image, channels))
        except BadSample as error:
            if isinstance(error.__cause__, Misfit):
                found, setting = error.__cause__.found, "auto" if data.channels is None else channels
                raise UserError(
                    f"{printable(source.name(index))}: {str(error.__cause__).partition(' (')[0]} "
                    f"(data.channels = {setting}).",
                    f"--set data.channels={found} trains on such images.",
                ) from None


def _statistics(preprocess: Preprocess, data: DataConfig, source: Source) -> dict[str, list[float]]:
    """Mean and deviation by name, as far as they are not the model's own; a measured one is rounded to 4 digits."""
    asked = {"mean": data.mean, "std": data.std}
    if preprocess.channels != 3:
        asked = {name: _TRAIN if given is None else given for name, given in asked.items()}
    for name, given in asked.items():
        if given is not None and given != _TRAIN and len(given) != preprocess.channels:
            raise UserError(
                f"data.{name} has {len(given)} numbers, and images have {preprocess.channels} channels.",
                f"Give one for each channel; or data.{name}=train, to measure them on the training set.",
            )
    measured = dict(zip(asked, _moments(preprocess, source), strict=True)) if _TRAIN in asked.values() else {}
    known = {name: measured[name] if given == _TRAIN else given for name, given in asked.items()}
    return {name: [float(each) for each in values] for name, values in known.items() if values is not None}


def _moments(preprocess: Preprocess, source: Source) -> tuple[list[float], list[float]]:
    """Mean and deviation of the pixels of each channel, as the model sees the images in an evaluation.

    From sums of whole numbers, so the result depends on no order. An image that cannot be read is left out.
    """
    transform, places = eval_transform(preprocess), spread(source, SAMPLE)
    with quiet_pillow(), ThreadPoolExecutor(usable_cores()) as pool:
        sums = [each for each in pool.map(lambda place: _sums(source, place, transform), places) if each is not None]
    if not sums:
        return [0.5] * preprocess.channels, [0.25] * preprocess.channels  # training will report what is wrong
    height, width = preprocess.size
    first, second = (total / (255.0 ** (1 + power) * height * width * len(sums)) for power, total in enumerate(
        torch.stack(sums).sum(0).double()
    ))  # fmt: skip
    deviation = (second - first.square()).clamp(min=0).sqrt()
    # A channel of one value has none: it becomes 0.
    return _rounded(first), [each or 1.0 for each in _rounded(deviation)]


def _sums(source: Source, index: int, transform: ImageFunction) -> Tensor | None:
    """Sums of the values and of their squares for each channel, int64 2 x C; None for what cannot be read."""
    try:
        pixels = transform(open_sample(source, index)["image"]).flatten(1).long()
    except StorageFault as error:
        hint = "The disk or network failed; the image may be whole. Run the same command again."
        raise UserError(f"{printable(str(error))}.", hint) from None
    except BadSample:  # training will meet it, and report what is wrong
        return None
    return torch.stack([pixels.sum(1), pixels.square().sum(1)])


def _rounded(values: Tensor) -> list[float]:
    return [round(float(each), 4) for each in values]


def _note(statistics: dict[str, list[float]], data: DataConfig) -> str:
    texts = [f"{'mean' if name == 'mean' else 'deviation'} {_shown(each)}" for name, each in statistics.items()]
    given = [f"data.{name}" for name in statistics if getattr(data, name) not in (None, _TRAIN)]
    how = f"measured on up to {SAMPLE} training images; data.mean and data.std change that"
    how = f"{' and '.join(given)}" if len(given) == len(statistics) else how
    return f"Channels are normalised by {' and '.join(texts)} ({how})."


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{each:g}" for each in values[:_NUMBERS]) + (", ..." if len(values) > _NUMBERS else "")
