"""Damaged samples: all are found and named at once, so that the user mends them once."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from ddp_ft.contracts import BadSample, Source, StorageFault
from ddp_ft.data.image.pillow import quiet_pillow
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.errors import UserError, listed, printable
from ddp_ft.texts import sample_noun

_PART = 64  # samples a thread takes at a time: a task for each of a million would take a gigabyte


def read_all(source: Source, strict: bool = False) -> list[tuple[int, str]]:
    """(index, reason) of every damaged sample, in the source's order; reads all of them, on all cores.

    If `strict`, UserError for a sample that only a failing disk did not return.
    """

    def check(start: int) -> list[tuple[int, str]]:
        part = range(start, min(start + _PART, len(source)))
        return [(index, reason) for index in part if (reason := _damage(source, index, strict))]

    # Decoders release the interpreter's lock, so threads run at the same time.
    with quiet_pillow(), ThreadPoolExecutor(usable_cores()) as pool:
        return [bad for part in pool.map(check, range(0, len(source), _PART)) for bad in part]


def _damage(source: Source, index: int, strict: bool) -> str:
    """Why the sample cannot be read; empty if it can."""
    try:
        source.read(index)
    except BadSample as error:
        if strict and isinstance(error, StorageFault):
            raise storage_error(source, index, error) from None
        return reason_of(source, index, error)
    return ""


def reason_of(source: Source, index: int, error: BadSample) -> str:
    """The reason in a message that begins with the sample's name; never empty."""
    return str(error).removeprefix(f"{source.name(index)}: ") or "unreadable"


def storage_error(source: Source, index: int, error: BadSample) -> UserError:
    """The error for a sample that may be whole."""
    hint = "The disk or network failed, or the memory is full; the image may be whole. Run the same command again."
    return UserError(f"{printable(source.name(index))} could not be read: {reason_of(source, index, error)}.", hint)


def damaged_error(source: Source, seen: Mapping[int, str]) -> UserError:
    """The error for a source in which these samples ({index: reason}) were found damaged.

    All others are read too. What was seen is listed even if it can be read now, as may happen on a network disk.
    """
    bad = {source.name(index): reason for index, reason in (*read_all(source), *seen.items())}
    lines = listed([f"{printable(name)}: {printable(reason)}" for name, reason in bad.items()])
    hint = "\n".join([*lines, "Mend or remove them, then run the same command again."])
    return UserError(f"{len(bad)} of {len(source)} {sample_noun(source.kind)}s cannot be read:", hint)
