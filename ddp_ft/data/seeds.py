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
