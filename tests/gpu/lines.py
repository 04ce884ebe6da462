"""A plugin of pytest for `launch/gpu.sh`: one line a check while they run, and the worst first at the end.

pytest's own output is for those who work on the code; it goes to a file beside these lines. A check that wants a figure
in its line calls `record_property("note", "1.3 GiB")`.
"""

import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import IO, Any

import pytest

MOST_REASON = 300
OUTCOMES = ("failed", "skipped", "passed")
SLOWEST = 5


@dataclass(frozen=True)
class Line:
    """How one check ended."""

    outcome: str
    seconds: float
    name: str
    note: str

    def __str__(self) -> str:
        return f"{self.outcome:7} {self.seconds:6.1f} s  {self.name}" + (f": {self.note}" if self.note else "")


def check_name(nodeid: str) -> str:
    """`tests/gpu/test_train.py::test_precision[bf16]` as `gpu/train: precision[bf16]`."""
    file, _, function = nodeid.partition("::")
    return f"{re.sub(r'^tests/|test_|[.]py$', '', file)}: {function.removeprefix('test_')}"


def reason(report: pytest.TestReport) -> str:
    """Why it was skipped, or the sentence of what was raised, in one line."""
    if report.skipped and isinstance(report.longrepr, tuple):
        text = report.longrepr[2].removeprefix("Skipped: ")
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash is not None else str(report.longrepr or "")
    text = " ".join(text.split())
    return text if len(text) <= MOST_REASON else f"{text[: MOST_REASON // 2]} ... {text[-MOST_REASON // 2 :]}"


class Lines:
    """Prints them; a check's seconds are those of its set-up too, which is where a shared run is trained."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.found: list[Line] = []
        self.seconds = 0.0

    def print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if report.when == "call" or not report.passed:
            note = dict(report.user_properties).get("note", "") if report.passed else reason(report)
            self.found.append(Line(report.outcome, self.seconds, check_name(report.nodeid), note))
            self.print(str(self.found[-1]))
        if report.when == "teardown":
            self.seconds = 0.0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            crash = str(report.longrepr).strip().splitlines()[-1:]
            self.found.append(Line("failed", 0.0, report.nodeid, "".join(crash)))
            self.print(str(self.found[-1]))

    def pytest_sessionfinish(self) -> None:
        by_outcome = {outcome: [line for line in self.found if line.outcome == outcome] for outcome in OUTCOMES}
        self.print("\n" + ", ".join(f"{len(lines)} {outcome}" for outcome, lines in by_outcome.items()))
        slowest = sorted(by_outcome["passed"], key=lambda line: -line.seconds)[:SLOWEST]
        skipped = Counter(line.note for line in by_outcome["skipped"])
        for text in (
            *by_outcome["failed"],
            *(f"skipped {count:5} x  {why}" for why, count in skipped.items()),
            *slowest,
        ):
            self.print(str(text))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("launch/gpu.sh")
    group.addoption("--device", default="cuda", choices=["cuda", "cpu"], help="Where the checks of tests/gpu compute.")
    group.addoption("--smoke", action="store_true", help="Leave out what takes long on a CPU.")
    group.addoption("--seconds", type=float, default=float("inf"), help="Skip what begins later than that.")
    group.addoption("--lines", type=int, default=1, help="The descriptor that gets the lines.")


def pytest_configure(config: pytest.Config) -> None:
    lines = Lines(os.fdopen(os.dup(config.getoption("lines")), "w"))
    config.pluginmanager.register(lines, "ddp_ft_lines")
    config.stash[ENDS] = time.monotonic() + config.getoption("seconds")


ENDS = pytest.StashKey[float]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    if time.monotonic() > item.config.stash[ENDS]:
        pytest.skip("no time left")
