"""What is to be predicted: the request, and the inputs, the models and the table that it becomes."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ddp_ft.contracts import Source
from ddp_ft.data.processors import open_inputs
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.files import add_to_digest
from ddp_ft.inference.asked import Asked
from ddp_ft.inference.ensemble import load_ensemble
from ddp_ft.inference.evaluation_data import own_column
from ddp_ft.inference.table_writers import PredictionTable, open_format
from ddp_ft.inference.thresholds import choose_thresholds, deciding_at
from ddp_ft.inference.trained_model import Trained, files_of

_FORM = 2  # to be raised when the same predictions become other rows


@dataclass(frozen=True)
class Request:
    """What the models predict; `column` is a table's."""

    asked: Asked
    inputs: tuple[str, ...]
    column: str | None = None
    top_k: int = 1
    show: Path | None = None  # the folder for images with their answers


@dataclass(frozen=True)
class Answer:
    """How many rows were written, how many have an error, and how many were left by an interrupted start."""

    rows: int
    errors: int
    taken_over: int = 0


@dataclass(frozen=True)
class Rows:
    """The inputs, the models, and how rows are written."""

    asked: Asked
    source: Source
    members: Sequence[Trained]
    table: PredictionTable
    thresholds: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def chunks(self) -> int:
        """Their number; each is of EVAL_CHUNK rows, but the last."""
        return -(-len(self.source) // EVAL_CHUNK)

    def indices(self, number: int) -> range:
        """Those of a chunk."""
        return range(number * EVAL_CHUNK, min((number + 1) * EVAL_CHUNK, len(self.source)))


def open_rows(request: Request, kind: str, device: torch.device, world: World) -> Rows:
    """Load the models and find the inputs. `kind` is one of `table_writers.FORMATS`. UserError for an impossible
    request."""
    asked = request.asked
    members = load_ensemble(asked.models, device, asked.views)
    thresholds = choose_thresholds(members[0].task, asked, world)
    members = deciding_at(members, thresholds)
    kind_of_input, column = members[0].processor.kind, request.column or own_column(asked.models[0], request.inputs)
    source = world.from_main(lambda: open_inputs(kind_of_input, request.inputs, column))
    return Rows(asked, source, members, open_format(kind, members[0].task, request.top_k), thresholds)


def key_of(request: Request, kind: str, rows: Rows, world: World) -> str:
    """A hash of all that the rows depend on; of the inputs, only of their names."""
    digest = hashlib.sha256()
    for index in range(len(rows)):
        digest.update(os.fsencode(rows.source.name(index)) + b"\0")
    for model in request.asked.models:
        for file in files_of(model):
            add_to_digest(digest, file)
    # Those of a run's choice are other ones than none that were asked for.
    views = [request.asked.views or member.own_views for member in rows.members]
    settings = [_FORM, kind, request.top_k, views, rows.thresholds, EVAL_CHUNK]
    settings += [] if request.show is None else [os.path.abspath(request.show)]  # noqa: PTH100
    where = [world.device.type, *(member.precision for member in rows.members)]
    digest.update(json.dumps([*settings, *where]).encode())
    return digest.hexdigest()[:16]
