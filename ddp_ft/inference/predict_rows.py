"""What is predicted: the rows of the inputs, computed chunk by chunk, on any number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ddp_ft.contracts import Source
from ddp_ft.data.loader import Portion
from ddp_ft.data.processors import open_inputs
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.evaluator import EVAL_CHUNK, Scorer
from ddp_ft.inference.partial_output import Part
from ddp_ft.inference.scoring import combine_members, load_ensemble, make_loader, make_scorer
from ddp_ft.inference.table_writers import Outcome, PredictionTable, open_format
from ddp_ft.inference.trained_model import Trained


@dataclass(frozen=True)
class Request:
    """What to predict: `models` are combined; `views` is one of `scoring.VIEWS`, `column` a table's."""

    models: tuple[Path, ...]
    inputs: tuple[str, ...]
    column: str | None = None
    top_k: int = 1
    views: str = "none"
    device: str = "auto"


@dataclass(frozen=True)
class Answer:
    """How many rows were written, how many have an error, and how many were left by an interrupted start."""

    rows: int
    errors: int
    taken_over: int = 0


@dataclass(frozen=True)
class Rows:
    """The inputs, the models, and how rows are written."""

    source: Source
    members: Sequence[Trained]
    table: PredictionTable

    def __len__(self) -> int:
        return len(self.source)

    @property
    def chunks(self) -> int:
        """Their number; each is of EVAL_CHUNK rows, but the last."""
        return -(-len(self.source) // EVAL_CHUNK)


def open_rows(request: Request, kind: str, device: torch.device, world: World) -> Rows:
    """Load the models and find the inputs. `kind` is one of `table_writers.FORMATS`. UserError for an impossible
    request."""
    members = load_ensemble(request.models, device, request.views)
    source = world.from_main(lambda: open_inputs(members[0].processor.kind, request.inputs, request.column))
    return Rows(source, members, open_format(kind, members[0].task, request.top_k))


def predicted(rows: Rows, wanted: Sequence[int], world: World, launch: Launch) -> Iterator[tuple[int, Part]]:
    """This rank's share of the wanted chunks, every `world.size`th of them, one after the other."""
    source, members, mine = rows.source, rows.members, wanted[world.rank :: world.size]
    scorers = [make_scorer(member, world) for member in members]
    # In parallel, chunk by chunk: each member needs images of its own size.
    passes = [make_loader(source, member, world, launch, only=mine).portions() for member in members]
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
