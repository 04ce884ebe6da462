"""Prediction with a trained model on any number of processes: a row for each input, kept as it goes."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ddp_ft.config.loading import make_config
from ddp_ft.data.loader import Portion
from ddp_ft.data.sources.folder import FileSource
from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.sources.predict_inputs import list_pictures
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World, connect
from ddp_ft.errors import UserError
from ddp_ft.evaluation.evaluator import EVAL_CHUNK, Scorer
from ddp_ft.inference.ensemble import combine_members, load_ensemble
from ddp_ft.inference.exported import is_exported
from ddp_ft.inference.partial_output import Part, Parts, open_parts
from ddp_ft.inference.scoring import make_loader, make_scorer
from ddp_ft.inference.table_writers import Outcome, PredictionTable, check_format, open_format
from ddp_ft.inference.trained_model import Trained
from ddp_ft.run_folder.model_folder import model_folder

_FORM = 1  # to be raised when the same predictions make other rows
TIMEOUT_MINUTES = make_config().compute.timeout_minutes


@dataclass(frozen=True)
class Request:
    """What is asked for: several models predict as one; `views` is one of `ensemble.VIEWS`, `column` a table's."""

    models: tuple[Path, ...]
    inputs: tuple[str, ...]
    output: Path
    column: str | None = None
    top_k: int = 1
    views: str = "none"
    device: str = "auto"


@dataclass(frozen=True)
class Answer:
    """How many rows were written, those with an error, and those that an interrupted start had left."""

    rows: int
    errors: int
    taken_over: int


@dataclass(frozen=True)
class _Work:
    """What is predicted, by which models, and where the rows go."""

    output: Path
    paths: Paths
    members: Sequence[Trained]
    table: PredictionTable
    parts: Parts

    @property
    def chunks(self) -> int:
        return -(-len(self.paths) // EVAL_CHUNK)


def predict_files(request: Request, launch: Launch) -> Answer:
    """Write the table: one row for each input, in their order. On every rank, with rank 0's answer.

    Rows are kept chunk by chunk beside the output until all are there, so a start after a kill computes what is
    missing, with the same bytes in the end. Raises UserError for what cannot be done, before anything is computed.
    """
    device = pick_device(request.device, launch)
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        paths = world.from_main(lambda: _checked(request))
        members = load_ensemble(request.models, device, request.views)
        table = open_format(request.output, members[0].task, request.top_k)
        parts = open_parts(request.output, world.from_main(lambda: _key(request, paths, members, world)), world)
        work = _Work(request.output, paths, members, table, parts)
        missing = world.from_main(lambda: parts.missing(work.chunks))
        for number, part in _predicted(work, missing, world, launch):
            parts.put(number, part)
        held = world.gather(parts.held) or []
        return world.from_main(lambda: _finish(work, held, missing))


def _checked(request: Request) -> Paths:
    output = request.output
    check_format(output)
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}.")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder.", "Expected the name of a file.")
    return list_pictures(request.inputs, request.column)


def _key(request: Request, paths: Paths, members: Sequence[Trained], world: World) -> str:
    """A hash of all that the rows depend on; of the pictures, only of their paths."""
    digest = hashlib.sha256(paths.text.tobytes())
    for model in request.models:
        for file in _files_of(model):
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    settings = [_FORM, request.output.suffix.lower(), request.top_k, request.views, EVAL_CHUNK]
    where = [world.device.type, *(member.precision for member in members)]
    digest.update(json.dumps([*settings, *where]).encode())
    return digest.hexdigest()[:16]


def _files_of(model: Path) -> list[Path]:
    if is_exported(model):
        return [model]
    folder = model_folder(model)
    return [folder / "model.json", folder / "model.safetensors"]


def _predicted(work: _Work, missing: Sequence[int], world: World, launch: Launch) -> Iterator[tuple[int, Part]]:
    """This rank's share of the missing chunks, one after the other."""
    paths, members, mine = work.paths, work.members, missing[world.rank :: world.size]
    source = FileSource(paths)
    scorers = [make_scorer(member, world) for member in members]
    # Side by side, chunk by chunk: each member wants pictures of its own size.
    passes = [make_loader(source, member, world, launch, only=mine).portions() for member in members]
    for number, *portions in zip(mine, *passes, strict=True):
        start = number * EVAL_CHUNK
        named = list(paths[start : start + EVAL_CHUNK])
        by_index = _outcomes(portions, scorers, members)
        outcomes = [by_index[index] for index in range(start, start + len(named))]
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
    """Rank 0: the file, out of all parts, which are then removed."""
    output, parts, rows = work.output, work.parts, len(work.paths)
    for of_a_rank in held:
        for number, part in of_a_rank.items():
            parts.put(number, part)
    errors: list[int] = []
    aside = output.with_name(f".{output.name}.writing")
    try:
        with aside.open("wb") as stream:
            work.table.write(stream, _contents(parts.all(work.chunks), errors))
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(output)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        hint = f"All rows are kept in {parts.folder.parent}: mend it, and the same command goes on."
        raise UserError(f"--output {output} cannot be written: {error.strerror}.", hint) from None
    parts.remove()
    computed = sum(min(EVAL_CHUNK, rows - number * EVAL_CHUNK) for number in missing)
    return Answer(rows, sum(errors), rows - computed)


def _contents(parts: Iterable[Part], errors: list[int]) -> Iterator[bytes]:
    for part in parts:
        errors.append(part.errors)
        yield part.content
