"""Results as a page: tables made anew each time, findings written by hand and kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.datasets import DataSet
from benchmarks.intervals import Interval, Place, over_seeds, over_sets, t_interval
from benchmarks.methods import AUTO, BASELINE, BASELINE_LOWER_RATE, BEFORE, METHODS, MOST_TO_CHOOSE_BY, Draw, describe
from benchmarks.runner import Result

BEGIN, END = "<!-- findings: by hand, kept when this page is made anew -->", "<!-- end of findings -->"
TUNED = "by_the_book_tuned"
Values = Mapping[Place, float]


@dataclass(frozen=True)
class Facts:
    """What the page says besides the results."""

    command: str
    draws: Sequence[Draw]
    sets: Mapping[str, DataSet]
    models: Mapping[str, str]  # short name -> name for --model
    skipped: Sequence[str] = ()


def add_tuned(results: Sequence[Result]) -> list[Result]:
    """The results, and by the book at the rate that is better on val/, run by run (1e-3 if they tie)."""
    by_place: dict[Place, dict[str, Result]] = {}
    for result in results:
        by_place.setdefault(result.place, {})[result.method] = result
    added = []
    for found in by_place.values():
        if BASELINE in found and BASELINE_LOWER_RATE in found:
            rates = found[BASELINE], found[BASELINE_LOWER_RATE]
            best = max(rates, key=lambda each: each.val["accuracy"])
            fields = {**vars(best), "method": TUNED, "cpu_seconds": sum(each.cpu_seconds for each in rates)}
            added.append(Result(**fields))
    return [*results, *added]


def values_of(results: Sequence[Result], method: str, pick: Callable[[Result], float]) -> dict[Place, float]:
    """What `pick` says of each result of a method, by place."""
    return {each.place: pick(each) for each in results if each.method == method}


def accuracy(result: Result) -> float:
    """Test accuracy in percent."""
    return 100 * result.test["accuracy"]


def balanced_accuracy(result: Result) -> float:
    """Test accuracy in percent, each class counting the same."""
    return 100 * result.test["balanced_accuracy"]


def subtract(values: Values, others: Values) -> dict[Place, float]:
    """Return paired differences of the places that both have."""
    return {place: value - others[place] for place, value in values.items() if place in others}


def render(results: Sequence[Result], facts: Facts, findings: str) -> str:
    """Return the page in Markdown. ValueError if there are no results."""
    if not results:
        raise ValueError("there are no results")
    results = add_tuned(results)
    parts = [
        _introduction(results, facts),
        *_overviews(results),
        f"{BEGIN}\n{findings}\n{END}",
        *_pairs(results, facts),
        _auto_note(results),
        _methods(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def read_findings(file: Path) -> str:
    """Return the text between the markers of an earlier page; a first line to replace if there is no page.

    Raises ValueError for a page without both markers, so that a person's text is not overwritten.
    """
    if not file.exists():
        return "## What was learned\n\nNothing is written here yet."
    text = file.read_text(encoding="utf-8")
    _, begin, rest = text.partition(BEGIN)
    inside, end, _ = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{file} lacks the lines '{BEGIN}' and '{END}'")
    return inside.strip("\n")


def _introduction(results: Sequence[Result], facts: Facts) -> str:
    numbers = ", ".join(map(str, sorted({each.seed for each in results})))
    machines = "; ".join(sorted({each.machine for each in results}))
    skipped = "".join(f"\nLeft out: {line}\n" for line in facts.skipped)
    return f"""# Accuracy of the recipes

Made by `benchmarks/accuracy.py`; this command rewrites all but the findings:

```
{facts.command}
```

Each figure is the accuracy on `test/`, in percent, of the model that the training kept by `val/`: the best one of its
evaluations, with a probe also that; without `--epochs` the latest that is as good (`eval.choose`). Nothing was chosen
on `test/`. Each seed draws images to train on, half as many for `val/` (at most {MOST_TO_CHOOSE_BY}), and others for
`test/`, stratified and disjoint, and seeds the training too. {_length(facts)} Seeds: {numbers}. All methods of one
seed share images and preprocessing and, unless a recipe says otherwise, crop and flip.

{_draws(facts)}
{skipped}
Machine: {machines}.
CPU seconds are those of one whole training with its evaluations, without imports. Other work on the machine raises them
too, up to five times: compare them only within a quiet run."""


def _length(facts: Facts) -> str:
    given = facts.draws[0][1].epochs
    if given is not None:
        return f"All train for {given} epochs of batches of 32."
    return f"""Recipes choose their
