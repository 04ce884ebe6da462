"""Writing reports: report.html and the model card of a run, or the comparison of several."""

from collections.abc import Mapping
from pathlib import Path

from ddp_ft.contracts import LabelledSource
from ddp_ft.errors import UserError
from ddp_ft.files import write_text
from ddp_ft.reporting.card import FILE as CARD
from ddp_ft.reporting.card import renewed_card
from ddp_ft.reporting.facts import read_run
from ddp_ft.reporting.page import report_page
from ddp_ft.reporting.set_section import set_intervals
from ddp_ft.run_folder.output_path import check_output_file

FILE = "report.html"


def write_report(
    run: Path, output: Path | None = None, sources: Mapping[str, LabelledSource] | None = None,
    data: Path | None = None,
) -> list[str]:  # fmt: skip
    """Write RUN/report.html and RUN/model_card.md, or the report alone to `output`; return lines to print.

    `sources` and `data` as in `open_set`. Raises UserError for a path that is no run folder, and if a file cannot be
    written.
    """
    facts = read_run(run)
    _check_files(run, output, has_card=bool(facts.description))
    found = set_intervals(facts)
    page = report_page(facts, found, sources, data)
    file = output or run / FILE
    put(file, page)
    lines = [f"Report: {file}"]
    if output is None and facts.description:
        card = renewed_card(facts, found, run / CARD)
        if card is not None:
            put(run / CARD, card)
        kept = "" if card is not None else " (it was edited and is left as it is; remove it for a new one)"
        lines.append(f"Model card: {run / CARD}{kept}")
    return lines


def _check_files(run: Path, output: Path | None, has_card: bool) -> None:
    if output is not None:
        check_output_file(output, streams=True)
        return
    for name in (FILE, CARD) if has_card else (FILE,):
        check_output_file(run / name, option="")


def put(file: Path, text: str) -> None:
    """Replace a file as a whole. UserError if it cannot be written."""
    try:
        write_text(file, text)
    except OSError as error:
        hint = "Choose another file with --output FILE."
        raise UserError(f"{file} cannot be written: {error.strerror}.", hint) from None
