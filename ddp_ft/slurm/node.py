"""A batch job's task on one node: what becomes of the signals that it gets, and of its end."""

from collections.abc import Callable
from pathlib import Path
from signal import Signals


def noting(stop_file: Path) -> Callable[[Signals], None]:
    """Return what makes a signal a line of the stop file, "step NAME", which the ranks read and the requeue too."""

    def note(number: Signals) -> None:
        note_event(stop_file, f"step {number.name}")

    return note


def settled(code: int, stop_file: Path) -> int:
    """The exit code of the task whose ranks have ended with this one.

    0 after a request to stop: summary.json has the result, and a node that is done must not look like one that failed,
    or srun would end the others while they save. A failure is noted as "crash": what follows it, srun's TERM to the
    other nodes, is its consequence.
    """
    if stop_file.exists():
        return 0
    if code:
        note_event(stop_file, "crash")
    return code


def note_event(stop_file: Path, event: str) -> None:
    """Add a line to the stop file, whose existence asks the ranks to stop."""
    stop_file.parent.mkdir(parents=True, exist_ok=True)
    with stop_file.open("a", encoding="utf-8") as stream:
        stream.write(f"{event}\n")