length (`--epochs auto`), and the methods of others take as many steps as `auto`, of batches of 32; `{BEFORE}`
takes 3 epochs."""


def _draws(facts: Facts) -> str:
    lines = ["| set | to train on | to choose by | to test on |", "|---|---|---|---|"]
    for name, sizes in facts.draws:
        lines.append(f"| {facts.sets[name].title} | {' | '.join(map(str, sizes.counts))} |")
    return "\n".join(lines)


def _overviews(results: Sequence[Result]) -> list[str]:
    """The table of all, and with several sizes one for each."""
    sizes = sorted({each.train for each in results})
    parts = [f"## All sets and models\n\n{_overview(results)}\n\n{_HOW_TO_READ}"]
    for size in sizes if len(sizes) > 1 else ():
        parts.append(f"## {size} images\n\n{_overview([each for each in results if each.train == size])}")
    return parts


def _overview(results: Sequence[Result]) -> str:
    table = [
        f"| method | accuracy | against {BASELINE} | over seeds | over sets | against {TUNED} | over seeds | better in "
        "| CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    book, tuned = (values_of(results, name, accuracy) for name in (BASELINE, TUNED))
    for method in _methods_in(results):
        values = values_of(results, method, accuracy)
        against_book = subtract(values, book) if method != BASELINE else {}
        against_tuned = subtract(values, tuned) if method != TUNED else {}
        seconds = np.mean(list(values_of(results, method, lambda each: each.cpu_seconds).values()))
        cells = [_mean_over_places(values), *_against(against_book, with_sets=True), *_against(against_tuned)]
        table.append(f"| {method} | {' | '.join(cells)} | {_better_in(against_book)} | {seconds:.0f} |")
    return "\n".join(table)


_HOW_TO_READ = f"""Differences are paired: same set, model, seed and so images; in points of accuracy, mean over sets.
`{TUNED}` uses, run by run, the better of both rates on `val/`; it costs two trainings.
"Over seeds" is a 95 % interval (Student's t) for these sets and these models: how far other draws and seeds would move
the mean. The models and sizes of one seed share images, so their mean is one value; sets are strata whose variances add
up (Welch-Satterthwaite). Draws from one small pool overlap, so it is a little too narrow. "Over sets" takes each set as
one value: how far other data sets would move the mean; with so few sets it is wide. "Better in" counts pairs of set and
model, of each size, whose mean difference is above 0. The intervals are not corrected for their number."""


def _mean_over_places(values: Values) -> str:
    pairs: dict[tuple[str, str], list[float]] = {}
    for (data_set, model, _), value in values.items():
        pairs.setdefault((data_set, model), []).append(value)
    return f"{np.mean([np.mean(found) for found in pairs.values()]):.1f}"


def _against(differences: Values, with_sets: bool = False) -> list[str]:
    if not differences:
        return [""] * (3 if with_sets else 2)
    seeds = over_seeds(differences)
    return [f"{seeds.mean:+.1f}", _ends(seeds), *([_ends(over_sets(differences))] if with_sets else [])]


def _ends(interval: Interval) -> str:
    text = f"{interval.low:+.1f} to {interval.high:+.1f}"
    return "" if np.isnan(interval.low) else f"**{text}**" if interval.excludes_zero else text


def _better_in(differences: Values) -> str:
    if not differences:
        return ""
    pairs = sorted({place[:2] for place in differences})
    means = [np.mean([value for place, value in differences.items() if place[:2] == pair]) for pair in pairs]
    return f"{sum(mean > 0 for mean in means)} of {len(pairs)}"


def _pairs(results: Sequence[Result], facts: Facts) -> list[str]:
    order = (list(facts.sets), list(facts.models))
    pairs = {(each.data_set, each.model, each.train) for each in results}
    return [
        _pair([each for each in results if (each.data_set, each.model, each.train) == pair], facts)
        for pair in sorted(pairs, key=lambda pair: (order[0].index(pair[0]), order[1].index(pair[1]), pair[2]))
    ]


def _pair(here: Sequence[Result], facts: Facts) -> str:
    book = values_of(here, BASELINE, accuracy)
    lines = [
        "| method | accuracy | balanced accuracy | against by_the_book | 95 % interval | CPU s | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in _methods_in(here):
        values = values_of(here, method, accuracy)
        differences = list(subtract(values, book).values()) if method != BASELINE else []
        against = t_interval(differences) if differences else None
        seconds = np.mean(list(values_of(here, method, lambda each: each.cpu_seconds).values()))
        cells = [
            method,
            _spread(values),
            _spread(values_of(here, method, balanced_accuracy)),
            f"{against.mean:+.1f}" if against else "",
            _ends(against) if against else "",
            f"{seconds:.0f}",
            str(len(values)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    data_set, model = facts.sets[here[0].data_set], facts.models[here[0].model]
    return "\n".join([f"## {data_set.title}, {here[0].train} images, {model}, {data_set.side} px", "", *lines])


def _spread(values: Values) -> str:
    found = list(values.values())
    deviation = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
    return f"{np.mean(found):.1f}{deviation}"


def _auto_note(results: Sequence[Result]) -> str:
    auto = [each for each in results if each.method == AUTO]
    if not auto:
        return ""
    named = {(*each.place, each.method): each for each in results}
    own = [each for each in auto if not each.shared]
    twins = [named.get((*each.place, each.recipe)) for each in own]
    compared = [(each, twin) for each, twin in zip(own, twins, strict=True) if twin is not None]
    same = sum(each.test == twin.test for each, twin in compared)
    became = ", ".join(sorted({each.recipe for each in auto}))
    return (
        f"`{AUTO}` became {became}. Trainings of its own: {len(own)}; of {len(compared)} that can be compared with\n"
        f"the recipe by name, {same} had the same test metrics, digit by digit. The other {len(auto) - len(own)}\n"
        "figures are those of the recipe's trainings, whose configuration is the same, key by key."
    )


def _methods(results: Sequence[Result]) -> str:
    rows = [f"| {name} | `{describe(METHODS[name])}` |" for name in _methods_in(results) if name in METHODS]
    head = "Options of `python -m ddp_ft.train` besides `--data --model --weights --image-size --epochs --seed`:"
    return "\n".join(["## Methods", "", head, "", "| method | options |", "|---|---|", *rows])


def _methods_in(results: Sequence[Result]) -> list[str]:
    found = {each.method for each in results}
    order = [*METHODS]
    order.insert(order.index(BASELINE_LOWER_RATE) + 1, TUNED)
    return [name for name in order if name in found]
