"""Seeds from numbers, and drawing with them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits from these numbers, the same on every machine and in every version.

    Unlike a sum, it gives unrelated seeds for (seed, epoch) = (0, 1) and (1, 0).
    """
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def drawing_from(*parts: int) -> Iterator[None]:
    """torch's CPU generator seeded by these numbers, and afterwards as it was.

    Not torch.manual_seed: that would reset the CUDA generators of a process without workers as well.
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(derive_seed(*parts))
    try:
        yield
    finally:
        generator.set_state(before)


def seed_masks(seed: int, device: torch.device) -> None:
    """Seed what draws random masks (dropout and its like) on that device: the same numbers as after torch.manual_seed.

    That seeds the generators of all kinds of devices, and where CUDA is not in use writes down the stack of calls each
    time, which took over a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)  # DataParallel uses several
