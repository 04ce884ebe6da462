"""Prediction with trained models on any number of processes: a row for each input, stored chunk by chunk."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_ft.contracts import Source
from ddp_ft.data.loader import Portion
from ddp_ft.data.processors import open_inputs
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World, connect
from ddp_ft.errors import UserError
from ddp_ft.evaluation.evaluator import EVAL_CHUNK, Scorer
from ddp_ft.files import add_to_digest, replacing
from ddp_ft.inference.partial_output import Part, Parts, open_parts
from ddp_ft.inference.scoring import TIMEOUT_MINUTES, combine_members, load_ensemble, make_loader, make_scorer
from ddp_ft.inference.table_writers import Outcome, PredictionTable, check_output, open_format
from ddp_ft.inference.trained_model import Trained, files_of

_FORM = 2  # to be raised when the same predictions become other rows


@dataclass(frozen=True)
class Request:
    """What to predict: `models` are combined; `views` is one of `scoring.VIEWS`, `column` a table's."""

    models: tuple[Path, ...]
    inputs: tuple[str, ...]
    output: Path
    column: str | None = None
    top_k: int = 1
    views: str = "none"
    device: str = "auto"


@dataclass(frozen=True)
class Answer:
    """How many rows were written, how many have an error, and how many were left by an interrupted start."""

    rows: int
    errors: int
    taken_over: int


@dataclass(frozen=True)
class _Work:
    """What is predicted, by which models, and the file of the rows."""

    output: Path
    source: Source
    members: Sequence[Trained]
    table: PredictionTable
    parts: Parts

    @property
    def chunks(self) -> int:
        return -(-len(self.source) // EVAL_CHUNK)


def predict_files(request: Request, launch: Launch) -> Answer:
    """Write the table: one row for each input, in their order; return rank 0's answer on every rank.

    Rows are stored chunk by chunk beside the output until all are there, so a start after a kill computes only what is
    missing, with the same bytes in the end. Raises UserError for an impossible request, before anything is computed.
    """
    device = pick_device(request.device, launch)
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        world.from_main(lambda: check_output(request.output, request.inputs))
        members = load_ensemble(request.models, device, request.views)
        kind = members[0].processor.kind
        source = world.from_main(lambda: open_inputs(kind, request.inputs, request.column))
        table = open_format(request.output, members[0].task, request.top_k)
        parts = open_parts(request.output, world.from_main(lambda: _key(request, source, members, world)), world)
        work = _Work(request.output, source, members, table, parts)
        missing = world.from_main(lambda: parts.missing(work.chunks))
        for number, part in _predicted(work, missing, world, launch):
            parts.put(number, part)
        held = world.gather(parts.held) or []
        return world.from_main(lambda: _finish(work, held, missing))


def _key(request: Request, source: Source, members: Sequence[Trained], world: World) -> str:
    """A hash of all that the rows depend on; of the inputs, only of their names."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(os.fsencode(source.name(index)) + b"\0")
    for model in request.models:
        for file in files_of(model):
            add_to_digest(digest, file)
    settings = [_FORM, request.output.suffix.lower(), request.top_k, request.views, EVAL_CHUNK]
    where = [world.device.type, *(member.precision for member in members)]
    digest.update(json.dumps([*settings, *where]).encode())
    return digest.hexdigest()[:16]


def _predicted(work: _Work, missing: Sequence[int], world: World, launch: Launch) -> Iterator[tuple[int, Part]]:
    """This rank's share of the missing chunks, one after the other."""
    source, members, mine = work.source, work.members, missing[world.rank :: world.size]
    scorers = [make_scorer(member, world) for member in members]
    # In parallel, chunk by chunk: each member needs images of its own size.
    passes = [make_loader(source, member, world, launch, only=mine).portions() for member in members]
    for number, *portions in zip(mine, *passes, strict=True):
        indices = range(number * EVAL_CHUNK, min((number + 1) * EVAL_CHUNK, len(source)))
        named = [source.name(index) for index in indices]
        by_index = _outcomes(portions, scorers, members)
        outcomes = [by_index[index] for index in indices]
        errors = sum(isinstance(outcome, str) for outcome in outcomes)
        yield number, Part(len(named), errors, work.table.encode(named, outcomes))


def _outcomes(portions: Sequence[Portion], scorers: Sequence[Scorer], members: Sequence[Trained]) -> dict[int, Outcome]:
    found: dict[int, Outcome] = dict(portions[0].damaged)
    batches = [portion.batch for portion in portions if portion.batch is not None]
    if batches:
        predictions = [scorer.predictions(batch) for scorer, batch in zip(scorers, batches, strict=True)]
        answers = members[0].task.answers(combine_members(members, predictions))
        found.update(zip(batches[0]["index"].tolist(), answers, strict=True))
    return found


def _finish(work: _Work, held: Sequence[dict[int, Part]], missing: Sequence[int]) -> Answer:
    """Rank 0: write the file from all parts, which are then removed."""
    output, parts, rows = work.output, work.parts, len(work.source)
    for of_a_rank in held:
        for number, part in of_a_rank.items():
            parts.put(number, part)
    errors: list[int] = []
    try:
        with replacing(output, durable=True) as aside, aside.open("wb") as stream:
            work.table.write(stream, _contents(parts.all(work.chunks), errors))
    except OSError as error:
        hint = f"All rows are kept in {parts.folder.parent}: mend it, and the same command continues."
        raise UserError(f"--output {output} cannot be written: {error.strerror}.", hint) from None
    parts.remove()
    computed = sum(min(EVAL_CHUNK, rows - number * EVAL_CHUNK) for number in missing)
    return Answer(rows, sum(errors), rows - computed)


def _contents(parts: Iterable[Part], errors: list[int]) -> Iterator[bytes]:
    for part in parts:
        errors.append(part.errors)
        yield part.content
