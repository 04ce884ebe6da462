"""Prediction to a stream, for what is looked at or piped on; nothing is kept for a later start."""

from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO

from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World, connect
from ddp_ft.inference.gallery import open_gallery
from ddp_ft.inference.partial_output import Part
from ddp_ft.inference.predict_request import Answer, Request, open_rows
from ddp_ft.inference.predict_rows import predicted
from ddp_ft.inference.scoring import TIMEOUT_MINUTES


def predict_to_stream(request: Request, kind: str, stream: BinaryIO, launch: Launch) -> Answer:
    """Write a row for each input, in their order, chunk by chunk as they are computed; rank 0 writes.

    `kind` is one of `table_writers.FORMATS`. The answer is rank 0's; those of others count nothing.
    """
    device = pick_device(request.asked.device, launch)
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        rows = open_rows(request, kind, device, world)
        gallery = open_gallery(request, rows, world)
        counted = [Part(0, 0, b"")]
        # Closed, with its loader workers, also where the reader of the stream has left.
        with closing(predicted(rows, range(rows.chunks), world, launch, gallery)) as computed:
            parts = _in_order((part for _, part in computed), rows.chunks, world)
            if world.is_main:
                rows.table.write(stream, _contents(parts, counted))
            for _ in parts:  # the other ranks
                pass
        return Answer(sum(part.rows for part in counted), sum(part.errors for part in counted))


def _in_order(mine: Iterator[Part], chunks: int, world: World) -> Iterator[Part]:
    """On rank 0 all parts in their order, which lies across the ranks; on the others this only takes part."""
    for first in range(0, chunks, world.size):
        part = next(mine) if first + world.rank < chunks else None
        yield from (each for each in world.gather(part) or [] if each is not None)


def _contents(parts: Iterator[Part], counted: list[Part]) -> Iterator[bytes]:
    for part in parts:
        counted.append(Part(part.rows, part.errors, b""))
        yield part.content
