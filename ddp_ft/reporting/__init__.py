"""Reports: a run as one page, its model card, and several runs beside each other.

What draws and fills in pages is imported when a report is written.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ddp_ft.contracts import LabelledSource

__all__ = ["report_at_the_end"]


def report_at_the_end(run: Path, sources: Mapping[str, LabelledSource], say: Callable[[str], None]) -> None:
    """The report of a run that has just ended. Whatever goes wrong is one warning: the run is done without it."""
    try:
        from ddp_ft.reporting.writing import write_report

        told = write_report(run, sources=sources)
    except Exception as error:  # of drawing libraries, of any kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        told = [f"Warning: the report could not be written. {reason}", f"Try it again: ddp-ft report {run}"]
    say("\n".join(told))
