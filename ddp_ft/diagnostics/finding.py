"""The result of a check: a verdict, what was measured, and what to do. Free of torch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from ddp_ft.errors import UserError, typed_line

T = TypeVar("T")

# From good to bad. A note is worth knowing, a warning may cost time or accuracy, a problem ends or spoils the run.
OK, NOTE, WARNING, PROBLEM = VERDICTS = ("ok", "note", "warning", "problem")


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    `value` is the number that the verdict follows from, in `unit`; None if there is none. `remedy` says what to do; it
    is empty if nothing has to be done. `paths` are all files concerned.
    """

    name: str
    verdict: str
    text: str
    remedy: str = ""
    value: float | None = None
    unit: str = ""
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.verdict in VERDICTS, self.verdict

    def unless(self, is_good: bool) -> "Finding":
        """The finding as it is; OK and without a remedy if `is_good`."""
        return replace(self, verdict=OK, remedy="") if is_good else self


def tried(name: str, work: Callable[[], T]) -> tuple[T | None, list[Finding]]:
    """What `work` returns, and no finding; None and a problem of that name if it fails."""
    try:
        return work(), []
    except UserError as error:
        return None, [Finding(name, PROBLEM, error.message, error.hint)]
    except Exception as error:
        return None, [Finding(name, PROBLEM, f"this could not be checked: {typed_line(error)}")]


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of a check; if it fails, those until then and a problem of that name."""
    found: list[Finding] = []
    _, failure = tried(name, lambda: found.extend(check()))
    return found + failure


def worst(findings: Iterable[Finding]) -> str:
    """The worst verdict; OK if there are no findings."""
    return max((finding.verdict for finding in findings), key=VERDICTS.index, default=OK)
