"""How batches come from the loader's workers: through files in memory, which lie in no folder and are inherited.

torch shares each tensor by a file in /dev/shm whose descriptor is sent through a socket in TMPDIR: so the number of
tensors that are kept is limited by the open files, the size of a batch by /dev/shm, and the path of TMPDIR by the 108
characters of a socket's name; and a failure of it is lost in a thread of the worker. Here a worker writes the bytes of
a batch into one of its files, and the process copies them out. Where that fails they go through the queue's pipe.
"""

import itertools
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddp_ft.contracts import Batch

# A worker has two batches on their way, since torch's loader asks for two ahead, and writes a third.
FILES_PER_WORKER = 3
# The first byte of a file: whether it holds a batch that was not copied out yet.
_FREE, _TAKEN = b"\0", b"\1"
_BEGIN = 64  # where a file's tensors begin


class File(NamedTuple):
    """A file in memory: its descriptor, which may be another file's as soon as it is closed, and a number of its own,
    since torch's thread that pins memory reads on after an error."""

    descriptor: int
    number: int


_numbers = itertools.count()
_open: set[File] = set()  # those of this process
_lock = threading.Lock()


class _Form(NamedTuple):
    """The form of a dense tensor, without its values."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Parcel:
    """A batch on its way from a worker: the forms of its tensors, and their bytes, one after the other: in the `file`,
    which both processes have, or else in `content`."""

    forms: tuple[_Form, ...]
    file: File | None
    content: bytes = b""

    def unpacked(self, pinned: bool = False) -> Batch:
        """Return the batch, copied into memory of this process, and free the file. Call it once."""
        with _lock:
            if self.file is not None and self.file not in _open:
                raise EOFError("the loader was closed")
            return self._unpacked(pinned)

    def _unpacked(self, pinned: bool) -> Batch:
        batch, place = {}, 0
        for form in self.forms:
            tensor = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, pin_memory=pinned)
            self._copy(_bytes_of(tensor), place)
            batch[form.name] = tensor
            place += form.size
        if self.file is not None:
            os.pwrite(self.file.descriptor, _FREE, 0)
        return batch

    def _copy(self, target: memoryview, place: int) -> None:
        if self.file is None:
            target[:] = self.content[place : place + len(target)]
            return
        done = 0
        while done < len(target):
            count = os.preadv(self.file.descriptor, [target[done:]], _BEGIN + place + done)
            if not count:
                raise EOFError("a batch of a loader worker is shorter than announced")
            done += count


@contextmanager
def opened_files(workers: int) -> Iterator[list[list[File]]]:
    """Each worker's files, for workers that are forked within the block; none where they cannot be had, as on macOS,
    or if there would be too many open files."""
    opened: list[File] = []
    try:
        for _ in range(FILES_PER_WORKER * workers):
            opened.append(File(os.memfd_create("batch"), next(_numbers)))
    except (OSError, AttributeError):
        _close(opened)
        opened = []
    _open.update(opened)
    try:
        yield [opened[first : first + FILES_PER_WORKER] for first in range(0, len(opened), FILES_PER_WORKER)]
    finally:
        _close(opened)


def _close(files: Sequence[File]) -> None:
    with _lock:
        _open.difference_update(files)
        for file in files:
            os.close(file.descriptor)


def pack(batch: Batch, files: Sequence[File]) -> Parcel:
    """In a worker: the batch's bytes, in the first of its files that is free."""
    tensors = {name: _dense(tensor) for name, tensor in batch.items()}
    forms = [_Form(name, each.dtype, tuple(each.shape), each.stride()) for name, each in tensors.items()]
    parts = [_bytes_of(tensor) for tensor in tensors.values()]
    with suppress(OSError):  # no memory for it
        for file in files:
            if os.pread(file.descriptor, 1, 0) != _TAKEN:
                _write(file.descriptor, parts)
                return Parcel(tuple(forms), file)
    return Parcel(tuple(forms), None, b"".join(parts))


def _write(file: int, parts: Sequence[memoryview]) -> None:
    place = _BEGIN
    for part in parts:
        left = part
        while left:
            count = os.pwrite(file, left, place)
            left, place = left[count:], place + count
    os.pwrite(file, _TAKEN, 0)


def _dense(tensor: Tensor) -> Tensor:
    """The tensor on the CPU without gaps or overlaps, in its own memory format."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.stride() == torch.empty_like(tensor, device="meta").stride() else tensor.clone()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a dense tensor, in the order in which it lies."""
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # numpy's arrays are buffers
