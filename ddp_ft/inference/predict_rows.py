"""The rows of what is predicted, computed chunk by chunk, on any number of processes."""

from collections.abc import Iterator, Sequence

from ddp_ft.data.loader import Portion
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.evaluation.evaluator import Scorer
from ddp_ft.inference.ensemble import combine_members
from ddp_ft.inference.partial_output import Part
from ddp_ft.inference.predict_request import Rows
from ddp_ft.inference.scoring import make_loader, make_scorer, workers_of
from ddp_ft.inference.table_writers import Outcome
from ddp_ft.inference.trained_model import Trained


def predicted(rows: Rows, wanted: Sequence[int], world: World, launch: Launch) -> Iterator[tuple[int, Part]]:
    """This rank's share of the wanted chunks, every `world.size`th of them, one after the other."""
    source, members, mine = rows.source, rows.members, wanted[world.rank :: world.size]
    scorers = [make_scorer(member, world, rows.asked.batch_size) for member in members]
    workers = workers_of(rows.asked, world, launch)
    # In parallel, chunk by chunk: each member needs images of its own size.
    passes = [make_loader(source, member, world, workers, only=mine).portions() for member in members]
    for number, *portions in zip(mine, *passes, strict=True):
        indices = range(number * EVAL_CHUNK, min((number + 1) * EVAL_CHUNK, len(source)))
        named = [source.name(index) for index in indices]
        by_index = _outcomes(portions, scorers, members)
        outcomes = [by_index[index] for index in indices]
        errors = sum(isinstance(outcome, str) for outcome in outcomes)
        yield number, Part(len(named), errors, rows.table.encode(named, outcomes))


def _outcomes(portions: Sequence[Portion], scorers: Sequence[Scorer], members: Sequence[Trained]) -> dict[int, Outcome]:
    found: dict[int, Outcome] = dict(portions[0].damaged)
    batches = [portion.batch for portion in portions if portion.batch is not None]
    if batches:
        predictions = [scorer.predictions(batch) for scorer, batch in zip(scorers, batches, strict=True)]
        answers = members[0].task.answers(combine_members(members, predictions))
        found.update(zip(batches[0]["index"].tolist(), answers, strict=True))
    return found
