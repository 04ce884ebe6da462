"""Findings as text for people and as JSON for machines."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

from ddp_ft.diagnostics.finding import OK, PROBLEM, VERDICTS, Finding, worst
from ddp_ft.version import __version__

SHOWN_PATHS, LONGEST_PATH = 5, 300
# The JSON's own version: it rises when a field is removed or changes its meaning, not when one is added.
SCHEMA = 1

Families = Mapping[str, Sequence[Finding]]


def as_text(families: Families, columns: int = 0) -> str:
    """One line for each finding, with its remedy and its first paths below it, and a summary at the end.

    Text wider than `columns` of a terminal goes on below itself; 0: lines are as long as they are.
    """
    width = max((len(finding.name) for finding in _all(families)), default=0)
    lines: list[str] = []
    for family, found in families.items():
        lines += [family, *(line for finding in found for line in _lines(finding, width, columns))]
    return "\n".join([*lines, summary(families)])


def _lines(finding: Finding, width: int, columns: int) -> Iterator[str]:
    indent = " " * (2 + 9 + width + 2)
    first, *rest = finding.text.split("\n")
    hints = finding.remedy.split("\n") if finding.remedy and finding.verdict != OK else []
    yield from _wrapped(f"  {finding.verdict:<9}{finding.name:<{width}}  {first}".rstrip(), indent, columns)
    for line in (*rest, *hints):
        yield from _wrapped(f"{indent}{line.strip()}", indent, columns)
    yield from (f"{indent}- {_shortened(path)}" for path in finding.paths[:SHOWN_PATHS])
    if len(finding.paths) > SHOWN_PATHS:
        yield f"{indent}- and {len(finding.paths) - SHOWN_PATHS} more; --json has all"


def _wrapped(line: str, indent: str, columns: int) -> list[str]:
    if len(line) <= columns or columns < 2 * len(indent):
        return [line]
    return textwrap.wrap(
        line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def _shortened(path: str) -> str:
    """The path in at most about three lines of a terminal: a group of the same image may have thousands of paths."""
    return path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]} ..."


def summary(families: Families) -> str:
    """The number of findings of each verdict, the worst first."""
    counts = Counter(finding.verdict for finding in _all(families))
    texts = [f"{counts[verdict]} {verdict}{'s' * (counts[verdict] != 1)}" for verdict in reversed(VERDICTS[1:])]
    return f"{', '.join(texts)}, {counts[OK]} ok"


def as_json(families: Families) -> str:
    """{"schema", "ddp_ft", "verdict", "findings": [{"family", and the fields of Finding}...]}."""
    found = [{"family": family, **asdict(finding)} for family, each in families.items() for finding in each]
    content = {"schema": SCHEMA, "ddp_ft": __version__, "verdict": worst(_all(families)), "findings": found}
    return json.dumps(content, indent=2)  # ASCII, whatever stdout holds


def _all(families: Families) -> Iterable[Finding]:
    return (finding for found in families.values() for finding in found)


def has_problem(families: Families) -> bool:
    """Whether one of the findings is a problem."""
    return worst(_all(families)) == PROBLEM
