"""What a look at the machine, the job or the data gave: a verdict, what was measured, and what to do. Free of torch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ddp_ft.errors import UserError

T = TypeVar("T")

# From good to bad. A note is worth knowing, a warning may cost time or accuracy, a problem ends or spoils the run.
OK, NOTE, WARNING, PROBLEM = VERDICTS = ("ok", "note", "warning", "problem")


@dataclass(frozen=True)
class Finding:
    """One line of what was looked at.

    `value` is the number that the verdict follows from, in `unit`; None where there is none. `remedy` says what to do,
    and is empty where nothing has to be done. `paths` are the files that it is about, all of them.
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


def tried(name: str, work: Callable[[], T]) -> tuple[T | None, list[Finding]]:
    """What `work` gives; None and a problem of that name where it fails."""
    try:
        return work(), []
    except UserError as error:
        return None, [Finding(name, PROBLEM, error.message, error.hint)]
    except Exception as error:
        told = " ".join(str(error).split()) or "no reason given"
        return None, [Finding(name, PROBLEM, f"this could not be looked at: {type(error).__name__}: {told}")]


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What the check finds, up to where it fails; its failure is a problem of that name."""
    found: list[Finding] = []
    _, failure = tried(name, lambda: found.extend(check()))
    return found + failure


def worst(findings: Iterable[Finding]) -> str:
    """The worst verdict; ok where there is none."""
    return max((finding.verdict for finding in findings), key=VERDICTS.index, default=OK)
