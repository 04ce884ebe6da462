"""The rows of what is predicted, computed chunk by chunk, on any number of processes."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor

from ddp_ft.data.loader import Portion
from ddp_ft.distributed.environment import Launch, usable_cores
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.evaluator import Scorer
from ddp_ft.inference.ensemble import combine_members
from ddp_ft.inference.gallery import Gallery
from ddp_ft.inference.partial_output import Part
from ddp_ft.inference.predict_request import Rows
from ddp_ft.inference.scoring import make_loader, make_scorer, workers_of
from ddp_ft.inference.table_writers import Outcome
from ddp_ft.inference.trained_model import Trained

Found = tuple[int, Part, Sequence[Outcome]]


def predicted(
    rows: Rows, wanted: Sequence[int], world: World, launch: Launch, gallery: Gallery | None = None
) -> Generator[tuple[int, Part], None, None]:
    """This rank's share of the wanted chunks, every `world.size`th of them, one after the other; each when its images
    are drawn, if there is a gallery. Closing it ends its loader workers; at its end the process would wait for them."""
    found = _computed(rows, wanted, world, launch)
    if gallery is None:
        yield from ((number, part) for number, part, _ in found)
        return
    pool = ThreadPoolExecutor(max(1, usable_cores() // launch.local_world_size))
    try:
        yield from _drawn(gallery, found, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _drawn(gallery: Gallery, found: Iterator[Found], pool: ThreadPoolExecutor) -> Iterator[tuple[int, Part]]:
    """Images of a chunk are drawn while the next one is computed."""
    waiting: list[tuple[int, Part, list[Future[None]]]] = []
    for number, part, outcomes in found:
        waiting.append((number, part, gallery.draw_in(pool, number, outcomes)))
        if len(waiting) > 1:
            yield _when_done(*waiting.pop(0))
    yield from (_when_done(*each) for each in waiting)


def _when_done(number: int, part: Part, drawings: Sequence[Future[None]]) -> tuple[int, Part]:
    for each in drawings:
        each.result()
    return number, part


def _computed(rows: Rows, wanted: Sequence[int], world: World, launch: Launch) -> Iterator[Found]:
    source, members, mine = rows.source, rows.members, wanted[world.rank :: world.size]
    scorers = [make_scorer(member, world, rows.asked.batch_size) for member in members]
    workers = workers_of(rows.asked, world, launch)
    # In parallel, chunk by chunk: each member needs images of its own size.
    passes = [make_loader(source, member, world, workers, only=mine).portions() for member in members]
    for number, *portions in zip(mine, *passes, strict=True):
        indices = rows.indices(number)
        named = [source.name(index) for index in indices]
        by_index = _outcomes(portions, scorers, members)
        outcomes = [by_index[index] for index in indices]
        errors = sum(isinstance(outcome, str) for outcome in outcomes)
        yield number, Part(len(named), errors, rows.table.encode(named, outcomes)), outcomes


def _outcomes(portions: Sequence[Portion], scorers: Sequence[Scorer], members: Sequence[Trained]) -> dict[int, Outcome]:
    found: dict[int, Outcome] = dict(portions[0].damaged)
    batches = [portion.batch for portion in portions if portion.batch is not None]
    if batches:
        predictions = [scorer.predictions(batch) for scorer, batch in zip(scorers, batches, strict=True)]
        answers = members[0].task.answers(combine_members(members, predictions))
        found.update(zip(batches[0]["index"].tolist(), answers, strict=True))
    return found
