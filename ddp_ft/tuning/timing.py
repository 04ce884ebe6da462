"""Which of several candidates is the fastest: measured in turns by all ranks, and compared within rounds."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ddp_ft.distributed.agreement import Agreement
from ddp_ft.distributed.world import World

# Turns of each candidate; other processes of the machine slow down all candidates of a round alike.
ROUNDS = 5
# A candidate must be faster than the fixed rule by this share: medians of such rounds, taken again on a busy machine,
# differ by 1 to 2 %.
MARGIN = 0.03

# The result of a turn: images of all ranks, and the seconds that this rank took for them.
Turn = tuple[int, float]


@dataclass(frozen=True)
class Result:
    """A candidate's speed (images/s of all ranks), and its ratio to the first candidate in each round.

    The first one's speed is the median of its rounds; those of the others are that, times their ratio: a round in which
    the machine was busy slows down all, and not only those that took part in it.
    """

    name: str
    speed: float
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def is_clear(self) -> bool:
        """Whether it is faster by more than MARGIN, and faster at all in more than three quarters of several rounds."""
        low = sorted(self.ratios)[len(self.ratios) // 4]
        return len(self.ratios) > 1 and low > 1 and self.ratio > 1 + MARGIN


def race(
    names: Sequence[str], turn: Callable[[str], Turn], world: World, agreement: Agreement, seconds: float
) -> list[Result]:
    """Let all ranks take turns with these candidates, the fixed rule first, until all rounds or `seconds` are over.

    Candidates for which there was no time are left out; the rule never is. The slowest rank counts, so all ranks have
    the same results. Raises StopAgreed.
    """
    began = time.perf_counter()
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for name in [*names] * ROUNDS:
        if speeds[names[0]] and world.slowest(time.perf_counter() - began) > seconds:
            break
        agreement.check()
        images, took = turn(name)
        speeds[name].append(images / world.slowest(took))
    return _results(speeds)


def _results(speeds: Mapping[str, Sequence[float]]) -> list[Result]:
    rule = next(iter(speeds.values()))
    ratios = {
        name: tuple(speed / of_rule for speed, of_rule in zip(taken, rule, strict=False))
        for name, taken in speeds.items()
        if taken
    }
    return [Result(name, median(rule) * median(each), each) for name, each in ratios.items()]


def winner(results: Sequence[Result]) -> str:
    """Return the fastest of the candidates that are clearly faster than the first one, the fixed rule; else the
    rule."""
    return max((result for result in results if result.is_clear), key=lambda r: r.ratio, default=results[0]).name
