"""Seeds from numbers, and draws with them."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits from these numbers, the same on every machine and in every version.

    Unlike a sum, it returns unrelated seeds for (seed, epoch) = (0, 1) and (1, 0).
    """
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def drawing_from(*parts: int) -> Iterator[None]:
    """Seed torch's CPU generator by these numbers for the block, and restore its state afterwards.

    torch.manual_seed would also reset the CUDA generators of a process without workers.
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(derive_seed(*parts))
    try:
        yield
    finally:
        generator.set_state(before)


@contextmanager
def others_drawing_from_torch() -> Iterator[None]:
    """Seed Python's and numpy's generators by a draw of torch's for the block, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state()
    seed = int(torch.randint(2**32, ()))
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def seed_masks(seed: int, device: torch.device) -> None:
    """Seed the generators of random masks (dropout and the like) on that device, as torch.manual_seed does.

    That seeds the generators of all kinds of devices, and without CUDA records the stack of calls each time, which took
    over a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)  # DataParallel uses several


@contextmanager
def generators_kept() -> Iterator[None]:
    """After the block the generators of torch, Python and numpy are as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        with torch.random.fork_rng(range(torch.cuda.device_count()) if has_cuda else ()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
