"""Operations on batches of any kind: stack samples; cut, join and reorder batches.

A value of uneven length is NAME, padded with 0 along its second dimension to the longest of the batch, with NAME_length
(int64, B). No operation leaves more padding than the longest sample needs, so a batch is the same however it was made.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ddp_ft.contracts import Batch

LENGTH = "_length"
# The place of another sample in the micro-batch.
PARTNER = "mix_partner"


def stacked(samples: Sequence[Batch]) -> Batch:
    """The samples as a batch; values with a NAME_length are padded."""
    ragged = [name for name in samples[0] if name + LENGTH in samples[0]]
    # Not by torch's default_collate, which takes shared memory in workers.
    even = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name not in ragged}
    return even | {name: pad_sequence([sample[name] for sample in samples], batch_first=True) for name in ragged}


def samples_of(batch: Batch) -> int:
    """How many samples a batch has."""
    return len(next(iter(batch.values())))


def even_cuts(samples: int, most: int, least: int = 1) -> list[range]:
    """The places of the samples of each part, of `most` samples but for the last one, which has the rest; a rest of
    fewer than `least` stays with the part before it. `most` is raised to `least`."""
    most = max(most, least)
    starts = list(range(0, samples, most))
    if len(starts) > 1 and samples - starts[-1] < least:
        starts.pop()
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], samples], strict=True)]


def cut(batches: Sequence[Batch], most: int, least: int = 1) -> list[Batch]:
    """The batches in parts as of `even_cuts`, as a loader with that micro-batch cuts them; views if possible."""
    most = max(most, least)
    if any(samples_of(batch) % most for batch in batches[:-1]):
        batches = [joined(batches)]
    parts = [(batch, places) for batch in batches for places in even_cuts(samples_of(batch), most, least)]
    return [_part(batch, places.start, places.stop) for batch, places in parts]


def first_samples(batch: Batch, count: int) -> Batch:
    """The first `count` samples of a batch (even, if samples are mixed in pairs), as views."""
    return _part(batch, 0, count)


def joined(batches: Sequence[Batch]) -> Batch:
    """All samples of the batches as one batch; pinned if they are."""
    if len(batches) == 1:
        return batches[0]
    starts, moved = 0, []
    for batch in batches:
        moved.append(_moved(batch, starts))
        starts += samples_of(batch)
    whole = {name: _rows([batch[name] for batch in moved], name + LENGTH in moved[0]) for name in moved[0]}
    is_pinned = next(iter(batches[0].values())).is_pinned()
    return {name: tensor.pin_memory() if is_pinned else tensor for name, tensor in whole.items()}


def chosen(batch: Batch, places: Tensor) -> Batch:
    """The samples at these places (int64), in that order; the batch is not mixed."""
    assert PARTNER not in batch
    return _trimmed({name: tensor[places] for name, tensor in batch.items()})


def on_cpu(batch: Batch) -> Batch:
    """The batch in the memory of the CPU."""
    return {name: tensor.cpu() for name, tensor in batch.items()}


def _part(batch: Batch, start: int, stop: int) -> Batch:
    return _trimmed(_moved({name: tensor[start:stop] for name, tensor in batch.items()}, -start))


def _moved(batch: Batch, places: int) -> Batch:
    return batch | {PARTNER: batch[PARTNER] + places} if PARTNER in batch else batch


def _trimmed(batch: Batch) -> Batch:
    ragged = {name: batch[name + LENGTH] for name in batch if name + LENGTH in batch}
    return batch | {name: batch[name][:, : int(lengths.max())] for name, lengths in ragged.items() if len(lengths)}


def _rows(parts: list[Tensor], ragged: bool) -> Tensor:
    if ragged:
        width = max(part.shape[1] for part in parts)
        parts = [F.pad(part, (0, 0) * (part.ndim - 2) + (0, width - part.shape[1])) for part in parts]
    return torch.cat(parts)
