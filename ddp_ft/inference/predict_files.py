"""Prediction to a file: a row for each input, stored chunk by chunk, so that a start after a kill goes on."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import connect
from ddp_ft.errors import UserError
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.files import replacing
from ddp_ft.inference.gallery import Gallery, open_gallery
from ddp_ft.inference.partial_output import Part, Parts, open_parts, parts_folder
from ddp_ft.inference.predict_request import Answer, Request, Rows, key_of, open_rows
from ddp_ft.inference.predict_rows import predicted
from ddp_ft.inference.scoring import TIMEOUT_MINUTES
from ddp_ft.inference.table_writers import check_output


def predict_files(request: Request, output: Path, launch: Launch) -> Answer:
    """Write the table: one row for each input, in their order; return rank 0's answer on every rank.

    Rows are stored chunk by chunk beside the output until all are there, so a start after a kill computes only what is
    missing, with the same bytes in the end. Raises UserError for an impossible request, before anything is computed.
    """
    device, kind = pick_device(request.asked.device, launch), output.suffix.lower()
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        world.from_main(lambda: check_output(output, request.inputs))
        rows = open_rows(request, kind, device, world)
        key = world.from_main(lambda: key_of(request, kind, rows, world))
        resumes = world.from_main(lambda: parts_folder(output, key).is_dir())
        gallery = open_gallery(request, rows, world, resumes)
        parts = open_parts(output, key, world)
        missing = world.from_main(lambda: _missing(parts, rows, gallery))
        with closing(predicted(rows, missing, world, launch, gallery)) as computed:
            for number, part in computed:
                parts.put(number, part)
        held = world.gather(parts.held) or []
        return world.from_main(lambda: _finish(output, rows, parts, held, missing))


def _missing(parts: Parts, rows: Rows, gallery: Gallery | None) -> list[int]:
    """The numbers of the chunks that are to be computed."""
    found = ((number, parts.read(number)) for number in range(rows.chunks))
    return [n for n, part in found if part is None or (gallery and not gallery.has_all_but(part.errors, n))]


def _finish(output: Path, rows: Rows, parts: Parts, held: Sequence[dict[int, Part]], missing: Sequence[int]) -> Answer:
    """Rank 0: write the file from all parts, which are then removed."""
    for of_a_rank in held:
        for number, part in of_a_rank.items():
            parts.put(number, part)
    errors: list[int] = []
    try:
        with replacing(output, durable=True) as aside, aside.open("wb") as stream:
            rows.table.write(stream, _contents(parts.all(rows.chunks), errors))
    except OSError as error:
        hint = f"All rows are kept in {parts.folder.parent}: mend it, and the same command continues."
        raise UserError(f"--output {output} cannot be written: {error.strerror}.", hint) from None
    parts.remove()
    computed = sum(min(EVAL_CHUNK, len(rows) - number * EVAL_CHUNK) for number in missing)
    return Answer(len(rows), sum(errors), len(rows) - computed)


def _contents(parts: Iterable[Part], errors: list[int]) -> Iterator[bytes]:
    for part in parts:
        errors.append(part.errors)
        yield part.content
