"""Findings about samples of any kind that were all looked at: damaged ones, and the same ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ddp_ft.contracts import Source
from ddp_ft.data.bad_samples.find import read_all
from ddp_ft.data.surveyed import Surveyed
from ddp_ft.diagnostics.finding import NOTE, PROBLEM, WARNING, Finding
from ddp_ft.errors import printable
from ddp_ft.texts import plural

KEPT = 100_000  # paths of one finding: further ones say nothing new
Groups = list[list[int]]


def readable(found: Surveyed, tolerates: bool, noun: str = "image") -> Finding:
    """Samples that cannot be read to their end. `tolerates`: they do not end the run (data.on_error = skip)."""
    paths = [f"{path_of(found, number)}: {printable(reason)}" for number, reason in found.damaged.items()]
    return _readable(paths, len(found), tolerates, noun)


def readable_by_code(sources: Mapping[str, Source], tolerates: bool) -> Finding:
    """The same for a data set of the user's own, whose images are read by its code alone."""
    damaged = [(source.name(index), reason) for source in sources.values() for index, reason in read_all(source)]
    paths = [f"{printable(name)}: {printable(reason)}" for name, reason in damaged]
    return _readable(paths, sum(map(len, sources.values())), tolerates, "image")


def _readable(paths: Sequence[str], samples: int, tolerates: bool, noun: str) -> Finding:
    count = len(paths)
    text = f"{count} of {plural(samples, noun)} cannot be read" if count else f"all {samples} {noun}s"
    remedy = "Mend or remove them" + ("." if tolerates else ", or train without them: --set data.on_error=skip.")
    verdict = WARNING if tolerates else PROBLEM
    damaged = Finding("readable", verdict, text, remedy, float(count), f"{noun}s", tuple(paths[:KEPT]))
    return damaged.unless(not count)


def _by_kind(found: Surveyed) -> tuple[Groups, Groups, Groups]:
    """Groups of the same samples: those in two splits, those with two targets, and those that are neither."""
    groups = [
        (twins, len(np.unique(found.roles[twins])) > 1, len(np.unique(found.targets[twins])) > 1)
        for twins in found.twins()
    ]
    leaks = [twins for twins, is_leak, _ in groups if is_leak]
    contradictions = [twins for twins, _, is_contradiction in groups if is_contradiction]
    repeats = [twins for twins, is_leak, is_contradiction in groups if not is_leak and not is_contradiction]
    return leaks, contradictions, repeats


def doubled(found: Surveyed, noun: str = "image") -> Iterator[Finding]:
    """The same samples in two splits, with two targets, or merely twice."""
    leaks, contradictions, repeats = _by_kind(found)
    splits = " and ".join(found.splits)
    remedy = f"Remove them from one: a model evaluated on {noun}s of its training looks better than it is."
    verdict = PROBLEM if any(map(found.are_exact, leaks)) else WARNING
    yield _twins(found, leaks, Finding("leakage", verdict, f"the same {noun}s in {splits}", remedy))
    remedy = "Decide which label is right: the model cannot learn both."
    text = f"the same {noun} with different labels"
    yield _twins(found, contradictions, Finding("label noise", WARNING, text, remedy))
    remedy = "Harmless, unless there are many: they count several times."
    text = f"the same {noun} several times in a class"
    yield _twins(found, repeats, Finding("duplicates", NOTE, text, remedy))


def _twins(found: Surveyed, groups: Groups, what: Finding) -> Finding:
    """`what` of these groups, whose kind its text names."""
    paths = tuple(" = ".join(path_of(found, number) for number in group) for group in groups[:KEPT])
    text = f"{plural(len(groups), 'group')} of {what.text}" if groups else "none"
    exact = sum(map(found.are_exact, groups))
    if exact < len(groups):
        text += f": {exact} to the letter, the others {found.but_for}" if exact else f" {found.but_for}"
    return replace(what, text=text, value=float(len(groups)), unit="groups", paths=paths).unless(not groups)


def path_of(found: Surveyed, number: int) -> str:
    """The sample's name, as it can be printed."""
    return printable(found.name(number))


def paths_of(found: Surveyed, numbers: Sequence[int]) -> tuple[str, ...]:
    """Those of the first KEPT of these."""
    return tuple(path_of(found, number) for number in numbers[:KEPT])
