"""How long tests take: kept in a file, so that one that grew is seen. A plugin of pytest; it fails nothing.

Seconds of a test function with all its cases and fixtures. The kept ones are of some machine, this run of another: what
is compared is each function's ratio with the median ratio of all.
"""

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT, NEWEST = ROOT / "tests" / "durations.tsv", ROOT / ".cache" / "durations.tsv"
# Seconds that a function must have for a line; what is below varies more than it costs.
LEAST = 1.0
# How many times as long as it was, and how many seconds longer, is worth a line.
GREW, GREW_SECONDS = 2.0, 3.0


def read_durations(file: Path) -> dict[str, float]:
    """{function: seconds}; empty if there is no such file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {name: float(seconds) for name, seconds in (line.split("\t") for line in lines)}


def write_durations(file: Path, found: dict[str, float]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}\t{seconds:.1f}\n" for name, seconds in sorted(found.items()) if seconds >= LEAST]
    file.write_text("".join(lines), encoding="utf-8")


def grown(found: dict[str, float], kept: dict[str, float]) -> list[str]:
    """A line for each function that takes far longer than it did, where the machine as a whole does not."""
    ratios = [found[name] / kept[name] for name in found.keys() & kept.keys()]
    pace = median(ratios) if ratios else 1.0
    lines = []
    for name, seconds in sorted(found.items()):
        before = pace * kept.get(name, LEAST)
        if seconds > GREW * before and seconds > before + GREW_SECONDS:
            lines.append(f"{seconds:.1f} s, was {before:.1f} s at this machine's pace: {name}")
    return lines


class Durations:
    """Gathers them in the process that gives the tests out."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.found: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.found[report.nodeid.split("[")[0].split("@")[0]] += report.duration

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        write_durations(NEWEST, self.found)
        kept = read_durations(KEPT)
        if self.keep:
            write_durations(KEPT, {**kept, **self.found})
        elif kept and (lines := grown(self.found, kept)):
            terminalreporter.section("tests that grew")
            for line in lines:
                terminalreporter.line(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-durations", action="store_true", help="Write how long tests took to tests/durations.tsv.")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations(config.getoption("keep_durations")), "ddp_ft_durations")
